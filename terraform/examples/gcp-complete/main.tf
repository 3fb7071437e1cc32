# All of it: a network of its own with a private services connection, a standby, a replica, a key of one's own, alarms by e-mail.

provider "google" {
  project = var.project_id
  region  = var.region
}

data "google_project" "this" {
  project_id = var.project_id
}

# --- network ---------------------------------------------------------------------------------------------------------

resource "google_compute_network" "this" {
  #checkov:skip=CKV2_GCP_18:without a rule nothing comes in; what the app's machines need is theirs to say
  name                    = var.name
  project                 = var.project_id
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "app" {
  #checkov:skip=CKV_GCP_26:what flow logs may cost is the owner's to say
  name                     = "${var.name}-app"
  project                  = var.project_id
  region                   = var.region
  network                  = google_compute_network.this.id
  ip_cidr_range            = var.app_cidr
  private_ip_google_access = true
}

resource "google_compute_global_address" "services" {
  name          = "${var.name}-services"
  project       = var.project_id
  network       = google_compute_network.this.id
  purpose       = "VPC_PEERING"
  address_type  = "INTERNAL"
  prefix_length = 20
}

resource "google_service_networking_connection" "services" {
  network                 = google_compute_network.this.id
  service                 = "servicenetworking.googleapis.com"
  reserved_peering_ranges = [google_compute_global_address.services.name]
}

# --- a key of one's own ------------------------------------------------------------------------------------------------

resource "google_kms_key_ring" "this" {
  name     = var.name
  project  = var.project_id
  location = var.region
}

resource "google_kms_crypto_key" "this" {
  name            = var.name
  key_ring        = google_kms_key_ring.this.id
  rotation_period = "7776000s" # 90 days

  lifecycle {
    prevent_destroy = true # without it no backup can be read
  }
}

resource "google_kms_crypto_key_iam_member" "cloudsql" {
  crypto_key_id = google_kms_crypto_key.this.id
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:service-${data.google_project.this.number}@gcp-sa-cloud-sql.iam.gserviceaccount.com"
}

# --- the database ------------------------------------------------------------------------------------------------------

resource "google_monitoring_notification_channel" "email" {
  for_each = toset(var.alarm_emails)

  project      = var.project_id
  display_name = "${var.name}: ${each.value}"
  type         = "email"
  labels       = { email_address = each.value }
}

module "database" {
  source = "../../modules/gcp-cloudsql"

  name               = var.name
  project_id         = var.project_id
  region             = var.region
  size               = var.size
  network            = google_compute_network.this.id
  allocated_ip_range = google_compute_global_address.services.name
  kms_key_name       = google_kms_crypto_key.this.id
  admin_password     = var.admin_password

  high_availability     = true
  read_replica_count    = 1
  backup_retention_days = 35
  iam_authentication    = length(var.iam_users) > 0
  iam_users             = var.iam_users
  notification_channels = [for channel in google_monitoring_notification_channel.email : channel.name]
  deletion_protection   = var.deletion_protection
  tags                  = var.tags

  depends_on = [google_service_networking_connection.services, google_kms_crypto_key_iam_member.cloudsql]
}
