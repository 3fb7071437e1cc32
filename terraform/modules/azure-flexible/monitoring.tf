# The server's log and metric alerts.

resource "azurerm_monitor_diagnostic_setting" "this" {
  count = var.log_analytics_workspace_id == null ? 0 : 1

  name                       = var.name
  target_resource_id         = azurerm_postgresql_flexible_server.this.id
  log_analytics_workspace_id = var.log_analytics_workspace_id

  enabled_log {
    category = "PostgreSQLLogs"
  }

  enabled_metric {
    category = "AllMetrics"
  }
}

locals {
  alarmed = {
    cpu         = { metric = "cpu_percent", threshold = 80, why = "CPU above 80 % for a quarter of an hour" }
    memory      = { metric = "memory_percent", threshold = 95, why = "less than a twentieth of memory is left" }
    storage     = { metric = "storage_percent", threshold = 85, why = "storage is nearly full: at 95 % Azure makes the server read-only" }
    connections = { metric = "active_connections", threshold = floor(tonumber(local.parameters.max_connections) * 0.8), why = "80 % of max_connections are in use: PgBouncer's pools are planned below that" }
    wal         = { metric = "txlogs_storage_used", threshold = tonumber(local.parameters.max_wal_size) * 1024 * 1024 * 2, why = "twice max_wal_size of WAL is kept: a slot or the archive is behind" }
  }
  burstable = startswith(local.instance_class, "B_") ? { burst = "CPU credits are nearly used up: it will run at its baseline" } : {}
}

resource "azurerm_monitor_metric_alert" "this" {
  for_each = var.alarms ? local.alarmed : {}

  name                = "${var.name}-${each.key}"
  resource_group_name = var.resource_group_name
  scopes              = [azurerm_postgresql_flexible_server.this.id]
  description         = each.value.why
  severity            = 2
  frequency           = "PT5M"
  window_size         = "PT15M"
  tags                = var.tags

  criteria {
    metric_namespace = "Microsoft.DBforPostgreSQL/flexibleServers"
    metric_name      = each.value.metric
    aggregation      = "Average"
    operator         = "GreaterThan"
    threshold        = each.value.threshold
  }

  dynamic "action" {
    for_each = toset(var.action_group_ids)

    content {
      action_group_id = action.value
    }
  }
}

resource "azurerm_monitor_metric_alert" "burst" {
  for_each = var.alarms ? local.burstable : {}

  name                = "${var.name}-${each.key}"
  resource_group_name = var.resource_group_name
  scopes              = [azurerm_postgresql_flexible_server.this.id]
  description         = each.value
  severity            = 2
  frequency           = "PT5M"
  window_size         = "PT15M"
  tags                = var.tags

  criteria {
    metric_namespace = "Microsoft.DBforPostgreSQL/flexibleServers"
    metric_name      = "cpu_credits_remaining"
    aggregation      = "Average"
    operator         = "LessThan"
    threshold        = 30
  }

  dynamic "action" {
    for_each = toset(var.action_group_ids)

    content {
      action_group_id = action.value
    }
  }
}

resource "azurerm_monitor_metric_alert" "replica_lag" {
  count = var.alarms ? var.read_replica_count : 0

  name                = "${var.name}-replica-${count.index + 1}-lag"
  resource_group_name = var.resource_group_name
  scopes              = [azurerm_postgresql_flexible_server.replica[count.index].id]
  description         = "the replica is more than a minute behind"
  severity            = 2
  frequency           = "PT5M"
  window_size         = "PT15M"
  tags                = var.tags

  criteria {
    metric_namespace = "Microsoft.DBforPostgreSQL/flexibleServers"
    metric_name      = "physical_replication_delay_in_seconds"
    aggregation      = "Maximum"
    operator         = "GreaterThan"
    threshold        = 60
  }

  dynamic "action" {
    for_each = toset(var.action_group_ids)

    content {
      action_group_id = action.value
    }
  }
}
