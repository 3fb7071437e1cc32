"""AWS: a real `plan` without a cloud, and apply, plan without a change, destroy against moto (`make test-terraform-apply`)."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.terraform.aws import GAPS, Moto, running
from tests.terraform.conftest import ready
from tests.terraform.providers import Terraform

KEY = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with running(tmp_path_factory.mktemp("moto")) as found:
        yield found


@pytest.fixture
def example(terraform: Terraform, tree: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of an example of one's own, with its providers."""
    name: str = request.param
    ready(terraform, tree, f"examples/{name}")
    place = tmp_path / "terraform"
    shutil.copytree(tree, place, symlinks=True)
    return place / "examples" / name


@pytest.mark.parametrize("example", ["aws-minimal"], indirect=True)
def test_a_plan_needs_no_cloud(terraform: Terraform, example: Path):
    """With a key of one's own nothing is asked of AWS before an apply."""
    offline = 'provider "aws" {\n  region = var.region\n  access_key = "none"\n  secret_key = "none"\n  skip_credentials_validation = true\n  skip_metadata_api_check = true\n  skip_requesting_account_id = true\n}\n'
    (example / "override.tf").write_text(f'{offline}\nmodule "database" {{\n  kms_key_arn = "{KEY}"\n}}\n')
    given = {"region": "eu-central-1", "vpc_id": "vpc-0a", "subnet_ids": '["subnet-a", "subnet-b"]', "allowed_security_groups": '["sg-1"]'}  # fmt: skip
    terraform.ok(
        example, "plan", "-no-color", "-input=false", "-out=plan", *(f"-var={k}={v}" for k, v in given.items())
    )
    planned = json.loads(terraform.ok(example, "show", "-json", "plan"))
    found = {
        each["address"].removeprefix("module.database."): each["change"]["after"]
        for each in planned["resource_changes"]
    }
    server = found["aws_db_instance.this"]
    assert server["storage_encrypted"] and not server["publicly_accessible"] and server["manage_master_user_password"]
    assert "password" not in str(
        {key: value for key, value in server.items() if value is not None and key != "manage_master_user_password"}
    )
    sizes = json.loads((example / "../../modules/aws-rds/sizes.json").read_text())["sizes"]
    given_parameters = {each["name"]: each["value"] for each in found["aws_db_parameter_group.this"]["parameter"]}
    meant = {name: each["value"] for name, each in sizes["small"]["parameters"].items()}
    assert given_parameters == meant | {"rds.logical_replication": "0"}
    assert found["aws_vpc_security_group_ingress_rule.groups[0]"]["referenced_security_group_id"] == "sg-1"


@pytest.mark.slow
@pytest.mark.parametrize("example", ["aws-complete"], indirect=True)
def test_apply_then_no_change_then_destroy(terraform: Terraform, example: Path, moto: Moto):
    moto.reset()
    moto.override(example, "second", more=GAPS)
    password = secrets.token_hex(24)
    given = ['-var=alarm_emails=["dba@example.com"]', f"-var=admin_password={password}", "-no-color", "-input=false"]
    terraform.ok(example, "apply", "-auto-approve", *given)
    again = terraform.run(example, "plan", "-detailed-exitcode", *given)
    assert again.returncode == 0, again.stdout + again.stderr  # 2: there would be changes
    told = terraform.ok(example, "output", "-raw", "orcheo_env")
    assert (
        "export ORCHEO_DB_ADMIN_DSN='postgresql://orcheo_admin@" in told and "secretsmanager get-secret-value" in told
    )
    state = (example / "terraform.tfstate").read_text()
    assert password not in state and password not in again.stdout
    servers = [each for each in json.loads(state)["resources"] if each["type"] == "aws_db_instance"]
    assert all(instance["attributes"]["password"] is None for each in servers for instance in each["instances"])
    # A protected instance is not destroyed, and says why.
    refused = terraform.run(example, "destroy", "-auto-approve", *given)
    assert refused.returncode == 1 and "deletion protection" in (refused.stdout + refused.stderr).lower()
    terraform.ok(example, "apply", "-auto-approve", *given, "-var=deletion_protection=false")
    terraform.ok(example, "destroy", "-auto-approve", *given, "-var=deletion_protection=false")
    assert json.loads((example / "terraform.tfstate").read_text())["resources"] == []
