# The least: one instance of size small in a network that has a private services connection already.

provider "google" {
  project = var.project_id
  region  = var.region
}

module "database" {
  source = "../../modules/gcp-cloudsql"

  name           = var.name
  project_id     = var.project_id
  region         = var.region
  network        = var.network
  admin_password = var.admin_password
}
