"""A restore drill: a marker, the newest backup and the WAL restored beside production to just after it, and proof that it is the same.

Production gets two small rows (`orcheo_db.drill_markers`) and a restore point, and is read (`moment`); nothing else. The copy lives on
the scratch volume, has no network, is compared (`digest`), examined (pg_amcheck), read through Orcheo's own stores (`stores`), and
removed. What was found becomes a record of the evidence, also when the answer is no.
"""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import psycopg

from orcheo_db.backup import archive, digest, evidence, moment
from orcheo_db.backup.config import Config
from orcheo_db.backup.engine import Backup, PgBackRest
from orcheo_db.backup.operations import Heard, connect, wait_archived
from orcheo_db.backup.scratch import GENTLE, Cluster, Target, check_room, scratch
from orcheo_db.errors import CheckFailed, UserError

SCHEMAS = ("public", "orcheo_db", "orcheo_search")
RECOVERY_SECONDS = 6 * 3600.0  # replaying an hour of WAL takes minutes; a drill that takes longer than this is no use
ARCHIVE_SLACK = 60.0  # seconds that a segment may take beyond archive_timeout
STORES_SECONDS = 900
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
class Drill:
    """One drill under way: what is known so far, for the evidence."""

    config: Config
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
            "installation_id": self.config.installation_id,
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


def run(config: Config, heard: Heard, *, switch: bool = False) -> dict[str, Any]:
    """Run a drill; returns its record, which is in the evidence by then. The caller holds the service's lock.

    Args:
        switch: don't wait for archive_timeout to end the segment with the marker: RPO is then not measured.

    Raises:
        CheckFailed: the evidence could not be written.
    """
    drill = Drill(config, heard)
    failure = None
    try:
        _drill(drill, switch=switch)
    except Exception as error:  # whatever it is: a drill without a record would leave the last one's "pass" standing
        known = isinstance(error, CheckFailed | UserError | psycopg.Error | OSError)
        failure = " ".join(str(error).split()) if known and str(error) else f"{type(error).__name__}: {error}"
    record = drill.record(failure)
    config.evidence.mkdir(mode=0o700, exist_ok=True)
    path = evidence.append(config.evidence, record, config.signing_key())
    written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return written


def _drill(drill: Drill, *, switch: bool) -> None:
    config = drill.config
    with connect(config) as production:
        row = production.execute("SELECT pg_walfile_name(pg_current_wal_insert_lsn())").fetchone()
        assert row is not None
        timeline = int(row[0][:8], 16)
        backup = _newest(drill, timeline)
        check_room(config.scratch, backup.size)
        with drill.timed("moment"):
            before = _marker(production, drill.id, "before")
            with connect(config) as other:
                taken = moment.take(
                    production,
                    drill.id,
                    SCHEMAS,
                    config.drill_sample,
                    seed=drill.id,
                    after_restore_point=lambda: _later(other, drill.id),
                )
            catalogues = {name: production.execute(query.encode()).fetchall() for name, query in CATALOGUES.items()}
            segment = _segment(production, taken.lsn)
        drill.target = {"restore_point": drill.id, "lsn": taken.lsn, "time": before.isoformat()}
        if switch:
            production.execute("SELECT pg_switch_wal()")
        production.execute("DELETE FROM orcheo_db.drill_markers WHERE at < now() - %s::interval", (MARKERS_KEPT,))
    with drill.timed("archive"):
        came = wait_archived(config, segment, config.archive_timeout + ARCHIVE_SLACK)
    if not switch:
        drill.rpo = round(max(0.0, (came - before).total_seconds()), 1)
    with scratch(config, drill.id, Target(name=drill.id, timeline=timeline)) as copy:
        started = time.monotonic()
        drill.heard("restore")
        copy.restore(drill.heard, f"--set={backup.label}")
        copy.start(RECOVERY_SECONDS, drill.heard)
        _markers(drill, copy)
        drill.rto = round(time.monotonic() - started, 1)
        drill.durations |= copy.durations
        _prove(drill, copy, taken, catalogues)


def _newest(drill: Drill, timeline: int) -> Backup:
    """The newest backup that leads to production's timeline; with the WAL after it, it is what a restore would start from."""
    lineage = archive.lineage(drill.config, timeline)
    found = [b for b in PgBackRest(drill.config).info().backups if archive.on_timeline(b, timeline, lineage)]
    if not found:
        raise CheckFailed("there is no backup to restore: run `orcheo-db backup run --type full`")
    backup = found[-1]
    drill.backup = {name: backup.document()[name] for name in ("label", "type", "stop", "size", "stored", "stop_lsn")}
    drill.versions = {
        "pgbackrest": subprocess.run(
            ["pgbackrest", "version"], capture_output=True, text=True, check=True
        ).stdout.split()[-1],
        "orcheo": metadata.version("orcheo"),
        "orcheo_backend": metadata.version("orcheo-backend"),
    }
    return backup


def _marker(connection: psycopg.Connection[Any], drill: str, phase: str) -> datetime:
    """A marker row, committed; returns its time."""
    row = connection.execute(
        "INSERT INTO orcheo_db.drill_markers (drill, phase) VALUES (%s, %s) RETURNING at", (drill, phase)
    ).fetchone()
    assert row is not None
    at: datetime = row[0]
    return at


