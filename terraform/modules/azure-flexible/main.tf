# Azure Database for PostgreSQL, flexible server, with the settings of a size of ops/spec.toml. Schema, roles and PgBouncer:
# `make up TARGET=external` (README.md).

locals {
  rendered = jsondecode(file("${path.module}/sizes.json"))
  sizes    = local.rendered.sizes
  # An unknown size is said by the variable's validation; without this, also by every line that looks into it.
  chosen = lookup(local.sizes, var.size, values(local.sizes)[0])

  instance_class = coalesce(var.instance_class, local.chosen.class)
  storage_gb     = coalesce(var.storage_gb, local.chosen.storage_gb)

  # Name -> value.
  parameters = merge({ for name, each in local.chosen.parameters : name => each.value }, var.parameters)
}

resource "azurerm_postgresql_flexible_server" "this" {
  #checkov:skip=CKV_AZURE_136:geo_redundant_backup is an option: it doubles the price of backups
  name                = var.name
  resource_group_name = var.resource_group_name
  location            = var.location
  version             = tostring(local.rendered.postgresql)
  sku_name            = local.instance_class
  storage_mb          = local.storage_gb * 1024
  auto_grow_enabled   = var.storage_autogrow
  zone                = var.zone
  tags                = var.tags

  administrator_login               = var.admin_username
  administrator_password_wo         = var.admin_password
  administrator_password_wo_version = var.admin_password_version

  backup_retention_days        = var.backup_retention_days
  geo_redundant_backup_enabled = var.geo_redundant_backup

  public_network_access_enabled = false
  delegated_subnet_id           = var.delegated_subnet_id
  private_dns_zone_id           = var.private_dns_zone_id

  authentication {
    password_auth_enabled         = true
    active_directory_auth_enabled = var.iam_authentication
    tenant_id                     = var.tenant_id
  }

  dynamic "high_availability" {
    for_each = var.high_availability ? ["ZoneRedundant"] : []

    content {
      mode = high_availability.value
    }
  }

  maintenance_window {
    day_of_week  = var.maintenance_window.day
    start_hour   = var.maintenance_window.hour
    start_minute = var.maintenance_window.minute
  }

  dynamic "identity" {
    for_each = var.customer_managed_key[*]

    content {
      type         = "UserAssigned"
      identity_ids = [identity.value.identity_id]
    }
  }

  dynamic "customer_managed_key" {
    for_each = var.customer_managed_key[*]

    content {
      key_vault_key_id                  = customer_managed_key.value.key_vault_key_id
      primary_user_assigned_identity_id = customer_managed_key.value.identity_id
    }
  }

  lifecycle {
    prevent_destroy = true # a lock is Terraform's own to remove, and goes before the server (README.md)

    # Azure chooses zones and changes them at a failover; storage grows by itself.
    ignore_changes = [zone, high_availability[0].standby_availability_zone, storage_mb]
  }
}

# One after the other: Azure refuses a second change while one is made, and the provider waits for each by the server's lock.
resource "azurerm_postgresql_flexible_server_configuration" "this" {
  for_each = local.parameters

  server_id = azurerm_postgresql_flexible_server.this.id
  name      = each.key
  value     = each.value
}

resource "azurerm_postgresql_flexible_server" "replica" {
  #checkov:skip=CKV_AZURE_136:a replica has no backups of its own
  count = var.read_replica_count

  name                          = "${var.name}-replica-${count.index + 1}"
  resource_group_name           = var.resource_group_name
  location                      = var.location
  create_mode                   = "Replica"
  source_server_id              = azurerm_postgresql_flexible_server.this.id
  sku_name                      = local.instance_class
  auto_grow_enabled             = var.storage_autogrow
  public_network_access_enabled = false
  delegated_subnet_id           = var.delegated_subnet_id
  private_dns_zone_id           = var.private_dns_zone_id
  tags                          = var.tags

  lifecycle {
    ignore_changes = [zone, storage_mb]
  }

  depends_on = [azurerm_postgresql_flexible_server_configuration.this] # a standby takes its settings at its start
}

resource "azurerm_management_lock" "this" {
  count = var.deletion_protection ? 1 : 0

  name       = "${var.name}-keep"
  scope      = azurerm_postgresql_flexible_server.this.id
  lock_level = "CanNotDelete"
  notes      = "Orcheo's database: set deletion_protection = false and apply, before it can be deleted."
}

resource "azurerm_key_vault_secret" "admin" {
  #checkov:skip=CKV_AZURE_41:an expired secret would lock out who has to restore
  count = var.key_vault_id == null ? 0 : 1

  name             = "${var.name}-admin"
  key_vault_id     = var.key_vault_id
  content_type     = "password of ${var.admin_username}"
  value_wo         = var.admin_password
  value_wo_version = var.admin_password_version
  tags             = var.tags
}
