# Against the provider's schema, with a mocked cloud: what the module asks for, and what it refuses.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  vpc_id     = "vpc-0a"
  subnet_ids = ["subnet-a", "subnet-b"]

  # Used by replicas and blue/green alone; of an ephemeral variable that is left out `terraform test` says that it must be set.
  admin_password = "0123456789abcdef0123456789abcdef"
}

run "defaults" {
  assert {
    condition     = aws_db_instance.this.instance_class == jsondecode(file("sizes.json")).sizes.small.class
    error_message = "size small is what sizes.json says"
  }

  assert {
    condition     = aws_db_instance.this.storage_encrypted && aws_db_instance.this.deletion_protection && !aws_db_instance.this.publicly_accessible && !aws_db_instance.this.skip_final_snapshot
    error_message = "encrypted, private, and not lost by accident"
  }

  assert {
    condition     = aws_db_instance.this.manage_master_user_password && aws_db_instance.this.password == null
    error_message = "no password is in the state"
  }

  assert {
    condition     = !aws_db_instance.this.multi_az && length(aws_db_instance.replica) == 0 && aws_db_instance.this.backup_retention_period == 14
    error_message = "one instance, two weeks of backups"
  }

  assert {
    condition     = aws_db_instance.this.max_allocated_storage == 5 * aws_db_instance.this.allocated_storage && aws_db_instance.this.storage_type == "gp3"
    error_message = "gp3 that grows"
  }

  assert {
    condition     = length(aws_vpc_security_group_ingress_rule.groups) == 0 && length(aws_vpc_security_group_ingress_rule.cidrs) == 0
    error_message = "nobody may connect who was not named"
  }

  assert {
    condition     = length(aws_kms_key.this) == 1 && aws_kms_key.this[0].enable_key_rotation
    error_message = "a key of its own, which rotates"
  }

  assert {
    condition     = length(aws_backup_plan.this) == 0 && length(aws_backup_restore_testing_plan.this) == 0
    error_message = "the managed drill costs money: it is asked for"
  }

  assert {
    condition     = toset(keys(aws_cloudwatch_metric_alarm.this)) == toset(["cpu", "memory", "storage", "connections", "burst", "wal", "slots", "wraparound"])
    error_message = "alarms"
  }

  assert {
    condition     = length(setunion(aws_db_instance.this.enabled_cloudwatch_logs_exports, ["postgresql", "upgrade"])) == 2
    error_message = "the server's log is exported"
  }

  assert {
    condition     = output.endpoint == "orcheo-db.abc.eu-central-1.rds.amazonaws.com" && output.database == "orcheo" && output.port == 5432
    error_message = "where it is"
  }

  assert {
    condition     = strcontains(output.orcheo_env, "export ORCHEO_DB_ADMIN_DSN='postgresql://orcheo_admin@orcheo-db.abc.eu-central-1.rds.amazonaws.com:5432/postgres?sslmode=verify-full&sslrootcert='\"$PWD\"'/rds-ca.pem'") && strcontains(output.orcheo_env, "--secret-id 'arn:aws:secretsmanager:eu-central-1:123456789012:secret:rds!db-1'")
    error_message = "the environment of make up TARGET=external: ${output.orcheo_env}"
  }
}

run "parameters_are_the_rendered_ones" {
  variables {
    size = "large"
  }

  assert {
    condition     = aws_db_instance.this.allocated_storage >= 400 && aws_db_instance.this.iops == 12000 && aws_db_instance.this.storage_throughput == 500
    error_message = "from 400 GiB on gp3 is striped, and RDS wants to be told so when storage grows to that"
  }

  assert {
    condition = {
      for each in aws_db_parameter_group.this.parameter : each.name => "${each.value} ${each.apply_method}" if each.name != "rds.logical_replication"
      } == {
      for name, each in jsondecode(file("sizes.json")).sizes.large.parameters : name => "${each.value} ${each.restart ? "pending-reboot" : "immediate"}"
    }
    error_message = "the parameter group is not sizes.json's"
  }

  assert {
    condition     = aws_db_parameter_group.this.family == "postgres17"
    error_message = "family"
  }

  assert {
    condition     = one([for each in aws_db_parameter_group.this.parameter : each.value if each.name == "rds.force_ssl"]) == "1"
    error_message = "TLS is demanded"
  }
}

