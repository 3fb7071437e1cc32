variable "instance_arn" {
  description = "ARN of the instance whose backups are copied; it has backup_retention_days of at least 1."
  type        = string

  validation {
    condition     = can(regex("^arn:[a-z-]+:rds:[a-z0-9-]+:[0-9]{12}:db:", var.instance_arn))
    error_message = "instance_arn: an instance's ARN, arn:aws:rds:REGION:ACCOUNT:db:NAME."
  }
}

variable "name" {
  description = "Name, for the key's description."
  type        = string
  default     = "orcheo-db"
}

variable "backup_retention_days" {
  description = "Days for which the copies are kept."
  type        = number
  default     = 14

  validation {
    condition     = var.backup_retention_days >= 1 && var.backup_retention_days <= 35 && floor(var.backup_retention_days) == var.backup_retention_days
    error_message = "backup_retention_days: 1 to 35."
  }
}

variable "kms_key_arn" {
  description = "A key of that region. null: the module makes one."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of the key."
  type        = map(string)
  default     = {}
}
