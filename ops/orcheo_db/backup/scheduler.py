"""The backup service's schedule at work: the endless loop, and a person's run of one job.

What runs when is `plan`'s; here it is run, one job at a time, and recorded. Every run, the schedule's or a person's, holds the lock
`exclusive(lock_file(home))`. `home` is the repository's volume, `config` is backup.json.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from orcheo_db.backup.plan import (
    Entry,
    JobResult,
    Runner,
    decide,
    due_tick,
    ended,
    load,
    lock_file,
    read_schedules,
    reconcile,
    save,
    succeeded,
)
from orcheo_db.backup.running import POLL, Clock, Pulse, Stop, exclusive, utc
from orcheo_db.errors import CheckFailed, UserError

__all__ = [
    "JobResult",
    "Loop",
    "Pulse",
    "Runner",
    "Stop",
    "exclusive",
    "lock_file",
    "run_forever",
    "run_job",
    "run_now",
]


def run_job(
    home: Path,
    job: str,
    runner: Runner,
    *,
    clock: Clock = time.time,
    stop: Stop | None = None,
    tick: float | None = None,
    scheduled: bool = False,
) -> JobResult:
    """Run a job and record it; the caller holds the lock.

    Args:
        tick: the tick that it is run for; a new one begins BACKOFF anew.
        scheduled: it is the schedule's run: if it fails, it is repeated. A person's run that fails is the person's to repeat.

    Raises:
        OSError: the state can't be read or written; before the run, and then it does not take place, or after it.
    """
    now, begun = clock(), time.monotonic()
    state, _ = load(home, now)
    entry = replace(state.get(job) or Entry(known_since=now, handled=now), running=True, started=now)
    if scheduled:
        entry = replace(entry, handled=now, retry_at=None, attempts=entry.attempts if tick is None else 0)
    save(home, state | {job: entry})
    try:
        result = runner(job)
        details = json.loads(json.dumps(result.details, default=str, skipkeys=True))
        result = replace(result, details=details)
    except (UserError, CheckFailed) as error:
        result = JobResult(False, str(error))
    except Exception as error:  # a defect of the runner is that job's failure, not the schedule's end
        traceback.print_exc()
        result = JobResult(False, f"{type(error).__name__}: {error}")
    now, duration = clock(), time.monotonic() - begun
    state = load(home, now)[0] | {job: entry}
    if result.ok:
        save(home, succeeded(state, job, result, now, duration))
    elif stop is not None and stop.requested:  # no failure of the job: it is due at the next start
        told = replace(
            entry, running=False, finished=now, result="interrupted", message=result.message, details=result.details
        )
        save(home, state | {job: replace(told, retry_at=now if scheduled else entry.retry_at)})
    else:
        save(
            home, state | {job: replace(ended(entry, "failed", result.message, now, scheduled), details=result.details)}
        )
    return result


def run_now(
    home: Path,
    job: str,
    runner: Runner,
    *,
    wait_seconds: float = 0.0,
    clock: Clock = time.time,
    stop: Stop | None = None,
) -> JobResult:
    """A person's run of a job.

    Raises:
        UserError: another job runs, or the state can't be written.
    """
    with exclusive(lock_file(home), wait_seconds, job, clock):
        try:
            return run_job(home, job, runner, clock=clock, stop=stop)
        except OSError as error:
            raise UserError(f"the {job} run can't be recorded: {error}") from None


class Loop:
    """The service's endless loop, one `step` at a time. A wrong schedule at the start is an error; later the one before it stays.

    Raises:
        UserError: the configuration's schedule is wrong.
    """

    def __init__(
        self,
        runner: Runner,
        home: Path,
        config: Path,
        *,
        clock: Clock = time.time,
        stop: Stop | None = None,
        pulse: Pulse | None = None,
        say: Callable[[str], object] = print,
    ) -> None:
        self.schedules = read_schedules(config)
        self.stop, self.pulse = stop or Stop(), pulse or Pulse()
        self._runner, self._home, self._config, self._clock = runner, home, config, clock
        self._say, self._said = say, set[str]()
        self._seen = self._stamp()
        self._wrong: str | None = None  # what is wrong with the configuration

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._config.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _tell(self, line: str, *, once: bool = False) -> None:
        """Say a line, with `once` not again until a job has ended."""
        if not once or line not in self._said:
            self._say(f"{utc(self._clock())} {line}")
        if once:
            self._said.add(line)

    def _reload(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self.schedules, self._wrong = read_schedules(self._config), None
            self._tell("the schedule was read again")
        except UserError as error:
            self._wrong = f"{error}; the schedule before it stays"
            self._tell(self._wrong)

    def step(self) -> float:
        """One look, and the job that is due; returns for how many seconds there is nothing to do."""
        self.pulse.beat()
        self._reload()
        self.pulse.problem = self._wrong
        now = self._clock()
        state, notes = load(self._home, now)
        for note in notes:
            self._tell(note)
        present, _ = reconcile(self.schedules, state, now)
        decision = decide(self.schedules, present, now)
        due = decision.job is not None and decision.at <= now
        if due or present != state:
            try:
                with exclusive(
                    lock_file(self._home), 0.0, decision.job if decision.job and due else "the schedule", self._clock
                ):
                    return self._locked()
            except UserError as busy:
                self._tell(f"waiting: {busy}", once=True)
                return POLL
        if decision.job:
            self._tell(f"next: {decision.job} at {utc(decision.at)} ({decision.why})", once=True)
        return min(POLL, decision.at - now) if decision.job else POLL

    def _locked(self) -> float:
        """What `step` does when it holds the lock, by a state that nobody else changes now."""
        now = self._clock()
        state, _ = load(self._home, now)
        present, notes = reconcile(self.schedules, state, now)
        for note in notes:
            self._tell(note)
        if present != state:
            save(self._home, present)
        decision = decide(self.schedules, present, now)
        job = decision.job
        if job is None or decision.at > now or self.stop.requested:
            return 0.0
        self._tell(f"{job}: begins ({decision.why})", once=True)
        tick = due_tick(self.schedules[job], present[job], now)
        self.pulse.job = job
        try:
            result = run_job(
                self._home, job, self._runner, clock=self._clock, stop=self.stop, tick=tick, scheduled=True
            )
        finally:
            self.pulse.job = None
        self._said.clear()
        after = load(self._home, self._clock())[0][job]
        then = (
            ""
            if result.ok
            else f"; again at {utc(after.retry_at)}"
            if after.retry_at
            else "; again when the schedule says"
        )
        word = {"ok": "ok", "failed": "FAILED"}.get(after.result or "", "interrupted")
        self._tell(f"{job}: {word}: {result.message}{then}")
        return 0.0

    def forever(self, sleep: Callable[[float], object] | None = None) -> None:
        """Step until told to stop. What goes wrong with the loop itself is said, shown by the pulse, and tried again."""
        while not self.stop.requested:
            try:
                pause = self.step()
            except Exception as error:
                if not isinstance(error, OSError):
                    traceback.print_exc()
                self.pulse.problem = f"{type(error).__name__}: {error}"
                self._tell(f"the schedule can't go on: {self.pulse.problem}", once=True)
                pause = POLL
            if not self.stop.requested:
                (sleep or self.stop.sleep)(pause)
        self._tell("stopped")


def run_forever(
    runner: Runner,
    clock: Clock = time.time,
    sleep: Callable[[float], object] | None = None,
    *,
    home: Path,
    config: Path,
    **options: Any,
) -> None:
    """The service: see `Loop`, whose options these are. Takes SIGTERM and SIGINT, so it runs in the main thread.

    Raises:
        UserError: the configuration's schedule is wrong.
    """
    loop = Loop(runner, home, config, clock=clock, **options)
    loop.stop.install()
    loop.forever(sleep)
