"""Reading a restored copy through Orcheo's own stores: `python -m orcheo_db.backup.stores DSN`; one JSON document on stdout.

The same reading as after an upgrade, of a few workspaces: the stores give whole histories, and a drill must not take hours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys

import psycopg

from orcheo_db.runtime import workarounds
from orcheo_db.upgrade import read, workspaces

WORKSPACES = 3  # the busiest of those below MOST: formats don't differ from workspace to workspace
MOST = 20_000  # steps of run history in a workspace: the stores load them all at once


def chosen(connection: psycopg.Connection[tuple[object, ...]]) -> list[workspaces.Workspace]:
    """The workspaces to read."""
    rows = connection.execute(
        "SELECT h.workspace_id, count(*) FROM execution_history h JOIN execution_history_steps USING (execution_id) GROUP BY 1"
    ).fetchall()
    steps = {str(workspace): int(str(count)) for workspace, count in rows}
    active = [w for w in workspaces.present(connection) if w.status == "active" and steps.get(w.id, 0) <= MOST]
    return sorted(active, key=lambda w: -steps.get(w.id, 0))[:WORKSPACES]


def main(dsn: str) -> None:
    """Read and print."""
    logging.basicConfig(stream=sys.stderr, level=logging.ERROR)
    os.environ |= read.environment(dsn)  # the vault's key isn't here: nothing is decrypted
    workarounds.apply(prepared_statements=True)
    seen = read.Seen()
    with contextlib.redirect_stdout(sys.stderr), psycopg.connect(dsn, autocommit=True) as connection:
        reader = read.Reader(connection, seen, decrypt=False)
        asyncio.new_event_loop().run_until_complete(read.read_all(reader, chosen(connection)))
    print(json.dumps({"counts": seen.counts, "problems": seen.problems}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)  # the app's pools have threads that would only be waited for
