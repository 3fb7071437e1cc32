# All of it: a network of its own, a standby, a replica, backups in a second region, the managed drill, alarms by e-mail.

provider "aws" {
  region = var.region

  default_tags {
    tags = var.tags
  }
}

provider "aws" {
  alias  = "second"
  region = var.second_region

  default_tags {
    tags = var.tags
  }
}

data "aws_availability_zones" "available" {
  #checkov:skip=CKV_AWS_394:a new zone moves no subnet: see there
  state = "available"
}

# --- network: private subnets alone, without a way to the internet -----------------------------------------------------

resource "aws_vpc" "this" {
  #checkov:skip=CKV2_AWS_11:where flow logs go, and what they may cost, is the owner's to say
  cidr_block           = var.vpc_cidr
  enable_dns_support   = true
  enable_dns_hostnames = true
  tags                 = { Name = var.name }
}

resource "aws_default_security_group" "this" {
  vpc_id = aws_vpc.this.id # without rules: nothing is reachable by accident
}

resource "aws_subnet" "private" {
  count = 3

  vpc_id            = aws_vpc.this.id
  availability_zone = data.aws_availability_zones.available.names[count.index % length(data.aws_availability_zones.available.names)]
  cidr_block        = cidrsubnet(var.vpc_cidr, 4, count.index)
  tags              = { Name = "${var.name}-private-${count.index + 1}" }

  lifecycle {
    ignore_changes = [availability_zone] # a region that gets another zone would have subnets made anew
  }
}

resource "aws_security_group" "app" {
  #checkov:skip=CKV2_AWS_5:for the machines of the app, which are not made here
  name        = "${var.name}-app"
  description = "Machines that PgBouncer and Orcheo run on"
  vpc_id      = aws_vpc.this.id
  tags        = { Name = "${var.name}-app" }
}

# --- the database ------------------------------------------------------------------------------------------------------

module "database" {
  source = "../../modules/aws-rds"

  name                    = var.name
  size                    = var.size
  vpc_id                  = aws_vpc.this.id
  subnet_ids              = aws_subnet.private[*].id
  allowed_security_groups = [aws_security_group.app.id]

  high_availability         = true
  admin_password            = var.admin_password # RDS manages none beside a replica
  read_replica_count        = 1
  backup_retention_days     = 35
  restore_testing           = true
  blue_green_ready          = true
  performance_insights_days = 731
  log_retention_days        = 400
  alarm_emails              = var.alarm_emails
  deletion_protection       = var.deletion_protection
}

module "backup_copy" {
  source    = "../../modules/aws-rds/modules/backup-copy"
  providers = { aws = aws.second }

  name                  = var.name
  instance_arn          = module.database.instance_arn
  backup_retention_days = 35
}
