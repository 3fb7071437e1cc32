terraform {
  # 1.11: validation may look at other objects (1.9), and the other clouds' modules have write-only arguments.
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.100, < 7.0" # 5.100 is what the tests apply with
    }
  }
}
