"""Terraform's providers for the tests: the real ones where they can be had, else (Google, Azure) one that has the schema alone.

The AWS provider is looked for in a mirror: ORCHEO_DB_TERRAFORM_MIRROR, Terraform's implied folders, then on the whole machine.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import ROOT
from tests.terraform.stub import schemas
from tests.tools import binding, plugin_python

MIRROR = "ORCHEO_DB_TERRAFORM_MIRROR"
IMPLIED = ("~/.terraform.d/plugins", "~/.local/share/terraform/plugins", "/usr/local/share/terraform/plugins", "/usr/share/terraform/plugins")  # fmt: skip
STUB = Path(__file__).with_name("stub") / "provider.py"
USED = re.compile(r'^(resource|data) "([a-z0-9_]+)"', re.M)
PLATFORM = f"linux_{'arm64' if platform.machine() == 'aarch64' else 'amd64'}"
LEAST = (1, 11)


@dataclass(frozen=True)
class Terraform:
    """The program with providers; `schema_only` names those that are no more than a schema."""

    program: str
    config: Path
    schema_only: frozenset[str] = frozenset()
    missing: Mapping[str, str] = field(default_factory=dict)  # provider -> why there is none

    def run(
        self, directory: Path, *words: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """terraform, in a directory; without colours, and without asking."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("TF_", "AWS_"))}
        more = {"TF_CLI_CONFIG_FILE": str(self.config), "TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}
        return subprocess.run(
            [self.program, *words], cwd=directory, env=clean | more | dict(env or {}), capture_output=True, text=True
        )

    def ok(self, directory: Path, *words: str, env: Mapping[str, str] | None = None) -> str:
        done = self.run(directory, *words, env=env)
        assert done.returncode == 0, f"terraform {' '.join(words)} in {directory}\n{done.stdout}{done.stderr}"
        return done.stdout


def program() -> tuple[str | None, str]:
    """Terraform's path, or why there is none that will do."""
    found = shutil.which("terraform")
    if found is None:
        return None, "terraform is not installed"
    told = subprocess.run([found, "version", "-json"], capture_output=True, text=True, check=True).stdout
    version = json.loads(told)["terraform_version"]
    if tuple(map(int, version.split("-")[0].split(".")[:2])) < LEAST:
        return None, f"terraform {version} is older than 1.11, which the modules need"
    return found, ""


def prepare(base: Path) -> Terraform:
    """A configuration of Terraform's with every provider that there is; `base` is an empty directory."""
    path, why = program()
    assert path is not None, why
    host = default_host(path, base)
    mirror = base / "mirror"
    mirror.mkdir()
    direct = reachable(path, base)
    schema_only, missing = set(), {}
    if direct:
        config = "provider_installation {\n  direct {}\n}\n"
    else:
        config = f'provider_installation {{\n  filesystem_mirror {{\n    path = "{mirror}"\n  }}\n}}\n'
        aws = aws_mirror()
        if aws is None:
            missing["aws"] = (
                f"the AWS provider is in no mirror of this machine ({MIRROR} names one), and the registry can't be reached"
            )
        else:
            place = mirror / host / "hashicorp" / "aws" / aws.parent.parent.name
            place.mkdir(parents=True)
            (place / PLATFORM).symlink_to(aws.parent)
        for provider in ("google", "azurerm"):
            schema_only.add(provider)
            _stub(provider, mirror / host / "hashicorp" / provider, base)
    file = base / "terraform.rc"
    file.write_text(config)
    return Terraform(path, file, frozenset(schema_only), missing)


def default_host(path: str, base: Path) -> str:
    """The host that a provider's name without one means: Terraform says it."""
    asked = base / "host"
    asked.mkdir()
    (asked / "main.tf").write_text('terraform {\n  required_providers {\n    x = { source = "a/x" }\n  }\n}\n')
    told = subprocess.run([path, "providers", "-no-color"], cwd=asked, capture_output=True, text=True).stdout
    found = re.search(r"provider\[([^/\]]+)/a/x\]", told)
    assert found, told
    return found[1]


def reachable(path: str, base: Path) -> bool:
    """Whether the real providers can be had."""
    asked = base / "reach"
    asked.mkdir()
    (asked / "main.tf").write_text(
        'terraform {\n  required_providers {\n    null = { source = "hashicorp/null" }\n  }\n}\n'
    )
    (base / "direct.rc").write_text("provider_installation {\n  direct {}\n}\n")
    env = os.environ | {"TF_CLI_CONFIG_FILE": str(base / "direct.rc"), "TF_REGISTRY_CLIENT_TIMEOUT": "5"}
    try:
        return subprocess.run([path, "init"], cwd=asked, env=env, capture_output=True, timeout=60).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def aws_mirror() -> Path | None:
    """The newest AWS provider's program in an unpacked mirror: …/aws/VERSION/PLATFORM/terraform-provider-aws_v…"""
    own = [os.environ[MIRROR]] if MIRROR in os.environ else []
    pattern = f"*/hashicorp/aws/*/{PLATFORM}/terraform-provider-aws_v*"
    for place in (*own, *IMPLIED):
        if found := _newest(Path(place).expanduser().glob(pattern)):
            return found
    # `-xdev` keeps it off /proc and network mounts; unreadable folders are no failure.
    argv = ["find", "/", "-xdev", "-name", "terraform-provider-aws_v*", "-path", f"*/hashicorp/aws/*/{PLATFORM}/*"]
    told = subprocess.run(argv, capture_output=True, text=True).stdout.split("\n")
    return _newest(Path(line) for line in told if line)


def _newest(found: object) -> Path | None:
    def version(path: Path) -> tuple[int, ...]:
        return tuple(int(part) for part in path.parent.parent.name.split("-")[0].split("."))

    return max(found, key=version, default=None)  # type: ignore[call-overload,no-any-return]


def used(provider: str) -> set[str]:
    """The resources and data sources ("data.NAME") of a provider that our files use."""
    found = set()
    for file in (ROOT / "terraform").rglob("*.tf"):
        for kind, name in USED.findall(file.read_text()):
            if name.startswith(f"{provider}_"):
                found.add(f"data.{name}" if kind == "data" else name)
    return found


def _stub(provider: str, place: Path, base: Path) -> None:
    """A provider with the schema of what our files use; a name that the real one has not is an error here already."""
    schema = schemas.read(binding(provider), provider, used(provider))
    file = base / f"{provider}.json"
    file.write_text(json.dumps(schema))
    directory = place / schema["version"] / PLATFORM
    directory.mkdir(parents=True)
    script = directory / f"terraform-provider-{provider}_v{schema['version']}"
    script.write_text(f'#!/bin/sh\nexec "{plugin_python()}" "{STUB}" "{file}"\n')
    script.chmod(0o755)
