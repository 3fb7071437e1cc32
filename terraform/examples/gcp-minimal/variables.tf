variable "project_id" {
  description = "The project."
  type        = string
}

variable "region" {
  description = "The region."
  type        = string
}

variable "name" {
  description = "Name of the instance."
  type        = string
  default     = "orcheo-db"
}

variable "network" {
  description = "The VPC network: projects/PROJECT/global/networks/NAME."
  type        = string
}

variable "admin_password" {
  description = "The administrator's password, at every plan: TF_VAR_admin_password=$(openssl rand -hex 24) at first, then from the secret"
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true
}
