variable "name" {
  description = "Name of the instance and of everything that belongs to it."
  type        = string
  default     = "orcheo-db"

  validation {
    condition     = can(regex("^[a-z](-?[a-z0-9])*$", var.name)) && length(var.name) <= 40
    error_message = "name: lower-case letters, digits and single hyphens, a letter first, at most 40 characters (suffixes must fit into the 63 that RDS takes)."
  }
}

variable "size" {
  description = "A size of ops/spec.toml: chooses instance class, storage and parameters from sizes.json, which `make render` writes."
  type        = string
  default     = "small"

  validation {
    condition     = contains(keys(local.sizes), var.size)
    error_message = "size: accepted are ${join(", ", keys(local.sizes))}."
  }
}

variable "engine_version" {
  description = "PostgreSQL's version that the instance is made with: the major one alone takes RDS' newest minor one. Later minor versions come in the maintenance window, and are no drift."
  type        = string
  default     = null # the spec's

  validation {
    condition     = var.engine_version == null || can(regex("^${local.rendered.postgresql}([.][0-9]+)?$", var.engine_version))
    error_message = "engine_version: ${local.rendered.postgresql} or ${local.rendered.postgresql}.N; another major version is the spec's to say ([versions] postgresql, then make render)."
  }
}

variable "instance_class" {
  description = "Another instance class than the size's; the parameters stay the size's."
  type        = string
  default     = null

  validation {
    condition     = var.instance_class == null || can(regex("^db[.][a-z0-9-]+[.][a-z0-9]+$", var.instance_class))
    error_message = "instance_class: an RDS class such as db.m7g.large."
  }
}

variable "admin_username" {
  description = "The administrator: RDS makes it with rds_superuser; bootstrap needs its CREATEROLE and CREATEDB."
  type        = string
  default     = "orcheo_admin"

  validation {
    condition     = can(regex("^[a-z][a-z0-9_]{0,62}$", var.admin_username)) && !contains(["rdsadmin", "admin", "postgres"], var.admin_username)
    error_message = "admin_username: a letter, then lower-case letters, digits and underscores; not rdsadmin or admin, which RDS reserves, nor postgres, which is the superuser elsewhere."
  }
}

variable "admin_password" {
  description = "The administrator's password, with read_replica_count or blue_green_ready alone: RDS has neither for an instance whose password it manages. It goes to RDS and into a secret of Secrets Manager, and into no state or plan."
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true

  validation {
    condition     = var.admin_password == null || can(regex("^[A-Za-z0-9_.~-]{20,128}$", var.admin_password))
    error_message = "admin_password: 20 to 128 letters, digits, _ . ~ - (it stands in DSNs), for example from openssl rand -hex 24."
  }

  validation {
    condition     = var.admin_password != null || !(var.read_replica_count > 0 || var.blue_green_ready)
    error_message = "admin_password: RDS makes no replica and no blue/green deployment of an instance whose password it manages: give one, at every plan (from the secret, once it is there)."
  }
}

variable "admin_password_version" {
  description = "Raise it together with a new admin_password: Terraform can't see that a write-only value has changed."
  type        = number
  default     = 1

  validation {
    condition     = var.admin_password_version >= 1 && floor(var.admin_password_version) == var.admin_password_version
    error_message = "admin_password_version: 1, 2, 3 …"
  }
}

# --- network ---------------------------------------------------------------------------------------------------------

variable "vpc_id" {
  description = "The VPC."
  type        = string

  validation {
    condition     = can(regex("^vpc-[0-9a-f]+$", var.vpc_id))
    error_message = "vpc_id: a VPC's id, vpc-…"
  }
}

variable "subnet_ids" {
  description = "Private subnets in at least two availability zones."
  type        = list(string)

  validation {
    condition     = length(distinct(var.subnet_ids)) >= 2
    error_message = "subnet_ids: at least two subnets, in different availability zones: RDS wants them also for one instance."
  }
}

variable "allowed_security_groups" {
  description = "Security groups whose members may connect: where PgBouncer and the init job run."
  type        = list(string)
  default     = []
}

