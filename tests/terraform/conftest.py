"""Terraform over copies of terraform/: nothing is left in the tree, and no lock file ever names a stub."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.terraform.providers import Terraform, prepare, program

CLOUDS = {"aws-rds": "aws", "gcp-cloudsql": "google", "azure-flexible": "azurerm"}


def roots() -> list[str]:
    """Every directory with Terraform files of its own, relative to terraform/."""
    base = ROOT / "terraform"
    return sorted({str(file.parent.relative_to(base)) for file in base.rglob("*.tf")})


def provider_of(root: str) -> str:
    cloud = root.split("/")[1].partition("-")[0]
    return {"aws": "aws", "gcp": "google", "azure": "azurerm"}[cloud]


@pytest.fixture(scope="session")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    path, why = program()
    if path is None:
        pytest.skip(why)
    return prepare(tmp_path_factory.mktemp("terraform"))


@pytest.fixture(scope="session")
def tree(terraform: Terraform, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of terraform/, without prevent_destroy: `terraform test` destroys what it has made (test_modules.py looks at the original)."""
    place = tmp_path_factory.mktemp("tree") / "terraform"
    shutil.copytree(ROOT / "terraform", place, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*"))
    for file in place.rglob("*.tf"):
        file.write_text(file.read_text().replace("prevent_destroy = true", "prevent_destroy = false"))
    return place


def ready(terraform: Terraform, tree: Path, root: str) -> Path:
    """A root of the copy with its providers, or a skip that says why they are not to be had."""
    provider = provider_of(root)
    if provider in terraform.missing:
        pytest.skip(terraform.missing[provider])
    directory = tree / root
    if not (directory / ".terraform").exists():
        terraform.ok(directory, "init", "-input=false", "-no-color")
    return directory
