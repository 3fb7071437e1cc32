"""The search schema: its tables and functions, and its indexes, which are built without blocking anybody."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import LiteralString

from psycopg import sql

from orcheo_db.bootstrap.job import MONITOR, OWNER, READER
from orcheo_db.bootstrap.session import Session, statement

SCHEMA = "orcheo_search"
# Built by CREATE INDEX CONCURRENTLY: on an installation that has documents already this takes a while, and searches go on.
INDEXES: dict[str, LiteralString] = {
    "documents_words": "USING gin (tsv)",
    "documents_fields": "USING gin (doc jsonb_path_ops)",  # containment (@>) alone, at half of the size of jsonb_ops
    # Keyset pages, newest first: of everything, of a workspace, of a workflow. With a common word and few documents in the
    # workspace, walking that workspace's documents is far cheaper than collecting all that have the word.
    "documents_time": "(at DESC, kind DESC, id DESC)",
    "documents_workspace": "(workspace_id, at DESC, kind DESC, id DESC)",
    "documents_workflow": "(workflow_id, at DESC, kind DESC, id DESC)",
}
TRIGRAMS: tuple[str, LiteralString] = (
    "documents_trigrams",
    "USING gin (body {schema}.gin_trgm_ops)",
)  # needs pg_trgm, wherever it is


def ensure_search(session: Session, changes: list[str]) -> None:
    """The schema as `sql/search.sql` has it and every index valid."""
    _ensure_schema(session, changes)
    wanted: dict[str, sql.Composable] = {name: sql.SQL(definition) for name, definition in INDEXES.items()}
    row = session.app.execute(
        "SELECT n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_trgm'"
    ).fetchone()
    if row:
        wanted[TRIGRAMS[0]] = sql.SQL(TRIGRAMS[1]).format(schema=sql.Identifier(str(row[0])))
    else:
        session.leave_out("search by similarity", "extension pg_trgm isn't there")
    valid = dict(session.app.execute(_INDEXES, (SCHEMA,)).fetchall())
    for name, definition in wanted.items():
        if valid.get(name):
            continue
        if name in valid:  # left by an interrupted build
            session.as_owner(sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(SCHEMA, name)))
        query = sql.SQL("CREATE INDEX CONCURRENTLY IF NOT EXISTS {} ON {} ").format(
            sql.Identifier(name), sql.Identifier(SCHEMA, "documents")
        )
        session.as_owner(query + definition)
        changes.append(f"index {name}")


_INDEXES = """
SELECT c.relname::text, i.indisvalid AND i.indisready
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s
"""


def _ensure_schema(session: Session, changes: list[str]) -> None:
    """The tables and functions; the schema's comment says of which text they were made."""
    source = (resources.files("orcheo_db.bootstrap") / "sql" / "search.sql").read_bytes()
    mark = f"orcheo-db {hashlib.sha256(source).hexdigest()}"
    row = session.app.execute("SELECT obj_description(to_regnamespace(%s)::oid, 'pg_namespace')", (SCHEMA,)).fetchone()
    if row and row[0] == mark:
        return
    with session.app.transaction():
        session.app.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(OWNER)))
        session.app.execute(statement("search", reader=sql.Identifier(READER), monitor=sql.Identifier(MONITOR)))
        session.app.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(sql.Identifier(SCHEMA), sql.Literal(mark)))
    changes.append(f"schema {SCHEMA}")
