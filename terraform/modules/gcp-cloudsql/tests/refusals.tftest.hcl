# Every validation refuses what it should: before anything is asked of the cloud.

mock_provider "google" {
  source = "./tests/mocks"
}

variables {
  project_id     = "orcheo-prod"
  region         = "europe-west1"
  network        = "projects/orcheo-prod/global/networks/main"
  admin_password = "0123456789abcdef0123456789abcdef"
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
    name = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
  }

  expect_failures = [var.name]
}

run "project_id_number" {
  command = plan

  variables {
    project_id = "123456789012"
  }

  expect_failures = [var.project_id]
}

run "region_zone" {
  command = plan

  variables {
    region = "europe-west1-b"
  }

  expect_failures = [var.region]
}

run "size_unknown" {
  command = plan

  variables {
    size = "huge"
  }

  expect_failures = [var.size]
}

run "instance_class_shape" {
  command = plan

  variables {
    instance_class = "n2-standard-4"
  }

  expect_failures = [var.instance_class]
}

run "edition_unknown" {
  command = plan

  variables {
    edition = "STANDARD"
  }

  expect_failures = [var.edition]
}

run "edition_without_its_machine" {
  command = plan

  variables {
    edition = "ENTERPRISE_PLUS"
  }

  expect_failures = [var.edition]
}

run "admin_username_reserved" {
  command = plan

  variables {
    admin_username = "postgres"
  }

  expect_failures = [var.admin_username]
}

run "admin_username_cloudsql" {
  command = plan

  variables {
    admin_username = "cloudsqlagent"
  }

  expect_failures = [var.admin_username]
}

run "admin_password_short" {
  command = plan

  variables {
    admin_password = "short"
  }

  expect_failures = [var.admin_password]
}

run "admin_password_quote" {
  command = plan

  variables {
    admin_password = "0123456789abcdef0123456789'"
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

run "network_name" {
  command = plan

  variables {
    network = "main"
  }

  expect_failures = [var.network]
}

run "ssl_mode_open" {
  command = plan

  variables {
    ssl_mode = "ALLOW_UNENCRYPTED_AND_ENCRYPTED"
  }

  expect_failures = [var.ssl_mode]
}

run "iam_users_without_iam" {
  command = plan

  variables {
    iam_users = ["a@example.com"]
  }

  expect_failures = [var.iam_users]
}

run "iam_users_whole_account" {
  command = plan

  variables {
    iam_authentication = true
    iam_users          = ["x@p.iam.gserviceaccount.com"]
  }

  expect_failures = [var.iam_users]
}

run "storage_gb_low" {
  command = plan

  variables {
    storage_gb = 5
  }

  expect_failures = [var.storage_gb]
}

run "max_storage_gb_below" {
  command = plan

  variables {
    max_storage_gb = 20
  }

  expect_failures = [var.max_storage_gb]
}

run "high_availability_without_backups" {
  command = plan

  variables {
    high_availability     = true
    backup_retention_days = 0
  }

  expect_failures = [var.high_availability]
}

run "read_replica_count_many" {
  command = plan

  variables {
    read_replica_count = 11
  }

  expect_failures = [var.read_replica_count]
}

run "read_replica_count_without_backups" {
  command = plan

  variables {
    read_replica_count    = 1
    backup_retention_days = 0
  }

  expect_failures = [var.read_replica_count]
}

run "backup_retention_days_long" {
  command = plan

  variables {
    backup_retention_days = 366
  }

  expect_failures = [var.backup_retention_days]
}

run "backup_start_time_words" {
  command = plan

  variables {
    backup_start_time = "night"
  }

  expect_failures = [var.backup_start_time]
}

run "maintenance_window_day" {
  command = plan

  variables {
    maintenance_window = { day = 0, hour = 3 }
  }

  expect_failures = [var.maintenance_window]
}

run "maintenance_window_track" {
  command = plan

  variables {
    maintenance_window = { day = 1, hour = 3, update_track = "never" }
  }

  expect_failures = [var.maintenance_window]
}

run "parameters_iam" {
  command = plan

  variables {
    parameters = { "cloudsql.iam_authentication" = "on" }
  }

  expect_failures = [var.parameters]
}

run "kms_key_name_short" {
  command = plan

  variables {
    kms_key_name = "key"
  }

  expect_failures = [var.kms_key_name]
}

run "notification_channels_mail" {
  command = plan

  variables {
    notification_channels = ["dba@example.com"]
  }

  expect_failures = [var.notification_channels]
}

run "tags_upper" {
  command = plan

  variables {
    tags = { App = "x" }
  }

  expect_failures = [var.tags]
}
