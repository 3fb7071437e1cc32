"""The secrets of the backups: made once at the first `up` with backups, kept, never printed.

They lie in the state directory's backup/ (mode 0700, files 0600). Without the cipher key no backup can be read, so one that was there
and is gone stops `up`; likewise the key that signs the drills' evidence. Certificates and the role's password can be made anew.
"""

from __future__ import annotations

import json
import secrets as random_source
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

from cryptography import x509

from orcheo_db.backup.evidence import generate_key
from orcheo_db.errors import UserError
from orcheo_db.secrets import (
    PASSWORD_BYTES,
    RENEW_BEFORE_DAYS,
    Authority,
    Store,
    days_left_of,
    read_secret,
    scram_verifier,
    write_private,
)

DIRECTORY = "backup"
CIPHER_KEY = "cipher.key"
EVIDENCE_KEY = "evidence.key"
SECOND_KEY = (
    "second.key"  # the cipher key of the second repository: what reaches the first one's parties doesn't open it
)
SECOND = "second.toml"  # the user's own: the credentials of the second repository's bucket
# What it must have, by the repository's type (and what it may have).
CREDENTIALS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "s3": (("key", "secret"), ("token",)),
    "azure": (("account", "key"), ("key_type",)),
    "gcs": (("service_account",), ()),
}
ROLE = "orcheo_backup"
MARKER = "created.json"  # written last: from then on a missing key is a loss, not a first time
CIPHER_BYTES = (
    48  # pgBackRest derives an AES-256 key from it; its guide (Repository Encryption) has `openssl rand -base64 48`
)
KEYS = (CIPHER_KEY, SECOND_KEY, EVIDENCE_KEY)  # what is never made anew
FORMAT = 2
# Who speaks mutual TLS with whom: the database's two containers are one party, the repository's two are two, because the one that
# takes WAL must not be taken for the one that takes backups. By common name: the names of the certificate.
PARTIES: dict[str, tuple[str, ...]] = {
    "database": ("pgbackrest", "pgbackrest-second"),
    "archive": ("archive",),
    "backup": ("backup",),
}


def path(store: Store, name: str) -> Path:
    """Where a secret of the backups lies."""
    return store.path / DIRECTORY / name


def exists(store: Store) -> bool:
    """Whether the backups' secrets were made."""
    return path(store, MARKER).is_file()


def read(store: Store, name: str) -> bytes:
    """One of the backups' secrets.

    Raises:
        UserError: it is missing or may not be read.
    """
    return read_secret(path(store, name), "make up")


def create(store: Store) -> list[str]:
    """Make what was never made, make anew what is gone and does no harm, renew certificates; returns what was done.

    Raises:
        UserError: the cipher key or the evidence's key was made and is gone (they are never made anew).
    """
    directory = store.path / DIRECTORY
    for each in (directory, directory / "tls"):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
        each.chmod(0o700)
    first = not exists(store)
    if not first and _format(store) < FORMAT:  # made before there was a second repository
        if not path(store, SECOND_KEY).is_file():
            write_private(path(store, SECOND_KEY), _contents()[SECOND_KEY]())
        _mark(store)
    if not first and (gone := [name for name in KEYS if not path(store, name).is_file()]):
        raise UserError(
            f"{path(store, gone[0])} is gone, and without it no backup of this installation can be {'proven' if gone[0] == EVIDENCE_KEY else 'read'}:"
            " put it back from your copy of the state directory (ops/runbooks/lost-secrets.md)"
        )
    made = []
    for name, content in _contents().items():
        if not path(store, name).is_file():  # those that a start that was killed half-way has made are kept
            write_private(path(store, name), content())
            made.append(name)
    password = read(store, f"{ROLE}.password").decode().strip()
    if f"{ROLE}.password" in made or not path(store, f"{ROLE}.scram").is_file():
        write_private(path(store, f"{ROLE}.scram"), f"{scram_verifier(password)}\n".encode())
    renewed = _certificates(store)
    if first:
        _mark(store)
        return [f"secrets of the backups generated in {directory}"]
    return [f"{name} of the backups was missing and is another one now" for name in made] + [
        f"certificate of {name} renewed" for name in renewed
    ]


