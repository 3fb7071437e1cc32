"""The question: its SQL, its answer."""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from orcheo_db.database import Connection
from orcheo_db.errors import UserError
from orcheo_db.search.request import Cursor, Request

# Marks in a snippet that no document has (Unicode's private use area), so that a person's terminal and a script can both replace them.
START, STOP = "\ue000", "\ue001"
_SNIPPET = f"StartSel={START}, StopSel={STOP}, MaxWords=18, MinWords=6, MaxFragments=1"
PLAIN = 160  # characters of a snippet where no words were asked for


@dataclass(frozen=True)
class Hit:
    """One result. `parent`: a step's run, a message's thread."""

    kind: str
    id: str
    parent: str
    workspace_id: str | None
    workflow_id: str | None
    at: dt.datetime
    snippet: str


@dataclass(frozen=True)
class Page:
    """Results, newest first, the cursor of the next page (None: this is the last), and what the query took in seconds."""

    hits: list[Hit]
    after: Cursor | None
    seconds: float


def resolve(conn: Connection, request: Request) -> tuple[str | None, str | None]:
    """Ids of the workspace and workflow that the request names.

    Raises:
        UserError: there is none of that name.
    """
    workspace = _workspace(conn, request.workspace) if request.workspace else None
    return workspace, _workflow(conn, request.workflow, workspace) if request.workflow else None


def _workspace(conn: Connection, name: str) -> str:
    rows = conn.execute(
        "SELECT id::text, slug FROM public.workspaces WHERE slug = %(n)s OR id::text = %(n)s", {"n": name}
    )
    if row := rows.fetchone():
        return str(row[0])
    known = [str(row[0]) for row in conn.execute("SELECT slug FROM public.workspaces ORDER BY created_at LIMIT 6")]
    there = f"there are {', '.join(known[:5])}{' and more' if len(known) > 5 else ''}" if known else "there is none yet"
    raise UserError(f"--workspace {name}: no workspace has this slug or id: {there}")


def _workflow(conn: Connection, name: str, workspace: str | None) -> str:
    rows = conn.execute(
        "SELECT id::text FROM public.workflows WHERE (id::text = %(n)s OR handle = %(n)s)"
        " AND (%(w)s::text IS NULL OR workspace_id = %(w)s) LIMIT 2",
        {"n": name, "w": workspace},
    ).fetchall()
    if not rows:
        raise UserError(
            f"--workflow {name}: no workflow has this id or handle{' in that workspace' if workspace else ''}"
        )
    if len(rows) > 1:
        raise UserError(f"--workflow {name}: several workspaces have this handle: name one with --workspace")
    return str(rows[0][0])


def statement(request: Request, workspace: str | None, workflow: str | None) -> tuple[sql.Composed, dict[str, Any]]:
    """The page's query and its parameters.

    Keyset pagination: rows after the cursor in the order of an index, so that page 1,000 costs what page 1 does. The source row
    is looked up for each row of the page, because a document may outlive it until the next thorough refresh.
    """
    values: dict[str, Any] = {"limit": request.limit + 1, "text": request.text, "options": _SNIPPET, "plain": PLAIN}
    conditions: list[sql.Composable] = [sql.SQL("d.kind = ANY(%(kinds)s)")] if len(request.kinds) < 4 else []
    values["kinds"] = list(request.kinds)
    if request.text.strip():
        words = (
            "%(text)s <% d.body".replace("<%", "<%%")
            if request.similar
            else "d.tsv @@ websearch_to_tsquery('pg_catalog.simple', %(text)s)"
        )
        conditions.append(sql.SQL(words))
    for name, value in (("workspace", workspace), ("workflow", workflow)):
        if value is not None:
            conditions.append(sql.SQL("d.{} = {}").format(sql.Identifier(f"{name}_id"), sql.Placeholder(name)))
            values[name] = value
    for name, operator, moment in (("since", ">=", request.since), ("until", "<", request.until)):
        if moment is not None:
            conditions.append(sql.SQL("d.at {} {}").format(sql.SQL(operator), sql.Placeholder(name)))
            values[name] = moment
    for number, value in enumerate(request.contains):
        conditions.append(sql.SQL("d.doc @> {}").format(sql.Placeholder(f"filter{number}")))
        values[f"filter{number}"] = Jsonb(value)
    if request.after:
        conditions.append(sql.SQL("(d.at, d.kind, d.id) < (%(after_at)s::timestamptz, %(after_kind)s, %(after_id)s)"))
        values |= {"after_at": request.after.at, "after_kind": request.after.kind, "after_id": request.after.id}
    conditions.append(_LIVES)
    query = _PAGE.format(conditions=sql.SQL(" AND ").join(conditions), snippet=_snippet(request))
    return query, values


def _snippet(request: Request) -> sql.SQL:
    if request.text.strip() and not request.similar:
        return sql.SQL(
            "ts_headline('pg_catalog.simple', p.body, websearch_to_tsquery('pg_catalog.simple', %(text)s), %(options)s)"
        )
    return sql.SQL("left(p.body, %(plain)s)")


# One index look-up a row that is shown. A step lives as long as its run (ON DELETE CASCADE).
_LIVES = sql.SQL("""CASE d.kind
             WHEN 'message' THEN EXISTS (SELECT FROM public.chat_messages m WHERE m.id = d.id)
             WHEN 'workflow' THEN EXISTS (SELECT FROM public.workflows w WHERE w.id = d.id)
             ELSE EXISTS (SELECT FROM public.execution_history h WHERE h.execution_id = d.parent) END""")
_PAGE = sql.SQL("""
WITH page AS MATERIALIZED (
    SELECT d.kind, d.id, d.parent, d.workspace_id, d.workflow_id, d.at, d.body
      FROM orcheo_search.documents d
     WHERE {conditions}
     ORDER BY d.at DESC, d.kind DESC, d.id DESC
     LIMIT %(limit)s)
SELECT p.kind, p.id, p.parent, p.workspace_id, p.workflow_id, p.at, {snippet}
  FROM page p ORDER BY p.at DESC, p.kind DESC, p.id DESC
""")


def ask(conn: Connection, request: Request) -> Page:
    """One page of results.

    Raises:
        UserError: the workspace or the workflow does not exist.
    """
    start = time.perf_counter()
    workspace, workflow = resolve(conn, request)
    query, values = statement(request, workspace, workflow)
    rows = conn.execute(query, values).fetchall()
    hits = [Hit(*row) for row in rows[: request.limit]]
    last = hits[-1] if len(rows) > request.limit else None
    after = Cursor(last.at.isoformat(timespec="microseconds"), last.kind, last.id) if last else None
    return Page(hits, after, time.perf_counter() - start)
