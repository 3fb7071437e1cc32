variable "name" {
  description = "Name of the server, in all of Azure: NAME.postgres.database.azure.com."
  type        = string
  default     = "orcheo-db"

  validation {
    condition     = can(regex("^[a-z0-9](-?[a-z0-9])*$", var.name)) && length(var.name) >= 3 && length(var.name) <= 42
    error_message = "name: lower-case letters, digits and single hyphens, 3 to 42 characters (a drill's copy, NAME-drill-TIME, must fit into the 63 that Azure takes)."
  }
}

variable "resource_group_name" {
  description = "The resource group."
  type        = string

  validation {
    condition     = length(var.resource_group_name) > 0
    error_message = "resource_group_name: the name of a resource group."
  }
}

variable "location" {
  description = "The region, for example westeurope."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9]+$", var.location))
    error_message = "location: a region's short name such as westeurope."
  }
}

variable "size" {
  description = "A size of ops/spec.toml: chooses machine, storage and server parameters from sizes.json, which `make render` writes."
  type        = string
  default     = "small"

  validation {
    condition     = contains(keys(local.sizes), var.size)
    error_message = "size: accepted are ${join(", ", keys(local.sizes))}."
  }
}

variable "instance_class" {
  description = "Another machine (SKU) than the size's; the parameters stay the size's."
  type        = string
  default     = null

  validation {
    condition     = var.instance_class == null || can(regex("^(B|GP|MO)_Standard_[A-Za-z0-9_]+$", var.instance_class))
    error_message = "instance_class: a SKU such as GP_Standard_D4ds_v5: B_ (burstable), GP_ (general purpose) or MO_ (memory optimized)."
  }
}

variable "admin_username" {
  description = "The administrator: Azure makes it with azure_pg_admin; bootstrap needs its CREATEROLE and CREATEDB."
  type        = string
  default     = "orcheo_admin"

  validation {
    condition     = can(regex("^[a-z][a-z0-9_]{0,62}$", var.admin_username)) && !startswith(var.admin_username, "pg_") && !contains(["azure_superuser", "azure_pg_admin", "admin", "administrator", "root", "guest", "public", "postgres"], var.admin_username)
    error_message = "admin_username: a letter, then lower-case letters, digits and underscores; none of the names that Azure reserves (azure_superuser, admin, root, postgres, pg_… and the like)."
  }
}

