"""What the backup service does beside drills and restores: get ready, back up, say what there is, check that it all works."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from orcheo_db.backup import engine, evidence
from orcheo_db.backup.config import UNFINISHED, Config
from orcheo_db.backup.engine import TYPES, Backup, EngineError, Info, PgBackRest
from orcheo_db.backup.plan import following
from orcheo_db.errors import CheckFailed, UserError

Heard = Callable[[str], None]
FREE_SHARE = 0.10  # of the repository's volume: below, the next full backup may not fit
ROUND_TRIP = 30  # seconds for a segment pushed by the check: on a well archive it takes less than one
LATE = 2.0  # times the archive_timeout: later than that WAL isn't merely waiting for its segment to end
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
        UserError: the repository belongs to another cluster. CheckFailed: pgBackRest can't do it.
    """
    for directory in (config.evidence, config.state):
        directory.mkdir(mode=0o700, exist_ok=True)
    pgbackrest = PgBackRest(config)
    found = pgbackrest.info()
    with connect(config, "postgres") as connection:
        row = connection.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
    system = row[0] if row else None
    if found.system_id is not None and found.system_id != system:
        raise UserError(
            f"the backup repository is another cluster's (system identifier {found.system_id}, this server's is {system}): its backups are kept."
            " Bring that cluster back (ops/runbooks/lost-volume.md), or give this one an empty repository (ops/runbooks/backup-repository.md)"
        )
    if found.system_id is not None:
        return []
    heard("making the stanza")
    pgbackrest.run("stanza-create")
    pgbackrest.run("check")
    return ["backup repository made"]


def run(config: Config, kind: str, heard: Heard) -> dict[str, Any]:
    """Make one backup. A killed one's files are used again where pgBackRest can.

    Args:
        kind: full, differential or incremental.

    Raises:
        CheckFailed: it failed, with pgBackRest's own words.
    """
    pgbackrest = PgBackRest(config)
    started = time.monotonic()
    make_stanza(config, heard)
    try:
        pgbackrest.run("backup", f"--type={TYPES[kind]}", heard=heard)
    except EngineError as error:
        if error.code == engine.LOCKED:
            raise CheckFailed(f"another pgBackRest process works on the repository: {error}") from None
        raise
    made = pgbackrest.info().backups[-1]
    if made.error:
        raise CheckFailed(
            f"backup {made.label} has pages with a wrong checksum: the database's files are damaged (ops/runbooks/damaged-pages.md); older backups are kept"
        )
    return {**made.document(), "seconds": round(time.monotonic() - started, 1)}


