"""AWS in memory (moto) for Terraform and the AWS command line: what it does is moto's, and proves wiring only."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import free_port
from tests.tools import moto

SERVICES = ("backup", "cloudwatch", "ec2", "iam", "kms", "logs", "rds", "secretsmanager", "sns", "sts")
# What moto 5.2 has not, and this suite therefore takes out of what it applies (module.tftest.hcl and `plan` still see it):
# - AWS Backup: CreateBackupSelection, restore testing plans;
# - RDS: StartDBInstanceAutomatedBackupsReplication; replicas, which it makes and does not show by their resource id; Performance Insights, which it forgets;
# - EC2: the description of a rule that names a group.
# Three more are filled in moto_gaps.py.
GAPS = """
module "database" {
  restore_testing           = false
  read_replica_count        = 0
  performance_insights_days = 0
  allowed_security_groups   = []
  allowed_cidrs             = ["10.42.0.0/16"]
}

module "backup_copy" {
  count = 0
}
"""


@dataclass(frozen=True)
class Moto:
    address: str

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_ENDPOINT_URL": self.address}

    def override(self, directory: Path, *aliases: str, more: str = "") -> None:
        """Let a root's providers speak to this server alone."""
        endpoints = "\n".join(f'    {name} = "{self.address}"' for name in SERVICES)
        text = ""
        for alias in ("", *aliases):
            name = f'  alias  = "{alias}"\n  region = var.{alias}_region\n' if alias else "  region = var.region\n"
            text += (
                f'provider "aws" {{\n{name}  access_key = "test"\n  secret_key = "test"\n  skip_metadata_api_check = true\n'
                f"  skip_credentials_validation = true\n  endpoints {{\n{endpoints}\n  }}\n}}\n"
            )
        (directory / "override.tf").write_text(text + more)

    def reset(self) -> None:
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.address}/moto-api/reset", method="POST"), timeout=10
        ):
            pass


@contextlib.contextmanager
def running(directory: Path, copy_address: str = "") -> Iterator[Moto]:
    """A server for the block's length. `copy_address`: HOST:PORT of a real PostgreSQL that stands for every restored copy."""
    port = free_port()
    with (directory / "moto.log").open("w") as log:
        env = os.environ | {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true", "COPY_ADDRESS": copy_address}  # AWS' own policies
        gaps = str(Path(__file__).with_name("moto_gaps.py"))
        argv = [str(moto().with_name("python")), gaps, "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=subprocess.STDOUT)
    found = Moto(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                found.reset()
                break
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < deadline and process.poll() is None, (directory / "moto.log").read_text()
                time.sleep(0.2)
        yield found
    finally:
        process.terminate()
        process.wait(20)
