"""The SQL of one page, and how a page is gathered.

Newest first. The planner can't know whether a word is in the newest rows or only in old ones, and guesses (LIMIT makes it walk the
time index through a million rows for a word of last year). So there are two fixed ways: first the newest `WINDOW` rows that fit the
plain filters are read in order, which finds every common word, and as many more as their density asks for, if that is not much (a
phrase of common words); what that leaves is looked up in the GIN index, in a materialized CTE
that keeps the planner from the first way: among the newest `RECENT` rows, then in as much of the past as their density says, then in all.
Many questions are rare only as a whole (a phrase of common words, a word and a filter), and the index then gives far more rows to check
than a page needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import sql

from orcheo_db.bootstrap.search import APP_SCHEMA, SCHEMA
from orcheo_db.database import Connection
from orcheo_db.search.request import Request

WINDOW = 4000  # rows: some 10 ms; a word in one of 200 rows fills a page of 20 from them, a rarer one gives the GIN index little to fetch
WALK = 12.0  # times WINDOW: some 30 ms, and the GIN index takes longer for a phrase of words that are in most rows
RECENT = (
    50_000  # rows: finding where they begin takes some 10 ms, and a page of 20 comes of what is in one row of 2,500
)
MOST_EARLIER = 6.0  # times RECENT: beyond, everything is not much more
COLUMNS = sql.SQL("d.id, d.at, d.kind, d.source, d.part, d.parent, d.workspace_id, d.workflow_id")
# Retention and people delete; a row whose source is gone is never shown.
ALIVE = sql.SQL("""CASE h.kind
  WHEN 'step' THEN EXISTS (SELECT FROM {app}.execution_history_steps s WHERE s.execution_id = h.source AND s.step_index = h.part)
  WHEN 'run' THEN EXISTS (SELECT FROM {app}.execution_history s WHERE s.execution_id = h.source)
  WHEN 'message' THEN EXISTS (SELECT FROM {app}.chat_messages s WHERE s.id = h.source)
  ELSE EXISTS (SELECT FROM {app}.workflows s WHERE s.id = h.source) END""")


@dataclass(frozen=True)
class Scope:
    """What a request means to the server: ids instead of names, and the parsed query."""

    request: Request
    tsquery: str | None = None
    workspace_id: str | None = None
    workflow_ids: tuple[str, ...] = ()
    schema: str = SCHEMA
    app_schema: str = APP_SCHEMA


@dataclass(frozen=True)
class Hit:
    """One found row; `at` is UTC text (years that Python's datetime lacks occur)."""

    id: int
    at: str
    kind: str
    source: str
    part: int
    parent: str | None
    workspace_id: str | None
    workflow_id: str | None
    alive: bool = True


def _plain(scope: Scope, after: tuple[str, int] | None) -> tuple[list[sql.Composable], dict[str, Any]]:
    """Conditions that a btree answers, with their values."""
    request = scope.request
    found: list[sql.Composable] = []
    values: dict[str, Any] = {}
    if len(request.kinds) < 4:
        found.append(sql.SQL("d.kind = ANY (%(kinds)s)") if len(request.kinds) > 1 else sql.SQL("d.kind = %(kind)s"))
        values |= {"kinds": list(request.kinds), "kind": request.kinds[0]}
        if "step" not in request.kinds:
            found.append(sql.SQL("d.kind <> 'step'"))  # what documents_few is made for
    if scope.workspace_id is not None:
        found.append(sql.SQL("d.workspace_id = %(workspace)s"))
        values["workspace"] = scope.workspace_id
    if scope.workflow_ids:
        one = len(scope.workflow_ids) == 1
        found.append(sql.SQL("d.workflow_id = %(workflow)s" if one else "d.workflow_id = ANY (%(workflows)s)"))
        values |= {"workflow": scope.workflow_ids[0], "workflows": list(scope.workflow_ids)}
    if request.since:
        found.append(sql.SQL("d.at >= %(since)s::timestamptz"))
        values["since"] = request.since
    if request.until:
        found.append(sql.SQL("d.at < %(until)s::timestamptz"))
        values["until"] = request.until
    if after:
        found.append(sql.SQL("(d.at, d.id) < (%(after_at)s::timestamp AT TIME ZONE 'UTC', %(after_id)s::bigint)"))
        values |= {"after_at": after[0], "after_id": after[1]}
    return found, values


def _inverted(scope: Scope, alias: str) -> tuple[list[sql.Composable], dict[str, Any]]:
    """Conditions that GIN answers."""
    found: list[sql.Composable] = []
    values: dict[str, Any] = {}
    if scope.tsquery is not None:
        found.append(sql.SQL("{}.tsv @@ %(tsquery)s::tsquery").format(sql.Identifier(alias)))
        values["tsquery"] = scope.tsquery
    if scope.request.filter is not None:
        found.append(sql.SQL("{}.doc @> %(filter)s::jsonb").format(sql.Identifier(alias)))
        values["filter"] = scope.request.filter
    return found, values


def _where(conditions: list[sql.Composable]) -> sql.Composable:
    return sql.SQL(" WHERE ") + sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("")


def statement(
    scope: Scope,
    after: tuple[str, int] | None,
    most: int,
    *,
    window: tuple[int, int] | None = None,
    since: str | None = None,
) -> tuple[sql.Composed, dict[str, Any]]:
    """One look: at most `most` rows after `after`, in order, each with whether its source is still there.

    Args:
        window: among these of the newest rows only (how many to pass over, how many to read), else by the GIN index.
        since: not older than this (UTC text).
    """
    plain, values = _plain(scope, after)
    if since is not None:
        plain.append(sql.SQL("d.at >= %(recent)s::timestamp AT TIME ZONE 'UTC'"))
        values["recent"] = since
    inverted, more = _inverted(scope, "w" if window else "d")
    table = sql.Identifier(scope.schema, "documents")
    order = sql.SQL(" ORDER BY at DESC, id DESC LIMIT ")
    if not inverted:
        rows = sql.SQL("SELECT {} FROM {} d").format(COLUMNS, table) + _where(plain) + order + sql.Literal(most)
        head: sql.Composable = sql.SQL("")
    elif window:
        inner = sql.SQL("SELECT {}, d.tsv, d.doc FROM {} d").format(COLUMNS, table) + _where(plain)
        inner += order + sql.SQL("{} OFFSET {}").format(window[1], window[0])
        rows = sql.SQL("SELECT w.* FROM ({}) w").format(inner) + _where(inverted) + order + sql.Literal(most)
        head = sql.SQL("")
    else:
        hits = sql.SQL("SELECT {} FROM {} d").format(COLUMNS, table) + _where(inverted + plain)
        head = sql.SQL("WITH hits AS MATERIALIZED ({}) ").format(hits)
        rows = sql.SQL("SELECT * FROM hits") + order + sql.Literal(most)
    query = sql.SQL(
        "{}SELECT h.id, (h.at AT TIME ZONE 'UTC')::text, h.kind, h.source, h.part, h.parent, h.workspace_id, h.workflow_id, {}"
        " FROM ({}) h ORDER BY h.at DESC, h.id DESC"
    ).format(head, ALIVE.format(app=sql.Identifier(scope.app_schema)), rows)
    return query, values | more


def gather(conn: Connection, scope: Scope) -> tuple[list[Hit], bool]:
    """The page and whether there is more after it. Call it in a transaction of one snapshot (REPEATABLE READ)."""
    wanted = scope.request.limit + 1
    if scope.tsquery is not None or scope.request.filter is not None:
        found = _walk(conn, scope, wanted)
        if len(found) >= wanted:
            return found[: wanted - 1], True
        since = _recent(conn, scope)
        while since:
            hits = _look(conn, scope, scope.request.after, wanted * 2, since=since)
            found = [hit for hit in hits if hit.alive]
            if len(found) >= wanted:
                return found[: wanted - 1], True
            since = _earlier(conn, scope, since, wanted / len(found)) if found else None
    found, after = [], scope.request.after
    while True:
        hits = _look(conn, scope, after, wanted * 2)
        found += [hit for hit in hits if hit.alive]
        if len(found) >= wanted or len(hits) < wanted * 2:
            return found[: wanted - 1], len(found) >= wanted
        after = (hits[-1].at, hits[-1].id)


def _walk(conn: Connection, scope: Scope, wanted: int) -> list[Hit]:
    """What the newest rows have, read in order: WINDOW rows, and as many as should fill the page, if those are at most WALK times as many."""
    hits = _look(conn, scope, scope.request.after, wanted * 2, window=(0, WINDOW))
    found = [hit for hit in hits if hit.alive]
    times = wanted / len(found) * 1.5 if found else WALK
    if len(found) < wanted and len(hits) < wanted * 2 and times < WALK:
        more = (WINDOW, round(WINDOW * (times - 1)))
        found += [hit for hit in _look(conn, scope, scope.request.after, wanted * 2, window=more) if hit.alive]
    return found


def _recent(conn: Connection, scope: Scope) -> str | None:
    """When the newest RECENT rows that fit the plain filters begin; None where there are no more than that."""
    plain, values = _plain(scope, scope.request.after)
    query = sql.SQL("SELECT (d.at AT TIME ZONE 'UTC')::text FROM {} d").format(
        sql.Identifier(scope.schema, "documents")
    )
    order = sql.SQL(" ORDER BY d.at DESC, d.id DESC OFFSET {} LIMIT 1").format(sql.Literal(RECENT))
    row = conn.execute(query + _where(plain) + order, values).fetchone()
    return str(row[0]) if row else None


def _earlier(conn: Connection, scope: Scope, since: str, lack: float) -> str | None:
    """A moment before `since` by which `lack` times as much should be found, and half as much again; None: look at everything.

    The density of a question's rows in time is taken to be what it was so far. None also for a density that leaves little out, or a
    span of a century (year 1 and year 9999 occur).
    """
    if lack > MOST_EARLIER:
        return None
    top = scope.request.after[0] if scope.request.after else None
    plain, values = _plain(scope, None)
    newest = sql.SQL("SELECT max(d.at) AT TIME ZONE 'UTC' FROM {} d").format(
        sql.Identifier(scope.schema, "documents")
    ) + _where(plain)
    query = sql.SQL(
        "WITH span AS (SELECT least(%(top)s::timestamp, ({})) AS top, %(since)s::timestamp AS since)"
        " SELECT (since - (top - since) * {})::text FROM span WHERE top > since AND top - since < interval '36500 days'"
    ).format(newest, sql.Literal(lack * 1.5 - 1))
    row = conn.execute(query, values | {"top": top, "since": since}).fetchone()
    return str(row[0]) if row else None


def _look(
    conn: Connection,
    scope: Scope,
    after: tuple[str, int] | None,
    most: int,
    *,
    window: tuple[int, int] | None = None,
    since: str | None = None,
) -> list[Hit]:
    query, values = statement(scope, after, most, window=window, since=since)
    return [Hit(*row) for row in conn.execute(query, values)]
