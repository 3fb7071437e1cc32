"""What `orcheo-db migrate` costs, against plain COPY of the same rows and Orcheo's own tool, in one run, on an installation of its own.

The rows are made by an old release's own stores (tests/migrate/releases.py). The installation (project `<project>-bench`, port and state
directory of its own) is brought up by the command line, as its user would, and removed at the end. MB are 2^20 bytes of SQLite's own values,
as `migrate run` counts them, for all three.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException

from orcheo_db.bench import peer, plain_copy
from orcheo_db.bench.backup import Bench, free_port
from orcheo_db.bench.kills import kills as kill_runs
from orcheo_db.bench.stage import Stage
from orcheo_db.bench.watched import MB, PROGRAM, Watched
from orcheo_db.console import say
from orcheo_db.errors import CheckFailed, UserError

# Issue 5: times the peer's MB/s, of plain COPY's MB/s, MB of memory, seconds of write downtime.
AIMS = {"to_peer": 5.0, "to_copy": 0.6, "peak_mb": 300.0, "downtime_seconds": 60.0}
SCRATCH = "/var/tmp"  # noqa: S108 - a directory of its own is made there; /tmp may be memory
DISK = 6  # times the files: themselves, the snapshot, the rows as text or as the peer exports them, the database and its WAL
DISK_ALONE = 4  # without what is compared with
PIECE = 400  # MB that one container makes: each has ten minutes
KILL_MB = 30  # what a killed run works on: it is copied more than a hundred times
CHANGES = 100  # rows of each table that are added, changed and deleted before the cutover
MEASURED = ("plan", "run", "verify", "cutover")


def bench(
    root: Path, project: str, megabytes: int, release: str, kills: int, *, baselines: bool = True
) -> dict[str, Any]:
    """Measure; the document has every number, the ratios and the aims that were missed.

    Args:
        megabytes: of SQLite files. release: a key of tests.migrate.releases.RELEASES. kills: runs that are killed.
        baselines: compare with plain COPY and Orcheo's own tool, which takes several times as long as what is measured.

    Raises:
        CheckFailed: a step failed. UserError: no such release, no room, the tests' folder is not there, or another benchmark's installation is.
    """
    releases = _releases(root, release)
    free = shutil.disk_usage(SCRATCH).free // MB
    wanted = (DISK if baselines else DISK_ALONE) * megabytes + 1000
    if free < wanted:
        raise UserError(
            f"{SCRATCH} has {free} MB free, and --megabytes {megabytes} takes {wanted}: make room or ask for fewer"
        )
    with tempfile.TemporaryDirectory(prefix="orcheo-db-bench-", dir=SCRATCH) as scratch:
        own = Bench(root, f"{project}-bench", Path(scratch) / "state", free_port())
        data = Path(scratch) / "orcheo"
        _refuse_leftovers(own)
        # An end by `kill` or a shutdown takes the installation with it, as Ctrl-C does.
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            say("bringing an installation of its own up …")
            own.run("up")
            stage = Stage(own)
            say(f"{megabytes} MB of rows, by the stores of Orcheo {release} …")
            found: dict[str, Any] = {
                "release": release,
                "megabytes": megabytes,
                "made": _fill(releases, release, data, megabytes),
            }
            found |= _measure(stage, releases, data, Path(scratch), baselines=baselines)
            rates = f"migrate run {found['ours']['run']['mb_s']} MB/s"
            if baselines:
                rates += f", plain COPY {found['limit']['plain']['mb_s']}, Orcheo's own tool {found['peer']['mb_s']}"
            say(f"{rates}; downtime {found['ours']['cutover']['downtime_seconds']} s")  # the rest may take an hour
            if kills:
                say(f"{kills} runs that are killed …")
                small = Path(scratch) / "small"
                _fill(releases, release, small, min(megabytes, KILL_MB))
                found["kills"] = kill_runs(stage, small, kills)
        finally:
            own.destroy()
            signal.signal(signal.SIGTERM, before)
    return found | judged(found)


def _refuse_leftovers(own: Bench) -> None:
    """Two benchmarks share a project's name: the second one must not remove the first one's installation.

    Raises:
        UserError: there is one, perhaps left by a run that was killed.
    """
    volume = f"{own.project}_pgdata"
    try:
        docker.from_env().volumes.get(volume)
    except DockerException:  # not there, or no Docker yet: `up` sees to that
        return
    raise UserError(
        f"volume {volume} is there: another benchmark is at work, or one was killed; then `ORCHEO_DB_PROJECT={own.project} orcheo-db destroy"
        f" --confirm {volume}` removes what it left"
    )


def _releases(root: Path, release: str) -> Any:
    """The module that makes an old release's rows; it is no part of the package, but of the repository beside it."""
    sys.path.insert(0, str(root))
    try:
        found = importlib.import_module("tests.migrate.releases")
    except ImportError as error:
        raise UserError(
            f"{root}/tests can't be imported ({error}): run this from a clone, with `make bench-migrate`"
        ) from None
    if release not in found.RELEASES:
        raise UserError(f"--release {release}: rows can be made by {' and '.join(found.RELEASES)}")
    return found