def _format(store: Store) -> int:
    try:
        return int(json.loads(path(store, MARKER).read_bytes())["format"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path(store, MARKER)} is damaged: put it back from your copy of the state directory"
        ) from None


def _mark(store: Store) -> None:
    write_private(path(store, MARKER), (json.dumps({"format": FORMAT}) + "\n").encode())


def credentials(store: Store, kind: str) -> dict[str, str]:
    """The credentials of the second repository's bucket, checked; `kind` is the spec's type.

    Raises:
        UserError: second.toml is missing, readable by others, or has not what that type needs.
    """
    return read_credentials(path(store, SECOND), kind)


def read_credentials(file: Path, kind: str) -> dict[str, str]:
    """The credentials of a bucket, checked; `kind` is the spec's type.

    Raises:
        UserError: the file is missing, readable by others, or has not what that type needs.
    """
    needed, more = CREDENTIALS[kind]
    example = ", ".join(f'{name} = "…"' for name in needed)
    if not file.is_file():
        raise UserError(
            f"{file} is missing: [backup.second] says {kind}, and its credentials go there ({example}; mode 0600)"
        )
    if file.stat().st_mode & 0o077:
        raise UserError(f"{file} may be read by others: chmod 600 {file}")
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} can't be read: {error}; expected {example}") from None
    missing = [name for name in needed if not found.get(name)]
    unknown = [name for name in found if name not in needed + more]
    wrong = [name for name, value in found.items() if not isinstance(value, str) or not value.isprintable()]
    if missing or unknown or wrong:
        words = [("lacks ", missing), ("has unknown ", unknown), ("has no one-line string in ", wrong)]
        said = "; ".join(text + ", ".join(names) for text, names in words if names)
        raise UserError(f"{file} {said}: {kind} takes {example}" + (f" and may have {', '.join(more)}" if more else ""))
    return {name: str(value) for name, value in found.items()}


def _contents() -> dict[str, Callable[[], bytes]]:
    return {
        CIPHER_KEY: f"{random_source.token_urlsafe(CIPHER_BYTES)}\n".encode,
        SECOND_KEY: f"{random_source.token_urlsafe(CIPHER_BYTES)}\n".encode,
        EVIDENCE_KEY: generate_key,
        f"{ROLE}.password": f"{random_source.token_urlsafe(PASSWORD_BYTES)}\n".encode,
    }


def _certificates(store: Store) -> list[str]:
    """Issue the parties' certificates that are missing, another authority's or soon over; returns their names."""
    ca = store.ca_file.read_bytes()
    due = [name for name in PARTIES if _is_due(store, name, ca)]
    if due:
        reissue(store, due)
    return due


def reissue(store: Store, names: Iterable[str] = tuple(PARTIES)) -> None:
    """Issue the parties' certificates again, with new keys, by the same authority."""
    authority = Authority.load(store.ca_file.read_bytes(), (store.path / "tls" / "ca.key").read_bytes())
    for name in names:
        key, certificate = authority.issue(name, PARTIES[name], client=True)
        write_private(path(store, f"tls/{name}.key"), key)
        write_private(path(store, f"tls/{name}.crt"), certificate)


def _is_due(store: Store, name: str, ca: bytes) -> bool:
    files = [path(store, f"tls/{name}.{kind}") for kind in ("crt", "key")]
    if not all(file.is_file() for file in files):
        return True
    try:
        certificate = x509.load_pem_x509_certificate(files[0].read_bytes())
    except ValueError:
        return True
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if set(names.get_values_for_type(x509.DNSName)) != set(PARTIES[name]):
        return True
    signed = certificate.issuer == x509.load_pem_x509_certificate(ca).subject
    return not signed or days_left_of(files[0]) < RENEW_BEFORE_DAYS
