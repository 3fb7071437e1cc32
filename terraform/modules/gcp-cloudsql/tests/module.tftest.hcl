# Against the provider's schema, with a mocked cloud: what the module asks for.

mock_provider "google" {
  source = "./tests/mocks"
}

variables {
  project_id     = "orcheo-prod"
  region         = "europe-west1"
  network        = "projects/orcheo-prod/global/networks/main"
  admin_password = "0123456789abcdef0123456789abcdef"
}

run "defaults" {
  assert {
    condition     = google_sql_database_instance.this.settings[0].tier == jsondecode(file("sizes.json")).sizes.small.class && google_sql_database_instance.this.database_version == "POSTGRES_17"
    error_message = "size small is what sizes.json says"
  }

  assert {
    condition     = google_sql_database_instance.this.deletion_protection && google_sql_database_instance.this.settings[0].deletion_protection_enabled && google_sql_database_instance.this.settings[0].retain_backups_on_delete
    error_message = "not lost by accident"
  }

  assert {
    condition     = !google_sql_database_instance.this.settings[0].ip_configuration[0].ipv4_enabled && google_sql_database_instance.this.settings[0].ip_configuration[0].ssl_mode == "TRUSTED_CLIENT_CERTIFICATE_REQUIRED"
    error_message = "private, and for clients with a certificate"
  }

  assert {
    condition     = google_sql_user.admin.password == null && google_sql_user.admin.password_wo == null && google_secret_manager_secret_version.admin.secret_data_wo == null
    error_message = "no password is in the state"
  }

  assert {
    condition     = google_sql_database_instance.this.settings[0].availability_type == "ZONAL" && length(google_sql_database_instance.replica) == 0
    error_message = "one instance"
  }

  assert {
    condition = alltrue([
      google_sql_database_instance.this.settings[0].backup_configuration[0].point_in_time_recovery_enabled,
      google_sql_database_instance.this.settings[0].backup_configuration[0].transaction_log_retention_days == 7,
      google_sql_database_instance.this.settings[0].backup_configuration[0].backup_retention_settings[0].retained_backups == 14,
    ])
    error_message = "two weeks of backups, and as much WAL as the edition keeps"
  }

  assert {
    condition     = google_sql_database_instance.this.settings[0].disk_autoresize && google_sql_database_instance.this.settings[0].disk_autoresize_limit == 5 * google_sql_database_instance.this.settings[0].disk_size
    error_message = "storage grows"
  }

  assert {
    condition     = toset(keys(google_monitoring_alert_policy.this)) == toset(["cpu", "memory", "storage", "connections", "wraparound"])
    error_message = "alarms"
  }

  assert {
    condition     = output.endpoint == "10.20.30.40" && output.port == 5432 && output.database == "orcheo" && strcontains(output.ca_certificate, "BEGIN CERTIFICATE")
    error_message = "where it is"
  }

  assert {
    condition     = strcontains(output.orcheo_env, "export ORCHEO_DB_ADMIN_DSN='postgresql://orcheo_admin@10.20.30.40:5432/postgres?sslmode=verify-ca&sslrootcert='\"$PWD\"'/cloudsql-ca.pem&sslcert='\"$PWD\"'/client-cert.pem&sslkey='\"$PWD\"'/client-key.pem'") && strcontains(output.orcheo_env, "gcloud sql ssl client-certs create")
    error_message = "the environment of make up TARGET=external: ${output.orcheo_env}"
  }
}

run "flags_are_the_rendered_ones" {
  variables {
    size = "large"
  }

  assert {
    condition = {
      for each in google_sql_database_instance.this.settings[0].database_flags : each.name => each.value
      } == {
      for name, each in jsondecode(file("sizes.json")).sizes.large.parameters : name => each.value
    }
    error_message = "the flags are not sizes.json's"
  }
}

run "flags_of_ones_own_win" {
  variables {
    parameters = { work_mem = "12345", "cloudsql.enable_pg_cron" = "on" }
  }

  assert {
    condition     = one([for each in google_sql_database_instance.this.settings[0].database_flags : each.value if each.name == "work_mem"]) == "12345" && one([for each in google_sql_database_instance.this.settings[0].database_flags : each.value if each.name == "cloudsql.enable_pg_cron"]) == "on"
    error_message = "values of one's own"
  }
}

run "high_availability_and_replicas" {
  variables {
    high_availability  = true
    read_replica_count = 2
    kms_key_name       = "projects/p/locations/europe-west1/keyRings/r/cryptoKeys/k"
  }

  assert {
    condition     = google_sql_database_instance.this.settings[0].availability_type == "REGIONAL" && length(google_sql_database_instance.replica) == 2 && google_sql_database_instance.replica[1].master_instance_name == "orcheo-db"
    error_message = "a standby and two replicas"
  }

  assert {
    condition     = alltrue([for each in google_sql_database_instance.replica : each.settings[0].database_flags == google_sql_database_instance.this.settings[0].database_flags && each.settings[0].ip_configuration[0].ssl_mode == "TRUSTED_CLIENT_CERTIFICATE_REQUIRED"])
    error_message = "replicas are as the primary"
  }

  assert {
    condition     = contains(keys(google_monitoring_alert_policy.this), "replica-2-lag") && google_sql_database_instance.this.encryption_key_name == "projects/p/locations/europe-west1/keyRings/r/cryptoKeys/k"
    error_message = "watched, and encrypted with a key of one's own"
  }
}

run "a_key_of_another_region" {
  command = plan

  variables {
    kms_key_name = "projects/p/locations/us-east1/keyRings/r/cryptoKeys/k"
  }

  expect_failures = [google_sql_database_instance.this]
}

run "iam_users" {
  variables {
    iam_authentication = true
    iam_users          = ["ana@example.com", "app@orcheo-prod.iam"]
  }

  assert {
    condition     = google_sql_user.iam["ana@example.com"].type == "CLOUD_IAM_USER" && google_sql_user.iam["app@orcheo-prod.iam"].type == "CLOUD_IAM_SERVICE_ACCOUNT"
    error_message = "kinds"
  }

  assert {
    condition     = one([for each in google_sql_database_instance.this.settings[0].database_flags : each.value if each.name == "cloudsql.iam_authentication"]) == "on"
    error_message = "the flag"
  }
}

run "tls_without_a_clients_certificate" {
  variables {
    ssl_mode = "ENCRYPTED_ONLY"
  }

  assert {
    condition     = !strcontains(output.orcheo_env, "sslcert") && !strcontains(output.orcheo_env, "client-certs")
    error_message = "no certificate is made"
  }
}

run "enterprise_plus" {
  variables {
    edition               = "ENTERPRISE_PLUS"
    instance_class        = "db-perf-optimized-N-2"
    backup_retention_days = 60
  }

  assert {
    condition     = google_sql_database_instance.this.settings[0].backup_configuration[0].transaction_log_retention_days == 35
    error_message = "WAL for 35 days"
  }
}
