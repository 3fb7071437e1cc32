"""The app's tables as an export and an import meet them: columns, keys, foreign keys, sequences, and the order that these ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

import psycopg
from psycopg import sql

from orcheo_db.errors import UserError
from orcheo_db.migrate.people_manifest import ColumnEntry, Manifest, TableEntry
from orcheo_db.migrate.people_rows import Column
from orcheo_db.upgrade.tables import COUNTERS

Connection = psycopg.Connection[Any]
# A row that the app's bootstrap makes by itself, as it is until somebody turns hosted apps on: it is no data, and an import's takes its place.
SEEDS = {"hosted_app_runtime_state": "generation = 0 AND NOT enabled AND updated_by IS NULL"}
# What values look like as text, beyond `state.settle`; and no part of the rows may be kept from us.
PINS = {"IntervalStyle": "postgres", "extra_float_digits": "1", "row_security": "off", "transaction_timeout": "0"}

_TABLES = """
SELECT c.relname::text, c.relkind = 'r', a.attname::text, format_type(a.atttypid, a.atttypmod),
       a.attgenerated <> '', a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
   AND NOT c.relname = ANY (%s)
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
 ORDER BY c.relname, a.attnum
"""
_KEYS = """
SELECT c.relname::text, a.attname::text FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
  CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY k(n, o) JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.n
 WHERE c.relnamespace = 'public'::regnamespace ORDER BY c.relname, k.o
"""
_REFERENCES = """
SELECT c.relname::text, p.relname::text, bool_and(k.condeferrable)
  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_class p ON p.oid = k.confrelid
 WHERE k.contype = 'f' AND k.conparentid = 0 AND c.relnamespace = 'public'::regnamespace AND p.relnamespace = 'public'::regnamespace
 GROUP BY 1, 2 ORDER BY 1, 2
"""
_SEQUENCES = """
SELECT c.relname::text, a.attname::text, n.nspname::text, s.relname::text
  FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S' JOIN pg_namespace n ON n.oid = s.relnamespace
  JOIN pg_class c ON c.oid = d.refobjid JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid
 WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
   AND c.relnamespace = 'public'::regnamespace ORDER BY 1, 2
"""


@dataclass
class Table:
    """A table. plain: not partitioned. demanded: columns that have no value unless one is given. references: table to whether its
    constraints can wait for the commit. sequences: column to its sequence's schema and name."""

    name: str
    plain: bool
    columns: list[Column] = field(default_factory=list)
    demanded: set[str] = field(default_factory=set)
    key: list[str] = field(default_factory=list)
    references: dict[str, bool] = field(default_factory=dict)
    sequences: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def place(self) -> sql.Composed:
        """Where to read it: without the rows of tables that inherit from it, which are in files of their own."""
        return sql.SQL("ONLY {}" if self.plain else "{}").format(self.into)

    @property
    def into(self) -> sql.Identifier:
        return sql.Identifier("public", self.name)


def settle(conn: Connection, application: str) -> None:
    """Have all values written as an export has them; the session is known by that name."""
    conn.execute("SELECT set_config('application_name', %s, false)", (application,))
    for name, value in PINS.items():  # transaction_timeout is PostgreSQL 17's
        conn.execute("SELECT set_config(name, %s, false) FROM pg_settings WHERE name = %s", (value, name))


def read(conn: Connection) -> dict[str, Table]:
    """The app's tables by name, those of no extension, without generated columns (they are made, not given)."""
    found: dict[str, Table] = {}
    for name, plain, column, type, generated, demanded in conn.execute(_TABLES, (list(COUNTERS),)):
        table = found.setdefault(name, Table(name, plain))
        if not generated:
            table.columns.append(Column(column, type))
            table.demanded |= {column} if demanded else set()
    for name, column in conn.execute(_KEYS):
        if name in found:
            found[name].key.append(column)
    for name, parent, deferrable in conn.execute(_REFERENCES):
        if name in found and parent in found:
            found[name].references[parent] = deferrable
    for name, column, schema, sequence in conn.execute(_SEQUENCES):
        if name in found:
            found[name].sequences[column] = (schema, sequence)
    return found


