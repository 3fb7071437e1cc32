variable "project_id" {
  description = "The project; APIs compute, servicenetworking, sqladmin, secretmanager, cloudkms and monitoring are on."
  type        = string
}

variable "region" {
  description = "The region."
  type        = string
  default     = "europe-west1"
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

variable "app_cidr" {
  description = "Addresses of the machines that PgBouncer and Orcheo run on."
  type        = string
  default     = "10.42.0.0/24"
}

variable "admin_password" {
  description = "The administrator's password, at every plan: TF_VAR_admin_password=$(openssl rand -hex 24) at first, then from the secret"
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true
}

variable "iam_users" {
  description = "IAM users that may log in."
  type        = list(string)
  default     = []
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
  description = "Labels of everything that takes some."
  type        = map(string)
  default     = { application = "orcheo" }
}
