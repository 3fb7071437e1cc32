# The managed drill: AWS Backup restores a recovery point once a week, on trial, and says whether that worked. It does not compare what is in it;
# `orcheo-db --target external drill` does (ops/runbooks/managed-aws.md).

resource "aws_backup_vault" "this" {
  count = var.restore_testing ? 1 : 0

  name        = var.name
  kms_key_arn = local.kms_key_arn
  tags        = var.tags
}

resource "aws_backup_plan" "this" {
  count = var.restore_testing ? 1 : 0

  name = var.name
  tags = var.tags

  rule {
    rule_name         = "daily"
    target_vault_name = aws_backup_vault.this[0].name
    schedule          = "cron(15 5 * * ? *)" # after RDS' own window, which AWS Backup must not meet

    lifecycle {
      delete_after = max(var.backup_retention_days, 7) # days; a test a week needs one of that week
    }
  }
}

resource "aws_backup_selection" "this" {
  count = var.restore_testing ? 1 : 0

  name         = var.name
  plan_id      = aws_backup_plan.this[0].id
  iam_role_arn = aws_iam_role.backup[0].arn
  resources    = [aws_db_instance.this.arn]
}

resource "aws_backup_restore_testing_plan" "this" {
  count = var.restore_testing ? 1 : 0

  name                         = replace(var.name, "-", "_") # it takes no hyphens
  schedule_expression          = "cron(15 8 ? * MON *)"
  schedule_expression_timezone = "Etc/UTC"

  recovery_point_selection {
    algorithm             = "LATEST_WITHIN_WINDOW"
    include_vaults        = [aws_backup_vault.this[0].arn]
    recovery_point_types  = ["SNAPSHOT"]
    selection_window_days = 7
  }
}

resource "aws_backup_restore_testing_selection" "this" {
  count = var.restore_testing ? 1 : 0

  name                      = replace(var.name, "-", "_")
  restore_testing_plan_name = aws_backup_restore_testing_plan.this[0].name
  protected_resource_type   = "RDS"
  protected_resource_arns   = [aws_db_instance.this.arn]
  iam_role_arn              = aws_iam_role.backup[0].arn
  validation_window_hours   = 4 # what was restored stays so long, for a look into it

  restore_metadata_overrides = {
    dbSubnetGroupName   = aws_db_subnet_group.this.name
    vpcSecurityGroupIds = jsonencode([aws_security_group.this.id])
  }
}

resource "aws_iam_role" "backup" {
  count = var.restore_testing ? 1 : 0

  name_prefix        = "${substr(var.name, 0, 30)}-backup-"
  assume_role_policy = data.aws_iam_policy_document.backup.json
  tags               = var.tags
}

data "aws_iam_policy_document" "backup" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["backup.amazonaws.com"]
    }
  }
}

resource "aws_iam_role_policy_attachment" "backup" {
  for_each = var.restore_testing ? toset(["AWSBackupServiceRolePolicyForBackup", "AWSBackupServiceRolePolicyForRestores"]) : toset([])

  role       = aws_iam_role.backup[0].name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/service-role/${each.value}"
}
