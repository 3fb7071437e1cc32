"""The launcher in the image: environment from files, workarounds by release, health checks."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest

from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.runtime import processes, ready, settings, vault, workarounds

CONFIG = settings.AppConfig(
    dsn="postgresql://orcheo_app_a@pgbouncer:6432/orcheo?sslmode=verify-full&sslrootcert=/ca.crt",
    login="orcheo_app_a",
    redis="redis:6379",
    backend_processes=1,
    worker_processes=2,
    prepared_statements=True,
    environment={"ORCHEO_LOG_LEVEL": "INFO"},
)


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    for name in (*settings.SECRET_VARIABLES.values(), settings.REDIS_PASSWORD, "orcheo_app_a.password"):
        (tmp_path / name).write_text(f"p@ss/{name}\n")
    return tmp_path


def test_the_environment_has_every_secret_and_setting(secrets: Path) -> None:
    made = settings.environment(CONFIG, secrets)
    assert made["ORCHEO_POSTGRES_DSN"].startswith(
        "postgresql://orcheo_app_a:p%40ss%2Forcheo_app_a.password@pgbouncer:6432/orcheo?"
    )
    assert made["REDIS_URL"] == made["ORCHEO_REDIS_URL"] == "redis://:p%40ss%2Fredis.password@redis:6379/0"
    assert made["ORCHEO_VAULT_ENCRYPTION_KEY"] == "p@ss/vault.key"
    assert made["ORCHEO_LOG_LEVEL"] == "INFO"
    assert set(settings.SECRET_VARIABLES) <= set(made)


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_a_secret_that_is_missing_or_empty_is_one_line(secrets: Path, content: str | None) -> None:
    (secrets / "vault.key").unlink() if content is None else (secrets / "vault.key").write_text(content)
    with pytest.raises(UserError, match=r"vault\.key"):
        settings.environment(CONFIG, secrets)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"dsn": "x"}'])
def test_a_damaged_configuration_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "app.json").write_text(text)
    with pytest.raises(UserError, match=r"app\.json can't be used .*: run `make up WITH=app`"):
        settings.read_config(tmp_path / "app.json")
    (tmp_path / "app.json").write_text(json.dumps(dataclasses.asdict(CONFIG)))
    assert settings.read_config(tmp_path / "app.json") == CONFIG


@pytest.mark.parametrize(
    ("release", "concerned"),
    [("0.15.0", False), ("0.16.0", True), ("0.39.0", True), ("0.39.1", False), ("0.40.0", False), ("1.0", False)],
)
def test_workarounds_are_for_the_releases_known_to_need_them(release: str, concerned: bool) -> None:
    assert workarounds.AGENTENSOR.concerns(release) is concerned


def test_release_numbers_sort() -> None:
    assert workarounds.numbers("0.9.0") < workarounds.numbers("0.10.0rc1") == (0, 10, 0)


def test_what_is_applied_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[str] = []
    for name in ("AGENTENSOR", "CHECKS", "POOLS", "PREPARED"):
        patched = dataclasses.replace(getattr(workarounds, name), apply=lambda name=name: applied.append(name))
        monkeypatch.setattr(workarounds, name, patched)
    monkeypatch.setattr("importlib.metadata.version", {"orcheo-backend": "0.39.0", "psycopg-pool": "3.3.3"}.get)
    assert len(workarounds.apply(prepared_statements=True)) == 3 and applied == ["AGENTENSOR", "CHECKS", "POOLS"]
    applied.clear()
    assert len(workarounds.apply(prepared_statements=False)) == 4 and applied[3:] == ["PREPARED"]
    applied.clear()
    monkeypatch.setattr("importlib.metadata.version", {"orcheo-backend": "0.41.0", "psycopg-pool": "3.4.0"}.get)
    said = workarounds.apply(prepared_statements=True)
    assert len(said) == 3 and all("not applied" in line for line in said) and applied == []


def test_a_workers_heartbeat_grows_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "BEAT_SIGN", tmp_path / "sign")
    interval: dict[str, str] = {}
    monkeypatch.setattr(settings, "read_config", lambda: dataclasses.replace(CONFIG, environment=interval))
    with pytest.raises(CheckFailed, match="published nothing"):
        ready.beat()
    (tmp_path / "sign").touch()
    assert "published" in ready.beat()
    old = time.time() - 200
    os.utime(tmp_path / "sign", (old, old))
    with pytest.raises(CheckFailed, match="for 200 s"):
        ready.beat()
    interval["ORCHEO_CRON_DISPATCH_INTERVAL"] = "100"  # the spec's [app.environment]
    assert "published" in ready.beat()


def test_envelopes_are_found_at_any_depth() -> None:
    envelope = {"algorithm": "aes256-gcm.v1", "key_id": "primary", "ciphertext": "x"}
    payload = {"name": "a", "encryption": envelope, "oauth": {"tokens": [envelope, {"algorithm": "none"}]}}
    assert vault.payloads(payload) == [envelope, envelope]
