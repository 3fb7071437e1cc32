output "endpoint" {
  description = "Host name of the server."
  value       = module.database.endpoint
}

output "app_subnet_id" {
  description = "For the machines that PgBouncer and Orcheo run on."
  value       = azurerm_subnet.app.id
}

output "orcheo_env" {
  description = "For `make up TARGET=external`: eval \"$(terraform output -raw orcheo_env)\""
  value       = module.database.orcheo_env
}
