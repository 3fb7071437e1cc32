output "endpoint" {
  description = "Host name of the server."
  value       = module.database.endpoint
}

output "orcheo_env" {
  description = "For `make up TARGET=external`: eval \"$(terraform output -raw orcheo_env)\""
  value       = module.database.orcheo_env
}
