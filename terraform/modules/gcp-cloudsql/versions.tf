terraform {
  required_version = ">= 1.11" # write-only arguments: the administrator's password is in no state

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 8.0, < 9.0" # 8.7 is the schema that the tests check against
    }
  }
}
