"""ansible-lint at its strictest profile, and what it does not look at."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests import tools
from tests.conftest import ROOT

ANSIBLE = ROOT / "ansible"
ROLES = sorted(path.name for path in (ANSIBLE / "roles").iterdir())


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    (collections,) = tools.ansible().parents[1].glob("lib/python3*/site-packages")
    env = os.environ | {"ANSIBLE_COLLECTIONS_PATH": str(collections), "NO_COLOR": "1"}
    argv = [str(tools.ansible_lint()), "--offline", "--profile=production", "--strict", "-q", "--nocolor"]
    return subprocess.run(argv, cwd=directory, env=env, capture_output=True, text=True)


def test_production_profile_without_skips():
    done = lint(ANSIBLE)
    assert done.returncode == 0, done.stdout + done.stderr
    texts = [file.read_text() for file in ANSIBLE.rglob("*.yml")]
    assert not (ANSIBLE / ".ansible-lint").exists() and not [text for text in texts if "skip_ansible_lint" in text]


def test_a_worse_task_is_found(tmp_path: Path):
    (tmp_path / "site.yml").write_text("---\n- name: Worse\n  hosts: all\n  tasks:\n    - shell: apt install x\n")
    done = lint(tmp_path)
    assert done.returncode != 0 and "fqcn" in done.stdout + done.stderr


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_of_a_role_is_specified_and_in_its_readme(role: str):
    """argument_specs, defaults and README name the same variables."""
    place = ANSIBLE / "roles" / role
    specs = yaml.safe_load((place / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    options = specs["main"]["options"]
    assert specs["check"] == specs["main"], "checked before anything changes"
    assert all(option.get("description") and option.get("type") for option in options.values())
    readme = (place / "README.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", readme, re.M)) == set(options)
    by_hand = yaml.safe_load((place / "defaults" / "main" / "main.yml").read_text()) or {}
    assert set(by_hand) <= set(options), "a default that nobody may set"
    for name, option in options.items():
        if "default" in option and name in by_hand and not str(by_hand[name]).startswith("{{"):
            assert by_hand[name] == option["default"], name


def test_secrets_are_never_shown():
    """Whatever copies secrets or hands them to a program has no_log, or takes them from a file of the host."""
    for file in ANSIBLE.rglob("tasks/*.yml"):
        for task in yaml.safe_load(file.read_text()) or []:
            text = str(task)
            if (
                "common_handed" in text
                and "toolkit" not in text
                and "requirements" not in text
                and "ansible.builtin.copy" in task
            ):
                assert task.get("no_log") is True, f"{file}: {task['name']}"
            assert not re.search(r"PGPASSWORD|password=", text), f"{file}: {task['name']}"
