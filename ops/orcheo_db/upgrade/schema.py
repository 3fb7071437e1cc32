"""Columns that the installed release needs and doesn't add by itself, and unique indexes that it has given up.

A column's type is never guessed: the release's own CREATE TABLE is executed in a throw-away schema of the same transaction,
and PostgreSQL says what the column is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import psycopg
from psycopg import sql

from orcheo_db.bootstrap.expected import Expected, Table
from orcheo_db.database import Connection
from orcheo_db.errors import CheckFailed

SCRATCH = "orcheo_db_scratch"
PACKAGES = ("orcheo", "orcheo_backend")


@dataclass(frozen=True)
class Column:
    """A column as the release defines it."""

    table: str
    name: str
    type: str
    default: str | None
    not_null: bool

    @property
    def text(self) -> str:
        default = f" DEFAULT {self.default}" if self.default else ""
        return f"{self.table}.{self.name} {self.type}{default}{' NOT NULL' if self.not_null else ''}"


def missing(found: dict[str, Table], wanted: Expected) -> list[tuple[str, str]]:
    """(table, column) that no bootstrap of the release adds to a table that is there."""
    return [
        (name, column)
        for name in sorted(wanted.tables)
        if name in found
        for column in sorted(wanted.required_columns(name) - found[name].columns)
    ]


def stale_indexes(conn: Connection, found: dict[str, Table], wanted: Expected) -> list[tuple[str, str]]:
    """(name, definition) of unique indexes on the app's tables that the release doesn't know.

    They are rules that no longer hold: the last bridge release's idx_workflows_active_handle makes a handle unique over all
    workspaces, and the newest app, which wants it unique in a team, never drops it.
    """
    query = """
        SELECT i.relname::text, pg_get_indexdef(x.indexrelid), c.relname::text
          FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
         WHERE c.relnamespace = 'public'::regnamespace AND x.indisunique AND NOT x.indisprimary
           AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = x.indexrelid)
         ORDER BY 1
    """
    return [
        (str(name), str(definition))
        for name, definition, table in conn.execute(query)
        if table in found and table in wanted.tables and name not in wanted.tables[table].indexes
    ]


def statements(table: str) -> list[str]:
    """Every CREATE TABLE of that name in the installed packages' sources, as text, each once."""
    return sorted({text for source in _sources() for text in created_in(source, table)})


def _sources() -> Iterator[str]:
    for package in PACKAGES:
        spec = util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            for file in sorted(Path(root).rglob("*.py")):
                yield file.read_text(encoding="utf-8")


def created_in(source: str, table: str) -> list[str]:
    """The CREATE TABLE statements for `table` in a text: up to the parenthesis that closes the one behind the name."""
    found = []
    for match in re.finditer(rf"CREATE TABLE IF NOT EXISTS {re.escape(table)}\s*\(", source):
        depth, end = 1, match.end()
        while depth and end < len(source):
            depth += {"(": 1, ")": -1}.get(source[end], 0)
            end += 1
        if depth == 0:
            found.append(source[match.start() : end])
    return found


def define(conn: Connection, wanted: list[tuple[str, str]]) -> list[Column]:
    """What the release defines those columns as. Inside a transaction; leaves nothing behind.

    Raises:
        CheckFailed: its sources have no such column, or several that differ.
    """
    found = []
    for table in sorted({table for table, _ in wanted}):
        columns = {column for name, column in wanted if name == table}
        candidates = [_execute(conn, table, text) for text in statements(table)]
        for column in sorted(columns):
            several = {candidate[column] for candidate in candidates if column in candidate}
            if len(several) != 1:
                raise CheckFailed(
                    f"the installed release defines column {table}.{column} {len(several)} times in its sources, expected"
                    " once: this release can't be upgraded to by this toolkit. Nothing was changed."
                )
            found.append(several.pop())
    return found


def _execute(conn: Connection, table: str, text: str) -> dict[str, Column]:
    """Run one CREATE TABLE in the throw-away schema and read back what it made."""
    scratch = sql.Identifier(SCRATCH)
    row = conn.execute("SELECT current_setting('search_path')").fetchone()
    path = row[0] if row else ""
    conn.execute(sql.SQL("CREATE SCHEMA {}").format(scratch))
    # First in the path: the table is made there; what it refers to is found in public.
    conn.execute(sql.SQL("SET LOCAL search_path = {}, public").format(scratch))
    try:
        conn.execute(text.encode())
    except psycopg.Error as error:
        raise CheckFailed(f"the release's own CREATE TABLE {table} fails: {error.diag.message_primary}") from error
    query = """
        SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), pg_get_expr(d.adbin, d.adrelid), a.attnotnull
          FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
    """
    rows = conn.execute(query, (f"{SCRATCH}.{table}",)).fetchall()
    conn.execute("SELECT set_config('search_path', %s, true)", (path,))
    conn.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(scratch))
    return {str(name): Column(table, str(name), str(kind), default, bool(full)) for name, kind, default, full in rows}


def add(conn: Connection, column: Column) -> None:
    """Add it to the table.

    Raises:
        CheckFailed: it must have a value and the release gives none, and there are rows.
    """
    table = sql.Identifier("public", column.table)
    if column.not_null and not column.default:
        row = conn.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(table)).fetchone()
        if row and row[0]:
            raise CheckFailed(
                f"column {column.text} can't be added to rows that are there without a value for it. Nothing was changed."
            )
    # Type and default are PostgreSQL's own words about what it has just made.
    conn.execute(
        sql.SQL("ALTER TABLE {} ADD COLUMN {} {}{}{}").format(
            table,
            sql.Identifier(column.name),
            sql.SQL(column.type),
            sql.SQL(f" DEFAULT {column.default}" if column.default else ""),
            sql.SQL(" NOT NULL" if column.not_null else ""),
        )
    )


def columns(conn: Connection) -> dict[str, dict[str, str]]:
    """Table to column to type, of schema public's tables that belong to no extension."""
    query = """
        SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod)
          FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
           AND NOT EXISTS (SELECT FROM pg_depend d
                            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
         ORDER BY c.relname, a.attnum
    """
    found: dict[str, dict[str, str]] = {}
    for table, column, kind in conn.execute(query):
        found.setdefault(str(table), {})[str(column)] = str(kind)
    return found
