"""What a drill finds: its record as it grows, and the checks that every drill makes, whoever restored the copy.

Production gets two small rows of `orcheo_db.drill_markers`, one before and one after the moment that is proven. The copy must have the
first and not the second, the same content (`digest`), and the same roles, extensions and settings of roles.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg

from orcheo_db.backup import digest
from orcheo_db.backup.moment import Moment
from orcheo_db.database import Connection
from orcheo_db.errors import CheckFailed, UserError

Heard = Callable[[str], None]

SCHEMAS = ("public", "orcheo_db", "orcheo_search")
MARKERS_KEPT = "30 days"
# What the copy must have as production has it. Sorted text: one list each.
CATALOGUES = {
    "roles": """SELECT rolname, rolsuper, rolcanlogin, rolcreatedb, rolcreaterole, rolreplication,
                       array(SELECT g.rolname::text FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid ORDER BY 1)
                  FROM pg_roles r ORDER BY rolname""",
    "extensions": "SELECT extname::text, extversion FROM pg_extension ORDER BY 1",
    "role and database settings": """SELECT coalesce(d.datname::text, ''), coalesce(r.rolname::text, ''), s.setconfig FROM pg_db_role_setting s
                  LEFT JOIN pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_roles r ON r.oid = s.setrole ORDER BY 1, 2""",
}


@dataclass
class Findings:
    """One drill under way: what is known so far, for the evidence."""

    installation_id: str
    heard: Heard
    id: str = field(default_factory=lambda: f"drill-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}")
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    durations: dict[str, float] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    backup: dict[str, Any] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    rto: float | None = None
    rpo: float | None = None

    def note(self, name: str, ok: bool, found: str, **more: Any) -> None:
        self.checks.append({"name": name, "ok": ok, "found": found, **more})
        self.heard(f"{name}: {'ok' if ok else 'NO'} ({found})")

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        self.heard(name)
        started = time.monotonic()
        try:
            yield
        finally:
            self.durations[name] = round(time.monotonic() - started, 2)

    def record(self, failure: str | None) -> dict[str, Any]:
        failed = [f"{check['name']}: {check['found']}" for check in self.checks if not check["ok"]]
        failure = failure or ("; ".join(failed) if failed else None)
        return {
            "id": self.id,
            "kind": "restore",
            "started_at": _stamp(self.started),
            "finished_at": _stamp(datetime.now(UTC)),
            "result": "fail" if failure else "pass",
            "failure": failure,
            "installation_id": self.installation_id,
            "versions": self.versions,
            "backup": self.backup,
            "target": self.target,
            "rto_seconds": self.rto,
            "rpo_seconds": self.rpo,
            "durations": self.durations,
            "sizes": self.sizes,
            "checks": self.checks,
        }


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def failure_of(error: Exception) -> str:
    """An exception as the record's failure: one line; what nobody expected with its kind."""
    known = isinstance(error, CheckFailed | UserError | psycopg.Error | OSError)
    return " ".join(str(error).split()) if known and str(error) else f"{type(error).__name__}: {error}"


# --- production ---------------------------------------------------------------------------------------------------------


def mark(connection: Connection, drill: str, phase: str) -> datetime:
    """A marker row, committed; returns its time."""
    row = connection.execute(
        "INSERT INTO orcheo_db.drill_markers (drill, phase) VALUES (%s, %s) RETURNING at", (drill, phase)
    ).fetchone()
    assert row is not None
    at: datetime = row[0]
    return at


def tidy(connection: Connection) -> None:
    """Old markers go."""
    connection.execute("DELETE FROM orcheo_db.drill_markers WHERE at < now() - %s::interval", (MARKERS_KEPT,))


def catalogues(connection: Connection) -> dict[str, list[Any]]:
    return {name: connection.execute(query.encode()).fetchall() for name, query in CATALOGUES.items()}


# --- the copy -----------------------------------------------------------------------------------------------------------


def check_markers(drill: Findings, connection: Connection) -> None:
    """The marker before the moment is there, the one after it is not: recovery went just as far as it should."""
    rows = connection.execute("SELECT phase FROM orcheo_db.drill_markers WHERE drill = %s", (drill.id,)).fetchall()
    phases = sorted(row[0] for row in rows)
    drill.note(
        "marker present, later marker absent", phases == ["before"], f"markers restored: {', '.join(phases) or 'none'}"
    )


def check_content(
    drill: Findings,
    connection: Connection,
    taken: Moment,
    arrived: Callable[[Connection, Moment], list[str]] | None = None,
) -> None:
    """The same rows (`digest.compare`), counted in the record's sizes."""
    with drill.timed("comparison"):
        compared = digest.compare(connection, taken, arrived)
    drill.sizes |= {
        "rows_compared": compared.rows_compared,
        "bytes_compared": compared.bytes_compared,
        "committed_in_the_moment": compared.committed_in_the_moment,
        "replaced_in_the_moment": compared.replaced_in_the_moment,
    }
    words = "; ".join(compared.problems) or f"{compared.rows_compared} rows of {len(compared.tables)} tables equal"
    drill.note(
        "content equal to production's",
        compared.ok,
        words,
        notes=compared.notes,
        tables=[asdict(table) for table in compared.tables],
    )


def check_same(drill: Findings, name: str, there: list[Any], here: list[Any]) -> None:
    """Production's list and the copy's."""
    gone = [str(row[0]) for row in there if row not in here]
    more = [str(row[0]) for row in here if row not in there]
    words = "; ".join(
        text
        for text in (
            f"differ or are missing: {', '.join(gone)}" if gone else "",
            f"only in the copy: {', '.join(more)}" if more else "",
        )
        if text
    )
    drill.note(name, not (gone or more), words or f"{len(here)} as in production")


def check_server(drill: Findings, connection: Connection, extensions: set[str], checksums: str = "on") -> None:
    """Checksums are as meant, the spec's extensions are there; the version and the size go into the record.

    Args:
        checksums: what data_checksums is in production; of a managed one that is the service's to say.
    """
    row = connection.execute(
        "SELECT current_setting('data_checksums'), current_setting('server_version'), pg_database_size(current_database())"
    ).fetchone()
    assert row is not None
    drill.note("data checksums", row[0] == checksums, f"data_checksums is {row[0]}")
    drill.versions["postgresql"] = row[1].split(" ")[0]
    drill.sizes["database_bytes"] = int(row[2])
    missing = sorted(extensions - {name for name, _ in connection.execute(CATALOGUES["extensions"].encode())})
    drill.note("extensions of the spec", not missing, f"missing: {', '.join(missing)}" if missing else "all there")
