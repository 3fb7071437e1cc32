output "endpoint" {
  description = "Host name of the primary; it stays the same when the standby takes over."
  value       = azurerm_postgresql_flexible_server.this.fqdn
}

output "port" {
  description = "TCP port."
  value       = 5432
}

output "database" {
  description = "The database that bootstrap makes."
  value       = local.rendered.database
}

output "replica_endpoints" {
  description = "Host names of the read replicas."
  value       = azurerm_postgresql_flexible_server.replica[*].fqdn
}

output "ca_certificates" {
  description = "The roots that Azure's certificates come from. Public ones: the system's bundle has them, and sslrootcert need not be given."
  value       = ["DigiCert Global Root G2", "Microsoft RSA Root Certificate Authority 2017"]
}

output "admin_secret" {
  description = "The administrator's secret in Key Vault; null without key_vault_id."
  value       = one(azurerm_key_vault_secret.admin[*].versionless_id)
}

output "orcheo_env" {
  description = "The environment of `make up TARGET=external`, for a shell: eval \"$(terraform output -raw orcheo_env)\". It asks Key Vault for the password (without one, you give it), and holds none."
  value       = <<-EOT
    export ORCHEO_DB_ADMIN_DSN='postgresql://${var.admin_username}@${azurerm_postgresql_flexible_server.this.fqdn}:5432/postgres?sslmode=verify-full'
    ${var.key_vault_id == null ? "# ORCHEO_DB_ADMIN_PASSWORD: the admin_password that you gave" : "export ORCHEO_DB_ADMIN_PASSWORD=\"$(az keyvault secret show --id '${azurerm_key_vault_secret.admin[0].versionless_id}' --query value --output tsv)\""}
    export ORCHEO_DB_INSTANCE='${azurerm_postgresql_flexible_server.this.id}'
    export ORCHEO_DB_SIZE='${var.size}'
  EOT
}

output "parameters" {
  description = "What is set, in Azure's units."
  value       = local.parameters
}

output "identifier" {
  description = "The server's resource id, for az and `orcheo-db --target external drill`."
  value       = azurerm_postgresql_flexible_server.this.id
}
