"""The search index: a schema of ours beside the app's tables, which are not touched (no trigger, column or index on them).

Everything in it is derived, so a change of its layout (`FORMAT`) drops and fills it again. The first fill comes before the GIN
indexes, which are then built CONCURRENTLY: building one over rows is several times faster than feeding it row by row.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any, LiteralString

from psycopg import errors, sql

from orcheo_db.bootstrap.job import OWNER, READER
from orcheo_db.bootstrap.session import Session, statement
from orcheo_db.database import Connection

SCHEMA, APP_SCHEMA = "orcheo_search", "public"
FORMAT = 1
SOURCES = ("execution_history", "execution_history_steps", "chat_threads", "chat_messages", "workflows")
FILL_SECONDS = 240.0  # of the init job's 900; what is left over comes with `orcheo-db search --refresh`
LONGEST = 3600.0  # seconds for one batch where there is no deadline
BATCH = 2000  # steps a transaction: some hundred ms, so that a lock is never held for long
INDEXERS: tuple[LiteralString, ...] = ("index_workflows", "index_threads", "index_executions")
# A pending list is read by every search: kept small, 512 kB (the default is 4 MB).
_GIN: LiteralString = "WITH (fastupdate = on, gin_pending_list_limit = 512)"
INDEXES: dict[str, LiteralString] = {
    "documents_at": "(at DESC, id DESC)",
    "documents_workspace": "(workspace_id, at DESC, id DESC)",
    "documents_workflow": "(workflow_id, at DESC, id DESC)",
    "documents_few": "(kind, at DESC, id DESC) WHERE kind <> 'step'",  # steps are nearly all rows: documents_at serves them
    "documents_thread": "(parent) WHERE parent IS NOT NULL",
    "documents_tsv": "USING gin (tsv) " + _GIN,
    "documents_doc": "USING gin (doc jsonb_path_ops) " + _GIN,
}
_TRIGRAMS = "words_trigrams"
_STATE = """
SELECT obj_description(n.oid, 'pg_namespace'), n.nspowner::regrole::text,
       array(SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
              WHERE c.relnamespace = n.oid AND i.indisvalid AND i.indisready),
       array(SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
              WHERE c.relnamespace = n.oid AND NOT (i.indisvalid AND i.indisready)),
       (SELECT count(*) FROM pg_class c WHERE c.relnamespace = n.oid AND c.relkind = 'r'),
       (SELECT count(*) FROM pg_proc p WHERE p.pronamespace = n.oid)
  FROM pg_namespace n WHERE n.nspname = %s
"""
VALIDITY: LiteralString = """
SELECT c.relname::text, i.indisvalid AND i.indisready FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
 WHERE c.relnamespace = %s::regnamespace
