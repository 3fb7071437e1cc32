# RDS for PostgreSQL with the settings of a size of ops/spec.toml. Schema, roles and PgBouncer: `make up TARGET=external` (README.md).

data "aws_partition" "current" {}

data "aws_region" "current" {}

data "aws_caller_identity" "current" {
  count = var.kms_key_arn == null ? 1 : 0 # with a key of one's own a plan asks nothing of AWS
}

locals {
  rendered = jsondecode(file("${path.module}/sizes.json"))
  sizes    = local.rendered.sizes
  # An unknown size is said by the variable's validation; without this, also by every line that looks into it.
  chosen = lookup(local.sizes, var.size, values(local.sizes)[0])

  engine_version = coalesce(var.engine_version, tostring(local.rendered.postgresql))
  instance_class = coalesce(var.instance_class, local.chosen.class)
  storage_gb     = coalesce(var.storage_gb, local.chosen.storage_gb)
  max_storage_gb = var.max_storage_gb == null ? local.storage_gb * 5 : var.max_storage_gb
  kms_key_arn    = var.kms_key_arn == null ? aws_kms_key.this[0].arn : var.kms_key_arn

  # RDS makes no replica and no blue/green deployment of an instance whose password it manages in Secrets Manager.
  own_password = var.read_replica_count > 0 || var.blue_green_ready

  admin_secret = local.own_password ? one(aws_secretsmanager_secret.admin[*].arn) : try(aws_db_instance.this.master_user_secret[0].secret_arn, null)

  # gp3 of 400 GiB and more is striped. Named, since RDS refuses to grow over that line with the operations of a smaller one.
  striped = local.storage_gb >= 400

  # Name -> {value, restart}. A parameter that is not the size's is set at the next restart, which is right for every kind.
  parameters = merge(
    local.chosen.parameters,
    { for name, value in var.parameters : name => {
      value   = value
      restart = try(local.chosen.parameters[name].restart, true)
    } },
    { "rds.logical_replication" = { value = var.blue_green_ready ? "1" : "0", restart = true } },
  )
}

# --- encryption ------------------------------------------------------------------------------------------------------

resource "aws_kms_key" "this" {
  count = var.kms_key_arn == null ? 1 : 0

  description             = "Storage, backups, logs and the administrator's secret of ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 30 # the longest: without the key no backup can be read
  policy                  = data.aws_iam_policy_document.key[0].json
  tags                    = var.tags
}

resource "aws_kms_alias" "this" {
  count = var.kms_key_arn == null ? 1 : 0

  name          = "alias/${var.name}"
  target_key_id = aws_kms_key.this[0].key_id
}

