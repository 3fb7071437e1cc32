"""What the backups' services get on a Compose target: configuration and secrets. The services stand in compose/backup.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from orcheo_db import backup_secrets
from orcheo_db.backup_secrets import CIPHER_KEY, EVIDENCE_KEY, ROLE, SECOND_KEY
from orcheo_db.errors import UserError
from orcheo_db.render.backup import second, service
from orcheo_db.targets.mounts import File

if TYPE_CHECKING:
    from orcheo_db.targets.compose import ComposeTarget

SERVICES = ("archive", "pgbackrest", "backup")  # in start order
ARCHIVING = ("archive", "pgbackrest")  # what PostgreSQL needs until it is stopped, and what costs nothing to stop then
SECOND = "second"  # the second repository's service, where the spec has one
SECOND_SERVICES = ("pgbackrest-second", SECOND)  # in start order
VOLUMES = ("archive", "backup", "scratch", "sockets", "second", "second-scratch")
SAID = {
    "second": "the second repository's state and its drills' evidence; the bucket stays, and can be read with backup/second.key alone",
    "second-scratch": "a drill's cluster",
    "archive": "the WAL archive",
    "backup": "all backups and the drills' evidence",
    "scratch": "a drill's cluster",
    "sockets": "a directory in memory",
}


def _party(target: ComposeTarget, party: str) -> list[File]:
    """The certificate of one party of the mutual TLS."""
    store = target.store
    return [
        File("secrets/pgbackrest.crt", backup_secrets.read(store, f"tls/{party}.crt")),
        File("secrets/pgbackrest.key", backup_secrets.read(store, f"tls/{party}.key")),
    ]


def _configured(target: ComposeTarget, party: str) -> list[File]:
    ca = File("secrets/ca.crt", target.store.ca_file.read_bytes())
    return [File("conf/pgbackrest.conf", target.conf(f"pgbackrest-{party}.conf")), ca, *_party(target, party)]


def _cipher(target: ComposeTarget) -> File:
    """The repository's cipher key, as a part of pgBackRest's configuration (config-include-path)."""
    key = backup_secrets.read(target.store, CIPHER_KEY).decode().strip()
    return File("secrets/repository.conf", f"[global]\nrepo1-cipher-pass={key}\n".encode())


def postgres_files(target: ComposeTarget) -> list[File]:
    """What PostgreSQL's own container needs beyond its others: the role's verifier, and to push WAL where backups are on."""
    files = [File(f"secrets/{ROLE}.scram", backup_secrets.read(target.store, f"{ROLE}.scram"))]
    if target.with_backup:
        files += [File("conf/pgbackrest.conf", target.conf("pgbackrest-database.conf")), *_party(target, "database")]
    return files


def bucket(target: ComposeTarget) -> tuple[dict[str, str], list[File]]:
    """pgBackRest's options with the bucket's credentials, and the files that the user names.

    Raises:
        UserError: credentials, or a file that they or the spec name, are missing or wrong.
    """
    where = target.spec.backup.second
    given = backup_secrets.credentials(target.store, where.type)
    options, files = {}, []
    if where.type == "s3":
        options = {"repo1-s3-key": given["key"], "repo1-s3-key-secret": given["secret"]}
        options |= {"repo1-s3-token": given["token"]} if "token" in given else {}
    elif where.type == "azure":
        options = {"repo1-azure-account": given["account"], "repo1-azure-key": given["key"]}
        options |= {"repo1-azure-key-type": given["key_type"]} if "key_type" in given else {}
    else:
        name = "service_account of second.toml"
        files.append(File("secrets/second-gcs.json", _named(Path(given["service_account"]), name)))
    if where.ca_file:
        files.append(File("secrets/second-ca.crt", _named(Path(where.ca_file), "[backup.second] ca_file")))
    return options, files


def _second_files(target: ComposeTarget) -> list[File]:
    """The second repository's service: the bucket's credentials are its own, and the first repository's key is for reading its WAL."""
    options, files = bucket(target)
    options = {"repo1-cipher-pass": backup_secrets.read(target.store, SECOND_KEY).decode().strip()} | options
    text = "[global]\n" + "".join(f"{name}={value}\n" for name, value in options.items())
    account = options.get("repo1-azure-account", "")
    told = service(target.spec, target.store.installation_id(), second=True, account=account)
    return [
        *files,
        *(File(f"conf/{name}", content.encode()) for name, content in second(target.spec).items()),
        File("secrets/ca.crt", target.store.ca_file.read_bytes()),
        *_party(target, "backup"),
        File("secrets/repository.conf", text.encode()),
        File("secrets/relay/repository.conf", _cipher(target).content),
        *_reader(target),
        File("conf/backup.json", (json.dumps(told, indent=2) + "\n").encode()),
        File("conf/postgresql.conf", target.conf(f"{target.size.name}/postgresql.conf")),
    ]


def _named(file: Path, what: str) -> bytes:
    """A file that the user names."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{what}: {file} can't be read ({error.strerror})") from None


def _reader(target: ComposeTarget) -> list[File]:
    """What reads production and signs evidence."""
    password = backup_secrets.read(target.store, f"{ROLE}.password").decode().strip()
    return [
        File(f"secrets/{ROLE}.pgpass", f"*:*:*:{ROLE}:{password}\n".encode()),
        File(f"secrets/{EVIDENCE_KEY}", backup_secrets.read(target.store, EVIDENCE_KEY)),
    ]


def files(target: ComposeTarget) -> dict[str, list[File]]:
    """The files of the services."""
    store = target.store
    told = service(target.spec, store.installation_id())
    more = {SECOND: _second_files(target)} if target.with_second else {}
    return more | {
        "pgbackrest": _configured(target, "database"),
        "archive": [*_configured(target, "archive"), _cipher(target)],
        "backup": [
            *_configured(target, "backup"),
            _cipher(target),
            *_reader(target),
            File("secrets/cipher.key", backup_secrets.read(store, CIPHER_KEY)),
            File("conf/pgbackrest-restore.conf", target.conf("pgbackrest-restore.conf")),
            File("conf/backup.json", (json.dumps(told, indent=2) + "\n").encode()),
            File("conf/postgresql.conf", target.conf(f"{target.size.name}/postgresql.conf")),
        ],
    }
