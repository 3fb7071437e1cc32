"""The job's connections and what is known before anything is decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors, sql

from orcheo_db import database
from orcheo_db.bootstrap import app, expected, guard, installation
from orcheo_db.bootstrap.job import OWNER, Job
from orcheo_db.bootstrap.recognise import check_server
from orcheo_db.database import Connection
from orcheo_db.errors import CheckFailed

UNTOUCHED = "Nothing was changed."


@dataclass(frozen=True)
class Releases:
    """What made the database (None: nobody wrote it down) and what is installed here."""

    before: tuple[str, str] | None
    now: tuple[str, str]

    def document(self) -> dict[str, Any]:
        was = self.before or (None, None)
        return {
            "from": {"orcheo": was[0], "orcheo_backend": was[1]},
            "to": {"orcheo": self.now[0], "orcheo_backend": self.now[1]},
        }


@dataclass(frozen=True)
class Opened:
    """The app's database, as its administrator, and the list of what the installed release makes."""

    job: Job
    conn: Connection
    wanted: expected.Expected
    releases: Releases


@contextmanager
def opened(job: Job, *, locked: bool) -> Iterator[Opened]:
    """Connect, under the init job's lock if `locked`.

    Raises:
        UserError: no connection, not the right server. CheckFailed: no such database, no list for the installed release, the
            server refused something on the way.
    """
    now = app.versions()
    wanted = expected.load(*now)
    if wanted is None:
        raise CheckFailed(
            f"no list of what orcheo {now[0]} with orcheo-backend {now[1]} makes: this toolkit upgrades to the releases in"
            f" ops/orcheo_db/bootstrap/schema/ only. {UNTOUCHED}"
        )
    with database.connect(job.admin(), timeout=job.wait) as maintenance:
        check_server(job, database.server_facts(maintenance))
        if locked:
            guard.acquire(maintenance, job.lock_wait)
        try:
            with database.connect(job.admin(job.database), timeout=job.wait) as conn:
                if (
                    locked
                ):  # locks are per database: as the init job, for one that connects by another maintenance database
                    guard.acquire(conn, job.lock_wait)
                row = installation.read(conn)
                before = (row.orcheo_version, row.backend_version) if row else None
                yield Opened(job, conn, wanted, Releases(before, now))
        except errors.LockNotAvailable as error:
            raise CheckFailed(
                "a table is in use: the app (or somebody's psql) still works on it, stop that and run again."
                f" {UNTOUCHED} ({error.diag.message_primary})"
            ) from error
        except errors.InsufficientPrivilege as error:
            raise CheckFailed(
                f"the administrator may not do that: {error.diag.message_primary}. {UNTOUCHED}"
            ) from error
        except psycopg.OperationalError as error:
            reason = " ".join(str(error).split())
            raise CheckFailed(
                f"lost {job.address} on the way ({reason}): run again; an open transaction was undone"
            ) from error


def as_owner(conn: Connection) -> None:
    """For the rest of this transaction: act as the tables' owner, with the settings that a digest depends on.

    Raises:
        CheckFailed: there is no such role, or the administrator may not act as it.
    """
    try:
        conn.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(OWNER)))
    except (errors.InvalidParameterValue, errors.UndefinedObject):
        raise CheckFailed(
            f"there is no role {OWNER} on this server: run `orcheo-db up` once with the release that made the database. {UNTOUCHED}"
        ) from None
    settled(conn)


def settled(conn: Connection) -> None:
    """For the rest of this transaction: the settings on which the text of a value depends."""
    for name, value in (("TimeZone", "UTC"), ("DateStyle", "ISO"), ("IntervalStyle", "postgres"), ("bytea_output", "hex"),
                        ("extra_float_digits", "1")):  # fmt: skip
        conn.execute("SELECT set_config(%s, %s, true)", (name, value))


def foreign_owners(found: Mapping[str, expected.Table], wanted: expected.Expected) -> list[str]:
    """Tables of the app that belong to somebody else than the role that the app acts as."""
    return sorted(name for name, table in found.items() if name in wanted.tables and table.owner != OWNER)


__all__ = ["UNTOUCHED", "Opened", "Releases", "as_owner", "foreign_owners", "opened", "settled"]
