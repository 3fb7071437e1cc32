"""What the job is told: everything comes from the environment and from files, so any target can run it.

ORCHEO_DB_ADMIN_DSN
    The administrator's DSN, direct (no pooler); ORCHEO_DB_ADMIN_DSN_FILE, a file that holds it, wins.
ORCHEO_DB_ADMIN_PASSWORD_FILE
    The administrator's password if the DSN has none (default: ROLE.password among the secrets).
ORCHEO_DB_SECRETS
    Directory with ROLE.password, ROLE.scram and installation.json (default /run/orcheo-db/secrets).
ORCHEO_DB_DATABASE
    The app's database (default orcheo).
ORCHEO_DB_EXTENSIONS
    Extensions for it, separated by commas or spaces (default: the plan's four).
ORCHEO_DB_WAIT, ORCHEO_DB_LOCK_WAIT
    Seconds to wait for the server (default 120) and for another bootstrap to finish (default 600).
ORCHEO_DB_MANAGED
    1: the postgres image's first boot did the superuser's part (default 0).
ORCHEO_DB_ADOPT
    1: take over a database that another installation prepared (default 0).
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from psycopg import conninfo

from orcheo_db import database
from orcheo_db.errors import UserError

OWNER = "orcheo"
APP_LOGINS = ("orcheo_app_a", "orcheo_app_b")
READER = "orcheo_ro"
MONITOR = "orcheo_monitor"
POOLER = "pgbouncer"
REPLICATOR = "replicator"
BACKUP = "orcheo_backup"
LOGINS = (*APP_LOGINS, READER, MONITOR, POOLER, REPLICATOR)

DEFAULT_SECRETS = "/run/orcheo-db/secrets"
DEFAULT_EXTENSIONS = "uuid-ossp,pgcrypto,pg_trgm,pg_stat_statements"
MAINTENANCE_DATABASE = "postgres"
TLS_MODES = ("require", "verify-ca", "verify-full")

# The job's own sessions. lock_timeout: DDL that can't get its lock must not stand in front of the app's
# queries for longer. client_connection_check_interval: the server notices a killed job within this time even
# while a statement runs.
SESSION_OPTIONS = (
    "-c lock_timeout=10s -c statement_timeout=0 -c idle_session_timeout=0"
    " -c idle_in_transaction_session_timeout=120s -c client_connection_check_interval=2s"
    " -c client_min_messages=error"
)
# The administrator's own parameters that must not leak into the DSN of another role. A certificate stays: it says which machine comes, and
# a server that wants to see one wants it of every role.
_PERSONAL = ("user", "password", "passfile", "service", "options", "replication", "dbname")


@dataclass(frozen=True)
class Job:
    """Everything the job was told. Secrets are kept out of its repr."""

    admin_dsn: str = field(repr=False)
    passwords: Mapping[str, str] = field(repr=False)
    verifiers: Mapping[str, str] = field(repr=False)
    database: str
    extensions: tuple[str, ...]
    installation_id: str
    managed: bool
    adopt: bool
    wait: float  # seconds
    lock_wait: float  # seconds
    warnings: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """host:port, for messages."""
        return database.address(self.admin_dsn)

    def admin(self, dbname: str | None = None) -> str:
        """The administrator's DSN for a database (default: the one it names)."""
        parameters = {"dbname": dbname} if dbname else {}
        return conninfo.make_conninfo(self.admin_dsn, options=SESSION_OPTIONS, **parameters)

    def login(self, role: str, dbname: str | None = None, **parameters: str) -> str:
        """DSN of one of the installation's roles on the same server, encrypted in the same way."""
        kept = {k: v for k, v in database.parse(self.admin_dsn).items() if k not in _PERSONAL}
        wanted = {"user": role, "password": self.passwords[role], "dbname": dbname or self.database}
        return conninfo.make_conninfo("", **(kept | wanted | parameters))


def read_job(environ: Mapping[str, str] = os.environ) -> Job:
    """The job from the environment.

    Raises:
        UserError: something is missing or malformed; the line names the variable or the file.
    """
    secrets = Path(environ.get("ORCHEO_DB_SECRETS") or DEFAULT_SECRETS)
    dsn, warnings = _admin_dsn(environ, secrets)
    managed = _flag(environ, "ORCHEO_DB_MANAGED")
    return Job(
        admin_dsn=dsn,
        passwords={role: _secret(secrets / f"{role}.password") for role in LOGINS},
        verifiers={role: _verifier(secrets / f"{role}.scram") for role in LOGINS},
        database=_identifier(environ, "ORCHEO_DB_DATABASE", "orcheo"),
        extensions=_extensions(environ.get("ORCHEO_DB_EXTENSIONS", DEFAULT_EXTENSIONS)),
        installation_id=_installation_id(secrets / "installation.json"),
        managed=managed,
        adopt=_flag(environ, "ORCHEO_DB_ADOPT"),
        wait=_seconds(environ, "ORCHEO_DB_WAIT", 120.0),
        lock_wait=_seconds(environ, "ORCHEO_DB_LOCK_WAIT", 600.0),
        warnings=warnings,
    )


