"""Worker processes that copy and compare chunks; each has a connection and converters of its own."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import ModuleType
from typing import Any

import psycopg
from psycopg import errors

from orcheo_db.errors import CheckFailed
from orcheo_db.migrate.sync import Done, Setting, Task, Worker
from orcheo_db.migrate.verify import Check, Checker, Compared

WORKERS = max(2, min(os.cpu_count() or 2, 8))  # PostgreSQL's own processes take as much again
TRIES = 10  # of one chunk, where the server restarts or two workers meet
RETRY_SECONDS = 3.0


class Pool:
    """Worker processes that copy chunks."""

    def __init__(self, setting: Setting, workers: int = WORKERS) -> None:
        self.setting, self.workers = setting, workers
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _initialise, (setting, os.getpid()))

    def _submit(self, task: Task | Check) -> Future[Any]:
        """Give out a task, which may start a process. One that is spawned imports the module that was begun with: here the whole command
        line, which no worker needs (a second and 30 MB each).
        """
        begun = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return self._pool.submit(_sync, task)
        except BrokenPipeError:  # it was ended while it was begun
            raise BrokenProcessPool from None
        finally:
            sys.modules["__main__"] = begun

    def run(self, work: Iterator[Any], each: Callable[[Any], None]) -> None:
        """All tasks, a few at a time; a chunk that met a server that restarts is tried again.

        Raises:
            CheckFailed: a chunk can't be copied.
        """
        try:
            self._run(iter(work), each)
        except BrokenProcessPool:
            raise CheckFailed(
                "a worker process was ended from outside (out of memory?): run it again, it goes on where it was"
            ) from None

    def _run(self, work: Iterator[Any], each: Callable[[Any], None]) -> None:
        running: dict[Future[Any], tuple[Task | Check, int]] = {}
        more = True
        while more or running:
            while more and len(running) < 2 * self.workers:
                task = next(work, None)
                if task is None:
                    more = False
                else:
                    running[self._submit(task)] = (task, 1)
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                task, tries = running.pop(future)
                try:
                    each(future.result())
                except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                    self._again(running, task, tries, error)
                except psycopg.Error as error:
                    raise CheckFailed(
                        f"the target refused the work on {task.table}: {' '.join(str(error).split())[:300]}. Mend that and run it again: it goes on"
                        " where it was"
                    ) from None

    def _again(
        self, running: dict[Future[Any], tuple[Task | Check, int]], task: Task | Check, tries: int, error: Exception
    ) -> None:
        final = isinstance(error, errors.DiskFull | errors.InsufficientPrivilege)
        if tries >= TRIES or final:
            reason = " ".join(str(error).split())[:300]
            raise CheckFailed(
                f"the target ended the work on {task.table}: {reason}. Mend that and run it again: it goes on where it was"
            ) from None
        time.sleep(RETRY_SECONDS)
        running[self._submit(task)] = (task, tries + 1)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


_worker: Worker | None = None
_setting: Setting | None = None


def _initialise(setting: Setting, parent: int) -> None:
    global _setting  # noqa: PLW0603 - a process of the pool has no other place
    _setting = setting
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    """A killed main process can't end its workers: they look."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _sync(task: Task | Check) -> Done | Compared:
    global _worker  # noqa: PLW0603
    try:
        if _worker is None or _worker.conn.closed:
            assert _setting is not None
            _worker = Worker(_setting)
        return Checker(_worker).check(task) if isinstance(task, Check) else _worker.sync(task)
    except (psycopg.OperationalError, psycopg.InterfaceError):
        if _worker is not None:
            _worker.close()
        _worker = None
        raise
