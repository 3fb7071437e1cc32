"""checkov over every module and example: whatever it knows, but for the waivers of terraform/.checkov.yaml, each of which is still needed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.tools import policy_failures

TERRAFORM = ROOT / "terraform"
CONFIG = TERRAFORM / ".checkov.yaml"
SET_BY_A_DYNAMIC_BLOCK = ("log_checkpoints", "log_connections", "log_disconnections", "log_lock_waits")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the waivers: checkov takes those that lie in the directory, asked or not."""
    place = tmp_path_factory.mktemp("policies") / "terraform"
    shutil.copytree(TERRAFORM, place, ignore=shutil.ignore_patterns(".terraform*", CONFIG.name))
    return place


def test_only_what_is_waived_fails(everything: Path):
    waived = set(yaml.safe_load(CONFIG.read_text())["skip-check"])
    assert {name.split()[0] for name in policy_failures(everything, "terraform")} == waived
    assert policy_failures(everything, "terraform", "--config-file", str(CONFIG)) == {}


def test_every_waiver_says_why():
    reasons = re.findall(
        r"#checkov:skip=\w+(.*)",
        "\n".join(file.read_text() for file in TERRAFORM.rglob("*.tf") if ".terraform" not in file.parts),
    )
    assert len(reasons) > 10 and all(len(reason) > 10 for reason in reasons), reasons
    lines = CONFIG.read_text().splitlines()
    waived = lines[lines.index("skip-check:") + 1 :]
    assert waived[0].startswith("  # ") and all(re.match(r"  (# .{20,}|- CKV\w+ # \S+)", line) for line in waived)


@pytest.mark.parametrize("name", SET_BY_A_DYNAMIC_BLOCK)
def test_what_checkov_cannot_see_is_set(name: str):
    sizes = json.loads((TERRAFORM / "modules" / "gcp-cloudsql" / "sizes.json").read_text())["sizes"]
    assert {size["parameters"][name]["value"] for size in sizes.values()} == {"on"}


def test_a_worse_module_is_found(tmp_path: Path):
    place = tmp_path / "aws-rds"
    shutil.copytree(TERRAFORM / "modules" / "aws-rds", place, ignore=shutil.ignore_patterns(".terraform*"))
    main = place / "main.tf"
    text = main.read_text()
    assert text.count("storage_encrypted     = true") == 2 and text.count("publicly_accessible    = false") == 1
    worse = text.replace("storage_encrypted     = true", "storage_encrypted     = false")
    main.write_text(worse.replace("publicly_accessible    = false", "publicly_accessible    = true"))
    found = {name.split()[0] for name in policy_failures(place, "terraform", "--config-file", str(CONFIG))}
    assert {"CKV_AWS_16", "CKV_AWS_17"} <= found