def _admin_dsn(environ: Mapping[str, str], secrets: Path) -> tuple[str, tuple[str, ...]]:
    file = environ.get("ORCHEO_DB_ADMIN_DSN_FILE")
    text = _secret(Path(file)) if file else environ.get("ORCHEO_DB_ADMIN_DSN", "").strip()
    if not text:
        raise UserError("no administrator's DSN: set ORCHEO_DB_ADMIN_DSN or ORCHEO_DB_ADMIN_DSN_FILE")
    parameters = database.parse(text)
    parameters.setdefault("dbname", MAINTENANCE_DATABASE)
    parameters.setdefault(
        "keepalives_idle", "30"
    )  # seconds; the lock's connection idles while the app's bootstraps run
    if not parameters.get("password"):
        given = environ.get("ORCHEO_DB_ADMIN_PASSWORD_FILE")
        default = secrets / f"{parameters.get('user', '')}.password"
        if given or default.is_file():
            parameters["password"] = _secret(Path(given) if given else default)
    warnings = check_encryption(parameters, environ)
    return conninfo.make_conninfo("", **parameters), warnings


def check_encryption(parameters: Mapping[str, str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """Refuse a DSN that may send the job's traffic in the clear over a network; warn where TLS doesn't prove
    who answers.

    A loopback address is allowed with a warning, because a cloud's connector (Cloud SQL Auth Proxy) listens
    there and encrypts.
    """
    hosts = [h for h in (parameters.get("host") or parameters.get("hostaddr") or "").split(",") if h]
    mode = parameters.get("sslmode") or environ.get("PGSSLMODE") or "prefer"
    over_network = [h for h in hosts if not h.startswith(("/", "@"))]
    if not over_network:
        return ()
    remote = [h for h in over_network if not _loopback(h)]
    if mode not in TLS_MODES:
        if remote:
            raise UserError(
                f"the administrator's DSN would connect to {remote[0]} without guaranteed encryption"
                f" (sslmode={mode}):"
                " add sslmode=verify-full and sslrootcert=FILE"
            )
        return (f"sslmode={mode} on a loopback address: not encrypted unless the proxy that listens there does it",)
    if mode != "verify-full":
        return (
            f"sslmode={mode} encrypts but doesn't prove that {over_network[0]} is the right server: use verify-full",
        )
    return ()


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _secret(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"can't read {path} ({reason}): mount the installation's secrets there") from None
    if not text:
        raise UserError(f"{path} is empty: mount the installation's secrets there")
    return text


def _verifier(path: Path) -> str:
    text = _secret(path)
    if not re.fullmatch(r"SCRAM-SHA-256\$\d+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+", text):
        # PostgreSQL would take any other text for a plaintext password.
        raise UserError(f"{path} is no SCRAM-SHA-256 verifier: make the installation's secrets again")
    return text


def _installation_id(path: Path) -> str:
    try:
        document = json.loads(_secret(path))
        return str(document["installation_id"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{path} is not an installation file: expected {{"installation_id": "..."}}') from None


def _flag(environ: Mapping[str, str], name: str) -> bool:
    text = environ.get(name, "").strip().lower()
    if text in ("", "0", "no", "false"):
        return False
    if text in ("1", "yes", "true"):
        return True
    raise UserError(f"{name}={text!r} is not understood: use 1 or 0")


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:  # also refuses nan
        raise UserError(f"{name}={text!r} is not a number of seconds")
    return value


def _identifier(environ: Mapping[str, str], name: str, default: str) -> str:
    text = environ.get(name, "").strip() or default
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", text) or text in ("postgres", "template0", "template1"):
        raise UserError(
            f"{name}={text!r} can't be the app's database: use small letters, digits and _, and no system name"
        )
    return text


def _extensions(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(re.split(r"[,\s]+", text.strip()))) if text.strip() else ()
    for name in names:
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", name):
            raise UserError(f"ORCHEO_DB_EXTENSIONS: {name!r} is no extension name; separate names with commas")
    return names