def _later(connection: psycopg.Connection[Any], drill: str) -> None:
    """The marker that must not be in the copy."""
    _marker(connection, drill, "after")


def _segment(connection: psycopg.Connection[Any], lsn: str) -> str:
    row = connection.execute("SELECT pg_walfile_name(%s::pg_lsn)", (lsn,)).fetchone()
    assert row is not None
    return str(row[0])


def _markers(drill: Drill, copy: Cluster) -> None:
    """The marker before the moment is there, the one after it is not: recovery went just as far as it should."""
    with psycopg.connect(copy.dsn(drill.config.database)) as connection:
        rows = connection.execute("SELECT phase FROM orcheo_db.drill_markers WHERE drill = %s", (drill.id,)).fetchall()
    phases = sorted(row[0] for row in rows)
    drill.note(
        "marker present, later marker absent", phases == ["before"], f"markers restored: {', '.join(phases) or 'none'}"
    )


def _prove(drill: Drill, copy: Cluster, taken: moment.Moment, catalogues: dict[str, list[Any]]) -> None:
    config = drill.config
    with psycopg.connect(copy.dsn(config.database), autocommit=True) as connection:
        with drill.timed("comparison"):
            compared = digest.compare(connection, taken)
        drill.sizes |= {
            "rows_compared": compared.rows_compared,
            "bytes_compared": compared.bytes_compared,
            "committed_in_the_moment": compared.committed_in_the_moment,
        }
        drill.sizes["replaced_in_the_moment"] = compared.replaced_in_the_moment
        words = "; ".join(compared.problems) or f"{compared.rows_compared} rows of {len(compared.tables)} tables equal"
        drill.note(
            "content equal to production's",
            compared.ok,
            words,
            notes=compared.notes,
            tables=[asdict(table) for table in compared.tables],
        )
        for name, there in catalogues.items():
            _same(drill, name, there, connection.execute(CATALOGUES[name].encode()).fetchall())
        row = connection.execute(
            "SELECT current_setting('data_checksums'), current_setting('server_version'), pg_database_size(current_database())"
        ).fetchone()
        assert row is not None
        drill.note("data checksums", row[0] == "on", f"data_checksums is {row[0]}")
        drill.versions["postgresql"] = row[1].split(" ")[0]
        drill.sizes["database_bytes"] = int(row[2])
        missing = sorted(
            set(config.extensions) - {name for name, _ in connection.execute(CATALOGUES["extensions"].encode())}
        )
        drill.note("extensions of the spec", not missing, f"missing: {', '.join(missing)}" if missing else "all there")
    _settings(drill, copy)
    _amcheck(drill, copy)
    _stores(drill, copy)


def _same(drill: Drill, name: str, there: list[Any], here: list[Any]) -> None:
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


def _settings(drill: Drill, copy: Cluster) -> None:
    """The spec's postgresql.conf is what a restored server would start with: the copy's PostgreSQL must take it."""
    argv = [
        "postgres",
        "-D",
        str(copy.data),
        "-c",
        f"config_file={drill.config.conf}/postgresql.conf",
        "-C",
        "archive_mode",
    ]
    done = subprocess.run(argv, capture_output=True, text=True)
    auto = [
        line
        for line in (copy.data / "postgresql.auto.conf").read_text().splitlines()
        if line.strip() and line[0] != "#"
    ]
    strange = [line for line in auto if not line.startswith(("recovery_target", "restore_command", "archive_mode"))]
    good = done.returncode == 0 and not strange
    found = (
        "the spec's postgresql.conf is accepted, nothing is set beside it"
        if good
        else " ".join((done.stderr or "; ".join(strange)).split())
    )
    drill.note("settings as the spec says", good, found)


def _amcheck(drill: Drill, copy: Cluster) -> None:
    """Every table's and index's structure, with the pages' checksums verified as they are read."""
    with drill.timed("pg_amcheck"):
        argv = [
            *GENTLE,
            "pg_amcheck",
            "--all",
            "--install-missing=pg_catalog",
            "--jobs=2",
            f"--host={copy.sockets}",
            "--username=postgres",
            "--no-password",
        ]
        done = subprocess.run(argv, capture_output=True, text=True)
    words = " ".join((done.stdout + done.stderr).split())
    drill.note("pg_amcheck", done.returncode == 0, "clean" if done.returncode == 0 else words[:500])


def _stores(drill: Drill, copy: Cluster) -> None:
    """Orcheo's own stores read the copy, in a process of their own: they leave threads behind."""
    with drill.timed("app"):
        argv = ["python", "-m", "orcheo_db.backup.stores", copy.dsn(drill.config.database, "orcheo_app_a")]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=STORES_SECONDS)
        except subprocess.TimeoutExpired:
            drill.note("read through Orcheo's stores", False, f"not done after {STORES_SECONDS} s")
            return
    if done.returncode != 0:
        drill.note(
            "read through Orcheo's stores", False, (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:500]
        )
        return
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    words = (
        "; ".join(seen["problems"][:3])
        or ", ".join(f"{count} {kind}" for kind, count in seen["counts"].items() if count)
        or "no rows yet"
    )
    drill.note("read through Orcheo's stores", not seen["problems"], words, counts=seen["counts"])


__all__ = ["Drill", "run"]
