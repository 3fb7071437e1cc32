"""Import of what `people.export` wrote: into empty tables, in one transaction, compared with the files before it is committed.

Whatever goes wrong, from a flipped byte to a kill, leaves the target as it was.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors, sql

from orcheo_db.console import step
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.migrate import people_manifest, people_rows, people_tables, run, state
from orcheo_db.migrate.canonical import digest, total
from orcheo_db.migrate.people import answers, counting, words
from orcheo_db.migrate.people_manifest import Manifest, TableEntry
from orcheo_db.migrate.people_rows import CSV, Column, NotARow, Value, hashable
from orcheo_db.migrate.people_tables import SEEDS, Connection, Table

APPLICATION = "orcheo-db import"
LISTED = 8  # tables that a refusal names
Count = Callable[[int, str], None]
Digest = tuple[int, int]  # rows, and the sum of their digests
# The values of a row for its digest, and what COPY is given: the same, or a record of CSV as it is.
Row = tuple[Iterable[bytes | None], bytes | Sequence[Value]]


def load(dsn: str, directory: Path, names: Sequence[str]) -> dict[str, Any]:
    """Take an export into the target's empty tables.

    Args:
        dsn: the administrator's, direct. names: of tables; all of the export's where there is none.

    Raises:
        UserError: the export is not whole or of another form, or the target can't take it. CheckFailed: PostgreSQL refused a row, or what
            it holds differs. Nothing was changed in either case.
    """
    begun = time.monotonic()
    manifest = people_manifest.read(directory)
    wanted = people_manifest.chosen(manifest.order, names, str(directory))
    size = sum(manifest.tables[name].bytes for name in wanted)
    with step(f"Checking {len(wanted)} files") as running:
        people_manifest.check(directory, manifest, wanted, counting(running, size))
    with closing(run.connected(dsn)) as conn:
        with answers("the import failed, nothing was changed"):
            run.alone(conn)
            people_tables.settle(conn, APPLICATION)
            row = conn.execute("SELECT current_database()").fetchone()
            database = str(row[0]) if row else ""
            loaded = _load(conn, directory, manifest, wanted, size, database)
        with answers("the rows are there, but their statistics could not be made (autovacuum will)"):
            places = sql.SQL(", ").join(sql.Identifier("public", name) for name in wanted)
            conn.execute(sql.SQL("ANALYZE {}").format(places))
    return {
        "directory": str(directory), "format": manifest.rows, "database": database, "rows": sum(rows for rows, _ in loaded.values()),
        "bytes": size, "seconds": round(time.monotonic() - begun, 2),
        "tables": [{"table": name, "rows": rows, "digest": f"{found:032x}"} for name, (rows, found) in loaded.items()],
    }  # fmt: skip


def _load(
    conn: Connection, directory: Path, manifest: Manifest, wanted: Sequence[str], size: int, database: str
) -> dict[str, Digest]:
    _no_migration(conn)
    with conn.transaction():
        target = people_tables.read(conn)
        people_tables.fits(manifest, wanted, target, database)
        _empty(conn, [target[name] for name in wanted], database)
        order = [name for name in people_tables.ordered(target) if name in wanted]
        conn.execute("SET CONSTRAINTS ALL DEFERRED")
        # Triggers judge what an app does now. These rows were judged when they were written, and what such a trigger looks at may have
        # changed since.
        off = people_tables.triggers(conn, wanted)
        for table, trigger, _ in off:
            _alter(conn, table, "DISABLE", trigger)
        with step(f"Loading {len(wanted)} tables") as running:
            count = counting(running, size)
            given = {name: _copy(conn, target[name], directory, manifest, count) for name in order}
        conn.execute("SET CONSTRAINTS ALL IMMEDIATE")  # what waited is looked at now
        for table, trigger, how in off:
            _alter(conn, table, how, trigger)
        with step("Comparing the tables with the files") as running:
            count = counting(running, size)
            for name in order:
                _compare(conn, target[name], manifest, given[name], count)
        # Nothing that can fail comes after: a sequence keeps its value also where the transaction is undone.
        for name in order:
            _sequences(conn, target[name], manifest.tables[name])
    return given


def _no_migration(conn: Connection) -> None:
    found = state.read(conn)
    if found is not None and found.phase in (state.COPYING, state.COPIED):
        raise UserError(
            f"the target holds the migration of {found.source}, which is not cut over: import into a database of its own. Nothing was changed."
        )


def _empty(conn: Connection, found: Sequence[Table], database: str) -> None:
    """Have the tables for ourselves, without a row.

    Raises:
        UserError: there are rows, or somebody holds a table.
    """
    places = sql.SQL(", ").join(table.into for table in found)
    try:
        conn.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(places))
    except errors.LockNotAvailable:
        raise UserError("the tables are in use: stop the app and what else writes. Nothing was changed.") from None
    names = people_tables.filled(conn, found)
    if names:
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        raise UserError(
            f"database {database} is not empty ({', '.join(names[:LISTED])}{more} hold rows): import into an empty one, or choose other tables"
            " with --table. Nothing was changed."
        )
    for table in found:
        if table.name in SEEDS:
            conn.execute(sql.SQL("DELETE FROM {}").format(table.into))


def _alter(conn: Connection, table: str, how: str, trigger: str) -> None:
    statement = sql.SQL("ALTER TABLE {} {} TRIGGER {}")
    conn.execute(statement.format(sql.Identifier("public", table), sql.SQL(how), sql.Identifier(trigger)))


def _copy(conn: Connection, table: Table, directory: Path, manifest: Manifest, count: Count) -> Digest:
    """Load one file; returns what it held.

    Raises:
        UserError: a row is none of the table's. CheckFailed: PostgreSQL refuses one, or the file is not what it was a moment ago.
    """
    noted, columns = manifest.tables[table.name], manifest.tables[table.name].listed
    path = directory / noted.file
    hashed, rows, found = hashlib.sha256(), 0, 0

    def through() -> Iterator[bytes]:
        for block in people_manifest.blocks(path):
            hashed.update(block)
            count(len(block), table.name)
            yield block

    try:
        with conn.cursor() as cursor, cursor.copy(people_rows.copy_in(manifest.rows, table.into, columns)) as copy:
            for parts, row in _rows(manifest.rows, through(), columns):
                rows += 1
                found = total((found, digest(list(parts))))
                if isinstance(row, bytes):
                    copy.write(row)
                else:
                    copy.write_row(row)
    except NotARow as error:
        raise UserError(f"{path}, row {rows + 1} {error}. Nothing was changed.") from None
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        where = _where(error, header=manifest.rows == CSV)
        raise CheckFailed(f"PostgreSQL refuses {path}{where}: {words(error)}. Nothing was changed.") from None
    if rows != noted.rows:
        raise CheckFailed(f"{path} has {rows} rows and {people_manifest.NAME} says {noted.rows}. Nothing was changed.")
    if hashed.hexdigest() != noted.sha256:
        raise CheckFailed(f"{path} changed while it was read. Nothing was changed in the database.")
    return rows, found


def _rows(form: str, blocks: Iterable[bytes], columns: Sequence[Column]) -> Iterator[Row]:
    """The rows of a file, or of a table as a file would have them."""
    if form == CSV:
        found = people_rows.records(blocks)
        next(found, None)  # the header
        for record in found:
            yield people_rows.fields(record), record
        return
    for line in people_rows.lines(blocks):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise NotARow("is not UTF-8") from None
        row = people_rows.values(text, columns)
        yield map(hashable, row), row


def _compare(conn: Connection, table: Table, manifest: Manifest, given: Digest, count: Count) -> None:
    """Whether the table holds the file's rows.

    Raises:
        CheckFailed: it does not.
    """
    columns, rows, found = manifest.tables[table.name].listed, 0, 0

    def through(blocks: Iterable[bytes]) -> Iterator[bytes]:
        for block in blocks:
            count(len(block), table.name)
            yield block

    with conn.cursor() as cursor, cursor.copy(people_rows.copy_out(manifest.rows, table.place, columns)) as copy:
        for parts, _ in _rows(manifest.rows, through(map(bytes, copy)), columns):
            rows += 1
            found = total((found, digest(list(parts))))
    if (rows, found) != given:
        what = "with other values" if rows == given[0] else f"but {rows} rows instead of {given[0]}"
        raise CheckFailed(f"table {table.name} did not take its file as it is, {what}. Nothing was changed.")


def _sequences(conn: Connection, table: Table, noted: TableEntry) -> None:
    for column, sequence in table.sequences.items():
        query = sql.SQL(
            "SELECT setval({}::regclass, value) FROM (SELECT greatest(max({}), %s) value FROM {}) v WHERE value IS NOT NULL"
        )
        name = sql.Literal(sql.Identifier(*sequence).as_string(conn))
        conn.execute(query.format(name, sql.Identifier(column), table.into), (noted.sequences.get(column),))


def _where(error: psycopg.Error, *, header: bool) -> str:
    """The file's line and the column, without the value that PostgreSQL names behind them."""
    found = re.search(r"COPY \S+, line (\d+)(?:, column (\w+))?", error.diag.context or "")
    return f", line {int(found[1]) + header}{f', column {found[2]}' if found[2] else ''}" if found else ""
