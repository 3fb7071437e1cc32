"""checkov over every overlay and component: whatever it knows, but for the waivers of k8s/.checkov.yaml, each of which is still needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.k8s.conftest import ADDED, OVERLAYS, overlay_with
from tests.k8s.conftest import kustomize as rendered
from tests.tools import policy_failures

CONFIG = ROOT / "k8s" / ".checkov.yaml"


def failed(directory: Path, *options: str) -> dict[str, set[str]]:
    return policy_failures(directory, "kubernetes", *options)


def write(directory: Path, name: str, documents: list[dict[str, Any]]) -> None:
    (directory / f"{name}.yaml").write_text(yaml.safe_dump_all(documents))


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("policies")
    for name in OVERLAYS:
        write(directory, name, rendered(ROOT / "k8s" / "overlays" / name))
    for name in ADDED:
        write(directory, name, rendered(overlay_with(tmp_path_factory.mktemp(name), name)))
    return directory


def test_only_what_is_waived_fails(manifests: Path):
    waived = set(yaml.safe_load(CONFIG.read_text())["skip-check"])
    assert {name.split()[0] for name in failed(manifests)} == waived
    assert failed(manifests, "--config-file", str(CONFIG)) == {}


def test_a_worse_manifest_is_found(manifests: Path, tmp_path: Path):
    documents = list(yaml.safe_load_all((manifests / "default.yaml").read_text()))
    for each in documents:
        if each["kind"] == "Deployment":
            container = each["spec"]["template"]["spec"]["containers"][0]
            del container["resources"]["limits"]
            container["securityContext"]["readOnlyRootFilesystem"] = False
    write(tmp_path, "worse", documents)
    found = {name.split()[0] for name in failed(tmp_path, "--config-file", str(CONFIG))}
    assert {"CKV_K8S_11", "CKV_K8S_13", "CKV_K8S_22"} <= found
