# Cloud SQL for PostgreSQL with the settings of a size of ops/spec.toml. Schema, roles and PgBouncer: `make up TARGET=external` (README.md).

locals {
  rendered = jsondecode(file("${path.module}/sizes.json"))
  sizes    = local.rendered.sizes
  # An unknown size is said by the variable's validation; without this, also by every line that looks into it.
  chosen = lookup(local.sizes, var.size, values(local.sizes)[0])

  instance_class = coalesce(var.instance_class, local.chosen.class)
  storage_gb     = coalesce(var.storage_gb, local.chosen.storage_gb)
  max_storage_gb = var.max_storage_gb == null ? local.storage_gb * 5 : var.max_storage_gb
  wal_days       = min(var.backup_retention_days, var.edition == "ENTERPRISE" ? 7 : 35)

  # Name -> value.
  parameters = merge(
    { for name, each in local.chosen.parameters : name => each.value },
    var.parameters,
    var.iam_authentication ? { "cloudsql.iam_authentication" = "on" } : {},
  )
}

resource "google_sql_database_instance" "this" {
  name                = var.name
  project             = var.project_id
  region              = var.region
  database_version    = "POSTGRES_${local.rendered.postgresql}"
  encryption_key_name = var.kms_key_name
  deletion_protection = var.deletion_protection

  settings {
    tier                        = local.instance_class
    edition                     = var.edition
    availability_type           = var.high_availability ? "REGIONAL" : "ZONAL"
    disk_type                   = "PD_SSD"
    disk_size                   = local.storage_gb
    disk_autoresize             = local.max_storage_gb > 0
    disk_autoresize_limit       = local.max_storage_gb
    deletion_protection_enabled = var.deletion_protection # also against the console
    retain_backups_on_delete    = var.retain_backups
    user_labels                 = var.tags

    ip_configuration {
      ipv4_enabled       = false # no public address
      private_network    = var.network
      allocated_ip_range = var.allocated_ip_range
      ssl_mode           = var.ssl_mode
      server_ca_mode     = "GOOGLE_MANAGED_INTERNAL_CA" # an authority of this instance alone: verify-ca proves that it is the one
    }

    backup_configuration {
      enabled                        = var.backup_retention_days > 0
      point_in_time_recovery_enabled = var.backup_retention_days > 0
      transaction_log_retention_days = local.wal_days > 0 ? local.wal_days : null
      start_time                     = var.backup_start_time
      location                       = var.backup_location

      dynamic "backup_retention_settings" {
        for_each = var.backup_retention_days > 0 ? [var.backup_retention_days] : []

        content {
          retained_backups = backup_retention_settings.value
          retention_unit   = "COUNT"
        }
      }
    }

    final_backup_config {
      enabled        = var.retain_backups
      retention_days = var.retain_backups ? 30 : null
    }

    dynamic "database_flags" {
      for_each = local.parameters

      content {
        name  = database_flags.key
        value = database_flags.value
      }
    }

    insights_config {
      query_insights_enabled  = var.query_insights
      query_string_length     = 4096 # as track_activity_query_size; the default of 1024 cuts the app's longer statements
      record_application_tags = false
      record_client_address   = var.query_insights
    }

    maintenance_window {
      day          = var.maintenance_window.day
      hour         = var.maintenance_window.hour
      update_track = var.maintenance_window.update_track
    }

    password_validation_policy {
      enable_password_policy      = true
      min_length                  = 20 # bootstrap's passwords are longer; a person's short one is refused
      disallow_username_substring = true
    }
  }

  lifecycle {
    ignore_changes = [settings[0].disk_size] # it grows by itself

    precondition {
      condition     = var.kms_key_name == null || strcontains(coalesce(var.kms_key_name, "-"), "/locations/${var.region}/")
      error_message = "kms_key_name: the key is in another region than the instance (${var.region}), which Cloud SQL does not take."
    }
  }
}

resource "google_sql_database_instance" "replica" {
  count = var.read_replica_count

  name                 = "${var.name}-replica-${count.index + 1}"
  project              = var.project_id
  region               = var.region
  database_version     = google_sql_database_instance.this.database_version
  master_instance_name = google_sql_database_instance.this.name
  encryption_key_name  = var.kms_key_name
  deletion_protection  = false # nothing is lost with a replica

  settings {
    tier                  = local.instance_class
    edition               = var.edition
    availability_type     = "ZONAL"
    disk_type             = "PD_SSD"
    disk_autoresize       = local.max_storage_gb > 0
    disk_autoresize_limit = local.max_storage_gb
    user_labels           = var.tags

    ip_configuration {
      ipv4_enabled       = false
      private_network    = var.network
      allocated_ip_range = var.allocated_ip_range
      ssl_mode           = var.ssl_mode
      server_ca_mode     = "GOOGLE_MANAGED_INTERNAL_CA"
    }

    dynamic "database_flags" {
      for_each = local.parameters # a standby's max_connections and the like must not be below the primary's

      content {
        name  = database_flags.key
        value = database_flags.value
      }
    }

    insights_config {
      query_insights_enabled = var.query_insights
    }

    maintenance_window {
      day          = var.maintenance_window.day
      hour         = var.maintenance_window.hour
      update_track = var.maintenance_window.update_track
    }
  }
}

# --- who may log in --------------------------------------------------------------------------------------------------

resource "google_sql_user" "admin" {
  name                = var.admin_username
  project             = var.project_id
  instance            = google_sql_database_instance.this.name
  password_wo         = var.admin_password
  password_wo_version = var.admin_password_version
  deletion_policy     = "ABANDON" # it owns objects, so PostgreSQL would refuse to drop it; it goes with the instance
}

resource "google_sql_user" "iam" {
  for_each = toset(var.iam_users)

  name     = each.value
  project  = var.project_id
  instance = google_sql_database_instance.this.name
  type     = endswith(each.value, ".iam") ? "CLOUD_IAM_SERVICE_ACCOUNT" : "CLOUD_IAM_USER"
}

resource "google_secret_manager_secret" "admin" {
  secret_id = "${var.name}-admin"
  project   = var.project_id
  labels    = var.tags

  replication {
    auto {}
  }
}

resource "google_secret_manager_secret_version" "admin" {
  secret                 = google_secret_manager_secret.admin.id
  secret_data_wo         = var.admin_password
  secret_data_wo_version = tostring(var.admin_password_version)
}
