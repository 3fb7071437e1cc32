"""Does a key open the credentials of a SQLite vault? The app's cipher, AES-256-GCM with sha256 of the key (orcheo.models.credential_crypto)."""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from orcheo_db import app_secrets
from orcheo_db.errors import UserError
from orcheo_db.migrate.source import Source, steady
from orcheo_db.runtime.vault import payloads

NONCE = 12  # bytes before the ciphertext
ALGORITHM = "aes256-gcm.v1"


def key(source: Source) -> str | None:
    """The vault key: the one that the caller gives, else the text of the file that the app made beside its vault."""
    given = app_secrets.given_key()
    if given:
        return given
    table = source.table("credentials")
    if table is None:
        return None
    file = source.origin / f"{Path(table.file).stem}.key"
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def count(source: Source, text: str | None) -> tuple[int, int]:
    """How many credentials there are, and how many the key does not open (all where there is none)."""
    table = source.table("credentials")
    if table is None:
        return 0, 0
    cipher = AESGCM(hashlib.sha256(text.encode()).digest()) if text else None

    def look(connection: Any) -> tuple[int, int]:
        number = unreadable = 0
        for (payload,) in connection.execute("SELECT payload FROM credentials"):
            number += 1
            unreadable += cipher is None or not _opens(cipher, payload)
        return number, unreadable

    return steady(source.directory / table.file, look)


def _opens(cipher: AESGCM, payload: Any) -> bool:
    try:
        for envelope in payloads(json.loads(payload)):
            raw = base64.b64decode(envelope["ciphertext"])
            if envelope["algorithm"] != ALGORITHM:
                return False
            cipher.decrypt(raw[:NONCE], raw[NONCE:], None)
    except (ValueError, KeyError, TypeError, InvalidTag):
        return False
    return True


def check(source: Source) -> str | None:
    """The key, checked.

    Raises:
        UserError: a key was given or found and does not open all credentials.
    """
    found = key(source)
    number, unreadable = count(source, found)
    if found and unreadable:
        raise UserError(
            f"the vault key opens {number - unreadable} of {number} credentials in {source.origin}: give the one that they were made with in"
            f" {app_secrets.KEY_FILE_VARIABLE}. Nothing was changed."
        )
    return found


def remember(store: Any, text: str) -> None:
    """Have the stack's own app use the key."""
    place = app_secrets.path(store, app_secrets.VAULT_KEY)
    with suppress(FileNotFoundError):
        if place.read_text().strip() == text:
            return
        app_secrets.replace_vault_key(store, text)
        return
    from orcheo_db.secrets import write_private  # noqa: PLC0415 - only here

    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(place, f"{text}\n".encode())
