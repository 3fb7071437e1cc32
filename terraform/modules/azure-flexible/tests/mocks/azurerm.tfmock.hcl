# What a mocked Azure answers, where a made-up word would not do.

mock_resource "azurerm_postgresql_flexible_server" {
  defaults = {
    id   = "/subscriptions/0/resourceGroups/orcheo/providers/Microsoft.DBforPostgreSQL/flexibleServers/orcheo-db"
    fqdn = "orcheo-db.postgres.database.azure.com"
  }
}

mock_resource "azurerm_key_vault_secret" {
  defaults = { versionless_id = "https://orcheo.vault.azure.net/secrets/orcheo-db-admin" }
}
