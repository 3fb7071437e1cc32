"""The workspaces that there are, the ids that name none, and the workspace that their rows go to."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from orcheo_db.database import Connection
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.upgrade.tables import Scoped

DEFAULT = (
    "default"  # the slug and the name that the app itself gives to the workspace of a single-workspace installation
)
DEFAULT_NAME = "Default Workspace"
# Who the app takes the owner of the bootstrap token for. Nobody needed to be a member of a workspace in the bridge releases' default
# mode; in the newest, where nobody is, nobody can see its rows.
BOOTSTRAP = "bootstrap"
NONE = ""  # stands for rows without a workspace


@dataclass(frozen=True)
class Workspace:
    """A workspace that exists. `members`: how many people and tokens belong to it."""

    id: str
    slug: str
    status: str
    members: int


@dataclass(frozen=True)
class Destination:
    """Where stray rows go. `new`: it is made by the upgrade, with this id."""

    id: str
    slug: str
    new: bool


def present(conn: Connection) -> list[Workspace]:
    """All workspaces, by slug.

    Raises:
        CheckFailed: the database has no such table.
    """
    row = conn.execute("SELECT to_regclass('public.workspaces') IS NOT NULL").fetchone()
    if not (row and row[0]):
        raise CheckFailed(
            "the database has no table workspaces: run `orcheo-db up` with the release that made it once, which makes all of its tables"
        )
    query = """
        SELECT w.id::text, w.slug, w.status, (SELECT count(*) FROM workspace_memberships m WHERE m.workspace_id = w.id)
          FROM workspaces w ORDER BY w.slug
    """
    return [Workspace(str(i), str(slug), str(status), int(members)) for i, slug, status, members in conn.execute(query)]


def counts(conn: Connection, tables: Sequence[Scoped]) -> dict[str, dict[str, int]]:
    """Table to workspace id ("" for none) to number of rows."""
    found = {}
    for table in tables:
        query = sql.SQL("SELECT coalesce(workspace_id, ''), count(*) FROM {} GROUP BY 1 ORDER BY 1")
        rows = conn.execute(query.format(sql.Identifier("public", table.name)))
        found[table.name] = {str(workspace): int(count) for workspace, count in rows}
    return found


def stray(
    found: Mapping[str, Mapping[str, int]], there: Sequence[Workspace], tables: Sequence[Scoped]
) -> dict[str, dict[str, int]]:
    """Of `counts`, the rows that no workspace owns: without an id, or with one that names no workspace."""
    known = {workspace.id for workspace in there}
    shared = {table.name for table in tables if table.shared}
    found = {t: {i: n for i, n in ids.items() if i or t not in shared} for t, ids in found.items()}
    only = {table: {i: n for i, n in ids.items() if i not in known} for table, ids in found.items()}
    return {table: ids for table, ids in only.items() if ids}


def inactive(found: Mapping[str, Mapping[str, int]], there: Sequence[Workspace]) -> dict[str, int]:
    """Rows of workspaces that were suspended or deleted, by slug: somebody's decision, so they stay as they are."""
    closed = {workspace.id: workspace.slug for workspace in there if workspace.status != "active"}
    total: dict[str, int] = {}
    for ids in found.values():
        for workspace, count in ids.items():
            if workspace in closed:
                total[closed[workspace]] = total.get(closed[workspace], 0) + count
    return total


def groups(strays: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Stray id to number of rows, the largest first."""
    total: dict[str, int] = {}
    for ids in strays.values():
        for workspace, count in ids.items():
            total[workspace] = total.get(workspace, 0) + count
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def destination(
    there: Sequence[Workspace], strays: Mapping[str, Mapping[str, int]], wanted: str | None
) -> Destination | None:
    """Where stray rows go: to the workspace that is asked for, else to `default`; None where there is nothing to move.

    A `default` that is not there yet is made with the id of the largest stray group, so that those rows need no change.

    Raises:
        UserError: no such workspace, or it is not active.
    """
    slug = wanted or DEFAULT
    found = next((workspace for workspace in there if workspace.slug == slug), None)
    if found is None and wanted not in (None, DEFAULT):
        names = ", ".join(workspace.slug for workspace in there if workspace.status == "active") or "none"
        raise UserError(
            f"there is no workspace {wanted!r} (there are: {names}): name one of these. Nothing was changed."
        )
    if not strays:
        return None
    if found is None:
        ids = [i for i in groups(strays) if _is_uuid(i)]
        return Destination(ids[0] if ids else str(uuid.uuid4()), DEFAULT, True)
    if found.status != "active":
        raise UserError(
            f"workspace {slug!r} is {found.status}: name an active one with --workspace. Nothing was changed."
        )
    return Destination(found.id, found.slug, False)


def _is_uuid(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text) is not None


def create(conn: Connection, where: Destination, quotas: Mapping[str, Any] | None = None) -> None:
    """Make the workspace as the app makes its own."""
    query = """
        INSERT INTO workspaces (id, slug, name, status, quotas, created_at, updated_at)
        VALUES (%s, %s, %s, 'active', %s::jsonb, now(), now())
    """
    conn.execute(query, (where.id, where.slug, DEFAULT_NAME, json.dumps(quotas or {})))


def adopt_orphans(conn: Connection, where: Destination | None) -> dict[str, str]:
    """Make the bootstrap token's owner an owner of every active workspace that has no member, and of the rows' new home.

    Returns: membership id to the workspace's slug, for those that were added.
    """
    query = """
        SELECT w.id::text, w.slug FROM workspaces w
         WHERE w.status = 'active'
           AND NOT EXISTS (SELECT FROM workspace_memberships m WHERE m.workspace_id = w.id AND m.user_id = %(who)s)
           AND (w.id::text = %(home)s OR NOT EXISTS (SELECT FROM workspace_memberships m WHERE m.workspace_id = w.id))
         ORDER BY w.slug
    """
    rows = conn.execute(query, {"who": BOOTSTRAP, "home": where.id if where else None}).fetchall()
    added = {}
    for workspace, slug in rows:
        key = str(uuid.uuid4())
        insert = """
            INSERT INTO workspace_memberships (id, workspace_id, user_id, role, created_at) VALUES (%s, %s, %s, 'owner', now())
        """
        conn.execute(insert, (key, workspace, BOOTSTRAP))
        added[key] = str(slug)
    return added


__all__ = [
    "NONE",
    "Destination",
    "Workspace",
    "adopt_orphans",
    "counts",
    "create",
    "destination",
    "groups",
    "inactive",
    "present",
    "stray",
]
