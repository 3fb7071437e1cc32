"""`fmt`, `validate` and `terraform test` of every module and example. Google's and Azure's providers are no more than their schemas here,
unless the registry can be reached: that proves names, types and references, and no cloud's behaviour.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.terraform.conftest import CLOUDS, ready, roots
from tests.terraform.providers import Terraform


def test_it_is_formatted(terraform: Terraform):
    done = terraform.run(ROOT / "terraform", "fmt", "-check", "-recursive", "-diff", "-no-color")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("root", roots())
def test_it_is_valid(terraform: Terraform, tree: Path, root: str):
    done = terraform.run(ready(terraform, tree, root), "validate", "-no-color")
    assert done.returncode == 0 and "Success!" in done.stdout, done.stdout + done.stderr
    assert "Warning" not in done.stdout


@pytest.mark.parametrize("module", sorted(CLOUDS))
def test_it_passes_its_own_tests(terraform: Terraform, tree: Path, module: str):
    done = terraform.run(ready(terraform, tree, f"modules/{module}"), "test", "-no-color")
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"Success! (\d+) passed, 0 failed", done.stdout)
    written = sum(
        file.read_text().count("\nrun ") for file in (ROOT / "terraform" / "modules" / module / "tests").glob("*.hcl")
    )
    assert found and int(found[1]) == written > 20


@pytest.mark.parametrize("module", sorted(CLOUDS))
def test_every_validation_is_refused_in_a_test(module: str):
    """A variable with a validation and no test of its refusal could accept anything."""
    directory = ROOT / "terraform" / "modules" / module
    blocks = re.split(r"^variable ", (directory / "variables.tf").read_text(), flags=re.M)[1:]
    validated = {block.split('"')[1] for block in blocks if "validation {" in block}
    tested = set()
    for file in (directory / "tests").glob("*.hcl"):
        tested |= set(re.findall(r"expect_failures = \[var\.(\w+)", file.read_text()))
    assert validated == tested


@pytest.mark.parametrize("root", roots())
def test_every_variable_and_output_is_described_and_typed(root: str):
    directory = ROOT / "terraform" / root
    for name in ("variables.tf", "outputs.tf"):
        blocks = re.split(r'^(?:variable|output) "', (directory / name).read_text(), flags=re.M)[1:]
        assert blocks
        for block in blocks:
            assert re.search(r"^  description = \".+[.)\"]\"?$", block, re.M), block[:80]
            assert name == "outputs.tf" or re.search(r"^  type\s+= ", block, re.M), block[:80]


@pytest.mark.parametrize("root", roots())
def test_a_name_that_no_provider_has_is_found(terraform: Terraform, tree: Path, root: str, tmp_path: Path):
    """The check can fail: one misspelt attribute, in a copy."""
    source = ready(terraform, tree, root)
    kind, _, block = next(
        match.groups()
        for file in sorted(source.glob("*.tf"))
        for match in re.finditer(r'^(resource|module) "(\w+)"[^{]*(\{)$', file.read_text(), re.M)
    )
    del block
    file = next(f for f in sorted(source.glob("*.tf")) if re.search(rf'^{kind} "', f.read_text(), re.M))
    before = file.read_text()
    file.write_text(re.sub(rf'^({kind} "[^{{]*\{{\n)', r"\1  misspelt = 1\n", before, count=1, flags=re.M))
    try:
        done = terraform.run(source, "validate", "-no-color")
    finally:
        file.write_text(before)
    assert done.returncode == 1 and '"misspelt" is not expected here' in done.stdout + done.stderr


def test_no_lock_file_and_no_state_is_committed():
    listed = subprocess.run(["git", "ls-files", "terraform"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = listed.stdout.split()
    assert names and not [name for name in names if name.endswith((".lock.hcl", ".tfstate", ".tfvars"))]


def test_no_other_provider_is_used(terraform: Terraform):
    sources = {
        source
        for file in (ROOT / "terraform").rglob("*.tf")
        for source in re.findall(r'source\s*=\s*"(hashicorp/\w+)"', file.read_text())
    }
    assert sources == {"hashicorp/aws", "hashicorp/google", "hashicorp/azurerm"}


def test_what_holds_the_rows_is_not_terraforms_to_destroy():
    """RDS and Cloud SQL refuse it themselves (deletion_protection); Azure's lock goes before the server, so Terraform has to refuse."""
    server = (
        (ROOT / "terraform/modules/azure-flexible/main.tf")
        .read_text()
        .split('resource "azurerm_postgresql_flexible_server" "this"')[1]
    )
    assert "prevent_destroy = true" in server.split("\nresource ")[0]
    for module, line in (
        ("aws-rds", "deletion_protection       = var.deletion_protection"),
        ("gcp-cloudsql", "deletion_protection = var.deletion_protection"),
    ):
        assert line in (ROOT / f"terraform/modules/{module}/main.tf").read_text()
