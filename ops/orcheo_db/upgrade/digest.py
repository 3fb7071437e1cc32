"""What a table holds, as a count and a sum of row hashes: independent of order, and untouched by a move of workspace.

The sum is over PostgreSQL's own 64-bit hash of each row's text, so two tables' sums add up to the sum of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from psycopg import sql

from orcheo_db.database import Connection
from orcheo_db.upgrade.tables import ARCHIVE, ARCHIVED, COUNTERS, Scoped

Columns = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Digest:
    """`rows` and the decimal text of the sum of their hashes."""

    rows: int
    hash: str

    def plus(self, other: Digest) -> Digest:
        return Digest(self.rows + other.rows, str(int(self.hash) + int(other.hash)))


def expressions(table: str, columns: Sequence[str], listed: Scoped | None) -> list[sql.Composable]:
    """What of a row is hashed: every column, less what an upgrade changes on purpose."""
    left_out = {"workspace_id"} if listed else set()
    if listed:
        left_out |= {name for name in (listed.hint, listed.unique) if name}
    if table == "service_tokens":
        left_out.add("workspace_ids")
    found: list[sql.Composable] = []
    for column in columns:
        if column in left_out:
            continue
        text: sql.Composable = sql.Identifier(column)
        if table == "store" and column == "prefix":  # begins with the workspace (`remap.graph_store`)
            text = sql.SQL("regexp_replace(prefix, '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(?=[.]|$)', '')")
        if column == "payload" and listed and listed.payload:
            text = sql.SQL("(payload - 'workspace_id')")
            if listed.unique:
                text = sql.SQL("({} - {})").format(text, sql.Literal(listed.unique))
            if listed.scope:
                text = sql.SQL("({} #- '{{scope,workspace_ids}}')").format(text)
        found.append(text)
    return found


def of_table(
    conn: Connection,
    schema: str,
    table: str,
    columns: Sequence[str],
    listed: Scoped | None,
    without: Sequence[str] = (),
) -> Digest:
    """The digest of one table. `without`: values of column `id` that don't count."""
    where = sql.SQL(" WHERE id::text <> ALL ({})").format(sql.Literal(list(without))) if without else sql.SQL("")
    query = sql.SQL(
        "SELECT count(*), coalesce(sum(hashtextextended(r, 0)::numeric), 0)::text"
        " FROM (SELECT ROW({})::text AS r FROM {}{}) x"
    ).format(sql.SQL(", ").join(expressions(table, columns, listed)), sql.Identifier(schema, table), where)
    row = conn.execute(query).fetchone()
    assert row is not None
    return Digest(int(row[0]), str(row[1]))


def of_all(
    conn: Connection, columns: Columns, scoped: Mapping[str, Scoped], without: Mapping[str, Sequence[str]]
) -> dict[str, Digest]:
    """The digests of all these tables; what an upgrade put into the archive counts for its table.

    The session's TimeZone and output settings must be the same each time (`session.settled`).
    """
    found = {}
    for table, names in columns.items():
        if table in COUNTERS:
            continue
        listed = scoped.get(table)
        found[table] = of_table(conn, "public", table, names, listed, without.get(table, ()))
        if table == ARCHIVED and _exists(conn, f"{ARCHIVE}.{ARCHIVED}"):
            found[table] = found[table].plus(of_table(conn, ARCHIVE, table, names, listed))
    return found


def _exists(conn: Connection, name: str) -> bool:
    row = conn.execute("SELECT to_regclass(%s) IS NOT NULL", (name,)).fetchone()
    return bool(row and row[0])


def differences(before: Mapping[str, Digest], after: Mapping[str, Digest]) -> list[str]:
    """One line a table whose rows are not the same any more."""
    lines = []
    for table, was in sorted(before.items()):
        now = after.get(table)
        if now is None:
            lines.append(f"table {table} is gone")
        elif now.rows != was.rows:
            lines.append(f"table {table} has {now.rows} rows, before it had {was.rows}")
        elif now.hash != was.hash:
            lines.append(f"table {table}: the contents of its {was.rows} rows changed")
    return lines


def document(digests: Mapping[str, Digest]) -> dict[str, Any]:
    return {table: asdict(digest) for table, digest in digests.items()}


def from_document(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Digest]:
    return {table: Digest(int(entry["rows"]), str(entry["hash"])) for table, entry in found.items()}
