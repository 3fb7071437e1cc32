output "endpoint" {
  description = "Host name of the primary; it stays the same when the standby takes over."
  value       = aws_db_instance.this.address
}

output "port" {
  description = "TCP port."
  value       = aws_db_instance.this.port
}

output "database" {
  description = "The database that bootstrap makes."
  value       = local.rendered.database
}

output "replica_endpoints" {
  description = "Host names of the read replicas."
  value       = aws_db_instance.replica[*].address
}

output "ca_certificate_url" {
  description = "Where the certificates of RDS' authorities are (every region's): what clients verify the server with."
  value       = local.ca_url
}

output "admin_secret" {
  description = "ARN of the administrator's secret in Secrets Manager: RDS made its password and changes it every seven days, or it is admin_password."
  value       = local.admin_secret
}

output "orcheo_env" {
  description = "The environment of `make up TARGET=external`, for a shell: eval \"$(terraform output -raw orcheo_env)\". It asks Secrets Manager for the password, and holds none."
  value       = <<-EOT
    curl --fail --silent --show-error --output rds-ca.pem ${local.ca_url}
    export ORCHEO_DB_ADMIN_DSN='postgresql://${var.admin_username}@${aws_db_instance.this.address}:${aws_db_instance.this.port}/postgres?sslmode=verify-full&sslrootcert='"$PWD"'/rds-ca.pem'
    export ORCHEO_DB_ADMIN_PASSWORD="$(aws secretsmanager get-secret-value --region ${local.region} --secret-id '${local.admin_secret}' --query SecretString --output text | python3 -c 'import json, sys; print(json.load(sys.stdin)["password"])')"
    export ORCHEO_DB_INSTANCE='${aws_db_instance.this.arn}'
    export ORCHEO_DB_SIZE='${var.size}'
  EOT
}

output "security_group_id" {
  description = "The instance's security group."
  value       = aws_security_group.this.id
}

output "parameter_group" {
  description = "Name of the parameter group."
  value       = aws_db_parameter_group.this.name
}

output "parameters" {
  description = "What is set, in RDS' units: for `orcheo-db tune --target rds` to compare with."
  value       = { for name, each in local.parameters : name => each.value }
}

output "kms_key_arn" {
  description = "The key that everything is encrypted with."
  value       = local.kms_key_arn
}

output "instance_arn" {
  description = "The instance's ARN: for modules/backup-copy, and for `orcheo-db --target external drill`."
  value       = aws_db_instance.this.arn
}

output "identifier" {
  description = "The instance's identifier, for the AWS command line."
  value       = aws_db_instance.this.identifier
}

output "alarm_topic_arn" {
  description = "The topic that alarms go to; null without alarms."
  value       = local.topic_arn
}

locals {
  region = split(":", aws_db_instance.this.arn)[3]
  ca_url = startswith(local.region, "us-gov-") ? "https://truststore.pki.us-gov-west-1.rds.amazonaws.com/global/global-bundle.pem" : startswith(local.region, "cn-") ? "https://rds-truststore.s3.cn-north-1.amazonaws.com.cn/global/global-bundle.pem" : "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem"
}
