output "endpoint" {
  description = "Private address of the primary."
  value       = module.database.endpoint
}

output "connection_name" {
  description = "For the Auth Proxy."
  value       = module.database.connection_name
}

output "app_subnetwork" {
  description = "For the machines that PgBouncer and Orcheo run on."
  value       = google_compute_subnetwork.app.id
}

output "orcheo_env" {
  description = "For `make up TARGET=external`: eval \"$(terraform output -raw orcheo_env)\""
  value       = module.database.orcheo_env
}