run "parameters_of_ones_own_win" {
  variables {
    parameters = { work_mem = "12345", "auto_explain.log_min_duration" = "100", "cron.database_name" = "postgres" }
  }

  assert {
    condition     = one([for each in aws_db_parameter_group.this.parameter : "${each.value} ${each.apply_method}" if each.name == "work_mem"]) == "12345 immediate"
    error_message = "a value of one's own, applied as the size's is"
  }

  assert {
    condition     = one([for each in aws_db_parameter_group.this.parameter : "${each.value} ${each.apply_method}" if each.name == "cron.database_name"]) == "postgres pending-reboot"
    error_message = "one that the size has not"
  }
}

run "high_availability_and_replicas" {
  variables {
    high_availability  = true
    read_replica_count = 2
    blue_green_ready   = true
    kms_key_arn        = "arn:aws:kms:eu-central-1:123456789012:key/1"
  }

  assert {
    condition     = aws_db_instance.this.multi_az && length(aws_db_instance.replica) == 2 && aws_db_instance.replica[1].identifier == "orcheo-db-replica-2"
    error_message = "a standby and two replicas"
  }

  assert {
    condition     = aws_db_instance.this.manage_master_user_password == null && aws_db_instance.this.password_wo_version == 1 && aws_db_instance.this.password == null
    error_message = "RDS makes no replica of an instance whose password it manages"
  }

  assert {
    condition     = length(aws_secretsmanager_secret_version.admin) == 1 && strcontains(output.orcheo_env, "--secret-id '${aws_secretsmanager_secret.admin[0].arn}'")
    error_message = "its password is in a secret of its own"
  }

  assert {
    condition     = alltrue([for each in aws_db_instance.replica : each.parameter_group_name == aws_db_instance.this.parameter_group_name && each.storage_encrypted])
    error_message = "replicas are as the primary"
  }

  assert {
    condition     = length(aws_cloudwatch_metric_alarm.replica_lag) == 2 && length(aws_cloudwatch_log_group.this) == 6
    error_message = "replicas are watched, too"
  }

  assert {
    condition     = one([for each in aws_db_parameter_group.this.parameter : each.value if each.name == "rds.logical_replication"]) == "1"
    error_message = "logical replication is on"
  }

  assert {
    condition     = length(aws_kms_key.this) == 0 && aws_db_instance.this.kms_key_id == "arn:aws:kms:eu-central-1:123456789012:key/1"
    error_message = "a key of one's own is used"
  }
}

run "who_may_connect" {
  variables {
    allowed_security_groups = ["sg-1", "sg-2"]
    allowed_cidrs           = ["10.1.0.0/16", "fd00::/64"]
    port                    = 6000
  }

  assert {
    condition     = alltrue([for each in aws_vpc_security_group_ingress_rule.groups : each.from_port == 6000 && each.to_port == 6000 && each.ip_protocol == "tcp"]) && aws_vpc_security_group_ingress_rule.groups[*].referenced_security_group_id == ["sg-1", "sg-2"]
    error_message = "groups"
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.cidrs["10.1.0.0/16"].cidr_ipv4 == "10.1.0.0/16" && aws_vpc_security_group_ingress_rule.cidrs["fd00::/64"].cidr_ipv6 == "fd00::/64"
    error_message = "ranges"
  }
}

run "the_managed_drill" {
  variables {
    restore_testing = true
  }

  assert {
    condition     = aws_backup_restore_testing_selection.this[0].protected_resource_type == "RDS" && length(aws_iam_role_policy_attachment.backup) == 2
    error_message = "a restore on trial, once a week"
  }
}

run "nothing_watches_when_nothing_shall" {
  variables {
    alarms                    = false
    monitoring_interval       = 0
    performance_insights_days = 0
  }

  assert {
    condition     = length(aws_cloudwatch_metric_alarm.this) == 0 && length(aws_sns_topic.alarms) == 0 && length(aws_iam_role.monitoring) == 0 && !aws_db_instance.this.performance_insights_enabled && output.alarm_topic_arn == null
    error_message = "all of it is off"
  }
}

run "alarms_by_mail" {
  variables {
    alarm_emails = ["dba@example.com"]
  }

  assert {
    condition     = aws_sns_topic_subscription.emails["dba@example.com"].protocol == "email" && aws_sns_topic.alarms[0].kms_master_key_id == aws_kms_key.this[0].arn
    error_message = "a topic of its own, encrypted"
  }
}
