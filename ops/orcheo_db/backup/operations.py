"""What the backup service does beside drills and restores: get ready, back up, say what there is, check that it all works."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from orcheo_db.backup import archive, engine, evidence
from orcheo_db.backup.config import FIRST, UNFINISHED, Config
from orcheo_db.backup.engine import TYPES, EngineError, PgBackRest
from orcheo_db.backup.running import exclusive
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.secrets import write_private

Heard = Callable[[str], None]
LATE = 2.0  # times the archive_timeout: later than that WAL isn't merely waiting for its segment to end
UNREADABLE = 99  # `info`'s status "other": it is there and can't be read; its message says why
POINTS = "points.json"  # in the state directory
OFFLOADED = "orcheo-db"  # the bucket's directory for what is not pgBackRest's
STANZA_SECONDS = 60.0  # pgBackRest makes one within seconds, from a bucket a continent away too
POINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")  # PostgreSQL takes 63 bytes for a restore point's name


def connect(config: Config, database: str | None = None) -> psycopg.Connection[Any]:
    """Production, as the backup role.

    Raises:
        CheckFailed: it doesn't answer.
    """
    try:
        return psycopg.connect(config.dsn(database), autocommit=True, connect_timeout=10)
    except psycopg.OperationalError as error:
        raise CheckFailed(f"PostgreSQL does not answer the backup service: {' '.join(str(error).split())}") from None


def make_stanza(config: Config, heard: Heard) -> list[str]:
    """Make the stanza where there is none; returns what was done.

    Raises:
        UserError: the repository belongs to another cluster, or the key does not open it. CheckFailed: pgBackRest can't do it.
    """
    # The relay and a job may come at once.
    with exclusive(config.state / "stanza.lock", STANZA_SECONDS, "making the stanza"):
        return _make_stanza(config, heard)


def _make_stanza(config: Config, heard: Heard) -> list[str]:
    pgbackrest = PgBackRest(config)
    found = pgbackrest.info()
    if found.code == UNREADABLE and config.remote:
        raise UserError(f"the bucket can't be read: {found.message}")
    if found.code == UNREADABLE:
        raise UserError(
            f"the backup repository can't be read ({found.message}): put backup/cipher.key back from your copy of the state directory; if it is lost, so are"
            " these backups: `orcheo-db backup new-repository` keeps them aside and begins anew (ops/runbooks/lost-secrets.md)"
        )
    system = _system(config)
    if found.system_id is not None and found.system_id != system:
        raise UserError(
            f"the backup repository is another cluster's (system identifier {found.system_id}, this server's is {system}): its backups are kept."
            " Bring that cluster back (ops/runbooks/lost-volume.md), or give this one an empty repository (ops/runbooks/backup-repository.md)"
        )
    if found.system_id is not None:
        return []
    heard("making the stanza")
    pgbackrest.run("stanza-create")
    if not config.remote:  # a bucket's WAL comes by the relay, which waits for this
        pgbackrest.run("check")
    return ["backup repository made"]


def upgrade_stanza(config: Config) -> dict[str, Any]:
    """Have the stanza go on with a cluster that pg_upgrade made: another system identifier. Backups of the former one stay.

    Raises:
        CheckFailed: pgBackRest can't do it, in its own words.
    """
    with exclusive(config.state / "stanza.lock", STANZA_SECONDS, "making the stanza"):
        pgbackrest = PgBackRest(config)
        before = pgbackrest.info().system_id
        pgbackrest.run("stanza-upgrade")
        pgbackrest.run("check")
        return {"before": before, "after": _system(config)}


def _system(config: Config) -> str | None:
    """Production's system identifier."""
    with connect(config, "postgres") as connection:
        row = connection.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
    return str(row[0]) if row else None


def set_aside(config: Config) -> list[str]:
    """Keep a repository aside that the present cipher key does not open, or that is another cluster's, so that a new one can begin; returns
    what was done.
    """
    found = PgBackRest(config).info()
    if found.code != UNREADABLE and found.system_id in (None, _system(config)):
        return []
    name = f"set-aside-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    for part in ("backup", "archive"):
        stanza = config.repository / part / config.stanza
        if stanza.is_dir():
            stanza.rename(stanza.with_name(name))
    return [f"the former repository is kept as {name} in the volumes of the backups"]


def _whole_files(pgbackrest: PgBackRest, kind: str) -> list[str]:
    """A full backup as whole files where the repository is at hand: out of blocks a restore takes half as long again (`make bench-backup`).
    What changes until the next one is kept by blocks. In a bucket it is the network that a restore waits for, and blocks save most of it.
    """
    by_blocks = "repo1-block=y" in pgbackrest.file.read_text(encoding="utf-8")  # pgBackRest before 2.46 has none
    return ["--no-repo1-block"] if kind == "full" and by_blocks and not pgbackrest.config.remote else []


