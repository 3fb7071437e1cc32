terraform {
  required_version = ">= 1.11" # write-only arguments: the administrator's password is in no state

  required_providers {
    azurerm = {
      source  = "hashicorp/azurerm"
      version = ">= 5.0, < 6.0" # 5.10 is the schema that the tests check against
    }
  }
}
