# Every validation refuses what it should: before anything is asked of the cloud.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  vpc_id     = "vpc-0a"
  subnet_ids = ["subnet-a", "subnet-b"]
}

run "name_upper" {
  command = plan

  variables {
    name = "Orcheo"
  }

  expect_failures = [var.name]
}

run "name_long" {
  command = plan

  variables {
    name = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
  }

  expect_failures = [var.name]
}

run "name_end" {
  command = plan

  variables {
    name = "orcheo-"
  }

  expect_failures = [var.name]
}

run "size_unknown" {
  command = plan

  variables {
    size = "huge"
  }

  expect_failures = [var.size]
}

run "engine_version_other" {
  command = plan

  variables {
    engine_version = "16"
  }

  expect_failures = [var.engine_version]
}

run "instance_class_no_db" {
  command = plan

  variables {
    instance_class = "m7g.large"
  }

  expect_failures = [var.instance_class]
}

run "replica_without_a_password_of_its_own" {
  command = plan

  variables {
    read_replica_count = 1
  }

  expect_failures = [var.admin_password]
}

run "blue_green_without_a_password_of_its_own" {
  command = plan

  variables {
    blue_green_ready = true
  }

  expect_failures = [var.admin_password]
}

run "admin_password_short" {
  command = plan

  variables {
    admin_password = "short"
  }

  expect_failures = [var.admin_password]
}

run "admin_password_version_zero" {
  command = plan

  variables {
    admin_password_version = 0
  }

  expect_failures = [var.admin_password_version]
}

run "final_snapshot_name_hyphens" {
  command = plan

  variables {
    final_snapshot_name = "a--b"
  }

  expect_failures = [var.final_snapshot_name]
}

run "admin_username_reserved" {
  command = plan

  variables {
    admin_username = "rdsadmin"
  }

  expect_failures = [var.admin_username]
}

run "admin_username_superuser" {
  command = plan

  variables {
    admin_username = "postgres"
  }

  expect_failures = [var.admin_username]
}

run "vpc_id_none" {
  command = plan

  variables {
    vpc_id = "default"
  }

  expect_failures = [var.vpc_id]
}

run "subnet_ids_one" {
  command = plan

  variables {
    subnet_ids = ["subnet-a"]
  }

  expect_failures = [var.subnet_ids]
}

run "subnet_ids_twice" {
  command = plan

  variables {
    subnet_ids = ["subnet-a", "subnet-a"]
  }

  expect_failures = [var.subnet_ids]
}

run "allowed_cidrs_world" {
  command = plan

  variables {
    allowed_cidrs = ["0.0.0.0/0"]
  }

  expect_failures = [var.allowed_cidrs]
}

run "allowed_cidrs_world6" {
  command = plan

  variables {
    allowed_cidrs = ["::/0"]
  }

  expect_failures = [var.allowed_cidrs]
}

run "allowed_cidrs_nonsense" {
  command = plan

  variables {
    allowed_cidrs = ["ten"]
  }

  expect_failures = [var.allowed_cidrs]
}

run "port_low" {
  command = plan

  variables {
    port = 80
  }

  expect_failures = [var.port]
}

run "storage_gb_low" {
  command = plan

  variables {
    storage_gb = 10
  }

  expect_failures = [var.storage_gb]
}

run "storage_gb_fraction" {
  command = plan

  variables {
    storage_gb = 20.5
  }

  expect_failures = [var.storage_gb]
}

run "max_storage_gb_below" {
  command = plan

  variables {
    max_storage_gb = 30
  }

  expect_failures = [var.max_storage_gb]
}

run "read_replica_count_many" {
  command = plan

  variables {
    read_replica_count = 16
    admin_password     = "0123456789abcdef0123456789abcdef"
  }

  expect_failures = [var.read_replica_count]
}

run "read_replica_count_negative" {
  command = plan

  variables {
    read_replica_count = -1
  }

  expect_failures = [var.read_replica_count]
}

run "backup_retention_days_long" {
  command = plan

  variables {
    backup_retention_days = 36
  }

  expect_failures = [var.backup_retention_days]
}

run "backup_window_words" {
  command = plan

  variables {
    backup_window = "night"
  }

  expect_failures = [var.backup_window]
}

run "maintenance_window_no_day" {
  command = plan

  variables {
    maintenance_window = "03:00-04:00"
  }

  expect_failures = [var.maintenance_window]
}

run "parameters_tls" {
  command = plan

  variables {
    parameters = { "rds.force_ssl" = "0" }
  }

  expect_failures = [var.parameters]
}

run "kms_key_arn_alias" {
  command = plan

  variables {
    kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:alias/x"
  }

  expect_failures = [var.kms_key_arn]
}

run "monitoring_interval_two" {
  command = plan

  variables {
    monitoring_interval = 2
  }

  expect_failures = [var.monitoring_interval]
}

run "performance_insights_days_eight" {
  command = plan

  variables {
    performance_insights_days = 8
  }

  expect_failures = [var.performance_insights_days]
}

run "log_retention_days_two" {
  command = plan

  variables {
    log_retention_days = 2
  }

  expect_failures = [var.log_retention_days]
}

run "alarm_topic_arn_no_arn" {
  command = plan

  variables {
    alarm_topic_arn = "alarms"
  }

  expect_failures = [var.alarm_topic_arn]
}

run "replicas_without_backups" {
  command = plan

  variables {
    read_replica_count    = 1
    admin_password        = "0123456789abcdef0123456789abcdef"
    backup_retention_days = 0
  }

  expect_failures = [var.read_replica_count]
}

run "mails_to_somebody_elses_topic" {
  command = plan

  variables {
    alarm_emails    = ["dba@example.com"]
    alarm_topic_arn = "arn:aws:sns:eu-central-1:123456789012:theirs"
  }

  expect_failures = [var.alarm_emails]
}