def listing(config: Config) -> dict[str, Any]:
    """What can be restored, from when to when, the sizes, the last drill."""
    found = PgBackRest(config).info()
    newest = engine.newest_archived(config)
    drills = evidence.load_all(config.evidence) if config.evidence.is_dir() else []
    first = None
    if newest and found.backups:
        timeline = int(newest[0][:8], 16)
        lineage = engine.lineage(config, timeline)
        first = next((b.stop for b in found.backups if engine.on_timeline(b, timeline, lineage)), None)
    return {
        "status": found.message,
        "backups": [backup.document() for backup in found.backups],
        "restorable": {"from": first and first.isoformat(), "to": newest and newest[1].isoformat()} if first else None,
        "archive": {"first": found.archive[0][0], "last": newest[0] if newest else found.archive[-1][1]}
        if found.archive
        else None,
        "points": points(config),
        "logical": logical_copies(config),
        "repository_bytes": _used(config.repository),
        "free_bytes": shutil.disk_usage(config.repository).free,
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
    """Bytes of all files below `path`."""
    return sum(
        (Path(directory) / name).lstat().st_blocks * 512 for directory, _, names in os.walk(path) for name in names
    )


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
    _write(config.state / "points.json", [*known, entry])
    wait_archived(config, row[1], 60)
    return entry


def claim(config: Config, timeline: int, restored: str) -> dict[str, Any]:
    """Let the cluster of one restore go on as a timeline. Two restores from the same past get the same number, and their WAL under one name
    would make the archive useless.

    Raises:
        UserError: another restore has it.
    """
    file = config.state / "timelines.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    owner = known.get(str(timeline))
    if owner != restored and (owner is not None or engine.history(config, timeline) is not None):
        raise UserError(
            f"this volume would go on as timeline {timeline}, which another restore has begun since: restore again, that one gets a number of its own"
        )
    if owner is None:
        _write(file, {**known, str(timeline): restored})
    return {"timeline": timeline}


def points(config: Config) -> list[dict[str, str]]:
    """The named restore points that were set by `point`, oldest first."""
    file = config.state / "points.json"
    try:
        found: list[dict[str, str]] = json.loads(file.read_text())
    except FileNotFoundError:
        return []
    except ValueError:
        raise CheckFailed(f"{file} is damaged: restores by time and LSN still work; move it away to go on") from None
    return found


def _write(file: Path, content: Any) -> None:
    """Write a state file, whole or not at all."""
    file.parent.mkdir(mode=0o700, exist_ok=True)
    fresh = file.with_name(f".{file.name}.new")
    with fresh.open("w") as opened:
        json.dump(content, opened, indent=2)
        opened.flush()
        os.fsync(opened.fileno())
    fresh.replace(file)


def wait_archived(config: Config, segment: str, seconds: float) -> datetime:
    """Wait until a WAL segment is in the archive; returns when it came.

    Raises:
        CheckFailed: it did not come in time, with what PostgreSQL says about archiving.
    """
    deadline = time.monotonic() + seconds
    while (at := engine.archived(config, segment)) is None:
        if time.monotonic() > deadline:
            raise CheckFailed(
                f"WAL segment {segment} did not reach the archive within {seconds:.0f} s: {archiver(config)['said']}"
            )
        time.sleep(0.2)
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
    said = f"{row[5]} segments wait"
    if row[6] is not None:
        said += f", the oldest since {row[6]:%Y-%m-%d %H:%M:%S} UTC"
    if failing:
        said += f"; the last try, of {row[2]}, failed at {row[3]:%H:%M:%S} UTC"
    return {
        "last_archived": row[0],
        "last_archived_at": row[1] and row[1].isoformat(),
        "failing": failing,
        "failed_count": row[4],
        "waiting": row[5],
        "waiting_since": row[6] and row[6].isoformat(),
        "waiting_seconds": (row[8] - row[6]).total_seconds() if row[6] else 0.0,
        "wal_bytes": int(row[7]),
        "said": said,
    }


def check(config: Config, heard: Heard, *, deep: bool = False) -> dict[str, Any]:
    """Whether backups would save the day: WAL arrives, backups are recent, the repository is whole and has room, drills pass.

    Args:
        deep: read every file of the repository and compare its checksum (`pgbackrest verify`).
    """
    checks: list[dict[str, Any]] = []

    def note(name: str, ok: bool, found: str, remedy: str = "") -> None:
        checks.append({"name": name, "ok": ok, "found": found, "remedy": "" if ok else remedy})

    pgbackrest = PgBackRest(config)
    info = _guarded(note, "repository readable", pgbackrest.info)
    if isinstance(info, Info):
        _check_backups(config, info, note)
    _guarded(note, "WAL arriving", lambda: _check_archiving(config, note))
    heard("pushing a WAL segment and waiting for it")
    if (
        _guarded(note, "archive round trip", lambda: pgbackrest.run("check", f"--archive-timeout={ROUND_TRIP}"))
        is not None
    ):
        note("archive round trip", True, "a segment pushed just now is there")
    _check_room(config, note)
    _check_evidence(config, note)
    if deep:
        heard("reading the whole repository")
        _guarded(note, "every file of the repository", lambda: _verify(pgbackrest, note))
    return {"ok": all(entry["ok"] for entry in checks), "checks": checks}


def _guarded(note: Callable[..., None], name: str, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except (CheckFailed, UserError, psycopg.Error, OSError) as error:
        note(name, False, " ".join(str(error).split()), "see `make status` and the backup service's log")
        return None


def _check_backups(config: Config, info: Info, note: Callable[..., None]) -> None:
    full = [backup for backup in info.backups if backup.type == "full"]
    note("repository", info.code == 0, info.message or "no message", "run `orcheo-db backup run --type full`")
    if not full:
        note("a full backup", False, "there is none", "run `orcheo-db backup run --type full`")
        return
    newest: Backup = info.backups[-1]
    age = datetime.now(UTC) - newest.stop
    limit = longest_gap(config)
    note(
        "newest backup", age.total_seconds() < limit, f"{newest.label}, {age.total_seconds() / 3600:.1f} h old",
        "see the schedule's failures in `orcheo-db backup list` and the service's log",
    )  # fmt: skip
    note(
        "page checksums", not newest.error, "no wrong one in the newest backup" if not newest.error else f"wrong ones in {newest.label}",
        "the database's files are damaged: ops/runbooks/damaged-pages.md",
    )  # fmt: skip


def longest_gap(config: Config) -> float:
    """Seconds between backups that the schedule allows at most, and one more of them for a run that was missed."""
    now = time.time()
    gaps = []
    for kind in TYPES:
        first = following(config.schedule[kind], now)
        gaps.append(following(config.schedule[kind], first) - first)
    return 2 * min(gaps) + 3600


def _check_archiving(config: Config, note: Callable[..., None]) -> None:
    state = archiver(config)
    late = state["waiting_seconds"] > LATE * config.archive_timeout
    note("WAL arriving", not (state["failing"] or late), state["said"], "see ops/runbooks/archive-stuck.md")


def _check_room(config: Config, note: Callable[..., None]) -> None:
    usage = shutil.disk_usage(config.repository)
    share = usage.free / usage.total
    note(
        "room in the repository", share >= FREE_SHARE, f"{usage.free / 2**30:.1f} GB free ({share:.0%})",
        "free space on that volume, or keep fewer backups ([backup.retention])",
    )  # fmt: skip


def _check_evidence(config: Config, note: Callable[..., None]) -> None:
    if not config.evidence.is_dir() or not (records := evidence.load_all(config.evidence)):
        note("drills", True, "none yet; the schedule runs one a day, `make drill` now")
        return
    problems = evidence.verify(config.evidence, evidence.public_key(config.signing_key()))
    note(
        "evidence",
        not problems,
        "; ".join(problems) or f"{len(records)} records, chained and signed",
        "see ops/runbooks/evidence.md",
    )
    last = records[-1]
    note(
        "last drill",
        last["result"] == "pass",
        f"{last['result']} at {last['finished_at']}: {last['failure'] or 'everything equal'}",
        "see `make drill`",
    )


def _verify(pgbackrest: PgBackRest, note: Callable[..., None]) -> None:
    output = pgbackrest.run("verify", "--output=text", "--verbose")
    status = next((line for line in output.splitlines() if "status:" in line), "status: ok")
    problems = [
        line.strip()
        for line in output.splitlines()
        if re.search(r"(missing|checksum invalid|size invalid|other): [1-9]", line)
    ]
    good = "error" not in status and not problems
    note(
        "every file of the repository",
        good,
        "; ".join(problems) or status.strip(),
        "take a new full backup: `orcheo-db backup run --type full`",
    )
