"""`backup check`: whether backups would save the day. Each check says what it found and, where it fails, what to do."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg

from orcheo_db.backup import archive, evidence, relay
from orcheo_db.backup.config import Config
from orcheo_db.backup.engine import TYPES, Backup, Info, PgBackRest
from orcheo_db.backup.logical import DUMP, sha256
from orcheo_db.backup.operations import Heard, archiver, logical_copies
from orcheo_db.backup.plan import following, load
from orcheo_db.backup.running import utc
from orcheo_db.errors import CheckFailed, UserError

FREE_SHARE = 0.10  # of the repository's volume: below, the next full backup may not fit
RELAY_LATE = 300.0  # seconds that a segment may wait for the bucket: several tries
RELAY_SILENT = 300.0  # seconds between two notes of the relay: far beyond what four segments take on a slow line
RELAY_REMEDY = "local backups go on; see ops/runbooks/second-repository.md"
ROUND_TRIP = 30  # seconds for a segment pushed by the check: on a well archive it takes less than one


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
    if config.remote:
        _guarded(note, "WAL relayed", lambda: _check_relay(config, note))
    else:
        _check_first(config, pgbackrest, heard, note)
    _check_jobs(config, note)
    _check_evidence(config, note)
    if deep or not config.remote:  # it lists the archive: of a bucket, thousands of names
        _guarded(note, "no gap in the archive", lambda: _check_gaps(config, info, note))
    if deep:
        heard("reading the whole repository")
        _guarded(note, "every file of the repository", lambda: _verify(config, pgbackrest, note))
        if not config.remote:
            _guarded(note, "logical copies", lambda: _verify_copies(config, note))
    return {"ok": all(entry["ok"] for entry in checks), "checks": checks}


def option(config: Config) -> str:
    """How a command names this repository."""
    return " --repository second" if config.remote else ""


def again(config: Config) -> str:
    """What to do where there is no good backup."""
    return f"run `orcheo-db backup run --type full{option(config)}`"


def _check_first(config: Config, pgbackrest: PgBackRest, heard: Heard, note: Callable[..., None]) -> None:
    """What only a repository beside the database has: archiving, room."""
    _guarded(note, "WAL arriving", lambda: _check_archiving(config, note))
    heard("pushing a WAL segment and waiting for it")
    if (
        _guarded(note, "archive round trip", lambda: pgbackrest.run("check", f"--archive-timeout={ROUND_TRIP}"))
        is not None
    ):
        note("archive round trip", True, "a segment pushed just now is there")
    _check_room(config, note)


def _check_relay(config: Config, note: Callable[..., None]) -> None:
    found, now = relay.read(config), time.time()
    if found is None:
        note("WAL relayed", False, "the relay has not looked yet", RELAY_REMEDY)
        return
    late = found.waiting_since is not None and now - found.waiting_since > RELAY_LATE
    silent = now - found.at > RELAY_SILENT
    words = f"{found.waiting} segments wait" + (
        f", the oldest since {utc(found.waiting_since)}" if found.waiting_since is not None else ""
    )
    words += f"; the last was {found.last}" if found.last else ""
    if silent:
        words = f"the relay has not looked since {utc(found.at)}"
    note("WAL relayed", not (found.said or late or silent), found.said or words, RELAY_REMEDY)


def _guarded(note: Callable[..., None], name: str, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except (CheckFailed, UserError, psycopg.Error, OSError) as error:
        note(name, False, " ".join(str(error).split()), "see `make status` and the backup service's log")
        return None


def _check_backups(config: Config, info: Info, note: Callable[..., None]) -> None:
    full = [backup for backup in info.backups if backup.type == "full"]
    note("repository", info.code == 0, info.message or "no message", again(config))
    if not full:
        note("a full backup", False, "there is none", again(config))
        return
    newest: Backup = info.backups[-1]
    age = datetime.now(UTC) - newest.stop
    limit = longest_gap(config)
    note(
        "newest backup", age.total_seconds() < limit, f"{newest.label}, {age.total_seconds() / 3600:.1f} h old",
        "see the service's log (docker logs)",
    )  # fmt: skip
    note(
        "page checksums", not newest.error, "no wrong one in the newest backup" if not newest.error else f"wrong ones in {newest.label}",
        "the database's files are damaged: ops/runbooks/damaged-pages.md",
    )  # fmt: skip


def longest_gap(config: Config) -> float:
    """Seconds between backups that the schedule allows at most, and one more of them for a run that was missed."""
    now = time.time()
    gaps = []
    for kind in (name for name in TYPES if name in config.schedule):
        first = following(config.schedule[kind], now)
        gaps.append(following(config.schedule[kind], first) - first)
    return 2 * min(gaps) + 3600


def _check_archiving(config: Config, note: Callable[..., None]) -> None:
    state = archiver(config)
    note("WAL arriving", not state["stuck"], state["said"], "see ops/runbooks/archive-stuck.md")


def _check_gaps(config: Config, info: Info | None, note: Callable[..., None]) -> None:
    """Every segment is there, timeline by timeline: `pgbackrest verify` doesn't miss one in the middle. A gap before the newest full backup
    is said and is over: only the moments in it are lost.
    """
    backups = info.backups if info else ()
    gaps = archive.gaps(config, min((b.start_wal for b in backups), default=None, key=lambda name: name[8:]))
    full = max((b.start_wal[8:] for b in backups if b.type == "full"), default="")
    open_ = [gap for gap in gaps if gap[1][8:] > full]
    words = [
        f"{after} is followed by {before}" + ("" if (after, before) in open_ else " (before the newest full backup)")
        for after, before in gaps
    ]
    found = "; ".join(words) or "every segment follows the one before"
    note(
        "no gap in the archive",
        not open_,
        found,
        f"no moment in the gap can be restored; {again(config)} ends it",
    )


def _check_jobs(config: Config, note: Callable[..., None]) -> None:
    """What the schedule ran last: a job that fails every night must not be seen in the log alone."""
    state, _ = load(config.repository, time.time())
    failed = [
        f"{job} {utc(entry.finished or 0)}: {entry.message}" for job, entry in state.items() if entry.result == "failed"
    ]
    note(
        "the schedule's jobs",
        not failed,
        "; ".join(failed) or "none failed at its last run",
        "see the service's log; a good run of the job ends this",
    )


def _verify_copies(config: Config, note: Callable[..., None]) -> None:
    wrong = []
    for entry in logical_copies(config):
        home = config.repository / "logical" / entry["label"]
        wanted = json.loads((home / "manifest.json").read_text(encoding="utf-8"))["sha256"]
        try:
            good = sha256(home / DUMP) == wanted
        except OSError:
            good = False
        wrong += [] if good else [entry["label"]]
    note(
        "logical copies",
        not wrong,
        f"damaged or missing: {', '.join(wrong)}" if wrong else "as they were stored",
        "run `orcheo-db backup run --type logical`",
    )


def _check_room(config: Config, note: Callable[..., None]) -> None:
    usage = shutil.disk_usage(config.repository)
    share = usage.free / usage.total
    note(
        "room in the repository", share >= FREE_SHARE, f"{usage.free / 2**30:.1f} GB free ({share:.0%})",
        "free space on that volume, or keep fewer backups ([backup.retention])",
    )  # fmt: skip


def _check_evidence(config: Config, note: Callable[..., None]) -> None:
    if not config.evidence.is_dir() or not (records := evidence.load_all(config.evidence)):
        note("drills", True, "none yet; the schedule runs them, `orcheo-db drill" + option(config) + "` one now")
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


def _verify(config: Config, pgbackrest: PgBackRest, note: Callable[..., None]) -> None:
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
        again(config),
    )
