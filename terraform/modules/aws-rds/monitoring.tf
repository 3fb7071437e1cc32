# What watches it: the operating system's view, the server's log, alarms.

resource "aws_iam_role" "monitoring" {
  count = var.monitoring_interval > 0 ? 1 : 0

  name_prefix        = "${substr(var.name, 0, 26)}-monitoring-"
  assume_role_policy = data.aws_iam_policy_document.monitoring.json
  tags               = var.tags
}

data "aws_iam_policy_document" "monitoring" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["monitoring.rds.amazonaws.com"]
    }
  }
}

resource "aws_iam_role_policy_attachment" "monitoring" {
  count = var.monitoring_interval > 0 ? 1 : 0

  role       = aws_iam_role.monitoring[0].name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/service-role/AmazonRDSEnhancedMonitoringRole"
}

locals {
  replicas = [for number in range(1, var.read_replica_count + 1) : "${var.name}-replica-${number}"]
}

resource "aws_cloudwatch_log_group" "this" {
  #checkov:skip=CKV_AWS_338:log_retention_days says how long; a year by default would be for those who need it
  for_each = toset(flatten([for instance in concat([var.name], local.replicas) : [
    for log in ["postgresql", "upgrade"] : "/aws/rds/instance/${instance}/${log}"
  ]]))

  name              = each.value
  retention_in_days = var.log_retention_days
  kms_key_id        = local.kms_key_arn
  tags              = var.tags
}

# --- alarms ----------------------------------------------------------------------------------------------------------

locals {
  topic_arn = !var.alarms ? null : var.alarm_topic_arn == null ? aws_sns_topic.alarms[0].arn : var.alarm_topic_arn
  gb        = 1024 * 1024 * 1024
  # Burstable classes run on credits; the others' small ones have a burst of input and output.
  burst = startswith(local.instance_class, "db.t") ? {
    metric = "CPUCreditBalance", threshold = 30, why = "CPU credits are nearly used up: it will run at its baseline"
    } : {
    metric = "EBSIOBalance%", threshold = 20, why = "burst of input and output is nearly used up"
  }

  # Threshold and what it means. Averages of five minutes, three in a row.
  alarmed = {
    cpu         = { metric = "CPUUtilization", above = true, threshold = 80, why = "CPU above 80 % for a quarter of an hour" }
    memory      = { metric = "FreeableMemory", above = false, threshold = local.chosen.memory_gb * local.gb / 20, why = "less than a twentieth of memory is left" }
    storage     = { metric = "FreeStorageSpace", above = false, threshold = local.storage_gb * local.gb / 10, why = "less than a tenth of the storage that it began with is free" }
    connections = { metric = "DatabaseConnections", above = true, threshold = floor(tonumber(local.parameters.max_connections.value) * 0.8), why = "80 % of max_connections are in use: PgBouncer's pools are planned below that" }
    burst       = { metric = local.burst.metric, above = false, threshold = local.burst.threshold, why = local.burst.why }
    wal         = { metric = "TransactionLogsDiskUsage", above = true, threshold = tonumber(local.parameters.max_wal_size.value) * 1024 * 1024 * 2, why = "twice max_wal_size of WAL is kept: a slot or the archive is behind" }
    slots       = { metric = "OldestReplicationSlotLag", above = true, threshold = tonumber(local.parameters.max_wal_size.value) * 1024 * 1024, why = "a replication slot is behind by more than max_wal_size" }
    wraparound  = { metric = "MaximumUsedTransactionIDs", above = true, threshold = 1000000000, why = "vacuum does not keep up with freezing: half of the transaction ids are used" }
  }
}

resource "aws_sns_topic" "alarms" {
  count = var.alarms && var.alarm_topic_arn == null ? 1 : 0

  name              = "${var.name}-alarms"
  kms_master_key_id = local.kms_key_arn
  tags              = var.tags
}

resource "aws_sns_topic_subscription" "emails" {
  for_each = toset(var.alarm_emails)

  topic_arn = aws_sns_topic.alarms[0].arn
  protocol  = "email"
  endpoint  = each.value
}

resource "aws_cloudwatch_metric_alarm" "this" {
  for_each = var.alarms ? local.alarmed : {}

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.why
  namespace           = "AWS/RDS"
  metric_name         = each.value.metric
  dimensions          = { DBInstanceIdentifier = aws_db_instance.this.identifier }
  statistic           = "Average"
  comparison_operator = each.value.above ? "GreaterThanThreshold" : "LessThanThreshold"
  threshold           = each.value.threshold
  period              = 300
  evaluation_periods  = 3
  # OldestReplicationSlotLag exists only with a slot, the burst only for some classes.
  treat_missing_data = contains(["slots", "burst"], each.key) ? "notBreaching" : "missing"
  alarm_actions      = [local.topic_arn]
  ok_actions         = [local.topic_arn]
  tags               = var.tags
}

resource "aws_cloudwatch_metric_alarm" "replica_lag" {
  count = var.alarms ? var.read_replica_count : 0

  alarm_name          = "${var.name}-replica-${count.index + 1}-lag"
  alarm_description   = "the replica is more than a minute behind"
  namespace           = "AWS/RDS"
  metric_name         = "ReplicaLag"
  dimensions          = { DBInstanceIdentifier = aws_db_instance.replica[count.index].identifier }
  statistic           = "Average"
  comparison_operator = "GreaterThanThreshold"
  threshold           = 60 # seconds
  period              = 300
  evaluation_periods  = 3
  treat_missing_data  = "breaching" # replication has stopped
  alarm_actions       = [local.topic_arn]
  ok_actions          = [local.topic_arn]
  tags                = var.tags
}
