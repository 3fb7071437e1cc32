"""What the backups' services get on a Compose target: configuration and secrets. The services stand in compose/backup.yaml."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from orcheo_db import backup_secrets
from orcheo_db.backup_secrets import CIPHER_KEY, EVIDENCE_KEY, ROLE
from orcheo_db.render.backup import service
from orcheo_db.targets.mounts import File

if TYPE_CHECKING:
    from orcheo_db.targets.compose import ComposeTarget

SERVICES = ("archive", "pgbackrest", "backup")  # in start order
VOLUMES = ("archive", "backup", "scratch", "sockets")
SAID = {
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


def files(target: ComposeTarget) -> dict[str, list[File]]:
    """The files of the three services."""
    store = target.store
    password = backup_secrets.read(store, f"{ROLE}.password").decode().strip()
    told = service(target.spec, store.installation_id())
    return {
        "pgbackrest": _configured(target, "database"),
        "archive": [*_configured(target, "archive"), _cipher(target)],
        "backup": [
            *_configured(target, "backup"),
            _cipher(target),
            File(f"secrets/{ROLE}.pgpass", f"*:*:*:{ROLE}:{password}\n".encode()),
            File(f"secrets/{EVIDENCE_KEY}", backup_secrets.read(store, EVIDENCE_KEY)),
            File("secrets/cipher.key", backup_secrets.read(store, CIPHER_KEY)),
            File("conf/pgbackrest-restore.conf", target.conf("pgbackrest-restore.conf")),
            File("conf/backup.json", (json.dumps(told, indent=2) + "\n").encode()),
            File("conf/postgresql.conf", target.conf(f"{target.size.name}/postgresql.conf")),
        ],
    }