def _fill(releases: Any, release: str, data: Path, megabytes: int) -> dict[str, int]:
    """Have so many MB of files; the number of each kind of row."""
    counts: dict[str, int] = {}
    for done in range(0, megabytes, PIECE):
        made = releases.fill(release, data, megabytes=min(PIECE, megabytes - done))
        for kind, count in made.items():
            if isinstance(count, int):
                counts[kind] = count if kind == "bytes" else counts.get(kind, 0) + count
    return counts


def _measure(stage: Stage, releases: Any, data: Path, scratch: Path, *, baselines: bool) -> dict[str, Any]:
    theirs = {}
    if baselines:
        say("Orcheo's own tool …")
        theirs = peer.run(stage, releases, data, scratch / "exported") | {"of_tables": _tables(data)}
        shutil.rmtree(scratch / "exported")
    say("plan, run, verify …")
    stage.fresh()
    ours = {"plan": _timed(stage, "plan", data, answers=(0, 1)), "run": _timed(stage, "run", data)}
    sizes = _sizes(stage)
    stage.own.rest()
    ours["verify"] = _timed(stage, "verify", data)
    files = []
    if baselines:
        say("the same rows as text …")
        files = plain_copy.unload(stage, scratch / "text")
    say("changes, cutover …")
    changes = change(data)
    stage.own.rest()
    ours["cutover"] = _timed(stage, "cutover", data)
    if not baselines:
        return _own_document(ours, sizes, changes)
    say("the indexes alone …")
    made = plain_copy.indexes(stage)
    say("plain COPY …")
    limit = {
        "plain": plain_copy.load(stage, files),
        "lz4": plain_copy.load(stage, files, compression="lz4"),
        "two_connections": plain_copy.load(stage, files, compression="lz4", connections=2),
    }
    shutil.rmtree(scratch / "text")
    say("the tables that Orcheo's own tool moves, and no others …")
    stage.fresh()
    apart = _apart(stage, data, scratch / "apart")
    return _document(theirs, ours, sizes, changes, limit, apart, made)