"""
_TRGM_SCHEMA = """
SELECT n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_trgm'
"""


def ensure(session: Session, changes: list[str]) -> None:
    """The schema is there, whole and current; filled as far as time allows where it is new."""
    missing = [name for name in SOURCES if not _scalar(session.app, "SELECT to_regclass(%s)", f"{APP_SCHEMA}.{name}")]
    if missing:
        session.leave_out("search index", f"this release of Orcheo has no {', '.join(missing)}")
        return
    row = session.app.execute(_STATE, (SCHEMA,)).fetchone()
    if row and row[1] != OWNER:
        session.leave_out("search index", f"schema {SCHEMA} belongs to {row[1]}: rename it, then run again")
        return
    if _scalar(session.app, "SELECT count(*) FROM pg_extension WHERE extname = 'pg_trgm'") == 0:
        session.leave_out("search --similar", "it needs extension pg_trgm, which this server doesn't have")
    session.app.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(OWNER)))
    try:
        build(session.app, changes)
    finally:
        if not session.app.closed:
            session.app.execute("RESET ROLE")


def _scalar(conn: Connection, query: LiteralString, *values: Any) -> Any:
    row = conn.execute(query, values).fetchone()
    return row[0] if row else None


def build(
    conn: Connection,
    changes: list[str],
    *,
    schema: str = SCHEMA,
    app_schema: str = APP_SCHEMA,
    fill_seconds: float = FILL_SECONDS,
    reader: str | None = READER,
) -> None:
    """Make the schema as `conn`'s role (autocommit); idempotent, also after a kill in any place."""
    trgm = _scalar(conn, _TRGM_SCHEMA)
    names = {
        "search": sql.Identifier(schema),
        "app": sql.Identifier(app_schema),
        "reader": sql.Identifier(reader or ""),
        "trgm": sql.Identifier(trgm or ""),
        # "ORDB" as guard.py's, another key; the benchmark's schema has one of its own, so that it keeps no search waiting.
        "lock": sql.Literal(7 if schema == SCHEMA else 8),
    }
    parts = [statement("search_tables", **names), statement("search_functions", **names)]
    parts += [statement("search_similar", **names)] if trgm else []
    parts += [statement("search_grants", **names)] if reader else []
    mark = f"orcheo-db search format {FORMAT} "
    wanted = mark + hashlib.sha256("".join(part.as_string(conn) for part in parts).encode()).hexdigest()[:16]
    comment, _, valid, broken, tables, functions = conn.execute(_STATE, (schema,)).fetchone() or ("", "", [], [], 0, 0)
    if comment and not comment.startswith(mark):
        conn.execute(sql.SQL("DROP SCHEMA {search} CASCADE").format(**names))
        changes.append(f"search index of another format dropped ({comment})")
        comment, valid, broken = "", [], []
    if (comment, tables, functions) != (wanted, 5, 14 if trgm else 13):
        with conn.transaction():
            for part in parts:
                conn.execute(part)
            conn.execute(sql.SQL("COMMENT ON SCHEMA {search} IS {}").format(sql.Literal(wanted), **names))
        changes.append(f"schema {schema}")
    if "documents_tsv" not in valid:
        written, complete = catch_up(conn, schema, everything=False, deadline=time.monotonic() + fill_seconds)
        if written:
            changes.append(
                f"{written} documents indexed{'' if complete else ', more to come by `orcheo-db search --refresh`'}"
            )
    _indexes(conn, schema, trgm, set(valid), broken, changes)


def _indexes(
    conn: Connection, schema: str, trgm: str | None, valid: set[str], broken: list[str], changes: list[str]
) -> None:
    for name in broken:  # an interrupted CREATE INDEX CONCURRENTLY leaves it, and IF NOT EXISTS is content with it
        conn.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(schema, name)))
    wanted = {name: sql.SQL("documents {}").format(sql.SQL(what)) for name, what in INDEXES.items()}
    if trgm:
        operators = sql.Identifier(trgm, "gin_trgm_ops")
        wanted[_TRIGRAMS] = sql.SQL("words USING gin (word {}) {}").format(operators, sql.SQL(_GIN))
    missing = [name for name in wanted if name not in valid]
    for name in missing:
        on = sql.SQL("CREATE INDEX CONCURRENTLY IF NOT EXISTS {} ON {}.").format(
            sql.Identifier(name), sql.Identifier(schema)
        )
        conn.execute(on + wanted[name])
        changes.append(f"index {schema}.{name}")
    if missing:
        conn.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(schema, "documents")))


def catch_up(
    conn: Connection,
    schema: str = SCHEMA,
    *,
    everything: bool,
    deadline: float,
    batch: int = BATCH,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[int, bool]:
    """Index what is new; returns (documents written, whether all was looked at before `deadline` of time.monotonic()).

    Every batch is a transaction of its own, so a kill loses at most one. It waits for another one's batch (advisory lock).
    """
    total = 0
    started = _scalar(conn, "SELECT now()")
    for name in INDEXERS:
        after: str | None = ""
        while after is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                return total, False
            query = sql.SQL("SELECT next, written FROM {}(%s, %s, %s)").format(sql.Identifier(schema, name))
            try:
                with conn.transaction():
                    conn.execute(
                        "SELECT set_config('statement_timeout', %s, true)",
                        (f"{max(1, int(min(left, LONGEST) * 1000))}ms",),
                    )
                    row = conn.execute(query, (after, batch, everything)).fetchone()
            except (errors.QueryCanceled, errors.LockNotAvailable):  # the time is up; this batch is undone
                return total, False
            assert row is not None
            after, total = row[0], total + row[1]
            if on_batch:
                on_batch(total)
    # Written once in a while only: a search that finds nothing new writes nothing.
    conn.execute(
        sql.SQL("UPDATE {} SET at = %s WHERE at < %s - interval '10 minutes'").format(
            sql.Identifier(schema, "caught_up")
        ),
        (started, started),
    )
    return total, True