variable "admin_password" {
  description = "The administrator's password, for the apply that makes or changes it: it goes to the server and, with key_vault_id, into Key Vault, and into no state or plan."
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true

  validation {
    condition     = var.admin_password == null || can(regex("^[A-Za-z0-9_.~-]{20,128}$", var.admin_password))
    error_message = "admin_password: 20 to 128 letters, digits, _ . ~ - (it stands in DSNs); Azure wants three kinds of them."
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

variable "key_vault_id" {
  description = "The Key Vault that keeps the administrator's password as secret NAME-admin; null: you keep it."
  type        = string
  default     = null

  validation {
    condition     = var.key_vault_id == null || can(regex("/providers/Microsoft.KeyVault/vaults/[^/]+$", var.key_vault_id))
    error_message = "key_vault_id: a vault's resource id, …/providers/Microsoft.KeyVault/vaults/NAME."
  }
}

# --- network ---------------------------------------------------------------------------------------------------------

variable "delegated_subnet_id" {
  description = "A subnet delegated to Microsoft.DBforPostgreSQL/flexibleServers: the server has no public address. It can't be changed later."
  type        = string

  validation {
    condition     = can(regex("/subnets/[^/]+$", var.delegated_subnet_id))
    error_message = "delegated_subnet_id: a subnet's resource id, …/virtualNetworks/NET/subnets/NAME."
  }
}

variable "private_dns_zone_id" {
  description = "A private DNS zone that ends in .postgres.database.azure.com, linked to the network."
  type        = string

  validation {
    condition     = can(regex("/privateDnsZones/([a-z0-9-]+[.])*postgres[.]database[.]azure[.]com$", var.private_dns_zone_id))
    error_message = "private_dns_zone_id: a private DNS zone's resource id whose name ends in postgres.database.azure.com."
  }
}

variable "iam_authentication" {
  description = "Whether Entra users may log in, too. The app's logins have passwords: PgBouncer can't hand tokens on."
  type        = bool
  default     = false
}

variable "tenant_id" {
  description = "The Entra tenant, with iam_authentication."
  type        = string
  default     = null

  validation {
    condition     = (var.tenant_id != null) == var.iam_authentication
    error_message = "tenant_id: it goes with iam_authentication = true, and only with that."
  }
}

# --- storage, availability -------------------------------------------------------------------------------------------

variable "storage_gb" {
  description = "Storage in GiB that the server is made with, other than the size's. It grows by itself; later by `az postgres flexible-server update --storage-size`, and never shrinks."
  type        = number
  default     = null

  validation {
    condition     = var.storage_gb == null || contains([32, 64, 128, 256, 512, 1024, 2048, 4095, 4096, 8192, 16384, 32767], coalesce(var.storage_gb, 0))
    error_message = "storage_gb: one of Azure's: 32, 64, 128, 256, 512, 1024, 2048, 4095, 4096, 8192, 16384, 32767."
  }
}

variable "storage_autogrow" {
  description = "Whether storage doubles by itself when it is nearly full; it never shrinks, and Azure has no limit of one's own."
  type        = bool
  default     = true
}

variable "high_availability" {
  description = "A synchronous standby in another zone: twice the price, a failover of one to two minutes. Not with burstable machines."
  type        = bool
  default     = false

  validation {
    condition     = !var.high_availability || !startswith(local.instance_class, "B_")
    error_message = "high_availability: Azure has none for burstable machines (${local.instance_class}): take size medium or instance_class = \"GP_Standard_D2ds_v5\"."
  }
}

variable "zone" {
  description = "The primary's availability zone; null: Azure's choice."
  type        = string
  default     = null

  validation {
    condition     = var.zone == null || contains(["1", "2", "3"], coalesce(var.zone, "-"))
    error_message = "zone: accepted are \"1\", \"2\", \"3\"."
  }
}

variable "read_replica_count" {
  description = "Asynchronous read replicas; the app does not read from them. Not with burstable machines."
  type        = number
  default     = 0

  validation {
    condition     = var.read_replica_count >= 0 && var.read_replica_count <= 5 && floor(var.read_replica_count) == var.read_replica_count
    error_message = "read_replica_count: 0 to 5."
  }

  validation {
    condition     = var.read_replica_count == 0 || !startswith(local.instance_class, "B_")
    error_message = "read_replica_count: Azure has no replicas of burstable machines (${local.instance_class}): take size medium or instance_class = \"GP_Standard_D2ds_v5\"."
  }
}

variable "deletion_protection" {
  description = "Whether a lock keeps the server from being deleted in the portal and by az. Terraform itself is kept from it by prevent_destroy, always."
  type        = bool
  default     = true
}

variable "backup_retention_days" {
  description = "Days for which Azure keeps snapshots and WAL: restores to any moment of them. Azure always makes backups."
  type        = number
  default     = 14 # as the spec's differential backups; Azure's own is 7

  validation {
    condition     = var.backup_retention_days >= 7 && var.backup_retention_days <= 35 && floor(var.backup_retention_days) == var.backup_retention_days
    error_message = "backup_retention_days: 7 to 35."
  }
}

variable "geo_redundant_backup" {
  description = "Whether backups are copied to the paired region. It can't be changed later."
  type        = bool
  default     = false
}

variable "maintenance_window" {
  description = "When Azure may restart it, UTC: day 0 (Sunday) to 6, hour, minute."
  type = object({
    day    = number
    hour   = number
    minute = optional(number, 0)
  })
  default = { day = 0, hour = 3 }

  validation {
    condition     = var.maintenance_window.day >= 0 && var.maintenance_window.day <= 6 && var.maintenance_window.hour >= 0 && var.maintenance_window.hour <= 23 && var.maintenance_window.minute >= 0 && var.maintenance_window.minute <= 59
    error_message = "maintenance_window: day 0 (Sunday) to 6, hour 0 to 23, minute 0 to 59."
  }
}

variable "parameters" {
  description = "Further server parameters or other values, by name, in Azure's units; they win over the size's."
  type        = map(string)
  default     = {}

  validation {
    condition     = length(setintersection(keys(var.parameters), ["require_secure_transport", "azure.accepted_password_auth_method", "password_encryption"])) == 0
    error_message = "parameters: require_secure_transport, azure.accepted_password_auth_method and password_encryption are fixed (TLS, SCRAM)."
  }
}

# --- encryption, watching --------------------------------------------------------------------------------------------

variable "customer_managed_key" {
  description = "A Key Vault key for storage and backups, and the user-assigned identity that may use it. null: Microsoft's own keys. It can't be changed later."
  type = object({
    key_vault_key_id = string
    identity_id      = string
  })
  default = null

  validation {
    condition     = var.customer_managed_key == null || try(startswith(var.customer_managed_key.key_vault_key_id, "https://") && strcontains(var.customer_managed_key.identity_id, "/userAssignedIdentities/"), false)
    error_message = "customer_managed_key: key_vault_key_id is a key's https address, identity_id a user-assigned identity's resource id."
  }
}

variable "log_analytics_workspace_id" {
  description = "The Log Analytics workspace that gets the server's log; null: none."
  type        = string
  default     = null

  validation {
    condition     = var.log_analytics_workspace_id == null || can(regex("/workspaces/[^/]+$", var.log_analytics_workspace_id))
    error_message = "log_analytics_workspace_id: a workspace's resource id."
  }
}

variable "alarms" {
  description = "Whether metric alerts are made."
  type        = bool
  default     = true
}

variable "action_group_ids" {
  description = "Action groups that alarms go to."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for each in var.action_group_ids : can(regex("(?i)/actionGroups/[^/]+$", each))])
    error_message = "action_group_ids: action groups' resource ids."
  }
}

variable "tags" {
  description = "Tags of everything that takes some."
  type        = map(string)
  default     = {}
}