def _document(
    theirs: dict[str, Any], ours: dict[str, dict[str, Any]], sizes: Mapping[str, tuple[int, int]], changes: dict[str, int],
    limit: dict[str, dict[str, Any]], apart: tuple[dict[str, Any], Mapping[str, tuple[int, int]]], made: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The numbers of all, with their rates."""
    own = _own_document(ours, sizes, changes)
    rows, size = own["rows"], own["bytes"]
    moved = [name for name in theirs["order"] if name in sizes]
    theirs["tables"] = len(theirs["order"])
    theirs |= {"bytes": sum(sizes[name][1] for name in moved)}
    theirs |= rate(theirs["rows"], theirs["bytes"], theirs["seconds"])
    same, parts = apart
    rows_apart, bytes_apart = (sum(parts[name][i] for name in moved if name in parts) for i in (0, 1))
    same = {"rows": rows_apart, "bytes": bytes_apart} | {key: same[key] for key in ("seconds", "peak_mb", "largest_mb")}
    return own | {
        "ours_same_tables": same | rate(rows_apart, bytes_apart, same["seconds"]),
        "limit": {name: one | rate(rows, size, one["seconds"]) for name, one in limit.items()},
        "indexes": made | rate(rows, size, made["seconds"]),
        "peer": {key: value for key, value in theirs.items() if key != "order"},
    }


def _own_document(
    ours: dict[str, dict[str, Any]], sizes: Mapping[str, tuple[int, int]], changes: dict[str, int]
) -> dict[str, Any]:
    """The numbers of our own commands."""
    ran = ours["run"]
    rows, size = ran["document"]["rows"], ran["document"]["bytes"]
    cut = ours["cutover"]["document"]
    told = {name: {key: value for key, value in one.items() if key != "document"} for name, one in ours.items()}
    told["run"] |= {"rows": rows, "bytes": size, "copy_seconds": ran["document"]["seconds"]} | rate(
        rows, size, ran["seconds"]
    )
    told["verify"] |= rate(rows, size, told["verify"]["seconds"])
    told["cutover"] |= {key: cut[key] for key in ("downtime_seconds", "rows_compared", "changed")} | {"made": changes}
    return {
        "rows": rows,
        "bytes": size,
        "tables": {name: {"rows": count, "bytes": bytes_} for name, (count, bytes_) in sorted(sizes.items())},
        "ours": told,
    }


def rate(rows: int, size: int, seconds: float) -> dict[str, float]:
    """Rows and MB a second."""
    return {"rows_s": round(rows / seconds), "mb_s": round(size / MB / seconds, 2)}


def judged(found: Mapping[str, Any]) -> dict[str, Any]:
    """The ratios, the aims, and one line for each that was missed."""
    ours = found["ours"]
    ratios = _ratios(found) if "peer" in found else {}
    missed = []
    # Plain COPY is the limit: where even that is not as many times as fast as the peer, as fast as that is all that can be asked.
    if ratios and ratios["to_peer"] < (wanted := min(AIMS["to_peer"], ratios["limit_to_peer"])):
        missed.append(f"{ratios['to_peer']:.1f} times the speed of Orcheo's own tool, not {wanted:.1f}")
    if ratios and ratios["to_copy"] < AIMS["to_copy"]:
        missed.append(f"{ratios['to_copy']:.0%} of plain COPY's speed, not {AIMS['to_copy']:.0%}")
    if (peak := max(ours[name]["peak_mb"] for name in MEASURED)) > AIMS["peak_mb"]:
        missed.append(f"{peak:.0f} MB of memory, not {AIMS['peak_mb']:.0f}")
    if (down := ours["cutover"]["downtime_seconds"]) >= AIMS["downtime_seconds"]:
        missed.append(f"{down:.0f} s of downtime, not below {AIMS['downtime_seconds']:.0f}")
    killed = found.get("kills")
    if killed and killed["ok"] < killed["wanted"]:
        missed.append(f"{killed['ok']} of {killed['wanted']} killed runs were whole after a second one")
    return {
        "ratios": ratios,
        "aims": AIMS,
        "missed": missed,
        "ok": not missed,
    }


def _ratios(found: Mapping[str, Any]) -> dict[str, float]:
    """Of MB/s: our copy to the peer and to plain COPY, plain COPY to the peer, and of the rows to the seconds that their indexes alone take."""
    ours, limit, peer_rate = found["ours"]["run"]["mb_s"], found["limit"], found["peer"]["mb_s"]
    ratios = {
        "to_peer": ours / peer_rate,
        "to_peer_same_tables": found["ours_same_tables"]["mb_s"] / peer_rate,
        **{f"to_copy{'' if name == 'plain' else f'_{name}'}": ours / one["mb_s"] for name, one in limit.items()},
        "limit_to_peer": limit["plain"]["mb_s"] / peer_rate,
        "indexes_to_peer": found["indexes"]["mb_s"] / peer_rate,
    }
    return {name: round(value, 2) for name, value in ratios.items()}


def _timed(stage: Stage, command: str, data: Path, answers: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """One command of `migrate`: its cost, and its document.

    Args:
        answers: exit codes that are in order; a plan that wants a decision has 1.

    Raises:
        CheckFailed: it failed, with its last line.
    """
    watched = Watched([PROGRAM, "migrate", command, str(data), "--json"], stage.own.root, stage.own.env)
    code, printed, said = watched.end()
    if code not in answers:
        raise CheckFailed(f"orcheo-db migrate {command}: {said}")
    return watched.cost | {"document": json.loads(printed)}


def _sizes(stage: Stage) -> dict[str, tuple[int, int]]:
    """Rows and bytes of each table that was copied just now, as the migration has noted them."""
    query = "SELECT tab, sum(rows)::bigint, sum(bytes)::bigint FROM orcheo_archive.chunk GROUP BY tab"
    with stage.connect() as connection:
        return {tab: (rows, size) for tab, rows, size in connection.execute(query)}


def _tables(data: Path) -> int:
    """How many tables the files have."""
    query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    count = 0
    for file in data.glob("*.sqlite"):
        with closing(sqlite3.connect(file)) as connection:
            count += connection.execute(query).fetchone()[0]
    return count


def _apart(stage: Stage, data: Path, directory: Path) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """Our run over the files that Orcheo's own tool reads (and the workspaces that their rows name); its cost and tables."""
    directory.mkdir()
    for name in ("workflows", "chatkit", "service_tokens", "workspaces"):
        if (data / f"{name}.sqlite").exists():
            os.link(data / f"{name}.sqlite", directory / f"{name}.sqlite")
    return _timed(stage, "run", directory), _sizes(stage)


# By file and table: the column that a row which is added has a new value in, that value, and the change of one that is there.
_CHANGED = {
    "workflows.sqlite": {
        "execution_history_steps": (
            "step_index",
            "step_index + 1000000",
            "payload = json_set(payload, '$.bench', rowid)",
        ),
        "workflow_runs": ("id", "lower(hex(randomblob(16)))", "status = 'failed'"),
    },
    "chatkit.sqlite": {"chat_messages": ("id", "id || '_bench'", "item_json = json_set(item_json, '$.bench', rowid)")},
    "checkpoints.sqlite": {"writes": ("idx", "idx + 1000000", "value = zeroblob(8)")},
}


def change(data: Path) -> dict[str, int]:
    """Add, change and delete rows all over the large tables, by SQL; how many."""
    made = dict.fromkeys(("added", "changed", "deleted"), 0)
    for file, tables in _CHANGED.items():
        with closing(sqlite3.connect(data / file)) as connection, connection:
            for table, (column, value, assignment) in tables.items():
                names = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
                values = ", ".join(value if name == column else f'"{name}"' for name in names)
                last = connection.execute(f'SELECT max(rowid) FROM "{table}"').fetchone()[0]  # noqa: S608
                some = sorted({last * i // (CHANGES + 1) for i in range(1, CHANGES + 1)})
                where = f"WHERE rowid IN ({', '.join('?' * len(some))})"
                for kind, statement, rowids in (
                    ("added", f'INSERT INTO "{table}" SELECT {values} FROM "{table}" {where}', some),  # noqa: S608
                    ("changed", f'UPDATE "{table}" SET {assignment} {where}', some),  # noqa: S608
                    ("deleted", f'DELETE FROM "{table}" {where}', [rowid + 1 for rowid in some]),  # noqa: S608
                ):
                    made[kind] += connection.execute(statement, rowids).rowcount
    return made
