output "arn" {
  description = "ARN of the copied backups."
  value       = aws_db_instance_automated_backups_replication.this.id
}