def run(config: Config, kind: str, heard: Heard) -> dict[str, Any]:
    """Make one backup, and only when it is good remove those beyond the retention. A killed one's files are used again where pgBackRest can.

    Args:
        kind: full, differential or incremental.

    Raises:
        CheckFailed: it failed, with pgBackRest's own words.
    """
    pgbackrest = PgBackRest(config)
    started = time.monotonic()
    make_stanza(config, heard)
    try:
        pgbackrest.run(
            "backup", f"--type={TYPES[kind]}", "--no-expire-auto", *_whole_files(pgbackrest, kind), heard=heard
        )
    except EngineError as error:
        if error.code == engine.LOCKED:
            raise CheckFailed(f"another pgBackRest process works on the repository: {error}") from None
        raise
    made = pgbackrest.info().backups[-1]
    if made.error:
        raise CheckFailed(
            f"backup {made.label} has pages with a wrong checksum: the database's files are damaged (ops/runbooks/damaged-pages.md);"
            " no older backup is removed from now on"
        )
    pgbackrest.run("expire")
    return {**made.document(), "seconds": round(time.monotonic() - started, 1)}


def listing(config: Config) -> dict[str, Any]:
    """What can be restored, from when to when, the sizes, the last drill."""
    found = PgBackRest(config).info()
    newest = archive.newest_archived(config)
    drills = evidence.load_all(config.evidence) if config.evidence.is_dir() else []
    first = None
    if newest and found.backups:
        timeline = int(newest[0][:8], 16)
        lineage = archive.lineage(config, timeline)
        first = next((b.stop for b in found.backups if archive.on_timeline(b, timeline, lineage)), None)
    return {
        "status": found.message,
        "backups": [backup.document() for backup in found.backups],
        "restorable": {"from": first and first.isoformat(), "to": newest and newest[1].isoformat()} if first else None,
        "archive": {"first": found.archive[0][0], "last": newest[0] if newest else found.archive[-1][1]}
        if found.archive
        else None,
        "points": points(config),
        "logical": logical_copies(config),
        "repository_bytes": None if config.remote else _used(config.repository),
        "free_bytes": None if config.remote else shutil.disk_usage(config.repository).free,
        "last_drill": _drill(drills),
    }


def logical_copies(config: Config) -> list[dict[str, Any]]:
    """The logical copies that there are, oldest first."""
    found = []
    for manifest in sorted((config.repository / "logical").glob("*/manifest.json")):
        if not manifest.parent.name.endswith(UNFINISHED):
            told = json.loads(manifest.read_text(encoding="utf-8"))
            found.append(
                {
                    "label": manifest.parent.name,
                    **{name: told[name] for name in ("database_bytes", "stored_bytes", "rows", "seconds")},
                }
            )
    return found