variable "allowed_cidrs" {
  description = "Address ranges that may connect."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.allowed_cidrs : can(cidrhost(cidr, 0)) && !endswith(cidr, "/0")])
    error_message = "allowed_cidrs: IPv4 or IPv6 ranges such as 10.0.0.0/16; never the whole internet (/0)."
  }
}

variable "port" {
  description = "TCP port."
  type        = number
  default     = 5432

  validation {
    condition     = var.port >= 1150 && var.port <= 65535
    error_message = "port: RDS takes 1150 to 65535."
  }
}

variable "iam_authentication" {
  description = "Whether roles with rds_iam may log in by an IAM token. The app's logins have passwords: PgBouncer can't hand tokens on."
  type        = bool
  default     = false
}

# --- storage, availability -------------------------------------------------------------------------------------------

variable "storage_gb" {
  description = "Storage in GiB, other than the size's."
  type        = number
  default     = null

  validation {
    condition     = var.storage_gb == null || try(var.storage_gb >= 20 && var.storage_gb <= 65536 && floor(var.storage_gb) == var.storage_gb, false)
    error_message = "storage_gb: whole GiB from 20 to 65536 (gp3)."
  }
}

variable "max_storage_gb" {
  description = "Up to where storage grows by itself, in GiB; 0: not at all. null: five times what there is at first."
  type        = number
  default     = null

  validation {
    condition     = var.max_storage_gb == null || try(var.max_storage_gb == 0 || var.max_storage_gb >= ceil(local.storage_gb * 1.1), false)
    error_message = "max_storage_gb: 0, or at least a tenth more than the storage (${local.storage_gb} GiB), which is RDS' least."
  }
}

variable "high_availability" {
  description = "A synchronous standby in another zone (Multi-AZ): twice the price, a failover of one to two minutes."
  type        = bool
  default     = false
}

variable "read_replica_count" {
  description = "Asynchronous read replicas; the app does not read from them."
  type        = number
  default     = 0

  validation {
    condition     = var.read_replica_count >= 0 && var.read_replica_count <= 15 && floor(var.read_replica_count) == var.read_replica_count
    error_message = "read_replica_count: 0 to 15."
  }

  validation {
    condition     = var.read_replica_count == 0 || var.backup_retention_days > 0
    error_message = "read_replica_count: replicas need backups of the primary: backup_retention_days of at least 1."
  }
}

variable "deletion_protection" {
  description = "Whether the instance refuses to be deleted."
  type        = bool
  default     = true
}

variable "skip_final_snapshot" {
  description = "Whether a deletion makes no last snapshot. Nothing is left then but the automated backups, if retain_automated_backups."
  type        = bool
  default     = false
}

variable "final_snapshot_name" {
  description = "Name of the snapshot that a deletion makes. Another one where an earlier instance of this name has left its own."
  type        = string
  default     = null # NAME-final

  validation {
    condition     = var.final_snapshot_name == null || can(regex("^[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*$", var.final_snapshot_name))
    error_message = "final_snapshot_name: a letter, then letters, digits and single hyphens, none at the end."
  }
}

variable "retain_automated_backups" {
  description = "Whether automated backups outlive the instance, until their time is over."
  type        = bool
  default     = true
}

variable "backup_retention_days" {
  description = "Days for which RDS keeps daily snapshots and WAL: restores to any second of them."
  type        = number
  default     = 14 # as the spec's differential backups; RDS' own is 7

  validation {
    condition     = var.backup_retention_days >= 0 && var.backup_retention_days <= 35 && floor(var.backup_retention_days) == var.backup_retention_days
    error_message = "backup_retention_days: 0 (no backups, no point-in-time recovery) to 35."
  }
}

variable "backup_window" {
  description = "When the daily snapshot is made, UTC; not within the maintenance window."
  type        = string
  default     = "01:15-02:15" # the spec's backups begin at 01:15

  validation {
    condition     = can(regex("^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$", var.backup_window))
    error_message = "backup_window: hh:mm-hh:mm in UTC."
  }
}

