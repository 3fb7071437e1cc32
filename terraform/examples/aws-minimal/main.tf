# The least: one instance of size small in a VPC that you have, for the machines of a security group.

provider "aws" {
  region = var.region
}

module "database" {
  source = "../../modules/aws-rds"

  name                    = var.name
  vpc_id                  = var.vpc_id
  subnet_ids              = var.subnet_ids
  allowed_security_groups = var.allowed_security_groups
}
