"""Images for a cluster: what is asked of docker and of the cluster's own tools. Nothing is pushed or loaded here."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from orcheo_db import cli_kubernetes
from orcheo_db.cli import cli
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.spec import load_spec
from tests.conftest import ROOT, spec_with_second


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """docker, kind, k3s and ctr that note how they were called; `fails`: a name that fails."""
    for name in ("docker", "kind", "k3s", "ctr"):
        file = tmp_path / name
        file.write_text(
            f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\ncat <&0 > /dev/null\n[ ! -e {tmp_path}/{name}.fails ]\n'
        )
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(cli_kubernetes, "ensure_docker", lambda install: [])
    monkeypatch.setattr(cli_kubernetes, "ensure_images", lambda *_: [])
    monkeypatch.setattr(cli_kubernetes, "ROOT", tmp_path)
    monkeypatch.setenv("ORCHEO_DB_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["kubernetes", *arguments], standalone_mode=False, input="")


def calls(tools: Path) -> list[str]:
    lines = (tools / "calls").read_text().splitlines()
    return [line for line in lines if not line.startswith("docker context")]  # which daemon is asked


def pushed(tools: Path) -> bool:
    return (tools / "calls").exists() and bool(calls(tools))


TAGS = list(load_spec(env={}).image_tags().values())


def test_images_are_pushed_and_an_overlay_uses_them(tools: Path):
    assert run("images", "--registry", "registry.example.com/team/").exception is None
    assert calls(tools)[:2] == [
        f"docker tag {TAGS[0]} registry.example.com/team/{TAGS[0]}",
        f"docker push registry.example.com/team/{TAGS[0]}",
    ]
    assert len(calls(tools)) == 2 * len(TAGS)
    made = yaml.safe_load((tools / "k8s/local/kustomization.yaml").read_text())
    assert made["resources"] == ["../overlays/default"]
    assert {f"{each['newName']}:{each['newTag']}" for each in made["images"]} == {
        f"registry.example.com/team/{tag}" for tag in TAGS
    }
    assert run("images", "--registry", "registry.example.com/team").exception is None  # again: nothing to ask


def test_an_overlay_of_ones_own_is_left_alone(tools: Path):
    own = tools / "k8s/local/kustomization.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("mine\n")
    found = run("images", "--registry", "registry.example.com")
    assert isinstance(found.exception, UserError) and "move it away" in str(found.exception)
    assert own.read_text() == "mine\n" and not pushed(tools)


@pytest.mark.parametrize("registry", ["", "https://registry.example.com", "a b"])
def test_a_wrong_registry_is_one_line(tools: Path, registry: str):
    found = run("images", "--registry", registry)
    assert isinstance(found.exception, UserError) and "without a scheme" in str(found.exception)
    assert not pushed(tools)


@pytest.mark.parametrize(
    ("cluster", "words"),
    [("kind", f"kind load docker-image --name=kind {' '.join(TAGS)}"), ("k3s", "k3s ctr images import -"),
     ("containerd", "ctr --namespace=k8s.io images import -")],
)  # fmt: skip
def test_images_are_loaded(tools: Path, cluster: str, words: str):
    assert run("load", "--cluster", cluster).exception is None
    assert words in calls(tools)
    assert cluster == "kind" or f"docker save {' '.join(TAGS)}" in calls(tools)


@pytest.mark.parametrize("failing", ["k3s", "docker"])
def test_a_failed_load_is_said(tools: Path, failing: str):
    (tools / f"{failing}.fails").touch()
    assert isinstance(run("load", "--cluster", "k3s").exception, CheckFailed)


def test_a_missing_tool_is_one_line(tools: Path):
    (tools / "k3s").unlink()
    found = run("load", "--cluster", "k3s")
    assert isinstance(found.exception, UserError) and "k3s is not on this machine's PATH" in str(found.exception)


def test_kustomize_takes_the_overlay(tmp_path: Path):
    """kubectl itself renders it: every image is the registry's."""
    from tests.k8s.conftest import kubectl  # noqa: PLC0415

    text = cli_kubernetes.overlay(load_spec(env={}), "registry.example.com/team")
    up = os.path.relpath(str(ROOT / "k8s" / "overlays" / "default"), str(tmp_path))
    (tmp_path / "kustomization.yaml").write_text(text.replace("../overlays/default", up))
    done = subprocess.run([kubectl(), "kustomize", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    images = {line.split()[-1] for line in done.stdout.splitlines() if line.strip().startswith("image:")}
    assert images and all(image.startswith("registry.example.com/team/orcheo-db/") for image in images)


def credentials(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    file = tmp_path / "second.toml"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_a_buckets_secret_has_what_its_pods_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = spec_with_second(tmp_path, type="s3", bucket="backups", endpoint="s3.example.com", region="eu-central-1")
    monkeypatch.setenv("ORCHEO_DB_SPEC", str(spec))
    file = credentials(tmp_path, 'key = "AKIA"\nsecret = "hidden"\n')
    made = yaml.safe_load(run("bucket", "--credentials", str(file)).output)
    assert made["kind"] == "Secret" and made["metadata"]["name"] == "orcheo-db-bucket"
    data = {name: base64.b64decode(text).decode() for name, text in made["data"].items()}
    assert data["credentials.conf"] == "[global]\nrepo1-s3-key=AKIA\nrepo1-s3-key-secret=hidden\n"
    assert "repo1-s3-bucket=backups" in data["pgbackrest.conf"] and "pg1-host-port=8433" in data["pgbackrest.conf"]
    assert set(data) == {
        "credentials.conf",
        "backup.json",
        "pgbackrest.conf",
        "pgbackrest-restore.conf",
        "pgbackrest-relay.conf",
    }
    told = json.loads(data["backup.json"])
    assert told["remote"] is True and told["reach"] == "backups.s3.example.com:443" and "installation_id" not in told


@pytest.mark.parametrize(
    ("values", "text", "mode", "words"),
    [
        ({}, 'key = "a"\nsecret = "b"\n', 0o600, "no second repository"),
        ({"type": "s3"}, 'key = "a"\nsecret = "b"\n', 0o644, "may be read by others"),
        ({"type": "s3"}, 'key = "a"\n', 0o600, "lacks secret"),
    ],
)
def test_a_bucket_without_what_it_needs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, str], text: str, mode: int, words: str
):
    more = {"bucket": "backups", "endpoint": "s3.example.com", "region": "eu-central-1"} if values else {}
    monkeypatch.setenv("ORCHEO_DB_SPEC", str(spec_with_second(tmp_path, **values, **more)))
    with pytest.raises(UserError, match=words):
        result = run("bucket", "--credentials", str(credentials(tmp_path, text, mode)))
        raise result.exception
