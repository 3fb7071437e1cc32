variable "region" {
  description = "The region."
  type        = string
}

variable "name" {
  description = "Name of the instance and of everything that belongs to it."
  type        = string
  default     = "orcheo-db"
}

variable "vpc_id" {
  description = "The VPC."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets in at least two availability zones."
  type        = list(string)
}

variable "allowed_security_groups" {
  description = "Security groups of the machines that PgBouncer and Orcheo run on."
  type        = list(string)
}
