"""The `Cluster` resource for who moves to CloudNativePG: against the operator's published API types (npm, @kubernetes-models/cloudnative-pg, which are
made of them), and against its own rules.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from orcheo_db.cluster import secrets
from orcheo_db.render import cloudnative_pg
from orcheo_db.secrets import Store
from orcheo_db.spec import load_spec
from tests.conftest import ROOT

PACKAGES = ("@kubernetes-models/cloudnative-pg@2.0.0", "typescript@5.9.3")
SPEC = load_spec(env={})


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("npm is not on this machine: the operator's types come from there")
    place = tmp_path_factory.mktemp("node")
    (place / "package.json").write_text('{"type": "module"}')
    done = subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--no-fund", *PACKAGES], cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return place


def refused(node: Path, document: dict[str, Any]) -> str:
    """What TypeScript says of a document as the operator's type: unknown names, wrong kinds of values; empty: nothing."""
    head = 'import type { ICluster } from "@kubernetes-models/cloudnative-pg/postgresql.cnpg.io/v1/Cluster";\n'
    (node / "cluster.ts").write_text(f"{head}export const cluster: ICluster = {json.dumps(document)};\n")
    options = [
        "--noEmit",
        "--strict",
        "--moduleResolution",
        "bundler",
        "--module",
        "esnext",
        "--skipLibCheck",
        "cluster.ts",
    ]
    done = subprocess.run(
        [str(node / "node_modules" / ".bin" / "tsc"), *options], cwd=node, capture_output=True, text=True
    )
    assert "Cannot find module" not in done.stdout
    return done.stdout


@pytest.mark.parametrize("size", list(SPEC.sizes))
def test_the_resource_fits_the_operators_types(node: Path, size: str):
    document = yaml.safe_load((ROOT / "k8s" / "cloudnative-pg" / f"cluster-{size}.yaml").read_text())
    assert document == cloudnative_pg.cluster(SPEC, SPEC.size(size))
    assert refused(node, document) == ""


def test_a_wrong_resource_does_not(node: Path):
    document = cloudnative_pg.cluster(SPEC, SPEC.size())
    document["spec"]["postgresql"]["parameter"] = {}
    assert "'parameter' does not exist" in refused(node, document) or "parameter" in refused(node, document)
    document = cloudnative_pg.cluster(SPEC, SPEC.size())
    document["spec"]["instances"] = "three"
    assert "instances" in refused(node, document) or "not assignable" in refused(node, document)


def test_it_copies_with_what_the_namespace_has(tmp_path: Path):
    """The Secret's keys that it names are those that the job makes; the settings are the tier's own, but for the operator's."""
    store = Store(tmp_path / "state", "orcheo")
    store.create()
    keys = set(secrets._files(store.path))
    for size in SPEC.sizes.values():
        document = cloudnative_pg.cluster(SPEC, size)
        (former,) = document["spec"]["externalClusters"]
        assert {former["password"]["key"], former["sslRootCert"]["key"]} <= keys
        rendered = (ROOT / "compose" / "conf" / size.name / "postgresql.conf").read_text()
        lines = (
            line.partition("  #")[0].partition(" = ")
            for line in rendered.splitlines()
            if " = " in line and line[0] != "#"
        )
        ours = {name: value.strip().strip("'") for name, _, value in lines}
        theirs = document["spec"]["postgresql"]["parameters"]
        assert set(ours) - set(theirs) == (cloudnative_pg.FIXED | cloudnative_pg.OTHERWISE) & set(ours)
        assert theirs.items() <= ours.items()


def test_its_network_policies_fit_kubernetes():
    for document in yaml.safe_load_all((ROOT / "k8s" / "cloudnative-pg" / "network-policy.yaml").read_text()):
        kubernetes_validate.validate(document, "1.33", strict=True)