variable "maintenance_window" {
  description = "When RDS may restart it, UTC."
  type        = string
  default     = "sun:03:00-sun:04:00"

  validation {
    condition     = can(regex("^(mon|tue|wed|thu|fri|sat|sun):[0-9]{2}:[0-9]{2}-(mon|tue|wed|thu|fri|sat|sun):[0-9]{2}:[0-9]{2}$", var.maintenance_window))
    error_message = "maintenance_window: ddd:hh:mm-ddd:hh:mm in UTC, for example sun:03:00-sun:04:00."
  }
}

variable "apply_immediately" {
  description = "Whether changes that interrupt are made at once instead of in the maintenance window."
  type        = bool
  default     = false
}

variable "auto_minor_version_upgrade" {
  description = "Whether RDS installs minor versions in the maintenance window."
  type        = bool
  default     = true
}

variable "parameters" {
  description = "Further parameters or other values, by name, in RDS' own units; they win over the size's."
  type        = map(string)
  default     = {}

  validation {
    condition     = length(setintersection(keys(var.parameters), ["rds.force_ssl", "rds.logical_replication", "rds.accepted_password_auth_method"])) == 0
    error_message = "parameters: rds.force_ssl and rds.accepted_password_auth_method are fixed (TLS, SCRAM); for rds.logical_replication set blue_green_ready."
  }
}

variable "blue_green_ready" {
  description = "Whether logical replication is on, as a blue/green deployment for a major upgrade wants it. WAL grows by it, and turning it on restarts the server."
  type        = bool
  default     = false
}

# --- encryption ------------------------------------------------------------------------------------------------------

variable "kms_key_arn" {
  description = "The key for storage, backups, the administrator's secret, Performance Insights and logs. null: the module makes one, which rotates yearly. One's own key's policy must let logs.REGION.amazonaws.com (kms:Encrypt*, Decrypt*, ReEncrypt*, GenerateDataKey*, Describe*) and, with alarms, cloudwatch.amazonaws.com (kms:Decrypt, GenerateDataKey*) use it."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/", var.kms_key_arn))
    error_message = "kms_key_arn: a key's ARN, arn:aws:kms:REGION:ACCOUNT:key/…; not an alias: RDS would show a difference at every plan."
  }
}

# --- watching --------------------------------------------------------------------------------------------------------

variable "monitoring_interval" {
  description = "Seconds between two values of enhanced monitoring (the operating system's view); 0: none."
  type        = number
  default     = 60

  validation {
    condition     = contains([0, 1, 5, 10, 15, 30, 60], var.monitoring_interval)
    error_message = "monitoring_interval: accepted are 0, 1, 5, 10, 15, 30, 60."
  }
}

variable "performance_insights_days" {
  description = "Days that Performance Insights keeps; 7 are free of charge; 0: none."
  type        = number
  default     = 7

  validation {
    condition     = contains([0, 7, 731], var.performance_insights_days) || try(var.performance_insights_days % 31 == 0 && var.performance_insights_days <= 713, false)
    error_message = "performance_insights_days: accepted are 0, 7, months of 31 days up to 713, 731."
  }
}

variable "log_retention_days" {
  description = "Days that CloudWatch keeps the server's log."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_days)
    error_message = "log_retention_days: one of CloudWatch's: 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731 or years up to 3653."
  }
}

variable "alarms" {
  description = "Whether CloudWatch alarms are made."
  type        = bool
  default     = true
}

variable "alarm_topic_arn" {
  description = "The SNS topic that alarms go to. null: the module makes one."
  type        = string
  default     = null

  validation {
    condition     = var.alarm_topic_arn == null || can(regex("^arn:[a-z-]+:sns:", var.alarm_topic_arn))
    error_message = "alarm_topic_arn: an SNS topic's ARN."
  }
}

variable "alarm_emails" {
  description = "Addresses that get the alarms of the module's own topic, after they have confirmed it."
  type        = list(string)
  default     = []

  validation {
    condition     = length(var.alarm_emails) == 0 || (var.alarms && var.alarm_topic_arn == null)
    error_message = "alarm_emails: they subscribe to the module's own topic: leave alarm_topic_arn out, and alarms on."
  }
}

variable "restore_testing" {
  description = "Whether AWS Backup makes a copy a day into a vault and restores one a week on trial (the managed drill). It costs a running instance for some hours a week."
  type        = bool
  default     = false
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = {}
}
