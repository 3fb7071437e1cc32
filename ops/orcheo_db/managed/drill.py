"""A restore drill of a managed PostgreSQL: the cloud restores a copy beside it, and the copy is proven to be the same.

The cloud's own backups and WAL are what is tried. Production gets two small rows (`orcheo_db.drill_markers`) and is read at the next whole
second (`moment.take`); the copy is restored to that second, compared and deleted. What is not proven here and is in a drill of this toolkit's own
backups: the structure of indexes (pg_amcheck needs a superuser), and reading through Orcheo's stores.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from psycopg.conninfo import make_conninfo

from orcheo_db.backup import digest, evidence, findings, moment
from orcheo_db.backup.findings import Findings, failure_of
from orcheo_db.database import Connection, connect
from orcheo_db.errors import UserError
from orcheo_db.managed.clouds import CallFailed, Cloud, Copy
from orcheo_db.secrets import Store, write_private
from orcheo_db.targets.external import ExternalTarget

KEY = "evidence.key"
CONNECT_SECONDS = 300.0  # a copy that is "available" may still be starting
OURS = (
    "orcheo",
    "pgbouncer",
)  # roles whose name begins so; the services' own are not compared: they make and change them


@dataclass
class Drill(Findings):
    """A drill of a managed instance."""

    cloud: Cloud = field(kw_only=True)
    tier: ExternalTarget = field(kw_only=True)
    keep: bool = False

    def production(self) -> Connection:
        return connect(self.tier.dsn(direct=True), timeout=30)


def run(drill: Drill) -> dict[str, Any]:
    """Run a drill; returns its record, which is in the evidence by then.

    Raises:
        UserError: a copy of an earlier drill is still there, or the cloud's command line is not.
    """
    if left := drill.cloud.copies():
        raise UserError(
            f"an earlier drill's copy is still there and costs money: {', '.join(left)}: look at it, then remove it with"
            f" `orcheo-db --target external drill INSTANCE --remove {left[0]}`"
        )
    failure = None
    try:
        _drill(drill)
    except Exception as error:  # whatever it is: a drill without a record would leave the last one's "pass" standing
        failure = failure_of(error)
    store = drill.tier.store
    path = evidence.append(directory(store), drill.record(failure), _signing_key(store))
    written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return written


def show(cloud: Cloud, at: datetime) -> None:
    """The calls of a drill, in order, without making one (the cloud's shell is dry)."""
    cloud.copies()
    cloud.wait_restorable(at)
    name = cloud.copy_name(at)
    cloud.restore(name, at)
    cloud.wait_copy(name)
    cloud.settle(name)
    cloud.remove(name)


def directory(store: Store) -> Path:
    """Where the records are."""
    return store.path / "evidence"


def history(store: Store) -> tuple[list[dict[str, Any]], list[str]]:
    """All records, oldest first, and what is wrong with them."""
    where = directory(store)
    return evidence.load_all(where), evidence.verify(where, evidence.public_key(_signing_key(store)))


def _signing_key(store: Store) -> bytes:
    """Made at the first drill."""
    file = store.path / "secrets" / KEY
    if not file.is_file():
        write_private(file, evidence.generate_key())
    return file.read_bytes()


def _drill(drill: Drill) -> None:
    with drill.production() as production:
        with drill.timed("moment"):
            findings.mark(production, drill.id, "before")
            with drill.production() as other:
                taken = moment.take(
                    production,
                    drill.id,
                    findings.SCHEMAS,
                    drill.tier.spec.backup.drill_sample,
                    seed=drill.id,
                    after_restore_point=lambda: findings.mark(other, drill.id, "after"),
                    second=True,
                )
            catalogues = findings.catalogues(production)
            checksums = production.execute("SHOW data_checksums").fetchone()
        findings.tidy(production)
    at = datetime.fromisoformat(taken.at)
    drill.target = {"instance": drill.cloud.name, "service": drill.cloud.title, "time": taken.at}
    with drill.timed("archive"):
        drill.cloud.wait_restorable(at)
    name = drill.cloud.copy_name(drill.started)
    drill.target["copy"] = name
    with _copy(drill, name, at) as copy, _connected(drill, copy) as connection:
        findings.check_markers(drill, connection)
        drill.rto = round(sum(drill.durations[step] for step in ("restore", "connect")), 1)
        findings.check_content(drill, connection, taken, digest.same_cluster)
        for kind, here in findings.catalogues(connection).items():
            findings.check_same(drill, kind, _ours(kind, catalogues[kind]), _ours(kind, here))
        assert checksums is not None
        findings.check_server(drill, connection, set(drill.tier.spec.database.extensions), checksums[0])


def _ours(kind: str, rows: list[Any]) -> list[Any]:
    if kind == "extensions":
        return rows
    at = 0 if kind == "roles" else 1
    return [row for row in rows if str(row[at]).startswith(OURS)]


@contextmanager
def _copy(drill: Drill, name: str, at: datetime) -> Iterator[Copy]:
    """The copy, and its end whatever happens, unless it is to be kept."""
    try:
        with drill.timed("restore"):
            drill.cloud.restore(name, at)
            drill.cloud.wait_copy(name)
            copy = drill.cloud.settle(name)
        yield copy
    finally:
        if drill.keep:
            drill.heard(f"{name} is kept and costs money: remove it with --remove {name}")
        else:
            _remove(drill, name)


def _remove(drill: Drill, name: str) -> None:
    """What can't be removed is said, as loudly as a difference: it costs money until somebody removes it."""
    try:
        with drill.timed("removal"):
            if name in drill.cloud.copies():
                drill.cloud.remove(name)
    except CallFailed as error:
        drill.note("the copy is removed", False, f"{name} is still there: {error}")
    else:
        drill.note("the copy is removed", True, name)


@contextmanager
def _connected(drill: Drill, copy: Copy) -> Iterator[Connection]:
    """The app's login on the copy, verified as production's is: by name where the authority is everybody's, else by the copy's own authority."""
    target = drill.tier
    with tempfile.TemporaryDirectory(prefix="orcheo-db-drill-") as scratch:
        more: dict[str, Any] = {"host": copy.host, "port": copy.port, "hostaddr": ""}
        if copy.ca is not None:
            ca = Path(scratch) / "ca.pem"
            ca.write_text(copy.ca)
            # Production's client certificate is of another authority than the copy's, which would end the handshake over it.
            more |= {
                "sslrootcert": str(ca),
                "sslmode": "verify-ca",
                "sslcert": "",
                "sslkey": "",
                "sslcertmode": "disable",
            }
        with drill.timed("connect"):
            started = time.monotonic()
            connection = connect(make_conninfo(target.dsn(direct=True), **more), timeout=CONNECT_SECONDS)
            drill.heard(f"{copy.host} answers after {time.monotonic() - started:.0f} s")
        with connection:
            yield connection


__all__ = ["Drill", "history", "run", "show"]
