# Automated backups and WAL of an instance, copied to the region of this module's provider.

resource "aws_kms_key" "this" {
  count = var.kms_key_arn == null ? 1 : 0

  #checkov:skip=CKV2_AWS_64:without a policy of its own a key is its account's, which is what is wanted
  description             = "Copied backups of ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  tags                    = var.tags
}

resource "aws_db_instance_automated_backups_replication" "this" {
  source_db_instance_arn = var.instance_arn
  retention_period       = var.backup_retention_days
  kms_key_id             = var.kms_key_arn == null ? aws_kms_key.this[0].arn : var.kms_key_arn
}
