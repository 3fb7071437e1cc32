variable "name" {
  description = "Name of the instance and of everything that belongs to it. Cloud SQL takes a deleted instance's name again only after a week."
  type        = string
  default     = "orcheo-db"

  validation {
    condition     = can(regex("^[a-z](-?[a-z0-9])*$", var.name)) && length(var.name) <= 46
    error_message = "name: lower-case letters, digits and single hyphens, a letter first, at most 46 characters (a drill's copy, NAME-drill-TIME, must fit with the project's name into the 98 that Cloud SQL takes)."
  }
}

variable "project_id" {
  description = "The project."
  type        = string

  validation {
    condition     = can(regex("^([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "project_id: a project's id (6 to 30 lower-case letters, digits, hyphens), not its number."
  }
}

variable "region" {
  description = "The region, for example europe-west1."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "region: a region such as europe-west1, no zone."
  }
}

variable "size" {
  description = "A size of ops/spec.toml: chooses machine, storage and database flags from sizes.json, which `make render` writes."
  type        = string
  default     = "small"

  validation {
    condition     = contains(keys(local.sizes), var.size)
    error_message = "size: accepted are ${join(", ", keys(local.sizes))}."
  }
}

variable "instance_class" {
  description = "Another machine (tier) than the size's; the flags stay the size's."
  type        = string
  default     = null

  validation {
    condition     = var.instance_class == null || can(regex("^db-(custom-[0-9]+-[0-9]+|perf-optimized-N-[0-9]+|c4a-highmem-[0-9]+|g1-small|f1-micro)$", var.instance_class))
    error_message = "instance_class: a tier such as db-custom-4-8192 (CPUs, MiB)."
  }
}

variable "edition" {
  description = "Cloud SQL's edition: ENTERPRISE or ENTERPRISE_PLUS, which has machines of its own (instance_class) and keeps WAL for 35 days."
  type        = string
  default     = "ENTERPRISE"

  validation {
    condition     = contains(["ENTERPRISE", "ENTERPRISE_PLUS"], var.edition)
    error_message = "edition: accepted are ENTERPRISE, ENTERPRISE_PLUS."
  }

  validation {
    condition     = var.edition == "ENTERPRISE" || var.instance_class != null
    error_message = "edition: ENTERPRISE_PLUS does not have the size's machine: give instance_class, for example db-perf-optimized-N-2."
  }
}

variable "admin_username" {
  description = "The administrator: Cloud SQL makes it with cloudsqlsuperuser; bootstrap needs its CREATEROLE and CREATEDB."
  type        = string
  default     = "orcheo_admin"

  validation {
    condition     = can(regex("^[a-z][a-z0-9_]{0,62}$", var.admin_username)) && !contains(["postgres"], var.admin_username) && !startswith(var.admin_username, "cloudsql")
    error_message = "admin_username: a letter, then lower-case letters, digits and underscores; neither postgres nor cloudsql…, which are Cloud SQL's own."
  }
}

variable "admin_password" {
  description = "The administrator's password, at every plan (from the secret, once it is there): it goes to Cloud SQL and into Secret Manager, and into no state or plan."
  type        = string
  ephemeral   = true
  sensitive   = true

  validation {
    condition     = can(regex("^[A-Za-z0-9_.~-]{20,128}$", var.admin_password))
    error_message = "admin_password: 20 to 128 letters, digits, _ . ~ - (it stands in DSNs), for example from openssl rand -hex 24."
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

variable "network" {
  description = "The VPC network, with a private services connection: projects/PROJECT/global/networks/NAME."
  type        = string

  validation {
    condition     = can(regex("projects/[^/]+/global/networks/[^/]+$", var.network))
    error_message = "network: a network's id or self link, projects/PROJECT/global/networks/NAME."
  }
}

variable "allocated_ip_range" {
  description = "Name of the reserved range that the private address comes from; null: any of the connection's."
  type        = string
  default     = null
}

variable "ssl_mode" {
  description = "What a client must show: its own certificate of this instance besides the password, or TLS alone."
  type        = string
  default     = "TRUSTED_CLIENT_CERTIFICATE_REQUIRED" # a leaked password alone opens nothing

  validation {
    condition     = contains(["TRUSTED_CLIENT_CERTIFICATE_REQUIRED", "ENCRYPTED_ONLY"], var.ssl_mode)
    error_message = "ssl_mode: accepted are TRUSTED_CLIENT_CERTIFICATE_REQUIRED, ENCRYPTED_ONLY; never a connection without TLS."
  }
}

variable "iam_authentication" {
  description = "Whether IAM users and service accounts may log in. The app's logins have passwords: PgBouncer can't hand tokens on."
  type        = bool
  default     = false
}

variable "iam_users" {
  description = "IAM users (e-mail addresses) and service accounts (without .gserviceaccount.com) that may log in; what they may do is granted by SQL."
  type        = list(string)
  default     = []

  validation {
    condition     = length(var.iam_users) == 0 || var.iam_authentication
    error_message = "iam_users: they need iam_authentication = true."
  }

  validation {
    condition     = alltrue([for each in var.iam_users : can(regex("^[^@ ]+@[^@ ]+$", each)) && !endswith(each, ".gserviceaccount.com")])
    error_message = "iam_users: e-mail addresses; a service account's without .gserviceaccount.com, as PostgreSQL's names are too short for it."
  }
}

# --- storage, availability -------------------------------------------------------------------------------------------

variable "storage_gb" {
  description = "Storage in GB (SSD) that the instance is made with, other than the size's. It grows by itself; later by `gcloud sql instances patch --storage-size`, and never shrinks."
  type        = number
  default     = null

  validation {
    condition     = var.storage_gb == null || try(var.storage_gb >= 10 && var.storage_gb <= 65536 && floor(var.storage_gb) == var.storage_gb, false)
    error_message = "storage_gb: whole GB from 10 to 65536."
  }
}

variable "max_storage_gb" {
  description = "Up to where storage grows by itself, in GB; 0: not at all. null: five times what there is at first."
  type        = number
  default     = null

  validation {
    condition     = var.max_storage_gb == null || try(var.max_storage_gb == 0 || var.max_storage_gb > local.storage_gb, false)
    error_message = "max_storage_gb: 0, or more than the storage (${local.storage_gb} GB)."
  }
}

variable "high_availability" {
  description = "A standby in another zone (REGIONAL): twice the price, a failover of about a minute."
  type        = bool
  default     = false

  validation {
    condition     = !var.high_availability || var.backup_retention_days > 0
    error_message = "high_availability: Cloud SQL wants backups and point-in-time recovery for it: backup_retention_days of at least 1."
  }
}

variable "read_replica_count" {
  description = "Asynchronous read replicas; the app does not read from them."
  type        = number
  default     = 0

  validation {
    condition     = var.read_replica_count >= 0 && var.read_replica_count <= 10 && floor(var.read_replica_count) == var.read_replica_count
    error_message = "read_replica_count: 0 to 10."
  }

  validation {
    condition     = var.read_replica_count == 0 || var.backup_retention_days > 0
    error_message = "read_replica_count: replicas need backups of the primary: backup_retention_days of at least 1."
  }
}

variable "deletion_protection" {
  description = "Whether Terraform and Cloud SQL itself refuse to delete the instance."
  type        = bool
  default     = true
}

variable "retain_backups" {
  description = "Whether backups outlive the instance, and a last one is made at its deletion (kept for 30 days)."
  type        = bool
  default     = true
}

variable "backup_retention_days" {
  description = "Daily backups that are kept; 0: none. WAL is kept for as long, up to the edition's limit (7 days, Enterprise Plus 35)."
  type        = number
  default     = 14 # as the spec's differential backups

  validation {
    condition     = var.backup_retention_days >= 0 && var.backup_retention_days <= 365 && floor(var.backup_retention_days) == var.backup_retention_days
    error_message = "backup_retention_days: 0 (no backups, no point-in-time recovery) to 365."
  }
}

variable "backup_start_time" {
  description = "When the daily backup begins, UTC."
  type        = string
  default     = "01:15" # as the spec's

  validation {
    condition     = can(regex("^([01][0-9]|2[0-3]):[0-5][0-9]$", var.backup_start_time))
    error_message = "backup_start_time: hh:mm in UTC."
  }
}

variable "backup_location" {
  description = "Where backups are kept, for example eu or another region; null: the multi-region that is nearest, which is Cloud SQL's own."
  type        = string
  default     = null
}

variable "maintenance_window" {
  description = "When Cloud SQL may restart it, UTC: day 1 (Monday) to 7, hour 0 to 23, and whether it gets updates early (canary), later (stable) or five weeks later (week5)."
  type = object({
    day          = number
    hour         = number
    update_track = optional(string, "stable")
  })
  default = { day = 7, hour = 3 }

  validation {
    condition     = var.maintenance_window.day >= 1 && var.maintenance_window.day <= 7 && var.maintenance_window.hour >= 0 && var.maintenance_window.hour <= 23
    error_message = "maintenance_window: day 1 (Monday) to 7, hour 0 to 23."
  }

  validation {
    condition     = contains(["canary", "stable", "week5"], var.maintenance_window.update_track)
    error_message = "maintenance_window: update_track is one of canary, stable, week5."
  }
}

variable "parameters" {
  description = "Further database flags or other values, by name, in Cloud SQL's units; they win over the size's. Many restart the server at once."
  type        = map(string)
  default     = {}

  validation {
    condition     = !contains(keys(var.parameters), "cloudsql.iam_authentication")
    error_message = "parameters: for cloudsql.iam_authentication set iam_authentication."
  }
}

# --- encryption, watching --------------------------------------------------------------------------------------------

variable "kms_key_name" {
  description = "A Cloud KMS key for storage and backups, projects/…/cryptoKeys/NAME, which Cloud SQL's service account may use. null: Google's own keys."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_name == null || can(regex("^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$", var.kms_key_name))
    error_message = "kms_key_name: projects/PROJECT/locations/REGION/keyRings/RING/cryptoKeys/KEY."
  }
}

variable "query_insights" {
  description = "Whether Query Insights keeps statements and plans (without their values) for a week."
  type        = bool
  default     = true
}

variable "alarms" {
  description = "Whether Cloud Monitoring policies are made."
  type        = bool
  default     = true
}

variable "notification_channels" {
  description = "Cloud Monitoring's channels that alarms go to: projects/PROJECT/notificationChannels/ID."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for each in var.notification_channels : can(regex("^projects/[^/]+/notificationChannels/[^/]+$", each))])
    error_message = "notification_channels: projects/PROJECT/notificationChannels/ID."
  }
}

variable "tags" {
  description = "Labels of everything that takes some: lower-case letters, digits, - and _."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key, value in var.tags : can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value))])
    error_message = "tags: Google's labels: keys begin with a letter; lower-case letters, digits, - and _, at most 63."
  }
}
