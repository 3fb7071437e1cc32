# Every validation refuses what it should: before anything is asked of the cloud.

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

run "name_upper" {
  command = plan

  variables {
    name = "Orcheo"
  }

  expect_failures = [var.name]
}

run "name_short" {
  command = plan

  variables {
    name = "db"
  }

  expect_failures = [var.name]
}

run "resource_group_name_empty" {
  command = plan

  variables {
    resource_group_name = ""
  }

  expect_failures = [var.resource_group_name]
}

run "location_words" {
  command = plan

  variables {
    location = "West Europe"
  }

  expect_failures = [var.location]
}

run "size_unknown" {
  command = plan

  variables {
    size = "huge"
  }

  expect_failures = [var.size]
}

run "instance_class_no_tier" {
  command = plan

  variables {
    instance_class = "Standard_D4ds_v5"
  }

  expect_failures = [var.instance_class]
}

run "admin_username_reserved" {
  command = plan

  variables {
    admin_username = "azure_superuser"
  }

  expect_failures = [var.admin_username]
}

run "admin_username_pg" {
  command = plan

  variables {
    admin_username = "pg_admin"
  }

  expect_failures = [var.admin_username]
}

run "admin_password_short" {
  command = plan

  variables {
    admin_password = "short"
  }

  expect_failures = [var.admin_password]
}

run "admin_password_version_zero" {
  command = plan

  variables {
    admin_password_version = 0
  }

  expect_failures = [var.admin_password_version]
}

run "key_vault_id_address" {
  command = plan

  variables {
    key_vault_id = "https://x.vault.azure.net"
  }

  expect_failures = [var.key_vault_id]
}

run "delegated_subnet_id_network" {
  command = plan

  variables {
    delegated_subnet_id = "/subscriptions/0/resourceGroups/orcheo/providers/Microsoft.Network/virtualNetworks/main"
  }

  expect_failures = [var.delegated_subnet_id]
}

run "private_dns_zone_id_other" {
  command = plan

  variables {
    private_dns_zone_id = "/subscriptions/0/resourceGroups/o/providers/Microsoft.Network/privateDnsZones/example.com"
  }

  expect_failures = [var.private_dns_zone_id]
}

run "tenant_id_without_iam" {
  command = plan

  variables {
    tenant_id = "00000000-0000-0000-0000-000000000000"
  }

  expect_failures = [var.tenant_id]
}

run "tenant_id_missing" {
  command = plan

  variables {
    iam_authentication = true
  }

  expect_failures = [var.tenant_id]
}

run "storage_gb_between" {
  command = plan

  variables {
    storage_gb = 100
  }

  expect_failures = [var.storage_gb]
}

run "high_availability_burstable" {
  command = plan

  variables {
    high_availability = true
  }

  expect_failures = [var.high_availability]
}

run "zone_four" {
  command = plan

  variables {
    zone = "4"
  }

  expect_failures = [var.zone]
}

run "read_replica_count_many" {
  command = plan

  variables {
    size               = "medium"
    read_replica_count = 6
  }

  expect_failures = [var.read_replica_count]
}

run "read_replica_count_burstable" {
  command = plan

  variables {
    read_replica_count = 1
  }

  expect_failures = [var.read_replica_count]
}

run "backup_retention_days_short" {
  command = plan

  variables {
    backup_retention_days = 6
  }

  expect_failures = [var.backup_retention_days]
}

run "maintenance_window_day" {
  command = plan

  variables {
    maintenance_window = { day = 7, hour = 3 }
  }

  expect_failures = [var.maintenance_window]
}

run "parameters_tls" {
  command = plan

  variables {
    parameters = { require_secure_transport = "off" }
  }

  expect_failures = [var.parameters]
}

run "customer_managed_key_no_identity" {
  command = plan

  variables {
    customer_managed_key = { key_vault_key_id = "https://x.vault.azure.net/keys/k/1", identity_id = "me" }
  }

  expect_failures = [var.customer_managed_key]
}

run "log_analytics_workspace_id_name" {
  command = plan

  variables {
    log_analytics_workspace_id = "logs"
  }

  expect_failures = [var.log_analytics_workspace_id]
}

run "action_group_ids_mail" {
  command = plan

  variables {
    action_group_ids = ["dba@example.com"]
  }

  expect_failures = [var.action_group_ids]
}