data "aws_iam_policy_document" "key" {
  count = var.kms_key_arn == null ? 1 : 0

  #checkov:skip=CKV_AWS_109:a key's policy speaks of that key alone; without the account in it nobody could change it
  #checkov:skip=CKV_AWS_111:as above: it speaks of that key alone
  #checkov:skip=CKV_AWS_356:as above, "*" is the key itself
  statement {
    sid       = "Account"
    actions   = ["kms:*"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current[0].account_id}:root"]
    }
  }

  statement {
    sid       = "Logs"
    actions   = ["kms:Encrypt*", "kms:Decrypt*", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:Describe*"]
    resources = ["*"]

    principals {
      type        = "Service"
      identifiers = ["logs.${data.aws_region.current.id}.${data.aws_partition.current.dns_suffix}"] # one a region
    }

    condition {
      test     = "ArnLike"
      variable = "kms:EncryptionContext:aws:logs:arn"
      values   = ["arn:${data.aws_partition.current.partition}:logs:*:${data.aws_caller_identity.current[0].account_id}:log-group:/aws/rds/instance/${var.name}*"]
    }
  }

  statement {
    sid       = "Alarms" # CloudWatch could not publish to the encrypted topic
    actions   = ["kms:Decrypt", "kms:GenerateDataKey*"]
    resources = ["*"]

    principals {
      type        = "Service"
      identifiers = ["cloudwatch.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.current[0].account_id]
    }
  }
}

# --- network ---------------------------------------------------------------------------------------------------------

resource "aws_db_subnet_group" "this" {
  name        = var.name
  description = "Where ${var.name} may be"
  subnet_ids  = var.subnet_ids
  tags        = var.tags
}

resource "aws_security_group" "this" {
  name        = var.name
  description = "Who may connect to ${var.name}"
  vpc_id      = var.vpc_id
  tags        = merge(var.tags, { Name = var.name })
}

resource "aws_vpc_security_group_ingress_rule" "groups" {
  count = length(var.allowed_security_groups) # not for_each: a group that is made in the same apply has no id yet

  security_group_id            = aws_security_group.this.id
  description                  = "PostgreSQL from members of another group"
  referenced_security_group_id = var.allowed_security_groups[count.index]
  ip_protocol                  = "tcp"
  from_port                    = var.port
  to_port                      = var.port
  tags                         = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "cidrs" {
  for_each = toset(var.allowed_cidrs)

  security_group_id = aws_security_group.this.id
  description       = "PostgreSQL from ${each.value}"
  cidr_ipv4         = strcontains(each.value, ":") ? null : each.value
  cidr_ipv6         = strcontains(each.value, ":") ? each.value : null
  ip_protocol       = "tcp"
  from_port         = var.port
  to_port           = var.port
  tags              = var.tags
}

# --- the server ------------------------------------------------------------------------------------------------------

resource "aws_db_parameter_group" "this" {
  # A prefix: a group of another family is made beside this one, as a major upgrade wants it.
  name_prefix = "${var.name}-"
  family      = "postgres${local.rendered.postgresql}"
  description = "ops/spec.toml, size ${var.size}"
  tags        = var.tags

  dynamic "parameter" {
    for_each = local.parameters

    content {
      name         = parameter.key
      value        = parameter.value.value
      apply_method = parameter.value.restart ? "pending-reboot" : "immediate"
    }
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_db_instance" "this" {
  #checkov:skip=CKV_AWS_161:iam_authentication is an option: PgBouncer, the way of the app, can't hand IAM's tokens on
  #checkov:skip=CKV_AWS_157:high_availability is an option: it doubles the price
  identifier     = var.name
  engine         = "postgres"
  engine_version = local.engine_version
  instance_class = local.instance_class

  allocated_storage     = local.storage_gb
  max_allocated_storage = local.max_storage_gb
  storage_type          = "gp3"
  iops                  = local.striped ? 12000 : null # what they have at no price of its own
  storage_throughput    = local.striped ? 500 : null
  storage_encrypted     = true
  kms_key_id            = local.kms_key_arn

  # No db_name: RDS would make the database with the server's locale; bootstrap makes it with the spec's.
  username                            = var.admin_username
  manage_master_user_password         = local.own_password ? null : true # made and rotated in Secrets Manager, never in the state
  master_user_secret_kms_key_id       = local.own_password ? null : local.kms_key_arn
  password_wo                         = local.own_password ? var.admin_password : null # write-only: not in the state either
  password_wo_version                 = local.own_password ? var.admin_password_version : null
  iam_database_authentication_enabled = var.iam_authentication
  port                                = var.port
  ca_cert_identifier                  = "rds-ca-rsa2048-g1"

  multi_az               = var.high_availability
  db_subnet_group_name   = aws_db_subnet_group.this.name
  vpc_security_group_ids = [aws_security_group.this.id]
  publicly_accessible    = false
  parameter_group_name   = aws_db_parameter_group.this.name

  backup_retention_period   = var.backup_retention_days
  backup_window             = var.backup_window
  copy_tags_to_snapshot     = true
  delete_automated_backups  = !var.retain_automated_backups
  skip_final_snapshot       = var.skip_final_snapshot
  final_snapshot_identifier = var.skip_final_snapshot ? null : coalesce(var.final_snapshot_name, "${var.name}-final")
  deletion_protection       = var.deletion_protection

  maintenance_window          = var.maintenance_window
  apply_immediately           = var.apply_immediately
  auto_minor_version_upgrade  = var.auto_minor_version_upgrade
  allow_major_version_upgrade = false # a runbook of its own: ops/runbooks/managed-aws.md

  monitoring_interval                   = var.monitoring_interval
  monitoring_role_arn                   = var.monitoring_interval > 0 ? aws_iam_role.monitoring[0].arn : null
  performance_insights_enabled          = var.performance_insights_days > 0
  performance_insights_retention_period = var.performance_insights_days > 0 ? var.performance_insights_days : null
  performance_insights_kms_key_id       = var.performance_insights_days > 0 ? local.kms_key_arn : null
  enabled_cloudwatch_logs_exports       = ["postgresql", "upgrade"]

  tags = var.tags

  lifecycle {
    ignore_changes = [engine_version] # RDS' own minor upgrades are no drift

    precondition {
      condition     = !(var.high_availability && var.backup_retention_days == 0)
      error_message = "high_availability without backups: a standby repeats every mistake at once; give backup_retention_days."
    }
  }

  depends_on = [aws_cloudwatch_log_group.this] # RDS would make it without an end and without the key
}

resource "aws_secretsmanager_secret" "admin" {
  #checkov:skip=CKV2_AWS_57:RDS can't rotate it beside replicas; a new one comes by admin_password_version
  count = local.own_password ? 1 : 0

  name_prefix             = "${var.name}-admin-" # the name of one that is being deleted is taken for 30 days
  description             = "The administrator of ${var.name}"
  kms_key_id              = local.kms_key_arn
  recovery_window_in_days = 30
  tags                    = var.tags
}

resource "aws_secretsmanager_secret_version" "admin" {
  count = local.own_password ? 1 : 0

  secret_id                = aws_secretsmanager_secret.admin[0].id
  secret_string_wo         = jsonencode({ username = var.admin_username, password = var.admin_password }) # as RDS writes its own
  secret_string_wo_version = var.admin_password_version
}

resource "aws_db_instance" "replica" {
  #checkov:skip=CKV_AWS_157:a replica is spread over zones by its number
  #checkov:skip=CKV_AWS_161:as for the primary, an option
  #checkov:skip=CKV_AWS_293:nothing is lost with a replica
  count = var.read_replica_count

  identifier          = "${var.name}-replica-${count.index + 1}"
  replicate_source_db = aws_db_instance.this.identifier
  instance_class      = local.instance_class

  max_allocated_storage = local.max_storage_gb
  storage_type          = "gp3"
  storage_encrypted     = true # by the primary's key: RDS wants none named for a replica in the same region

  port                                = var.port
  ca_cert_identifier                  = "rds-ca-rsa2048-g1"
  iam_database_authentication_enabled = var.iam_authentication
  vpc_security_group_ids              = [aws_security_group.this.id]
  publicly_accessible                 = false
  parameter_group_name                = aws_db_parameter_group.this.name

  skip_final_snapshot        = true # a replica has nothing of its own
  copy_tags_to_snapshot      = true
  maintenance_window         = var.maintenance_window
  apply_immediately          = var.apply_immediately
  auto_minor_version_upgrade = var.auto_minor_version_upgrade

  monitoring_interval                   = var.monitoring_interval
  monitoring_role_arn                   = var.monitoring_interval > 0 ? aws_iam_role.monitoring[0].arn : null
  performance_insights_enabled          = var.performance_insights_days > 0
  performance_insights_retention_period = var.performance_insights_days > 0 ? var.performance_insights_days : null
  performance_insights_kms_key_id       = var.performance_insights_days > 0 ? local.kms_key_arn : null
  enabled_cloudwatch_logs_exports       = ["postgresql", "upgrade"]

  tags = var.tags
}
