variable "region" {
  description = "The region."
  type        = string
  default     = "eu-central-1"
}

variable "second_region" {
  description = "Where backups are copied to."
  type        = string
  default     = "eu-west-1"

  validation {
    condition     = var.second_region != var.region
    error_message = "second_region: another region than region: a copy beside the original survives no less than it."
  }
}

variable "name" {
  description = "Name of the instance and of everything that belongs to it."
  type        = string
  default     = "orcheo-db"
}

variable "size" {
  description = "small, medium or large (ops/spec.toml)."
  type        = string
  default     = "medium"
}

variable "admin_password" {
  description = "The administrator's password, at every plan: TF_VAR_admin_password=$(openssl rand -hex 24) at first, then from the secret (README.md)."
  type        = string
  ephemeral   = true
  sensitive   = true
}

variable "vpc_cidr" {
  description = "The network's range."
  type        = string
  default     = "10.42.0.0/16"
}

variable "alarm_emails" {
  description = "Who gets the alarms."
  type        = list(string)
  default     = []
}

variable "deletion_protection" {
  description = "Whether the instance refuses to be deleted."
  type        = bool
  default     = true
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = { application = "orcheo" }
}
