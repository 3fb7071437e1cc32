"""One search from beginning to end: names to ids, the index brought up to date, a page, the texts to show."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, LiteralString

from psycopg import errors, sql

from orcheo_db.bootstrap import search as index
from orcheo_db.database import Connection, connect
from orcheo_db.errors import UserError
from orcheo_db.search import pages
from orcheo_db.search.pages import Hit, Scope
from orcheo_db.search.request import Request, encode

FRESH_SECONDS = (
    2.0  # for bringing the index up to date in a search; a person waits that long, and what is left over is said
)
FRESH_BATCH = 500  # steps a transaction: a search waits for another one's batch at most once in each of the three
QUERY_TIMEOUT = "30s"
# StartSel and StopSel are control characters, so that no text can imitate them; the command turns them into bold.
MARK, UNMARK = "\x02", "\x03"
HEADLINE = f'StartSel={MARK}, StopSel={UNMARK}, MaxFragments=2, MaxWords=18, MinWords=6, FragmentDelimiter=" … "'
_TEXTS: dict[str, LiteralString] = {
    "step": """SELECT execution_id, step_index, {search}.step_text(payload), execution_id || ' step ' || step_index
                 FROM {app}.execution_history_steps WHERE (execution_id, step_index) IN (SELECT * FROM unnest(%s::text[], %s::int[]))""",
    "run": """SELECT execution_id, 0, {search}.run_text(status, run_name, error, tags, metadata, inputs), execution_id || ' ' || status
                FROM {app}.execution_history WHERE (execution_id, 0) IN (SELECT * FROM unnest(%s::text[], %s::int[]))""",
    "message": """SELECT m.id, 0, {search}.message_text(m.item_json), 'thread ' || coalesce(nullif(t.title, ''), t.id)
                    FROM {app}.chat_messages m JOIN {app}.chat_threads t ON t.id = m.thread_id
                   WHERE (m.id, 0) IN (SELECT * FROM unnest(%s::text[], %s::int[]))""",
    "workflow": """SELECT id, 0, left(concat_ws(' ', handle, {search}.flat(payload)), 16384), coalesce(payload ->> 'name', handle, id)
                     FROM {app}.workflows WHERE (id, 0) IN (SELECT * FROM unnest(%s::text[], %s::int[]))""",
}


@dataclass(frozen=True)
class Found:
    """A hit with what a person sees of it."""

    hit: Hit
    where: str
    snippet: str


@dataclass
class Answer:
    """A page. `pending`: sources that are newer than the index (None: not all was looked at in time and they weren't counted)."""

    rows: list[Found]
    next: str | None
    indexed: int = 0
    complete: bool = True
    pending: int | None = 0
    seconds: dict[str, float] = field(default_factory=dict)


def open_(dsn: str) -> Connection:
    """A connection for searching: by PgBouncer, so nothing is prepared.

    Raises:
        UserError: no connection, or the init job has not made the index.
    """
    conn = connect(dsn, timeout=10)
    conn.prepare_threshold = None
    row = conn.execute("SELECT to_regclass(%s) IS NOT NULL", (f"{index.SCHEMA}.documents",)).fetchone()
    if not (row and row[0]):
        conn.close()
        raise UserError("there is no search index in this database: run `orcheo-db bootstrap`, which makes it")
    return conn


def refresh(conn: Connection, on_batch: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Bring the whole index up to date, however long it takes; what has no source any more goes.

    The numbers are documents written, documents removed and sources still behind.
    """
    with conn.transaction():  # one pass over everything: the server's usual statement_timeout is for less
        conn.execute("SELECT set_config('statement_timeout', %s, true)", (f"{index.LONGEST:.0f}s",))
        row = conn.execute(sql.SQL("SELECT {}()").format(sql.Identifier(index.SCHEMA, "prune"))).fetchone()
    removed = row[0] if row else 0
    written, _ = index.catch_up(conn, everything=True, deadline=float("inf"), on_batch=on_batch)
    return {"indexed": written, "removed": removed, "pending": pending(conn)}


def pending(conn: Connection, schema: str = index.SCHEMA) -> int:
    """Executions, threads and workflows that changed since they were indexed."""
    row = conn.execute(sql.SQL("SELECT {}()").format(sql.Identifier(schema, "pending"))).fetchone()
    return int(row[0]) if row else 0


def search(conn: Connection, request: Request, *, fresh_seconds: float = FRESH_SECONDS) -> Answer:
    """One page.

    Raises:
        UserError: a workspace or workflow that does not exist, a query without a word.
    """
    started = time.monotonic()
    scope = resolve(conn, request)  # wrong names are said before anything is written
    indexed, complete = _freshen(conn, fresh_seconds)
    fresh = time.monotonic()
    if request.similar:
        scope = with_query(conn, scope)  # the words may have come with the documents
    hits, more, rows = page(conn, scope)
    behind: int | None = 0
    if not complete:
        try:
            with conn.transaction():
                conn.execute("SELECT set_config('statement_timeout', %s, true)", (f"{FRESH_SECONDS:.0f}s",))
                behind = pending(conn)
        except errors.QueryCanceled:
            behind = None
    cursor = encode(hits[-1].at, hits[-1].id) if more else None
    seconds = {"fresh": round(fresh - started, 4), "query": round(time.monotonic() - fresh, 4)}
    return Answer(rows, cursor, indexed, complete, behind, seconds)


def page(conn: Connection, scope: Scope) -> tuple[list[Hit], bool, list[Found]]:
    """The hits of one page, whether there are more, and the hits with their texts."""
    with conn.transaction():
        # One snapshot for all looks: rows that come in between would push others from one look into the next.
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        # JIT compiles for longer than these queries run; nothing here should outlast a person's patience; a bitmap of a common
        # word's rows that does not fit into work_mem forgets which they are and has whole pages checked again.
        conn.execute(
            "SELECT set_config('jit', 'off', true), set_config('work_mem', '64MB', true), set_config('statement_timeout', %s, true)",
            (QUERY_TIMEOUT,),
        )
        hits, more = pages.gather(conn, scope)
        return hits, more, _texts(conn, scope, hits)


def _freshen(conn: Connection, seconds: float) -> tuple[int, bool]:
    try:
        return index.catch_up(conn, everything=False, deadline=time.monotonic() + seconds, batch=FRESH_BATCH)
    except (errors.ReadOnlySqlTransaction, errors.InsufficientPrivilege):  # a standby, or a login that only reads
        return 0, False


def resolve(
    conn: Connection, request: Request, schema: str = index.SCHEMA, app_schema: str = index.APP_SCHEMA
) -> Scope:
    """The request with ids for names and its parsed query.

    Raises:
        UserError: see `search`.
    """
    workspace, workflows = None, list[str]()
    names = {"search": sql.Identifier(schema), "app": sql.Identifier(app_schema)}
    if request.workspace is not None:
        query = sql.SQL("SELECT id::text FROM {app}.workspaces WHERE slug = %s OR id::text = lower(%s)").format(**names)
        row = conn.execute(query, (request.workspace, request.workspace)).fetchone()
        if row is None:
            raise UserError(f"there is no workspace {request.workspace!r}: give a slug or an id of table workspaces")
        workspace = str(row[0])
    if request.workflow is not None:
        query = sql.SQL(
            "SELECT id FROM {app}.workflows WHERE (id = %(w)s OR handle = %(w)s) AND (%(s)s::text IS NULL OR workspace_id = %(s)s)"
            " UNION SELECT %(w)s WHERE EXISTS (SELECT FROM {search}.documents WHERE workflow_id = %(w)s)"
        ).format(**names)
        workflows = [str(row[0]) for row in conn.execute(query, {"w": request.workflow, "s": workspace})]
        if not workflows:
            where = f" in workspace {request.workspace}" if workspace else ""
            raise UserError(f"there is no workflow {request.workflow!r}{where}: give an id or a handle")
    scope = Scope(request, None, workspace, tuple(workflows), schema, app_schema)
    return with_query(conn, scope) if request.query else scope


def with_query(conn: Connection, scope: Scope) -> Scope:
    """The scope with its words parsed (or, for similar ones, expanded).

    Raises:
        UserError: no word in it, or no pg_trgm.
    """
    text = scope.request.query
    function: sql.Composable = sql.SQL("websearch_to_tsquery('pg_catalog.simple', %s)")
    if scope.request.similar:
        function = sql.SQL("{}(%s)").format(sql.Identifier(scope.schema, "similar_query"))
    try:
        row = conn.execute(sql.SQL("SELECT q::text, numnode(q) FROM {} q").format(function), (text,)).fetchone()
    except errors.UndefinedFunction:
        raise UserError("--similar needs the extension pg_trgm, which this database doesn't have") from None
    if row is None or not row[1]:
        raise UserError(f"the query {text!r} has no word to look for")
    return Scope(scope.request, row[0], scope.workspace_id, scope.workflow_ids, scope.schema, scope.app_schema)


def _texts(conn: Connection, scope: Scope, hits: list[Hit]) -> list[Found]:
    """What is shown comes from the source rows as they are now; one that went meanwhile is left out."""
    seen: dict[tuple[str, str, int], tuple[str, str]] = {}
    names = {"search": sql.Identifier(scope.schema), "app": sql.Identifier(scope.app_schema)}
    for kind, query in _TEXTS.items():
        keys = [(hit.source, hit.part) for hit in hits if hit.kind == kind]
        if not keys:
            continue
        shown: sql.Composable = sql.SQL("left(x.text, 160)")
        values: list[Any] = [[key[0] for key in keys], [key[1] for key in keys]]
        if scope.tsquery is not None:
            shown = sql.SQL("ts_headline('pg_catalog.simple', x.text, %s::tsquery, %s)")
            values = [scope.tsquery, HEADLINE, *values]
        whole = sql.SQL("SELECT x.source, x.part, x.place, {} FROM ({}) x (source, part, text, place)").format(
            shown, sql.SQL(query).format(**names)
        )
        for source, part, place, snippet in conn.execute(whole, values):
            seen[kind, source, part] = (place, " ".join(snippet.split()))
    return [
        Found(hit, *seen[hit.kind, hit.source, hit.part]) for hit in hits if (hit.kind, hit.source, hit.part) in seen
    ]
