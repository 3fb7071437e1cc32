"""Catching up: the documents of `orcheo_search` follow the app's tables, batch by batch, each in a transaction of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from psycopg import errors

from orcheo_db.database import Connection
from orcheo_db.errors import CheckFailed

# Runs (with all their steps) and messages of one transaction: a fraction of a second, so that a killed one costs little and two
# searches wait for each other shortly.
BATCH = 500
# How long a search catches up before it answers with what is there; `--refresh` takes all the time that it needs.
QUICK = 2.0  # seconds


@dataclass(frozen=True)
class Progress:
    """What catching up did. `behind`: whether there is more to do."""

    written: int
    removed: int
    behind: bool
    seconds: float


def catch_up(
    conn: Connection,
    *,
    thorough: bool = False,
    seconds: float | None = QUICK,
    on_batch: Callable[[int], None] | None = None,
) -> Progress:
    """Index what is new, batch by batch, until nothing is missing or the time is up.

    Args:
        thorough: look also for old messages that were edited and for documents whose source is gone.
        seconds: the most that it may take; None: no limit.
        on_batch: told the documents written so far.

    Raises:
        CheckFailed: the schema is missing (the init job makes it).
    """
    start, written, removed = time.monotonic(), 0, 0
    while True:
        row = _refresh(conn, thorough)
        written, removed = written + row[0], removed + row[1]
        if on_batch:
            on_batch(written)
        spent = time.monotonic() - start
        if not row[2] or (seconds is not None and spent >= seconds):
            return Progress(written, removed, row[2], spent)


def _refresh(conn: Connection, thorough: bool) -> tuple[int, int, bool]:
    for attempt in range(3):
        try:
            row = conn.execute(
                "SELECT written, removed, more FROM orcheo_search.refresh(%s, %s)", (BATCH, thorough)
            ).fetchone()
        except (errors.InvalidSchemaName, errors.UndefinedFunction):
            raise CheckFailed("the search schema is missing: run `orcheo-db bootstrap`, which makes it") from None
        except (errors.ForeignKeyViolation, errors.UniqueViolation, errors.DeadlockDetected):
            if attempt == 2:  # another program than ours writes there
                raise
            continue
        assert row is not None
        return int(row[0]), int(row[1]), bool(row[2])
    raise AssertionError("not reached")


def behind(conn: Connection) -> int:
    """Runs that are not indexed yet; -1 where the schema is missing."""
    try:
        row = conn.execute(
            "SELECT count(*) FROM public.execution_history h"
            " WHERE NOT EXISTS (SELECT FROM orcheo_search.runs r WHERE r.execution_id = h.execution_id)"
        ).fetchone()
    except psycopg.errors.UndefinedTable:
        return -1
    assert row is not None
    return int(row[0])
