"""New secrets for an installation, in its state directory; what they were is kept aside. Bringing them to the services is each target's.

The app has two logins, and only one of them is in use. A rotation gives the other one a new password and makes it the one in use, so that
an app with the former DSN goes on until it is given the new one; the next rotation changes the former login's password. Every other role
has one password. Certificates are issued again by the same authority, so what trusts it goes on. Keys without which backups or evidence
can't be read are never rotated.

    <state>/rotating.json     a rotation that is under way: begun again, it makes nothing new
    <state>/former/<stamp>/   what the files were
"""

from __future__ import annotations

import json
import secrets as random_source
import shutil
from datetime import UTC, datetime
from typing import Any

from orcheo_db import backup_secrets
from orcheo_db.errors import UserError
from orcheo_db.secrets import PASSWORD_BYTES, ROLES, SERVER_NAMES, Store, scram_verifier, write_private

JOURNAL, FORMER, ACTIVE = "rotating.json", "former", "active-login"
APP_LOGINS = ("orcheo_app_a", "orcheo_app_b")


def begin(store: Store) -> dict[str, Any]:
    """Make new passwords and certificates; says which login the app is to use afterwards. Called again before `finish`, it changes nothing.

    Raises:
        UserError: there is no installation.
    """
    store.installation_id()
    journal = store.path / JOURNAL
    if journal.is_file():
        found: dict[str, Any] = json.loads(journal.read_bytes())
        if found["made"]:
            return found | {"changed": False}
    else:
        found = {"stamp": f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}", "login": _other(store), "made": False}
        write_private(journal, json.dumps(found).encode())
    former = store.path / FORMER / str(found["stamp"])
    for name in _files(store, found["login"]):
        kept = former / name
        if not kept.is_file():  # a try that was cut off has kept the first ones
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copy2(store.path / name, kept)
    for role in _roles(found["login"]):
        directory = store.path / ("backup" if role == backup_secrets.ROLE else "secrets")
        password = random_source.token_urlsafe(PASSWORD_BYTES)
        write_private(directory / f"{role}.password", f"{password}\n".encode())
        write_private(directory / f"{role}.scram", f"{scram_verifier(password)}\n".encode())
    store.reissue()
    if backup_secrets.exists(store):
        backup_secrets.reissue(store)
    write_private(journal, json.dumps(found | {"made": True}).encode())
    return found | {"made": True, "changed": True}


def finish(store: Store) -> dict[str, Any]:
    """The services have the new secrets: the app's login is the other one from now on.

    Raises:
        UserError: no rotation is under way.
    """
    journal = store.path / JOURNAL
    if not journal.is_file():
        raise UserError("no rotation is under way")
    found = json.loads(journal.read_bytes())
    write_private(store.path / ACTIVE, f"{found['login']}\n".encode())
    journal.unlink()
    return {"login": found["login"], "kept": str(store.path / FORMER / found["stamp"]), "changed": True}


def _other(store: Store) -> str:
    file = store.path / ACTIVE
    used = file.read_text().strip() if file.is_file() else APP_LOGINS[0]
    return next(login for login in APP_LOGINS if login != used)


def _roles(login: str) -> list[str]:
    """All but the login that the app uses now."""
    return [role for role in (*ROLES, backup_secrets.ROLE) if role not in APP_LOGINS or role == login]


def _files(store: Store, login: str) -> list[str]:
    names = [
        f"{'backup' if role == backup_secrets.ROLE else 'secrets'}/{role}.{kind}"
        for role in _roles(login)
        for kind in ("password", "scram")
    ]
    names += [f"tls/{name}.{kind}" for name in SERVER_NAMES for kind in ("crt", "key")]
    names += [f"backup/tls/{name}.{kind}" for name in backup_secrets.PARTIES for kind in ("crt", "key")]
    return [name for name in names if (store.path / name).is_file()]
