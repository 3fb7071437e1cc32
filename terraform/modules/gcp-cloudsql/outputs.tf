output "endpoint" {
  description = "Private address of the primary; it stays the same when the standby takes over."
  value       = google_sql_database_instance.this.private_ip_address
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
  description = "Private addresses of the read replicas."
  value       = google_sql_database_instance.replica[*].private_ip_address
}

output "connection_name" {
  description = "PROJECT:REGION:INSTANCE, as the Auth Proxy takes it; its socket is /cloudsql/PROJECT:REGION:INSTANCE."
  value       = google_sql_database_instance.this.connection_name
}

output "ca_certificate" {
  description = "The instance's own authority (PEM), with the next one while it changes: what clients verify the server with, by sslmode=verify-ca."
  value       = local.ca
}

output "admin_secret" {
  description = "The administrator's secret in Secret Manager: projects/…/secrets/NAME."
  value       = google_secret_manager_secret.admin.id
}

output "orcheo_env" {
  description = "The environment of `make up TARGET=external`, for a shell: eval \"$(terraform output -raw orcheo_env)\". It asks Secret Manager for the password, and holds none."
  value       = <<-EOT
    printf '%s' '${local.ca}' > cloudsql-ca.pem
    ${local.client_certificate}
    export ORCHEO_DB_ADMIN_DSN='postgresql://${var.admin_username}@${google_sql_database_instance.this.private_ip_address}:5432/postgres?sslmode=verify-ca&sslrootcert='"$PWD"'/cloudsql-ca.pem${local.client_options}'
    export ORCHEO_DB_ADMIN_PASSWORD="$(gcloud secrets versions access latest --secret='${google_secret_manager_secret.admin.secret_id}' --project='${var.project_id}')"
    export ORCHEO_DB_INSTANCE='projects/${var.project_id}/instances/${google_sql_database_instance.this.name}'
    export ORCHEO_DB_SIZE='${var.size}'
  EOT
}

output "parameters" {
  description = "What is set, in Cloud SQL's units."
  value       = local.parameters
}

output "identifier" {
  description = "projects/PROJECT/instances/NAME, for `orcheo-db --target external drill`."
  value       = "projects/${var.project_id}/instances/${google_sql_database_instance.this.name}"
}

locals {
  ca       = join("\n", google_sql_database_instance.this.server_ca_cert[*].cert)
  verified = var.ssl_mode == "TRUSTED_CLIENT_CERTIFICATE_REQUIRED"
  # The key is made where it is used, once: Terraform would keep it in its state.
  client_certificate = !local.verified ? "" : join(" && ", [
    "{ [ -s client-key.pem ] || (umask 077; gcloud sql ssl client-certs create \"orcheo-$(hostname)\" client-key.pem --instance='${var.name}' --project='${var.project_id}'",
    "gcloud sql ssl client-certs describe \"orcheo-$(hostname)\" --instance='${var.name}' --project='${var.project_id}' --format='value(cert)' > client-cert.pem); }",
  ])
  client_options = local.verified ? "&sslcert='\"$PWD\"'/client-cert.pem&sslkey='\"$PWD\"'/client-key.pem" : ""
}
