"""Does a vault key open the credentials that are in the database? Read-only; the key is told on stdin and never shown."""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import psycopg
from psycopg import sql

from orcheo_db.errors import UserError


def payloads(value: Any) -> list[dict[str, Any]]:
    """Every encrypted envelope inside a credential's payload: {"algorithm", "key_id", "ciphertext"}, at whatever depth."""
    if isinstance(value, dict):
        if {"algorithm", "ciphertext"} <= set(value):
            return [value]
        return [found for item in value.values() for found in payloads(item)]
    if isinstance(value, list):
        return [found for item in value for found in payloads(item)]
    return []


def opens(cipher: Any, payload: Any) -> bool:
    """Whether the app's own cipher decrypts every envelope of a payload."""
    from orcheo.models import EncryptionEnvelope  # noqa: PLC0415 - importing the app takes seconds

    try:
        for envelope in payloads(payload):
            cipher.decrypt(EncryptionEnvelope.model_validate(envelope))
    except Exception:  # whatever the cipher of a release raises: it did not open
        return False
    return True


def check(dsn: str, key: str) -> dict[str, int]:
    """Count the credentials that `key` opens: {"credentials": n, "unreadable": m}.

    Raises:
        psycopg.Error: the database can't be read.
    """
    with psycopg.connect(dsn, connect_timeout=10, prepare_threshold=None) as connection:
        row = connection.execute("SELECT to_regclass('public.credentials') IS NOT NULL").fetchone()
        if not (row and row[0]):
            return {"credentials": 0, "unreadable": 0}
        count = unreadable = 0
        cipher: Any = None
        with connection.cursor(name="vault") as cursor:  # streamed: there may be many
            cursor.execute(sql.SQL("SELECT payload FROM public.credentials"))
            for (payload,) in cursor:
                if cipher is None:
                    from orcheo.models import AesGcmCredentialCipher  # noqa: PLC0415

                    cipher = AesGcmCredentialCipher(key=key)
                count += 1
                unreadable += not opens(cipher, payload)
    return {"credentials": count, "unreadable": unreadable}


def main() -> None:
    """Read {"dsn", "key", "ca"} from stdin, print the counts as JSON.

    Raises:
        UserError: stdin is no such document.
    """
    try:
        told: dict[str, str] = json.load(sys.stdin)
        dsn, key, ca = told["dsn"], told["key"], told["ca"]
    except (ValueError, KeyError):
        raise UserError("give {dsn, key, ca} as JSON on stdin") from None
    with tempfile.NamedTemporaryFile("w", suffix=".crt") as file:
        file.write(ca)
        file.flush()
        print(json.dumps(check(f"{dsn}&sslrootcert={file.name}", key)))
