"""When which job runs: cron's five fields in UTC, one job at a time, nothing lost and nothing silent.

`reconcile` and `decide` are pure: schedules, what is known of each job and the time go in, the next job and its time come out.

- A tick is a time that the schedule names. The ticks up to an entry's `handled` are taken care of; a later one in the past makes the
  job due, once, however many were missed.
- Of several that are due the first in JOBS runs. A full backup that succeeds stands for differential and incremental ones that were due
  when it began, a differential one for incremental ones.
- A job that fails, or was running when the service was killed, runs again after BACKOFF, then at its next tick.
- The first full backup waits for no tick: a cluster without one is in the worst state.

The state is state/jobs.json of the repository's volume; whoever holds `lock_file` may write it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from croniter import croniter  # type: ignore[import-untyped, unused-ignore]

from orcheo_db.backup.running import POLL, utc
from orcheo_db.errors import UserError
from orcheo_db.secrets import write_private

JOBS = ("full", "differential", "incremental", "logical", "drill")  # who goes first when several are due
COVERS = {"full": ("differential", "incremental"), "differential": ("incremental",)}
# Seconds: a restart of the server, a longer repair; what lasts more than an hour is the next tick's.
BACKOFF = (300.0, 900.0, 2700.0)
SKEW = 60.0  # seconds that a time may lie in the future before the clock counts as set back
FORMAT = 1

Schedules = dict[str, str]
Value = TypeVar("Value", float, float | None)


@dataclass(frozen=True)
class JobResult:
    """What a job came to: `message` is one line for people, `details` is kept with the state (JSON)."""

    ok: bool
    message: str
    details: dict[str, Any] = field(default_factory=dict)


Runner = Callable[[str], JobResult]


@dataclass(frozen=True)
class Entry:
    """What is known of one job; times are Unix seconds.

    `result`: ok, failed or interrupted, of the last run that ended. `schedule`: the one that `handled` speaks of. `retry_at`: due then,
    whatever the ticks. `attempts`: runs for the same tick that failed. `failures_total` never goes down.
    """

    known_since: float = 0.0
    schedule: str | None = None
    handled: float = 0.0
    retry_at: float | None = None
    attempts: int = 0
    running: bool = False
    started: float | None = None
    finished: float | None = None
    result: str | None = None
    message: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    last_success: float | None = None
    last_duration: float | None = None
    failures_total: int = 0


State = dict[str, Entry]


@dataclass(frozen=True)
class Decision:
    """The job that is next, since or from when it is due (Unix seconds), and why in a few words; no job: nothing is scheduled."""

    job: str | None
    at: float
    why: str = ""


def parse_schedules(found: object, where: str) -> Schedules:
    """Job -> cron expression, checked.

    Raises:
        UserError: no table, an unknown job, or an expression that names no time; it names the key.
    """
    if not isinstance(found, dict):
        raise UserError(f"{where}: schedule must be an object of job -> cron expression")
    for job, expression in found.items():
        key = f"{where}: schedule.{job}"
        if job not in JOBS:
            raise UserError(f"{key} is no job; the jobs are {', '.join(JOBS)}")
        # Exactly five fields of numbers: croniter would also take seconds, and R, another time at each look.
        if not isinstance(expression, str) or len(expression.split()) != 5 or set(expression) - set("0123456789*,-/ "):
            raise UserError(f"{key}: expected cron's five fields in numbers (UTC), not {json.dumps(expression)}")
        try:
            following(expression, 0.0)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{key}: {json.dumps(expression)} names no time: {str(error).splitlines()[0]}") from None
    return dict(found)


def read_schedules(config: Path) -> Schedules:
    """The `schedule` of backup.json.

    Raises:
        UserError: the file can't be read, or its schedule is wrong.
    """
    try:
        document = json.loads(config.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{config} can't be read: {error}") from None
    return parse_schedules(document.get("schedule") if isinstance(document, dict) else None, str(config))


def following(expression: str, moment: float) -> float:
    """The first tick after `moment`, in Unix seconds."""
    return float(croniter(expression, moment).get_next(float))


def latest(expression: str, moment: float) -> float:
    """The last tick up to and including `moment`, in Unix seconds."""
    return float(croniter(expression, int(moment) + 1).get_prev(float))


def due_tick(expression: str, entry: Entry, now: float) -> float | None:
    """The tick for which the job is due."""
    tick = latest(expression, now)
    return tick if tick > entry.handled else None


def decide(schedules: Mapping[str, str], state: Mapping[str, Entry], now: float) -> Decision:
    """What runs next; it is due if `at` <= `now`. Jobs that `reconcile` has not seen yet wait for their next tick."""
    due: list[Decision] = []
    coming: list[Decision] = []
    for job in (name for name in JOBS if name in schedules):
        entry = state.get(job) or Entry(handled=now)
        tick = due_tick(schedules[job], entry, now)
        if tick is not None:
            due.append(Decision(job, tick, "scheduled" if now - tick < 2 * POLL else f"missed at {utc(tick)}"))
        elif entry.retry_at is not None and entry.retry_at <= now:
            due.append(Decision(job, entry.retry_at, _why(job, entry)))
        else:
            coming.append(Decision(job, following(schedules[job], now), "scheduled"))
            if entry.retry_at is not None:
                coming.append(Decision(job, entry.retry_at, _why(job, entry)))
    if due:
        return due[0]
    return min(coming, key=lambda each: each.at, default=Decision(None, now + POLL))


def _why(job: str, entry: Entry) -> str:
    """What a job that is due without a tick is due for."""
    if entry.result in ("failed", "interrupted"):
        return f"again, it {'failed' if entry.result == 'failed' else 'was interrupted'}"
    return "the first backup" if job == "full" and entry.last_success is None else "due by the schedule before this one"


def reconcile(schedules: Mapping[str, str], state: State, now: float) -> tuple[State, list[str]]:
    """The state brought up to the present, with what there is to say. Only for who holds the lock.

    Runs that nobody ended are interrupted; times in the future are now (the clock was set back); a new or changed schedule's ticks
    count from now on, and what was due by the old one stays due.
    """
    found, notes = dict(state), []
    for job, entry in state.items():
        if entry.running:
            notes.append(f"{job}: the run of {utc(entry.started or now)} was interrupted (the service was killed)")
            found[job] = ended(entry, "interrupted", "the service was killed while it ran", now, job in schedules)
        bounded = _bounded(found[job], now)
        if bounded != found[job]:
            notes.append(f"{job}: the clock was set back; what lay after {utc(now)} counts as now")
        if bounded.schedule is not None and job not in schedules:
            bounded = replace(bounded, schedule=None, retry_at=None)
        found[job] = bounded
    for job, expression in schedules.items():
        before = found.get(job) or Entry(known_since=now)
        if before.schedule == expression:
            continue
        pending = before.retry_at
        if before.schedule is None:
            pending = now if job == "full" and before.last_success is None else pending
        elif due_tick(before.schedule, before, now) is not None:
            pending = now
        found[job] = replace(before, schedule=expression, handled=now, retry_at=pending)
    return found, notes


def _bounded(entry: Entry, now: float) -> Entry:
    def past(moment: Value) -> Value:
        return now if moment is not None and moment > now + SKEW else moment

    retry = entry.retry_at
    return replace(
        entry,
        known_since=past(entry.known_since),
        handled=past(entry.handled),
        started=past(entry.started),
        finished=past(entry.finished),
        last_success=past(entry.last_success),
        retry_at=None if retry is None else min(retry, now + BACKOFF[-1]),
    )


def ended(entry: Entry, result: str, message: str, now: float, retry: bool) -> Entry:
    """A run that came to no good end: counted, and with `retry` repeated after BACKOFF."""
    attempts = entry.attempts + 1 if retry else entry.attempts
    again = entry.retry_at
    if retry:
        again = now + BACKOFF[attempts - 1] if attempts <= len(BACKOFF) else None
    done = replace(entry, running=False, finished=now, result=result, message=message, details={})
    return replace(done, attempts=attempts, retry_at=again, failures_total=entry.failures_total + 1)


def succeeded(state: State, job: str, result: JobResult, now: float, duration: float) -> State:
    """The state after a good run, which also stands for the lesser backups that were due when it began."""
    entry = state[job]
    began = entry.started or now
    done = replace(entry, running=False, finished=now, result="ok", message=result.message, details=result.details)
    done = replace(done, handled=max(entry.handled, began), attempts=0, retry_at=None)
    found = state | {job: replace(done, last_success=now, last_duration=duration)}
    for lesser in COVERS.get(job, ()):
        if lesser in found:
            covered = found[lesser]
            found[lesser] = replace(covered, handled=max(covered.handled, began), retry_at=None, attempts=0)
    return found


def state_file(home: Path) -> Path:
    """Where the state lies in the repository's volume `home`."""
    return home / "state" / "jobs.json"


