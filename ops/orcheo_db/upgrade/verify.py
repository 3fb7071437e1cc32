"""After the upgrade and the init job, before the app starts: every row as it was, and every row to be seen through the app."""

from __future__ import annotations

import json
from typing import Any

from orcheo_db.database import Connection
from orcheo_db.errors import CheckFailed
from orcheo_db.upgrade import digest, read, schema, workspaces
from orcheo_db.upgrade.session import Opened, settled
from orcheo_db.upgrade.tables import scoped


def verify(opened: Opened) -> dict[str, Any]:
    """Compare with what the upgrade recorded (once: later the app changes rows itself) and read everything as the app does.

    Raises:
        CheckFailed: a row is missing, has changed, or isn't seen; naming the table.
    """
    conn = opened.conn
    with conn.transaction():
        settled(conn)
        entry = _last(conn)
        problems, compared = ([], 0) if entry is None else _compare(conn, entry)
        columns = schema.columns(conn)
        tables = scoped(columns)
        there = workspaces.present(conn)
        counts = workspaces.counts(conn, tables)
    for table, ids in workspaces.stray(counts, there, tables).items():
        problems.append(f"table {table} has {sum(ids.values())} rows whose workspace does not exist")
    seen = read.everything(opened.job, [workspace for workspace in there if workspace.status == "active"])
    problems += seen.problems
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckFailed(f"verification failed: {'; '.join(problems[:5])}{more}")
    if entry is not None:
        conn.execute("UPDATE orcheo_db.upgrades SET verified_at = now() WHERE id = %s", (entry["id"],))
    return {
        "ok": True,
        **opened.releases.document(),
        "tables_compared": compared,
        "compared_with": entry["id"] if entry else None,
        "seen": seen.counts,
        "notes": seen.notes,
    }


def _last(conn: Connection) -> dict[str, Any] | None:
    """The last recorded upgrade, if it hasn't been verified yet."""
    row = conn.execute("SELECT to_regclass('orcheo_db.upgrades') IS NOT NULL").fetchone()
    if not (row and row[0]):
        return None
    row = conn.execute("SELECT id, report, verified_at FROM orcheo_db.upgrades ORDER BY id DESC LIMIT 1").fetchone()
    if row is None or row[2] is not None:
        return None
    report = row[1] if isinstance(row[1], dict) else json.loads(row[1])
    return {"id": int(row[0]), "report": report}


def _compare(conn: Connection, entry: dict[str, Any]) -> tuple[list[str], int]:
    kept = entry["report"]["before"]
    before = digest.from_document(kept["digests"])
    there = schema.columns(conn)
    gone = [f"{t}.{c}" for t, names in kept["columns"].items() for c in names if t in there and c not in there[t]]
    if gone:
        return [f"columns are gone: {', '.join(gone)}"], 0
    columns = {name: names for name, names in kept["columns"].items() if name in there}
    after = digest.of_all(conn, columns, {t.name: t for t in scoped(there)}, kept["without"])
    return digest.differences(before, after), len(before)
