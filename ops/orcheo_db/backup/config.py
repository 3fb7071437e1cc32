"""What the backup service is told: backup.json (rendered from the spec), its mounts, and where things lie in its container."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orcheo_db.errors import UserError

CONF = Path("/etc/orcheo-db")
SECRETS = Path("/run/orcheo-db/secrets")
REPOSITORY = Path("/var/lib/orcheo-backup")
FIRST = Path("/var/lib/orcheo-first")  # the first repository, read-only, in the `second` service
SCRATCH = Path("/var/lib/orcheo-scratch")
ROLE = "orcheo_backup"
UNFINISHED = ".unfinished"  # of a logical copy that isn't proven yet


@dataclass(frozen=True)
class Config:
    """The service's configuration. Sizes are bytes, times seconds, schedules cron's five fields."""

    stanza: str
    postgresql: int
    database: str
    extensions: tuple[str, ...]
    installation_id: str
    schedule: dict[str, str]
    evidence_days: int
    logical_copies: int
    drill_sample: int
    archive_timeout: int
    memory: int
    conf: Path = field(default=CONF)
    secrets: Path = field(default=SECRETS)
    repository: Path = field(default=REPOSITORY)  # a second repository's is elsewhere: then state and evidence alone
    scratch: Path = field(default=SCRATCH)
    remote: bool = False  # the repository is a bucket: this is the `second` service
    reach: str = ""  # host:port of its server
    ca_file: str = ""  # the authority of that server's certificate; empty: the public ones
    place: str = ""  # which one: another bucket begins with a state and an evidence of its own
    app_python: str = "python"  # an interpreter that has Orcheo; empty: there is none here

    @property
    def evidence(self) -> Path:
        return self.repository / "evidence"

    @property
    def state(self) -> Path:
        return self.repository / "state"

    @property
    def archive(self) -> Path:
        """Where the stanza's WAL lies."""
        return self.repository / "archive" / self.stanza

    def dsn(self, database: str | None = None) -> str:
        """Production, as the backup role: straight to the server, its certificate and name verified."""
        return (
            f"host=postgres port=5432 dbname={database or self.database} user={ROLE} passfile={self.secrets}/{ROLE}.pgpass"
            f" sslmode=verify-full sslrootcert={self.secrets}/ca.crt application_name=orcheo-db-backup"
        )

    def signing_key(self) -> bytes:
        """The key that signs evidence (PEM)."""
        return (self.secrets / "evidence.key").read_bytes()


def load(conf: Path = CONF) -> Config:
    """Read backup.json.

    Raises:
        UserError: it is missing or damaged.
    """
    file = Path(os.environ.get("ORCHEO_DB_BACKUP_CONFIG", conf / "backup.json"))
    try:
        told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        # On a host of one's own each service has its files in a directory of its own.
        secrets = Path(os.environ.get("ORCHEO_DB_SECRETS", SECRETS))
        if "installation_id" not in told:  # a file that is the same for all installations (Kubernetes, Ansible)
            told |= {"installation_id": json.loads((secrets / "installation.json").read_text())["installation_id"]}
        paths = {"repository": REPOSITORY / told["place"], "extensions": tuple(told["extensions"])}
        return Config(
            **(
                told
                | paths
                | {
                    "conf": file.parent,
                    "secrets": secrets,
                    "app_python": os.environ.get("ORCHEO_DB_APP_PYTHON", "python"),
                }
            )
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} can't be used ({error}): run `make up`, which writes it") from None
