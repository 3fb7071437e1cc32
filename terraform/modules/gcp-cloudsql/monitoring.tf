# Cloud Monitoring's policies. Averages of five minutes.

locals {
  alarmed = {
    cpu         = { metric = "database/cpu/utilization", threshold = 0.8, why = "CPU above 80 %" }
    memory      = { metric = "database/memory/utilization", threshold = 0.95, why = "less than a twentieth of memory is left" }
    storage     = { metric = "database/disk/utilization", threshold = 0.9, why = "storage is nine tenths full" }
    connections = { metric = "database/postgresql/num_backends", threshold = floor(tonumber(local.parameters.max_connections) * 0.8), why = "80 % of max_connections are in use: PgBouncer's pools are planned below that" }
    wraparound  = { metric = "database/postgresql/transaction_id_utilization", threshold = 0.5, why = "vacuum does not keep up with freezing: half of the transaction ids are used" }
  }
  watched = merge(
    { for key, each in local.alarmed : key => merge(each, { instance = var.name }) },
    { for number in range(1, var.read_replica_count + 1) : "replica-${number}-lag" => {
      metric    = "database/replication/replica_lag"
      threshold = 60 # seconds
      why       = "the replica is more than a minute behind"
      instance  = "${var.name}-replica-${number}"
    } },
  )
}

resource "google_monitoring_alert_policy" "this" {
  for_each = var.alarms ? local.watched : {}

  project               = var.project_id
  display_name          = "${var.name}: ${each.key}"
  combiner              = "OR"
  notification_channels = var.notification_channels
  user_labels           = var.tags

  conditions {
    display_name = each.value.why

    condition_threshold {
      filter = join(" AND ", [
        "metric.type = \"cloudsql.googleapis.com/${each.value.metric}\"",
        "resource.type = \"cloudsql_database\"",
        "resource.labels.database_id = \"${var.project_id}:${each.value.instance}\"",
      ])
      comparison      = "COMPARISON_GT"
      threshold_value = each.value.threshold
      duration        = "900s"

      aggregations {
        alignment_period     = "300s"
        per_series_aligner   = "ALIGN_MEAN"
        cross_series_reducer = "REDUCE_SUM" # of databases, for connections; the others have one series
      }
    }
  }

  documentation {
    content = each.value.why
  }

  depends_on = [google_sql_database_instance.this, google_sql_database_instance.replica]
}
