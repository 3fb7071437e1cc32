"""What the backups' services get on a Compose target: configuration and secrets. The services stand in compose/backup.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from orcheo_db import backup_secrets, handed
from orcheo_db.backup_secrets import SECOND_KEY
from orcheo_db.errors import UserError
from orcheo_db.render.backup import second, service
from orcheo_db.spec.models import SecondRepository
from orcheo_db.targets.mounts import File, secret

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


def _configured(target: ComposeTarget, party: str) -> File:
    return File("conf/pgbackrest.conf", target.conf(f"pgbackrest-{party}.conf"))


def bucket(target: ComposeTarget) -> tuple[dict[str, str], list[File]]:
    """pgBackRest's options with the bucket's credentials, and the files that the user names.

    Raises:
        UserError: credentials, or a file that they or the spec name, are missing or wrong.
    """
    where = target.spec.backup.second
    return bucket_of(where, backup_secrets.credentials(target.store, where.type))


def bucket_of(where: SecondRepository, given: dict[str, str]) -> tuple[dict[str, str], list[File]]:
    """As `bucket`, for credentials that were read."""
    options: dict[str, str] = {}
    files = []
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
    account = options.get("repo1-azure-account", "")
    told = service(target.spec, target.store.installation_id(), second=True, account=account)
    return [
        *files,
        *(File(f"conf/{name}", content.encode()) for name, content in second(target.spec).items()),
        *secret(handed.authority(target.store) | handed.party(target.store, "backup") | handed.reader(target.store)),
        File(f"secrets/{handed.CONFIG}", handed.options(options)),
        File(f"secrets/relay/{handed.CONFIG}", handed.cipher(target.store)[handed.CONFIG]),
        File("conf/backup.json", (json.dumps(told, indent=2) + "\n").encode()),
        File("conf/postgresql.conf", target.conf(f"{target.size.name}/postgresql.conf")),
    ]


def _named(file: Path, what: str) -> bytes:
    """A file that the user names."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{what}: {file} can't be read ({error.strerror})") from None


def files(target: ComposeTarget) -> dict[str, list[File]]:
    """The files of the services."""
    store = target.store
    told = service(target.spec, store.installation_id())
    more = {SECOND: _second_files(target)} if target.with_second else {}
    return more | {
        "pgbackrest": [_configured(target, "database"), *secret(handed.pgbackrest(store))],
        "archive": [_configured(target, "archive"), *secret(handed.archive(store))],
        "backup": [
            _configured(target, "backup"),
            *secret(handed.backup(store)),
            File("conf/pgbackrest-restore.conf", target.conf("pgbackrest-restore.conf")),
            File("conf/backup.json", (json.dumps(told, indent=2) + "\n").encode()),
            File("conf/postgresql.conf", target.conf(f"{target.size.name}/postgresql.conf")),
        ],
    }
