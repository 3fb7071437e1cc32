"""Which of an installation's secrets each service is given, as files by name; the same on every target.

A service sees its own files alone (Compose: a directory of its own; Kubernetes: a Secret of its own), so that who takes one over has not
taken the others.
"""

from __future__ import annotations

from collections.abc import Mapping

from orcheo_db import app_secrets, backup_secrets
from orcheo_db.backup_secrets import CIPHER_KEY, EVIDENCE_KEY, ROLE, SECOND_KEY
from orcheo_db.secrets import ROLES, Store

Files = dict[str, bytes]
POSTGRES_SECRETS = ("orcheo_admin", "orcheo_monitor", "replicator", "pgbouncer")  # the roles that the first boot makes
POOLED_ROLES = ("orcheo_app_a", "orcheo_app_b", "orcheo_ro", "orcheo_monitor")
CONFIG = "repository.conf"  # the cipher key, as a part of pgBackRest's configuration (config-include-path)
# The first repository's cipher key, for the second one's service: no name that pgBackRest would include.
RELAY = "relay-key"


def pgpass(role: str, password: str) -> bytes:
    """libpq's password file for one role, wherever it connects to."""
    return f"*:*:*:{role}:{password}\n".encode()


def _read(store: Store, *names: str) -> Files:
    return {name.rpartition("/")[2]: (store.path / name).read_bytes() for name in names}


def authority(store: Store) -> Files:
    """What certificates are verified against."""
    return {"ca.crt": store.ca_file.read_bytes()}


def _server(store: Store, name: str) -> Files:
    return {f"server.{kind}": (store.path / f"tls/{name}.{kind}").read_bytes() for kind in ("crt", "key")} | authority(
        store
    )


def _monitor(store: Store) -> Files:
    return {"orcheo_monitor.pgpass": pgpass("orcheo_monitor", store.password("orcheo_monitor"))}


def party(store: Store, name: str) -> Files:
    """The certificate of one party of the backups' mutual TLS."""
    return {f"pgbackrest.{kind}": backup_secrets.read(store, f"tls/{name}.{kind}") for kind in ("crt", "key")}


def cipher(store: Store) -> Files:
    """The first repository's cipher key, for pgBackRest."""
    return {CONFIG: _cipher(store, CIPHER_KEY)}


def _cipher(store: Store, name: str) -> bytes:
    return options({"repo1-cipher-pass": backup_secrets.read(store, name).decode().strip()})


def options(values: Mapping[str, str]) -> bytes:
    """A part of pgBackRest's configuration, for its config-include-path."""
    return ("[global]\n" + "".join(f"{name}={value}\n" for name, value in values.items())).encode()


def reader(store: Store) -> Files:
    """What reads production and signs evidence."""
    password = backup_secrets.read(store, f"{ROLE}.password").decode().strip()
    return {f"{ROLE}.pgpass": pgpass(ROLE, password), EVIDENCE_KEY: backup_secrets.read(store, EVIDENCE_KEY)}


def postgres(store: Store, *, backups: bool = True) -> Files:
    """PostgreSQL itself. backups: it pushes WAL to the archive."""
    files = _read(store, *(f"secrets/{role}.scram" for role in POSTGRES_SECRETS), "installation.json")
    files |= {f"{ROLE}.scram": backup_secrets.read(store, f"{ROLE}.scram")}
    return files | _server(store, "postgres") | _monitor(store) | (party(store, "database") if backups else {})


def userlist(store: Store) -> bytes:
    """PgBouncer's auth_file: the one login that PgBouncer itself makes, to look the others up (auth_query)."""
    return f'"pgbouncer" "{store.password("pgbouncer")}"\n'.encode()


def verifiers(store: Store) -> bytes:
    """PgBouncer's auth_file where no lookup function can be made. Verifiers, not passwords: PgBouncer logs in with the keys that the client's
    own SCRAM exchange gives it.
    """
    return "".join(f'"{role}" "{store.verifier(role)}"\n' for role in POOLED_ROLES).encode()


def pgbouncer(store: Store) -> Files:
    """PgBouncer."""
    return _server(store, "pgbouncer") | _monitor(store) | {"userlist.txt": userlist(store)}


def init(store: Store) -> Files:
    """The init job, which makes every role."""
    names = [f"secrets/{role}.{kind}" for role in ROLES for kind in ("password", "scram")]
    return _read(store, *names, "installation.json") | authority(store)


def pgbackrest(store: Store) -> Files:
    """The server that reads the cluster for the backup service."""
    return authority(store) | party(store, "database")


def exporter(store: Store) -> Files:
    """Prometheus' exporters, which log in as the monitoring role."""
    return (
        authority(store)
        | _monitor(store)
        | {"orcheo_monitor.password": f"{store.password('orcheo_monitor')}\n".encode()}
    )


def archive(store: Store) -> Files:
    """The service that takes WAL."""
    return authority(store) | party(store, "archive") | cipher(store)


def backup(store: Store) -> Files:
    """The backup service."""
    key = {"cipher.key": backup_secrets.read(store, CIPHER_KEY)}
    return (
        authority(store)
        | party(store, "backup")
        | cipher(store)
        | reader(store)
        | key
        | _read(store, "installation.json")
    )


def second(store: Store) -> Files:
    """The second repository's service, but for the bucket's own (component s3-backup puts RELAY in a directory of its own)."""
    own = {CONFIG: _cipher(store, SECOND_KEY), RELAY: cipher(store)[CONFIG]}
    return authority(store) | party(store, "backup") | reader(store) | own | _read(store, "installation.json")


def app(store: Store, login: str) -> Files:
    """Orcheo itself, which logs in as `login`."""
    files = {name: f"{app_secrets.read(store, name)}\n".encode() for name in app_secrets.APP_SECRETS}
    return files | {f"{login}.password": f"{store.password(login)}\n".encode()}


def redis_password(store: Store) -> Files:
    """Redis' password, for its health check (its configuration is rendered with it)."""
    return {app_secrets.REDIS_PASSWORD: f"{app_secrets.read(store, app_secrets.REDIS_PASSWORD)}\n".encode()}
