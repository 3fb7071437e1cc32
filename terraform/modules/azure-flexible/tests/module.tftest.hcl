# Against the provider's schema, with a mocked cloud: what the module asks for.

mock_provider "azurerm" {
  source = "./tests/mocks"
}

variables {
  resource_group_name = "orcheo"
  location            = "westeurope"
  delegated_subnet_id = "/subscriptions/0/resourceGroups/orcheo/providers/Microsoft.Network/virtualNetworks/main/subnets/database"
  private_dns_zone_id = "/subscriptions/0/resourceGroups/orcheo/providers/Microsoft.Network/privateDnsZones/orcheo.private.postgres.database.azure.com"
  admin_password      = "0123456789abcdef0123456789abcdef"
}

run "defaults" {
  assert {
    condition     = azurerm_postgresql_flexible_server.this.sku_name == jsondecode(file("sizes.json")).sizes.small.class && azurerm_postgresql_flexible_server.this.version == "17"
    error_message = "size small is what sizes.json says"
  }

  assert {
    condition     = azurerm_postgresql_flexible_server.this.storage_mb == 1024 * jsondecode(file("sizes.json")).sizes.small.storage_gb && azurerm_postgresql_flexible_server.this.auto_grow_enabled
    error_message = "storage, which grows"
  }

  assert {
    condition     = !azurerm_postgresql_flexible_server.this.public_network_access_enabled && azurerm_management_lock.this[0].lock_level == "CanNotDelete"
    error_message = "private, and not lost by accident"
  }

  assert {
    condition     = azurerm_postgresql_flexible_server.this.administrator_password == null && azurerm_postgresql_flexible_server.this.administrator_password_wo == null && length(azurerm_key_vault_secret.admin) == 0
    error_message = "no password is in the state"
  }

  assert {
    condition     = length(azurerm_postgresql_flexible_server.this.high_availability) == 0 && length(azurerm_postgresql_flexible_server.replica) == 0 && azurerm_postgresql_flexible_server.this.backup_retention_days == 14
    error_message = "one server, two weeks of backups"
  }

  assert {
    condition     = toset(keys(azurerm_monitor_metric_alert.this)) == toset(["cpu", "memory", "storage", "connections", "wal"]) && length(azurerm_monitor_metric_alert.burst) == 1
    error_message = "alarms"
  }

  assert {
    condition     = output.endpoint == "orcheo-db.postgres.database.azure.com" && output.port == 5432 && output.database == "orcheo" && output.admin_secret == null
    error_message = "where it is"
  }

  assert {
    condition     = strcontains(output.orcheo_env, "export ORCHEO_DB_ADMIN_DSN='postgresql://orcheo_admin@orcheo-db.postgres.database.azure.com:5432/postgres?sslmode=verify-full'") && !strcontains(output.orcheo_env, "keyvault")
    error_message = "the environment of make up TARGET=external: ${output.orcheo_env}"
  }
}

run "parameters_are_the_rendered_ones" {
  variables {
    size = "large"
  }

  assert {
    condition = {
      for name, each in azurerm_postgresql_flexible_server_configuration.this : name => each.value
      } == {
      for name, each in jsondecode(file("sizes.json")).sizes.large.parameters : name => each.value
    }
    error_message = "the parameters are not sizes.json's"
  }
}

run "parameters_of_ones_own_win" {
  variables {
    parameters = { work_mem = "12345", "pgaudit.log" = "ddl" }
  }

  assert {
    condition     = azurerm_postgresql_flexible_server_configuration.this["work_mem"].value == "12345" && azurerm_postgresql_flexible_server_configuration.this["pgaudit.log"].value == "ddl"
    error_message = "values of one's own"
  }
}

run "high_availability_and_replicas" {
  variables {
    size               = "medium"
    high_availability  = true
    read_replica_count = 2
  }

  assert {
    condition     = azurerm_postgresql_flexible_server.this.high_availability[0].mode == "ZoneRedundant" && length(azurerm_postgresql_flexible_server.replica) == 2
    error_message = "a standby and two replicas"
  }

  assert {
    condition     = alltrue([for each in azurerm_postgresql_flexible_server.replica : each.create_mode == "Replica" && each.source_server_id == azurerm_postgresql_flexible_server.this.id && !each.public_network_access_enabled])
    error_message = "replicas of it, private"
  }

  assert {
    condition     = length(azurerm_monitor_metric_alert.replica_lag) == 2 && length(azurerm_monitor_metric_alert.burst) == 0
    error_message = "watched, too"
  }
}

run "a_key_and_a_vault_of_ones_own" {
  variables {
    key_vault_id               = "/subscriptions/0/resourceGroups/orcheo/providers/Microsoft.KeyVault/vaults/orcheo"
    log_analytics_workspace_id = "/subscriptions/0/resourceGroups/orcheo/providers/Microsoft.OperationalInsights/workspaces/logs"
    action_group_ids           = ["/subscriptions/0/resourceGroups/orcheo/providers/Microsoft.Insights/actionGroups/dba"]

    customer_managed_key = {
      key_vault_key_id = "https://orcheo.vault.azure.net/keys/k/1"
      identity_id      = "/subscriptions/0/resourceGroups/orcheo/providers/Microsoft.ManagedIdentity/userAssignedIdentities/db"
    }
  }

  assert {
    condition     = azurerm_postgresql_flexible_server.this.customer_managed_key[0].key_vault_key_id == "https://orcheo.vault.azure.net/keys/k/1" && contains(azurerm_postgresql_flexible_server.this.identity[0].identity_ids, "/subscriptions/0/resourceGroups/orcheo/providers/Microsoft.ManagedIdentity/userAssignedIdentities/db")
    error_message = "the key and who may use it"
  }

  assert {
    condition     = azurerm_key_vault_secret.admin[0].value == null && azurerm_key_vault_secret.admin[0].value_wo == null && strcontains(output.orcheo_env, "az keyvault secret show --id 'https://orcheo.vault.azure.net/secrets/orcheo-db-admin'")
    error_message = "the vault has the password, the state has not"
  }

  assert {
    condition     = length(azurerm_monitor_diagnostic_setting.this) == 1 && one(azurerm_monitor_metric_alert.this["cpu"].action).action_group_id == "/subscriptions/0/resourceGroups/orcheo/providers/Microsoft.Insights/actionGroups/dba"
    error_message = "log and alarms go where they shall"
  }
}

run "entra" {
  variables {
    iam_authentication = true
    tenant_id          = "00000000-0000-0000-0000-000000000000"
  }

  assert {
    condition     = azurerm_postgresql_flexible_server.this.authentication[0].active_directory_auth_enabled && azurerm_postgresql_flexible_server.this.authentication[0].password_auth_enabled
    error_message = "besides passwords"
  }
}