def lock_file(home: Path) -> Path:
    """What `exclusive` locks."""
    return home / "state" / "lock"


def load(home: Path, now: float) -> tuple[State, list[str]]:
    """The state, with what there is to say: a damaged file is set aside, and the jobs are as on the first day.

    Raises:
        OSError: the file is there and can't be read or set aside.
    """
    file = state_file(home)
    try:
        jobs = json.loads(file.read_bytes())["jobs"]
        return {job: _entry(found) for job, found in jobs.items() if job in JOBS}, []
    except FileNotFoundError:
        return {}, []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        aside = file.with_name(f"{file.name}.damaged-{utc(now).replace(':', '')}-{os.urandom(3).hex()}")
        file.rename(aside)
        return {}, [
            f"{file} is damaged ({type(error).__name__}: {error}); it is {aside.name} now, and the jobs' past is unknown"
        ]


def _entry(found: dict[str, Any]) -> Entry:
    """What a newer release added is passed over; a wrong type is damage."""
    number, maybe = (float, int), (float, int, type(None))
    kinds: dict[str, tuple[type, ...]] = {
        "known_since": number,
        "handled": number,
        "attempts": (int,),
        "failures_total": (int,),
    }
    kinds |= dict.fromkeys(("retry_at", "started", "finished", "last_success", "last_duration"), maybe)
    kinds |= {
        "running": (bool,),
        "schedule": (str, type(None)),
        "result": (str, type(None)),
        "message": (str,),
        "details": (dict,),
    }
    for name, kind in kinds.items():
        if type(found[name]) not in kind:
            raise TypeError(f"{name} is {found[name]!r}")
    if found["schedule"] is not None:
        following(found["schedule"], 0.0)
    return Entry(**{name: found[name] for name in Entry.__dataclass_fields__})


def save(home: Path, state: State) -> None:
    """Write the state, whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    file = state_file(home)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    document = {"format": FORMAT, "jobs": {job: asdict(entry) for job, entry in state.items()}}
    write_private(file, (json.dumps(document, indent=1, default=str) + "\n").encode())
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself
    finally:
        os.close(directory)
