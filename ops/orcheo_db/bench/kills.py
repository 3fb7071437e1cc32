"""`migrate run` killed at random moments and run again: is the result always the same?"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from orcheo_db.bench.stage import Stage
from orcheo_db.bench.watched import PROGRAM, Process, Watched, processes
from orcheo_db.console import say

EARLIEST = 0.05  # of the seconds of a run that nobody kills: before, Python has not even started
GONE_SECONDS = 20.0  # the migration itself waits that long for a killed one's processes
SEED = 5


def kills(stage: Stage, data: Path, wanted: int) -> dict[str, Any]:
    """Kill so many runs; how many were whole after a second one, and the moments of those that were not."""
    stage.fresh()
    whole = _command(stage, "run", data)
    code, _, said = whole.end()
    if code != 0:
        return {"wanted": wanted, "killed": 0, "ok": 0, "failed": [{"seed": None, "said": said}]}
    picker = random.Random(SEED)  # noqa: S311 - a repeatable choice, no secret
    killed: list[dict[str, Any]] = []
    late, span = 0, whole.seconds
    while len(killed) < wanted and late <= wanted:
        moment = span * picker.uniform(EARLIEST, 1.0)
        found = _once(stage, data, moment)
        if isinstance(found, float):  # it had ended already: machines are not always equally fast
            late, span = late + 1, min(span, found)
            continue
        killed.append(found)
        say(f"  killed {len(killed)} of {wanted} after {moment:.2f} s ({found['phase']}): {found['said'] or 'ok'}")
    failed = [one for one in killed if one["said"]]
    return {
        "wanted": wanted,
        "killed": len(killed),
        "ok": len(killed) - len(failed),
        "too_late": late,
        "run_seconds": whole.seconds,
        "phases": dict(Counter(one["phase"] for one in killed)),
        "workers_outlived_seconds": max((one["outlived"] for one in killed), default=0.0),
        "failed": failed,
    }


def _command(stage: Stage, command: str, data: Path) -> Watched:
    return Watched([PROGRAM, "migrate", command, str(data), "--json"], stage.own.root, stage.own.env)


def _once(stage: Stage, data: Path, moment: float) -> dict[str, Any] | float:
    """Kill, run again, verify. said: what went wrong, or nothing. A number: the seconds of a run that ended before it could be killed."""
    stage.fresh()
    first = _command(stage, "run", data)
    time.sleep(moment)
    workers = first.children()
    if first.process.poll() is not None:
        first.end()
        return first.seconds
    os.kill(first.process.pid, signal.SIGKILL)
    first.end()
    begun = time.monotonic()
    found: dict[str, Any] = {"seconds": round(moment, 2), "phase": _phase(stage), "said": ""}
    second = _command(stage, "run", data)  # at once, as an impatient user does
    found["outlived"] = _gone(workers, begun)
    code, _, said = second.end()
    if code != 0:
        return found | {"said": f"run: {said}"}
    code, _, said = _command(stage, "verify", data).end()
    if code != 0:
        return found | {"said": f"verify: {said}"}
    return found | {"said": "its workers were still there" if found["outlived"] >= GONE_SECONDS else ""}


def _gone(workers: list[Process], begun: float) -> float:
    """Seconds until the killed run's workers have ended."""
    while time.monotonic() - begun < GONE_SECONDS:
        now = processes()
        if not any(now.get(w.pid) is not None and now[w.pid].begun == w.begun for w in workers):
            break
        time.sleep(0.05)
    return round(time.monotonic() - begun, 2)


def _phase(stage: Stage) -> str:
    """What the target knew of the migration when it was killed."""
    with stage.connect() as connection:
        row = connection.execute("SELECT to_regclass('orcheo_archive.migration')").fetchone()
        if row is None or row[0] is None:
            return "before the first note"
        row = connection.execute(
            "SELECT phase, (SELECT count(*) FROM orcheo_archive.chunk) FROM orcheo_archive.migration"
        ).fetchone()
    if row is None:
        return "before the first note"
    return str(row[0]) if row[1] else "before the first chunk"
