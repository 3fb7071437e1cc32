"""One bootstrap at a time: a session-level advisory lock, which the server itself releases when its holder
dies.
"""

from __future__ import annotations

import random
import time

from psycopg import sql

from orcheo_db.bootstrap.session import say, statement
from orcheo_db.database import Connection
from orcheo_db.errors import CheckFailed

# pg_advisory_lock's two-integer form; "ORDB". The app's own locks use another namespace ("ORCH") and are
# transaction-level.
NAMESPACE, KEY = 0x4F524442, 1
REPORT_EVERY = 10.0  # seconds


def acquire(conn: Connection, limit: float) -> float:
    """Take the job's lock in this connection's database and return the seconds waited.

    It polls instead of blocking, so that it can say who it waits for and so that no transaction stays open
    meanwhile (a CREATE INDEX CONCURRENTLY of the holder would wait for it).

    Raises:
        CheckFailed: another bootstrap still holds it after `limit` seconds.
    """
    start, reported = time.monotonic(), -REPORT_EVERY
    while True:
        row = conn.execute("SELECT pg_try_advisory_lock(%s, %s)", (NAMESPACE, KEY)).fetchone()
        elapsed = time.monotonic() - start
        if row and row[0]:
            return elapsed
        if elapsed >= limit:
            raise CheckFailed(
                f"another bootstrap still runs after {elapsed:.0f} s ({_holder(conn)});"
                " wait for it or end it, then run again (ORCHEO_DB_LOCK_WAIT sets the limit in seconds)"
            )
        if elapsed - reported >= REPORT_EVERY:
            say(f"waiting for another bootstrap to finish: {_holder(conn)}, {elapsed:.0f} of {limit:.0f} s")
            reported = elapsed
        pause = random.uniform(0.2, 1.0)  # noqa: S311  jitter, not a secret
        time.sleep(min(pause, max(0.0, limit - elapsed)))


def held(conn: Connection) -> bool:
    """Whether this very session still holds the lock."""
    row = conn.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid::bigint = %s AND"
        " objid::bigint = %s"
        " AND objsubid = 2 AND granted AND pid = pg_backend_pid()",
        (NAMESPACE, KEY),
    ).fetchone()
    return bool(row and row[0])


def _holder(conn: Connection) -> str:
    query = statement("lock_holder", namespace=sql.Literal(NAMESPACE), key=sql.Literal(KEY))
    row = conn.execute(query).fetchone()
    return f"server process {row[0]} from {row[1]}, connected for {row[2]}" if row else "just ended"
