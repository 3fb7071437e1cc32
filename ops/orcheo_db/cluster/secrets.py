"""The job that gives a namespace its secrets: once, and never over what is there.

One Secret holds the whole installation (`orcheo-db-installation`: what a state directory holds on other targets). It is made by one call
and so whole or not at all; two jobs at once agree on the first one's. From it each service's own Secret is filled where it is missing,
which is all that its pod sees.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orcheo_db import app_secrets, backup_secrets, handed
from orcheo_db.cluster.api import Api
from orcheo_db.errors import UserError
from orcheo_db.secrets import Store, write_private

PREFIX = "orcheo-db-"
INSTALLATION = f"{PREFIX}installation"
SEPARATOR = "__"  # a Secret's keys have no slash; no file of a state directory has this in its name
LABELS = {"app.kubernetes.io/part-of": "orcheo-db", "app.kubernetes.io/managed-by": "orcheo-db-secrets"}
AUTHORITY = f"{PREFIX}ca"  # in the form that cert-manager's issuers read
SERVICES = ("postgres", "pgbouncer", "init", "pgbackrest", "archive", "backup", "second", "app", "redis", "ca")
LOGIN = "orcheo_app_a"
Say = Callable[[str], object]


def services(store: Store) -> dict[str, handed.Files]:
    """The files of each service's Secret, by the service's name."""
    return {
        "postgres": handed.postgres(store),
        "pgbouncer": handed.pgbouncer(store) | {"verifiers.txt": handed.verifiers(store)},
        "init": handed.init(store),
        "pgbackrest": handed.pgbackrest(store),
        "archive": handed.archive(store),
        "backup": handed.backup(store),
        "second": handed.second(store),
        "app": handed.app(store, LOGIN) | handed.authority(store),
        "redis": handed.redis_password(store) | {"redis.conf": redis_conf(store)},
    }


def redis_conf(store: Store) -> bytes:
    """Redis' configuration: that of the ConfigMap, with the password."""
    return f"include /etc/orcheo-db/redis.conf\nrequirepass {app_secrets.read(store, app_secrets.REDIS_PASSWORD)}\n".encode()


def make(api: Api, scratch: Path, say: Say) -> list[str]:
    """Have every Secret there; returns the names of those that were made now.

    Args:
        scratch: an empty directory in memory.

    Raises:
        UserError: the installation's Secret is gone and others are there. CheckFailed: the API server refuses.
    """
    store = Store(scratch / "installation", api.namespace)
    found, made = api.get("secrets", INSTALLATION), []
    if found is None:
        left = [PREFIX + name for name in SERVICES if api.get("secrets", PREFIX + name) is not None]
        if left:
            raise UserError(
                f"Secret {INSTALLATION} of namespace {api.namespace} is gone and {', '.join(left)} {'is' if len(left) == 1 else 'are'} there: put it back"
                " from your copy; without one, delete those too and see ops/runbooks/lost-secrets.md (the data's passwords are lost)"
            )
        _fill(store)
        if api.create("secrets", _object(INSTALLATION, _files(store.path))):
            made.append(INSTALLATION)
            say(f"made Secret {INSTALLATION}")
        else:  # another job was faster: its secrets count
            found = api.get("secrets", INSTALLATION)
            store = Store(scratch / "other", api.namespace)
    if found is not None:
        take(store, found)
        _fill(store)  # a part that an earlier version of this toolkit did not know; certificates that are nearly over
    wanted = {PREFIX + service: _object(PREFIX + service, files) for service, files in services(store).items()}
    for name, body in (wanted | {AUTHORITY: _authority(store)}).items():
        if api.get("secrets", name) is None and api.create("secrets", body):
            made.append(name)
            say(f"made Secret {name}")
    return made


def _fill(store: Store) -> None:
    store.create()
    backup_secrets.create(store)
    app_secrets.create(store)
    store.renew()


def _files(directory: Path) -> handed.Files:
    """A state directory's files, under names that a Secret can have."""
    return {
        str(file.relative_to(directory)).replace("/", SEPARATOR): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def take(store: Store, found: dict[str, Any]) -> None:
    """Write the installation's Secret, as the API gives it, into a state directory."""
    store.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, value in found["data"].items():
        file = store.path / name.replace(SEPARATOR, "/")
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = base64.b64decode(value)
        if not file.is_file() or file.read_bytes() != content:
            write_private(file, content)


def installation_of(found: dict[str, Any]) -> str:
    """The installation id in the installation's Secret, as the API gives it."""
    return str(json.loads(base64.b64decode(found["data"]["installation.json"]))["installation_id"])


def _authority(store: Store) -> dict[str, Any]:
    files = {"tls.crt": store.ca_file.read_bytes(), "tls.key": (store.path / "tls" / "ca.key").read_bytes()}
    return _object(AUTHORITY, files) | {"type": "kubernetes.io/tls"}


def _object(name: str, files: handed.Files) -> dict[str, Any]:
    data = {key: base64.b64encode(content).decode() for key, content in files.items()}
    labels = LABELS | {"app.kubernetes.io/name": name}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": name, "labels": labels},
        "data": data,
    }
