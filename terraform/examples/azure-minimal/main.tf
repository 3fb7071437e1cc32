# The least: one server of size small, with the network and the DNS zone that it wants.

provider "azurerm" {
  features {
    postgresql_flexible_server {
      restart_server_on_configuration_value_change = false # restarts are yours to time (the module's README.md)
    }
  }

  subscription_id = var.subscription_id
}

resource "azurerm_resource_group" "this" {
  name     = var.name
  location = var.location
}

resource "azurerm_virtual_network" "this" {
  name                = var.name
  resource_group_name = azurerm_resource_group.this.name
  location            = azurerm_resource_group.this.location
  address_space       = ["10.42.0.0/16"]
}

resource "azurerm_subnet" "database" {
  #checkov:skip=CKV2_AZURE_31:the least: the network has no other machines and no public address; rules are the owner's to say
  name                 = "database"
  resource_group_name  = azurerm_resource_group.this.name
  virtual_network_name = azurerm_virtual_network.this.name
  address_prefixes     = ["10.42.1.0/24"]

  delegation {
    name = "postgresql"

    service_delegation {
      name    = "Microsoft.DBforPostgreSQL/flexibleServers"
      actions = ["Microsoft.Network/virtualNetworks/subnets/join/action"]
    }
  }
}

resource "azurerm_subnet" "app" {
  #checkov:skip=CKV2_AZURE_31:the least: the network has no other machines and no public address; rules are the owner's to say
  name                 = "app"
  resource_group_name  = azurerm_resource_group.this.name
  virtual_network_name = azurerm_virtual_network.this.name
  address_prefixes     = ["10.42.2.0/24"]
}

resource "azurerm_private_dns_zone" "this" {
  name                = "${var.name}.private.postgres.database.azure.com"
  resource_group_name = azurerm_resource_group.this.name
}

resource "azurerm_private_dns_zone_virtual_network_link" "this" {
  name                = var.name
  private_dns_zone_id = azurerm_private_dns_zone.this.id
  virtual_network_id  = azurerm_virtual_network.this.id
}

module "database" {
  source = "../../modules/azure-flexible"

  name                = var.name
  resource_group_name = azurerm_resource_group.this.name
  location            = azurerm_resource_group.this.location
  delegated_subnet_id = azurerm_subnet.database.id
  private_dns_zone_id = azurerm_private_dns_zone.this.id
  admin_password      = var.admin_password

  depends_on = [azurerm_private_dns_zone_virtual_network_link.this]
}
