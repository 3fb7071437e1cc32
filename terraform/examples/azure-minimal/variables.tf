variable "subscription_id" {
  description = "The subscription."
  type        = string
}

variable "location" {
  description = "The region."
  type        = string
  default     = "westeurope"
}

variable "name" {
  description = "Name of the server (in all of Azure) and of everything that belongs to it."
  type        = string
}

variable "admin_password" {
  description = "The administrator's password, at the first apply: TF_VAR_admin_password=$(openssl rand -hex 24)-Z"
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true
}
