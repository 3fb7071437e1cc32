"""Programs that tests need and nobody else: each in a Python environment of its own, because its dependencies are not ours."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKOV = "3.3.30"  # pinned: another release has other checks
MOTO = "5.2.5"
AWS = "1.46.3"
ANSIBLE, ANSIBLE_LINT = "12.3.0", "26.10.1"
TF = "1.2.0"  # Terraform's plugin protocol
BINDINGS = {"google": "21.1.0", "azurerm": "18.9.0"}  # of the providers 8.7.0 and 5.10.0


def checkov() -> Path:
    """checkov's path, installed at the first use."""
    return _own("checkov", CHECKOV)


def policy_failures(directory: Path, framework: str, *options: str) -> dict[str, set[str]]:
    """What fails of checkov's checks: by check ("ID name"), the resources."""
    words = ["--directory", str(directory), "--framework", framework, "--output", "json", "--skip-download", *options]
    # Elsewhere: it would take a .checkov.yaml of the directory that it stands in.
    done = subprocess.run([str(checkov()), *words], capture_output=True, text=True, cwd="/")
    found = json.loads(done.stdout)
    assert found["summary"]["passed"] > 0 and not found["summary"]["parsing_errors"], done.stderr
    every: dict[str, set[str]] = {}
    for each in found["results"]["failed_checks"]:
        every.setdefault(f"{each['check_id']} {each['check_name']}", set()).add(each["resource"])
    return every


def plugin_python() -> Path:
    """A Python that has Terraform's plugin protocol, installed at the first use."""
    return _own("tf", TF).with_name("python")


def binding(provider: str) -> Path:
    """The wheel that carries the schema of Terraform's provider "google" or "azurerm", downloaded at the first use (some 50 MB)."""
    version = BINDINGS[provider]
    place = ROOT / ".tools" / f"cdktn-provider-{provider}-{version}"
    with _locked(place):
        if not place.exists():
            partial = place.with_name(f"{place.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            words = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
            _run([sys.executable, "-m", "pip", *words, f"--dest={partial}", f"cdktn-provider-{provider}=={version}"])
            partial.rename(place)
    (wheel,) = place.glob("*.whl")
    return wheel


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    place.parent.mkdir(exist_ok=True)
    with (place.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def moto() -> Path:
    """moto's server, an AWS in memory, installed at the first use."""
    return _own("moto", MOTO, "[server]").with_name("moto_server")


def ansible() -> Path:
    """ansible-playbook with its collections, installed at the first use (some 500 MB)."""
    return _own("ansible", ANSIBLE).with_name("ansible-playbook")


def ansible_lint() -> Path:
    """ansible-lint's path, installed at the first use."""
    return _own("ansible-lint", ANSIBLE_LINT)


def aws() -> Path:
    """AWS' command line, installed at the first use."""
    return _own("awscli", AWS).with_name("aws")


def _own(name: str, version: str, extras: str = "") -> Path:
    place = ROOT / ".tools" / f"{name}-{version}"
    with _locked(place):
        if not (place / "complete").exists():
            _run([sys.executable, "-m", "venv", "--clear", str(place)])
            pip = [str(place / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
            _run([*pip, f"{name}{extras}=={version}"])
            (place / "complete").touch()
    return place / "bin" / name