def ordered(found: Mapping[str, Table]) -> list[str]:
    """Tables, each after those that it refers to by a constraint that can't wait for the commit.

    A table that refers to itself is copied by one statement, at whose end PostgreSQL looks. Where such constraints make a circle, one of
    them is left to PostgreSQL's own answer.
    """
    edges = {
        name: {parent for parent, waits in table.references.items() if not waits and parent != name}
        for name, table in sorted(found.items())
    }
    while True:
        try:
            return list(TopologicalSorter({name: sorted(parents) for name, parents in edges.items()}).static_order())
        except CycleError as error:
            parent, child = error.args[1][:2]
            edges[child].discard(parent)


def last_values(conn: Connection, table: Table) -> dict[str, int | None]:
    """The last value of each sequence of the table; None where none was taken yet."""
    found: dict[str, int | None] = {}
    for column, sequence in table.sequences.items():
        row = conn.execute(sql.SQL("SELECT last_value, is_called FROM {}").format(sql.Identifier(*sequence))).fetchone()
        found[column] = int(row[0]) if row and row[1] else None
    return found


def entry(table: Table, file: str, rows: int, size: int, sha256: str, sequences: dict[str, int | None]) -> TableEntry:
    """What the manifest says of a table that was written."""
    return TableEntry(
        file=file, rows=rows, bytes=size, sha256=sha256, columns=[ColumnEntry(name=c.name, type=c.type) for c in table.columns],
        primary_key=table.key, references=sorted(table.references), sequences=sequences,
    )  # fmt: skip


def fits(manifest: Manifest, names: Iterable[str], target: Mapping[str, Table], database: str) -> None:
    """Whether these tables of an export can be taken in.

    Raises:
        UserError: a table or column is not there or of another type, or one that must have a value is not in the export.
    """
    for name in names:
        if name not in target:
            raise UserError(
                f"database {database} has no table {name}: import into a release that has it ({_releases(manifest)} wrote it), or choose"
                " others with --table. Nothing was changed."
            )
        types = dict(target[name].columns)
        given = manifest.tables[name].listed
        for column in given:
            if column.name not in types:
                raise UserError(
                    f"table {name} of database {database} has no column {column.name}: import into a release that has it"
                    f" ({_releases(manifest)} wrote it). Nothing was changed."
                )
            if types[column.name] != column.type:
                raise UserError(
                    f"column {name}.{column.name} is {types[column.name]} in database {database} and {column.type} in the export: import"
                    f" into a release that has it so ({_releases(manifest)} wrote it). Nothing was changed."
                )
        lacking = target[name].demanded - {column.name for column in given}
        if lacking:
            raise UserError(
                f"column {name}.{min(lacking)} of database {database} must have a value and the export has none: import into the release"
                f" that wrote it ({_releases(manifest)}), then upgrade. Nothing was changed."
            )


def _releases(manifest: Manifest) -> str:
    return ", ".join(f"{name} {release}" for name, release in manifest.releases.items()) or "an unknown release"


def filled(conn: Connection, found: Iterable[Table]) -> list[str]:
    """Those of the tables that have rows, but for an untouched seed."""
    names = []
    for table in found:
        spared = sql.SQL(f" WHERE NOT coalesce({SEEDS[table.name]}, false)" if table.name in SEEDS else "")
        row = conn.execute(sql.SQL("SELECT EXISTS (SELECT FROM {}{})").format(table.into, spared)).fetchone()
        if row and row[0]:
            names.append(table.name)
    return names


def triggers(conn: Connection, names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Table, trigger and how to turn it on again, of the app's own triggers that are on."""
    query = """
        SELECT c.relname::text, t.tgname::text, CASE t.tgenabled WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE' END
          FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
         WHERE NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%s)
         ORDER BY 1, 2
    """
    return [(table, trigger, how) for table, trigger, how in conn.execute(query, (list(names),))]