def _drill(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not records:
        return None
    last = records[-1]
    return {name: last.get(name) for name in ("result", "failure", "finished_at", "rto_seconds", "rpo_seconds")}


def _used(path: Path) -> int:
    """Bytes of all files below `path`; those that go away meanwhile don't count."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(directory) / name).lstat().st_blocks * 512
    return total


def point(config: Config, name: str) -> dict[str, Any]:
    """Set a named restore point and have its WAL archived.

    Raises:
        UserError: no such name, or it is taken. CheckFailed: its WAL did not reach the archive.
    """
    if not POINT.fullmatch(name):
        raise UserError(
            f"{name!r} is no name for a restore point: 1 to 63 letters, digits, dots, dashes and underscores"
        )
    known = points(config)
    if name in {entry["name"] for entry in known}:
        raise UserError(
            f"restore point {name} is there already: recovery would stop at the first of that name; choose another"
        )
    with connect(config, "postgres") as connection:
        row = connection.execute(
            "SELECT lsn::text, pg_walfile_name(lsn) FROM pg_create_restore_point(%s) AS lsn", (name,)
        ).fetchone()
        assert row is not None
        at = datetime.now(UTC)
        connection.execute("SELECT pg_switch_wal()")
    entry = {"name": name, "lsn": row[0], "at": at.isoformat()}
    _write(config.state / POINTS, [*known, entry])
    wait_archived(config, row[1], 60)
    return entry


def end_segment(config: Config) -> None:
    """Have everything up to now archived, with a commit after it: recovery to a moment only knows that it is there by a later commit.

    Raises:
        CheckFailed: production does not answer, or its WAL does not arrive.
    """
    with connect(config, "postgres") as connection:
        connection.execute("SELECT pg_current_xact_id()")  # a transaction with a number: its commit is in the WAL
        row = connection.execute("SELECT pg_walfile_name(pg_current_wal_insert_lsn()), pg_switch_wal()").fetchone()
    assert row is not None
    wait_archived(config, row[0], 60)


def claim(config: Config, timeline: int, restored: str) -> dict[str, Any]:
    """Let the cluster of one restore go on as a timeline. Two restores from the same past get the same number, and their WAL under one name
    would make the archive useless.

    Raises:
        UserError: another restore has it.
    """
    file = config.state / "timelines.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    owner = known.get(str(timeline))
    if owner != restored and (owner is not None or archive.history(config, timeline) is not None):
        raise UserError(
            f"this volume would go on as timeline {timeline}, which another restore has begun since: restore again, that one gets a number of its own"
        )
    if owner is None:
        _write(file, {**known, str(timeline): restored})
    return {"timeline": timeline}


def points(config: Config) -> list[dict[str, str]]:
    """The named restore points that were set by `point`, oldest first."""
    file = config.state / POINTS
    if config.remote:
        return _points_in_bucket(config)
    try:
        found: list[dict[str, str]] = json.loads(file.read_text())
    except FileNotFoundError:
        return []
    except ValueError:
        raise CheckFailed(f"{file} is damaged: restores by time and LSN still work; move it away to go on") from None
    return found


def _points_in_bucket(config: Config) -> list[dict[str, str]]:
    """As they were when a job of the second repository last ended: this may be all that is left of the machine."""
    pgbackrest = PgBackRest(config, local=True)
    if POINTS not in pgbackrest.run("repo-ls", OFFLOADED).splitlines():
        return []
    found: list[dict[str, str]] = json.loads(pgbackrest.get(f"{OFFLOADED}/{POINTS}", raw=True))
    return found


def offload(config: Config, first: Path = FIRST) -> None:
    """Put the drills' evidence of both repositories and the restore points into the bucket, beside the backups.

    Raises:
        CheckFailed: the bucket does not take them.
    """
    pgbackrest = PgBackRest(config, local=True)
    for name, directory in (("first", first / "evidence"), ("second", config.evidence)):
        place = f"{OFFLOADED}/evidence-{name}"
        there = set(pgbackrest.run("repo-ls", place).splitlines())
        for file in sorted(directory.glob("*.json")) if directory.is_dir() else ():
            if file.name not in there or file.name == evidence.CHAIN:
                pgbackrest.put(f"{place}/{file.name}", file.read_bytes())
    if (file := first / "state" / POINTS).is_file():
        # Those of a machine that was lost stay: this one's own list begins anew.
        found = {entry["name"]: entry for entry in [*_points_in_bucket(config), *json.loads(file.read_text())]}
        pgbackrest.put(f"{OFFLOADED}/{POINTS}", json.dumps(list(found.values()), indent=2).encode())


def _write(file: Path, content: Any) -> None:
    """Write a state file."""
    file.parent.mkdir(mode=0o700, exist_ok=True)
    write_private(file, json.dumps(content, indent=2).encode())


def wait_archived(config: Config, segment: str, seconds: float) -> datetime:
    """Wait until a WAL segment is in the archive; returns when it came.

    Raises:
        CheckFailed: it did not come in time, with what PostgreSQL says about archiving.
    """
    deadline = time.monotonic() + seconds
    while (at := archive.archived(config, segment)) is None:
        if time.monotonic() > deadline:
            raise CheckFailed(
                f"WAL segment {segment} did not reach the archive within {seconds:.0f} s: {archiver(config)['said']}"
            )
        time.sleep(2 if config.remote else 0.2)
    return at


def archiver(config: Config) -> dict[str, Any]:
    """What PostgreSQL says of its archiving: how many segments wait, since when, whether the last try failed."""
    with connect(config, "postgres") as connection:
        row = connection.execute(
            """
            SELECT a.last_archived_wal, a.last_archived_time, a.last_failed_wal, a.last_failed_time, a.failed_count,
                   (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'),
                   (SELECT min(modification) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'),
                   (SELECT coalesce(sum(size), 0) FROM pg_ls_waldir()), now()
              FROM pg_stat_archiver a
            """
        ).fetchone()
    assert row is not None
    failing = row[3] is not None and (row[1] is None or row[3] > row[1])
    waited = (row[8] - row[6]).total_seconds() if row[6] else 0.0
    said = f"{row[5]} segments wait"
    if row[6] is not None:
        said += f", the oldest since {row[6]:%Y-%m-%d %H:%M:%S} UTC"
    if failing:
        said += f"; the last try, of {row[2]}, failed at {row[3]:%H:%M:%S} UTC"
    return {
        "last_archived": row[0],
        "last_archived_at": row[1] and row[1].isoformat(),
        "failing": failing,
        "stuck": failing or waited > LATE * config.archive_timeout,
        "failed_count": row[4],
        "waiting": row[5],
        "waiting_since": row[6] and row[6].isoformat(),
        "waiting_seconds": waited,
        "wal_bytes": int(row[7]),
        "said": said,
    }
