"""The secrets of Orcheo itself: made once at the first `make up WITH=app`, kept, never printed.

They lie in the state directory's app/ (mode 0700, files 0600). The vault key is the one that can't be made anew: what the app
has encrypted with it is lost without it, so a key that was there and is gone stops `up`. The others are made anew, and said.
"""

from __future__ import annotations

import json
import os
import secrets as random_source
from pathlib import Path

from orcheo_db.errors import UserError
from orcheo_db.secrets import Store, read_secret, write_private

DIRECTORY = "app"
VAULT_KEY = "vault.key"
BOOTSTRAP_TOKEN = "bootstrap.token"  # noqa: S105 - a file's name
REDIS_PASSWORD = "redis.password"  # noqa: S105 - a file's name
# What the app takes as ORCHEO_VAULT_ENCRYPTION_KEY, …AUTH_BOOTSTRAP_SERVICE_TOKEN, …AUTH_JWT_SECRET, …CHATKIT_TOKEN_SIGNING_KEY,
# and Redis' password. 256 bits each: HS256 wants a key of its hash's size (RFC 7518 section 3.2), AES-256 for the vault likewise.
APP_SECRETS = (VAULT_KEY, BOOTSTRAP_TOKEN, "jwt.secret", "chatkit.key", REDIS_PASSWORD)
SECRET_BYTES = 32
HEADER = "authorization.header"  # the token as `curl -H @FILE` takes it: so it stands in no list of processes
MARKER = "created.json"  # written last: from then on a missing file is a loss, not a first time
KEY_VARIABLE = "ORCHEO_VAULT_ENCRYPTION_KEY"
KEY_FILE_VARIABLE = f"{KEY_VARIABLE}_FILE"  # the same from a file: it stands in no shell's history


def path(store: Store, name: str) -> Path:
    """Where a secret of the app lies."""
    return store.path / DIRECTORY / name


def exists(store: Store) -> bool:
    """Whether the app's secrets were made."""
    return path(store, MARKER).is_file()


def read(store: Store, name: str) -> str:
    """One of the app's secrets.

    Raises:
        UserError: it is missing or may not be read.
    """
    return read_secret(path(store, name), "make up WITH=app").decode().strip()


def given_key() -> str | None:
    """The vault key of an Orcheo that ran before, where the caller names it, or a file with it, in the environment.

    Raises:
        UserError: the file can't be read or is empty.
    """
    file = os.environ.get(KEY_FILE_VARIABLE, "").strip()
    if not file:
        return os.environ.get(KEY_VARIABLE, "").strip() or None
    try:
        key = Path(file).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{KEY_FILE_VARIABLE}={file} can't be read ({error}): name the file that holds the vault key"
        ) from None
    if not key:
        raise UserError(f"{KEY_FILE_VARIABLE}={file} is empty: name the file that holds the vault key")
    return key


def create(store: Store) -> list[str]:
    """Make the app's secrets if they were never made, and anew those that are gone and do no harm; returns what was done. The
    vault key is the caller's own (ORCHEO_VAULT_ENCRYPTION_KEY, or …_FILE) where one is given.

    Raises:
        UserError: the vault key was made and is gone (it is never made anew).
    """
    directory = store.path / DIRECTORY
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    first = not exists(store)
    missing = [name for name in APP_SECRETS if not path(store, name).is_file()]
    if not first and VAULT_KEY in missing and not given_key():
        raise UserError(
            f"{path(store, VAULT_KEY)} is gone, and no other key opens the credentials: put it back from your copy of the state directory,"
            f" or give it in {KEY_FILE_VARIABLE} (ops/runbooks/lost-secrets.md)"
        )
    for name in missing:  # the first time: those that a start that was killed half-way has made are kept
        text = (given_key() if name == VAULT_KEY else None) or random_source.token_urlsafe(SECRET_BYTES)
        write_private(path(store, name), f"{text}\n".encode())
    header = f"Authorization: Bearer {read(store, BOOTSTRAP_TOKEN)}\n".encode()
    if not path(store, HEADER).is_file() or path(store, HEADER).read_bytes() != header:
        write_private(path(store, HEADER), header)
    if first:
        write_private(path(store, MARKER), (json.dumps({"format": 1}) + "\n").encode())
        return [f"secrets of the app generated in {directory}"]
    return [f"{name} of the app was missing and is another one now" for name in missing]


def replace_vault_key(store: Store, key: str) -> None:
    """Put another vault key in place (the caller has checked that it opens the vault); the old one stays beside it."""
    old = path(store, VAULT_KEY)
    number = 1
    while (kept := old.with_name(f"{VAULT_KEY}.old-{number}")).exists():
        number += 1
    write_private(kept, old.read_bytes())
    write_private(old, f"{key}\n".encode())
