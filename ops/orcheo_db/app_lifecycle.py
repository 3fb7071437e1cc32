"""Starting and stopping Orcheo itself beside its database: what `up WITH=app` does after PgBouncer serves."""

from __future__ import annotations

import json
from typing import Any

from docker.models.containers import Container

from orcheo_db import app_secrets
from orcheo_db.console import step
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.images import LABEL
from orcheo_db.lifecycle_steps import HEALTHY_SECONDS, last_line, launch, start, wait_until_healthy
from orcheo_db.targets import app, mounts
from orcheo_db.targets.base import Target
from orcheo_db.targets.compose import ComposeTarget

PROCESSES = ("backend", "worker", "beat")
STOP_SECONDS = 120  # as compose/app.yaml: a worker finishes its run
ACCEPT_VARIABLE = "ORCHEO_DB_ACCEPT_UNREADABLE_CREDENTIALS"


def start_app(target: ComposeTarget, accept_unreadable: int | None = None) -> list[str]:
    """Bring up Redis, the backend, the worker and beat; returns what was done beside starting containers.

    The vault key is checked first: with one that does not open the credentials, nothing is started or restarted.

    Args:
        accept_unreadable: the number of credentials that the user gives up as lost, where the key is lost for good.

    Raises:
        UserError: the vault key doesn't fit. CheckFailed: a service did not become healthy.
    """
    done = []
    if not is_current(target):
        done += check_vault_key(target, accept_unreadable)
    mounts.install(target.app_mounts(), target.store.path / "mounts", target.helper_image)
    start(target, "redis", HEALTHY_SECONDS)
    existed = {name: target.container(name) for name in PROCESSES}
    launch(target, *PROCESSES)
    for name in PROCESSES:
        wait_until_healthy(target, name, HEALTHY_SECONDS, existed[name])
    return done


def is_current(target: ComposeTarget) -> bool:
    """Whether every process of the app runs as wanted, with the image and the files of now."""
    key = app_secrets.given_key()
    if key and key != app_secrets.read(target.store, app_secrets.VAULT_KEY):
        return False
    wanted, image = target.environment()["APP_INPUTS"], target.image_id("orcheo")
    return all(_runs(target.container(name), wanted, image) for name in PROCESSES)


def _runs(container: Container | None, wanted: str, image: str) -> bool:
    if container is None or container.status != "running":
        return False
    return container.labels.get(LABEL) == wanted and container.attrs["Image"] == image


def stop_app(target: ComposeTarget) -> list[str]:
    """Stop and remove the app's containers where the app is not wanted; its volumes and secrets stay."""
    done = []
    for name in reversed(app.SERVICES):
        container = _stopped(target, name)
        if container is not None:
            container.remove()
            done.append(f"{name} stopped and removed (its volumes and secrets stay)")
    return done


def _stopped(target: ComposeTarget, name: str) -> Container | None:
    container = target.container(name)
    if container is not None and container.status != "exited":
        with step(f"Stopping {name}"):
            container.stop(timeout=STOP_SECONDS)
    return container


def check_vault_key(target: ComposeTarget, accept_unreadable: int | None = None) -> list[str]:
    """Refuse a vault key that does not open the credentials in the database; take over one that the caller gives and that does.

    Returns what was done.

    Raises:
        UserError: the key does not open them all.
    """
    kept, given = app_secrets.read(target.store, app_secrets.VAULT_KEY), app_secrets.given_key()
    found = count_credentials(target, given or kept)
    if found["unreadable"] and found["unreadable"] != accept_unreadable:
        key = "given in the environment" if given else str(app_secrets.path(target.store, app_secrets.VAULT_KEY))
        raise UserError(
            f"the vault key {key} does not open {found['unreadable']} of {found['credentials']} credentials in database"
            f" {target.spec.database.name}: give the key that they were made with in {app_secrets.KEY_FILE_VARIABLE}; if it is lost for"
            f" good, so are they: {ACCEPT_VARIABLE}={found['unreadable']} {target.up_command} WITH=app starts the app all the same."
            " The app was left as it is."
        )
    if given and given != kept:
        for name in PROCESSES:  # what they would still store in the meantime would be encrypted with the former key
            _stopped(target, name)
        app_secrets.replace_vault_key(target.store, given)
        return ["vault key taken from the environment (the former one is kept beside it)"]
    return []


def count_credentials(target: Target, key: str) -> dict[str, int]:
    """How many credentials there are and how many of them `key` does not open, by the app's own cipher in a container.

    Raises:
        CheckFailed: it could not be found out.
    """
    login = target.app_login()
    dsn = f"postgresql://{login}:{target.store.password(login)}@pgbouncer:6432/{target.spec.database.name}?sslmode=verify-full"
    told = json.dumps({"dsn": dsn, "key": key, "ca": target.store.ca_file.read_text()})
    output = one_off(target, ["python", "-m", "orcheo_db.runtime", "vault"], told)
    found: dict[str, int] = json.loads(output)
    return found


def one_off(target: Target, argv: list[str], told: str) -> str:
    """Run a command in a throw-away container of the `orcheo` image; returns its stdout.

    Raises:
        CheckFailed: it failed; with its last line.
    """
    done = target.one_off(argv, told)
    if done.code != 0:
        raise CheckFailed(f"{' '.join(argv)} failed: {last_line(done.stderr)}")
    return done.stdout


def access(target: Target) -> dict[str, Any]:
    """How to call the API: its address, where the token lies, and a command to try."""
    url, before = target.app_told()
    token = app_secrets.path(target.store, app_secrets.BOOTSTRAP_TOKEN)
    return {
        "url": url,
        "token_file": str(token),
        "try": f"{before}curl -H @{app_secrets.path(target.store, app_secrets.HEADER)} {url}/api/workspaces/me",
    }


__all__ = ["access", "check_vault_key", "is_current", "one_off", "start_app", "stop_app"]
