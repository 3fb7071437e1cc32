"""The upgrade itself: one transaction, checked before it is committed."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from psycopg import sql

from orcheo_db.bootstrap import expected
from orcheo_db.bootstrap.job import MONITOR, READER
from orcheo_db.database import Connection
from orcheo_db.errors import CheckFailed
from orcheo_db.upgrade import digest, remap, schema, workspaces
from orcheo_db.upgrade.inspect import check
from orcheo_db.upgrade.session import UNTOUCHED, Opened, as_owner
from orcheo_db.upgrade.tables import ARCHIVED, Scoped, scoped

# What was done and what the tables held before; written by the transaction that did it.
_UPGRADES = """
CREATE SCHEMA IF NOT EXISTS orcheo_db;
CREATE TABLE IF NOT EXISTS orcheo_db.upgrades (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    from_orcheo   text,
    from_backend  text,
    to_orcheo     text NOT NULL,
    to_backend    text NOT NULL,
    applied_at    timestamptz NOT NULL DEFAULT now(),
    verified_at   timestamptz,
    report        jsonb NOT NULL
);
REVOKE ALL ON orcheo_db.upgrades FROM PUBLIC;
GRANT SELECT ON orcheo_db.upgrades TO {monitor}, {reader};
"""


def apply(opened: Opened, slug: str | None) -> dict[str, Any]:
    """Bring the database up to the installed release; returns the report that is also kept in `orcheo_db.upgrades`.

    An upgrade that was applied and not verified yet is not recorded a second time: its digests are those to verify against.

    Raises:
        UserError: no such workspace. CheckFailed: something doesn't fit. Both: nothing was changed.
    """
    conn = opened.conn
    with conn.transaction():
        as_owner(conn)
        found = expected.present(conn)
        check(opened, found)
        _lock(conn, sorted(found))
        result = _change(opened, found, slug)
        conn.execute("RESET ROLE")
        if result["changed"] or not _pending(conn, opened):
            _record(opened, result)
    return result


def _lock(conn: Connection, names: list[str]) -> None:
    """Nobody writes meanwhile; reading goes on. The job's lock_timeout ends the wait for an app that is at work."""
    tables = sql.SQL(", ").join(sql.Identifier("public", name) for name in names)
    conn.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(tables))


def _change(opened: Opened, found: dict[str, expected.Table], slug: str | None) -> dict[str, Any]:
    conn = opened.conn
    columns = schema.columns(conn)
    before_columns = {name: list(columns[name]) for name in columns if name in found}
    tables = scoped(columns)
    listed = {table.name: table for table in tables}
    there = workspaces.present(conn)
    strays = workspaces.stray(workspaces.counts(conn, tables), there, tables)
    destination = workspaces.destination(there, strays, slug)
    before = digest.of_all(conn, before_columns, listed, {})

    added = schema.define(conn, schema.missing(found, opened.wanted))
    for column in added:
        schema.add(conn, column)
    dropped = schema.stale_indexes(conn, found, opened.wanted)
    for name, _ in dropped:
        conn.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier("public", name)))
    if destination and destination.new:
        workspaces.create(conn, destination)
    known = [*(workspace.id for workspace in there), *([destination.id] if destination else [])]
    home = remap.Home(destination.id if destination else workspaces.NONE, known)
    single = not any(workspace.members for workspace in there)
    moves = remap.bring_home(conn, tables, home, single=single)
    left_in_store = 0
    dead = sorted({each for ids in strays.values() for each in ids if each})
    if destination and dead and "store" in found:
        count, left_in_store = remap.graph_store(conn, home, dead)
        moves.moved |= {"store": count} if count else {}
    owners = workspaces.adopt_orphans(conn, destination)

    without = {
        "workspaces": [destination.id] if destination and destination.new else [],
        "workspace_memberships": list(owners),
    }
    _prove(conn, before, digest.of_all(conn, before_columns, listed, without), tables)
    return {
        "changed": bool(added or dropped or moves.moved or moves.renamed or moves.archived or moves.tokens or owners),
        **opened.releases.document(),
        "columns_added": [column.text for column in added],
        "indexes_dropped": [{"name": name, "definition": definition} for name, definition in dropped],
        "workspace": asdict(destination) if destination else None,
        "stray": strays,
        "rows_moved": moves.moved,
        "store_items_left": left_in_store,
        "renames": [new.document() for new in moves.renamed],
        "archived": {f"orcheo_archive.{ARCHIVED}": moves.archived} if moves.archived else {},
        "tokens_changed": moves.tokens,
        "owners_added": sorted(owners.values()),
        "deliberate": {table.name: list(table.deliberate) for table in tables},
        "before": {"columns": before_columns, "digests": digest.document(before), "without": without},
    }


def _prove(
    conn: Connection, before: dict[str, digest.Digest], after: dict[str, digest.Digest], tables: list[Scoped]
) -> None:
    """No row is lost and none changed but where it was meant to, and no row is left without a workspace; else all is undone.

    Raises:
        CheckFailed: a defect of this toolkit or a trigger of somebody's.
    """
    lines = digest.differences(before, after)
    left = workspaces.stray(workspaces.counts(conn, tables), workspaces.present(conn), tables)
    lines += [f"table {name} still has {sum(ids.values())} rows without a workspace" for name, ids in left.items()]
    if lines:
        raise CheckFailed(f"the upgrade would not keep everything ({'; '.join(lines[:4])}) and was undone. {UNTOUCHED}")


def _pending(conn: Connection, opened: Opened) -> bool:
    """Whether this very upgrade is recorded and still to be verified: an earlier run was interrupted after its commit."""
    row = conn.execute("SELECT to_regclass('orcheo_db.upgrades') IS NOT NULL").fetchone()
    if not (row and row[0]):
        return False
    query = "SELECT verified_at IS NULL AND to_orcheo = %s AND to_backend = %s FROM orcheo_db.upgrades ORDER BY id DESC LIMIT 1"
    row = conn.execute(query, opened.releases.now).fetchone()
    return bool(row and row[0])


def _record(opened: Opened, result: dict[str, Any]) -> None:
    conn = opened.conn
    conn.execute(sql.SQL(_UPGRADES).format(monitor=sql.Identifier(MONITOR), reader=sql.Identifier(READER)))
    before = opened.releases.before or (None, None)
    conn.execute(
        "INSERT INTO orcheo_db.upgrades (from_orcheo, from_backend, to_orcheo, to_backend, report) VALUES (%s, %s, %s, %s, %s::jsonb)",
        (*before, *opened.releases.now, json.dumps(result)),
    )
