"""One job at a time in one process that ends when it is told to: the lock that all runs share, signals, the loop's pulse."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from orcheo_db.errors import UserError

Clock = Callable[[], float]
POLL = 15.0  # seconds between the loop's looks: how late a changed schedule, a manual run or a jump of the clock is noticed


def utc(moment: float) -> str:
    """Unix seconds as people and the evidence write them: 2026-07-01T02:00:00Z."""
    return dt.datetime.fromtimestamp(moment, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextlib.contextmanager
def exclusive(
    path: Path,
    wait_seconds: float,
    job: str = "another command",
    clock: Clock = time.time,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[None]:
    """Hold the lock file, which says to others which `job` runs since when. A killed holder's lock is free at once.

    Raises:
        UserError: it is still held after `wait_seconds`.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        waited = 0.0
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waited >= wait_seconds:
                    file.seek(0)
                    raise UserError(
                        f"{file.read().strip() or 'another job'} is running; try again when it has ended"
                    ) from None
            sleep(0.2)  # seconds: short beside any job
            waited += 0.2
        file.truncate(0)
        file.write(f"{job} (since {utc(clock())})\n")
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.truncate(0)


class Stop:
    """SIGTERM and SIGINT as a wish: children get the signal, sleeping ends, and who asks `requested` ends soon."""

    def __init__(self) -> None:
        self.requested = False
        self._children: list[subprocess.Popen[Any]] = []
        self._read, self._write = os.pipe()

    def install(self) -> None:
        """Take the signals (in the main thread only)."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, _frame: object) -> None:
        self.requested = True
        os.write(self._write, b".")  # a lock would be in the way of the code that the signal came upon
        for child in list(self._children):
            child.send_signal(number)

    def sleep(self, seconds: float) -> None:
        """Sleep, but not beyond the wish to stop."""
        select.select([self._read], [], [], max(0.0, seconds))

    @contextlib.contextmanager
    def watch(self, child: subprocess.Popen[Any]) -> Iterator[None]:
        """Give the child the signal that ends the service, while the block lasts."""
        self._children.append(child)
        try:
            if self.requested:  # it came before the child was known
                child.send_signal(signal.SIGTERM)
            yield
        finally:
            self._children.remove(child)

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Like subprocess.run with captured text, as a child that is told to stop and waited for."""
        pipe = subprocess.PIPE
        with (
            subprocess.Popen(command, **({"stdout": pipe, "stderr": pipe, "text": True} | options)) as child,
            self.watch(child),
        ):
            out, err = child.communicate()
        return subprocess.CompletedProcess(command, child.returncode, out, err)


class Pulse:
    """How the loop is, for /healthz, on a clock that nobody sets: when it last looked, what it runs, what is wrong with it."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self.job: str | None = None
        self.problem: str | None = None

    def beat(self) -> None:
        self._at = self._clock()

    def age(self) -> float:
        """Seconds since the loop looked; 0 while a job runs, which the loop waits for."""
        return 0.0 if self.job else self._clock() - self._at
