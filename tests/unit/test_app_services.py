"""What the app's services are given: variables by the spec, Redis' configuration, limits, the files Compose reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orcheo_db import app_secrets
from orcheo_db.errors import UserError
from orcheo_db.preflight import check_memory, check_storage
from orcheo_db.render.app import app_environment, redis_conf
from orcheo_db.secrets import Store
from orcheo_db.spec import load_spec
from orcheo_db.targets import app
from orcheo_db.targets.compose import ComposeTarget
from orcheo_db.targets.external import ExternalTarget
from orcheo_db.tuning import app_limits

SPEC = load_spec(env={})


def target(
    tmp_path: Path, kind: type[ComposeTarget] = ComposeTarget, parts: tuple[str, ...] = ("app",), **own: Any
) -> ComposeTarget:
    stack = SPEC.stack.model_copy(update={"parts": parts})
    versions = SPEC.versions.model_copy(update=own.pop("versions", {}))
    spec = SPEC.model_copy(update={"stack": stack, "versions": versions, "app": SPEC.app.model_copy(update=own)})
    return kind(spec, spec.size(), Store(tmp_path / "state"))


def test_every_store_is_on_postgresql_and_nothing_is_deleted_unasked() -> None:
    found = app_environment(SPEC)
    assert {value for name, value in found.items() if name.endswith("_BACKEND")} == {"postgres"}
    assert sum(name.endswith("_BACKEND") for name in found) == 7  # the plan's subsystems, workspaces, graph store
    assert found["ORCHEO_TRACE_RETENTION_DAYS"] == "0" and int(found["ORCHEO_CHATKIT_RETENTION_DAYS"]) > 36000
    assert found["ORCHEO_AUTH_MODE"] == "required"
    assert found["ORCHEO_POSTGRES_POOL_MAX_SIZE"] == "20"  # the plan's


def test_the_configuration_rollback_is_a_matter_of_variables(tmp_path: Path) -> None:
    found = app_environment(target(tmp_path, storage="sqlite").spec)
    assert found["ORCHEO_REPOSITORY_BACKEND"] == found["ORCHEO_CHECKPOINT_BACKEND"] == "sqlite"
    assert found["ORCHEO_VAULT_BACKEND"] == "file"  # the bridge's word for a SQLite file


@pytest.mark.parametrize(("orcheo", "allowed"), [("0.34.0", True), ("0.35.0", False), ("0.46.1", False)])
def test_sqlite_is_for_bridge_releases(tmp_path: Path, orcheo: str, allowed: bool) -> None:
    wanted = target(tmp_path, storage="sqlite", versions={"orcheo": orcheo})
    if allowed:
        check_storage(wanted)
    else:
        with pytest.raises(UserError, match=rf"needs a bridge release .* has {orcheo}"):
            check_storage(wanted)
    check_storage(target(tmp_path, versions={"orcheo": orcheo}))
    check_storage(target(tmp_path, parts=(), storage="sqlite", versions={"orcheo": orcheo}))  # no app of ours


def test_own_variables_of_the_spec_reach_the_app(tmp_path: Path) -> None:
    assert (
        app_environment(target(tmp_path, environment={"ORCHEO_LOG_LEVEL": "DEBUG"}).spec)["ORCHEO_LOG_LEVEL"] == "DEBUG"
    )


def test_redis_keeps_every_task_and_knows_a_password() -> None:
    lines = redis_conf("secret").decode().splitlines()
    for line in (
        "requirepass secret",
        "appendonly yes",
        "appendfsync always",
        "maxmemory-policy noeviction",
        f"maxmemory {128 << 20}",
    ):
        assert line in lines


@pytest.mark.parametrize(
    ("kind", "own", "files"),
    [
        (ComposeTarget, {"parts": ()}, ["compose.yaml", "backup.yaml"]),
        (ComposeTarget, {}, ["compose.yaml", "backup.yaml", "app.yaml"]),
        (ComposeTarget, {"via": "postgres"}, ["compose.yaml", "backup.yaml", "app.yaml", "app-direct.yaml"]),
        (ExternalTarget, {}, ["external.yaml", "app.yaml"]),
        (ExternalTarget, {"via": "postgres"}, ["external.yaml", "app.yaml"]),  # its network reaches out anyway
    ],
)
def test_the_files_that_compose_reads(
    tmp_path: Path, kind: type[ComposeTarget], own: dict[str, Any], files: list[str]
) -> None:
    found = target(tmp_path, kind, **own)
    assert list(found.compose_files) == [f"compose/{name}" for name in files]
    assert (found.service_names[-4:] == app.SERVICES) is found.with_app


def test_the_apps_way_to_the_database(tmp_path: Path) -> None:
    assert target(tmp_path).app_dsn().startswith("postgresql://orcheo_app_a@pgbouncer:6432/orcheo?sslmode=verify-full&")
    assert target(tmp_path, via="postgres").app_dsn().startswith("postgresql://orcheo_app_a@postgres:5432/orcheo?")


def test_memory_follows_from_the_processes(tmp_path: Path) -> None:
    found = app_limits(target(tmp_path, backend_processes=2, worker_processes=3).spec)
    assert found["BACKEND_MEMORY"] == 2 << 30
    assert found["WORKER_MEMORY"] == 4 << 30  # Celery's parent too


def test_the_apps_files_hold_no_secret_in_their_configuration(tmp_path: Path) -> None:
    wanted = target(tmp_path)
    wanted.store.create()
    app_secrets.create(wanted.store)
    files = {file.path: file.content for file in wanted.app_mounts()["app"]}
    secrets = [app_secrets.read(wanted.store, name) for name in app_secrets.APP_SECRETS]
    secrets.append(wanted.store.password("orcheo_app_a"))
    assert not any(value.encode() in files["conf/app.json"] for value in secrets)
    assert {f"secrets/{name}" for name in app_secrets.APP_SECRETS} | {
        "secrets/orcheo_app_a.password",
        "secrets/ca.crt",
    } <= set(files)
    assert "secrets/orcheo_app_b.password" not in files and "secrets/orcheo_admin.password" not in files


def test_the_apps_memory_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that holds the database alone does not hold the app beside it."""
    monkeypatch.setattr(
        "orcheo_db.preflight.os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2 * 2**18}[name]
    )
    check_memory(target(tmp_path, parts=()))
    with pytest.raises(UserError, match=r"needs 2\.0 GB of memory, the app 4\.8 GB .* this machine has 2\.0 GB"):
        check_memory(target(tmp_path))
