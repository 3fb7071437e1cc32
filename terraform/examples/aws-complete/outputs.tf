output "endpoint" {
  description = "Host name of the primary."
  value       = module.database.endpoint
}

output "replica_endpoints" {
  description = "Host names of the replicas."
  value       = module.database.replica_endpoints
}

output "app_security_group_id" {
  description = "For the machines that PgBouncer and Orcheo run on."
  value       = aws_security_group.app.id
}

output "app_subnet_ids" {
  description = "Subnets that those machines may be in."
  value       = aws_subnet.private[*].id
}

output "orcheo_env" {
  description = "For `make up TARGET=external`: eval \"$(terraform output -raw orcheo_env)\""
  value       = module.database.orcheo_env
}

output "admin_secret" {
  description = "ARN of the secret with the administrator's password."
  value       = module.database.admin_secret
}
