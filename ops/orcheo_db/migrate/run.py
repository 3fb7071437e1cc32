"""Copying a source into the target with several processes; what is interrupted goes on where it was."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from psycopg import sql

from orcheo_db import database
from orcheo_db.bootstrap.job import READER
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.migrate import gone, home, state
from orcheo_db.migrate.convert import ORPHAN, REFUSED, Options
from orcheo_db.migrate.gone import Lost
from orcheo_db.migrate.layout import ARCHIVE
from orcheo_db.migrate.pool import Pool
from orcheo_db.migrate.source import Found, Source, opened, schema
from orcheo_db.migrate.state import APPLICATION, COPIED, COPYING, TARGETS, State
from orcheo_db.migrate.sync import ROWID, Done, Marks, Setting, Task, stretches
from orcheo_db.migrate.verify import Check, Compared, everything
from orcheo_db.upgrade import workspaces

Connection = psycopg.Connection[Any]
CHUNK_BYTES = 16 * 2**20  # of SQLite's values in one transaction: some tenths of a second of work
ORPHAN_SECONDS = 20.0  # until processes of a run that was killed have noticed and gone


@dataclass
class Progress:
    """What is done, for the bar: bytes are SQLite's own values."""

    total: int
    bytes: int = 0
    rows: int = 0
    table: str = ""
    begun: float = field(default_factory=time.monotonic)

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.bytes / max(time.monotonic() - self.begun, 0.001)

    @property
    def left(self) -> float:
        """Seconds, at the rate until now."""
        return max(self.total - self.bytes, 0) / self.rate if self.bytes else 0.0


Report = Callable[[Progress], None]


def identity(origin: Path, given: str | None = None) -> str:
    """How a source is named in its target: its directory on its machine; `given`: as the user names it, who has moved it."""
    return given or f"{socket.gethostname()}:{origin.resolve()}"


def connected(dsn: str) -> Connection:
    """A connection that acts as the tables' owner.

    Raises:
        UserError: no connection.
    """
    conn = database.connect(dsn, application_name=APPLICATION)
    conn.prepare_threshold = None
    state.settle(conn)
    return conn


def alone(conn: Connection) -> None:
    """Only one migration works on a target: wait for the processes of one that was killed, refuse one that lives.

    Raises:
        UserError: another one is at work.
    """
    deadline = time.monotonic() + ORPHAN_SECONDS
    while True:
        row = conn.execute("SELECT pg_try_advisory_lock(hashtext('orcheo_archive'), 1)").fetchone()
        others = conn.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND datname = current_database() AND pid <> pg_backend_pid()",
            (APPLICATION,),
        ).fetchone()
        if row and row[0] and others and others[0] == 0:
            return
        if row and row[0]:
            conn.execute("SELECT pg_advisory_unlock(hashtext('orcheo_archive'), 1)")
        if time.monotonic() > deadline:
            raise UserError(
                "another `orcheo-db migrate` is at work on this target: wait for it, or end it. Nothing was changed."
            )
        time.sleep(0.5)


def begin(
    conn: Connection, source: Source, original: Source, options: Options, workspace: str | None, name: str
) -> State:
    """The state of this source's migration in the target: begun, or gone on with.

    Args:
        source: what is read (a snapshot). original: the user's own directory, for the files' form. name: of the source (`identity`).

    Raises:
        UserError: the target is another migration's, or not empty; no such workspace.
    """
    state.prepare(conn)
    with conn.transaction():
        conn.execute("LOCK TABLE orcheo_archive.migration IN EXCLUSIVE MODE")
        found = state.read(conn)
        state.refuse_others(conn, found, name)
        there = workspaces.present(conn)
        if found is None:
            decided = home.find(source, there, workspace)
            found = State(
                name, source.release, COPYING, schema(original), {}, settings(options), decided, {}, [], {}, {"marks": Marks.FORM}
            )  # fmt: skip
            _make_home(conn, found)
        else:
            found.home = home.find(source, there, workspace, found.home)
            _make_home(conn, found)
            found.files = schema(original)
            found.options["attachments"] = _places(found, options)
        found.tables = {t.name: {"file": t.file, "columns": list(t.names)} for t in source.data}
        for table in source.data:
            found.widths.setdefault(table.name, width(source, table))
            if table.known is None:
                _archive_table(conn, table)
        state.write(conn, found)
    return found


def settings(options: Options) -> dict[str, Any]:
    """The options that the rows depend on, as JSON."""
    return {
        "naive": str(options.naive),
        "moment": options.moment,
        "attachments": [str(p.resolve()) for p in options.attachments],
    }


def _places(found: State, options: Options) -> list[str]:
    """Where attachments' files are looked for: a directory that was given once counts for every later command."""
    return list(dict.fromkeys([*found.options.get("attachments", []), *settings(options)["attachments"]]))


def options_of(found: State, options: Options) -> Options:
    """The options that a migration was begun with win over those of a later call.

    Raises:
        UserError: another zone is asked for than at the beginning.
    """
    if found.options["naive"] != str(options.naive):
        raise UserError(
            f"this migration was begun with --naive-timestamps {found.options['naive']}, and {options.naive} is asked for now: rows that were"
            " copied would not change. Go on with the former. Nothing was changed."
        )
    places = tuple(map(Path, _places(found, options)))
    return Options(options.naive, options.strict, places, found.options["moment"])


def zone(name: str) -> Any:
    """A time zone by its name.

    Raises:
        UserError: there is none.
    """
    try:
        return UTC if name.upper() == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UserError(f"--naive-timestamps {name}: no such time zone; give one like UTC or Europe/Zurich") from None


def _make_home(conn: Connection, found: State) -> None:
    decided = found.home
    if decided.id and decided.new and "workspaces" not in found.ours:
        if not conn.execute("SELECT 1 FROM workspaces WHERE id::text = %s", (decided.id,)).fetchone():
            workspaces.create(conn, workspaces.Destination(decided.id, decided.slug, True))
        found.ours["workspaces"] = [decided.id]


def _archive_table(conn: Connection, table: Found) -> None:
    if not re.fullmatch(r"\w{1,60}", table.name) or table.name in ("migration", "chunk", "quarantine"):
        raise UserError(
            f"table {table.name!r} of {table.file} has a name that the archive can't take: rename it in a copy of the directory. Nothing was changed."
        )
    conn.execute(
        sql.SQL("CREATE TABLE IF NOT EXISTS {} ({} bigint PRIMARY KEY, row json NOT NULL)").format(
            sql.Identifier(ARCHIVE, table.name), sql.Identifier(ROWID)
        )
    )
    conn.execute(
        sql.SQL("GRANT SELECT ON {} TO {}").format(sql.Identifier(ARCHIVE, table.name), sql.Identifier(READER))
    )


def width(source: Source, table: Found) -> int:
    """Rowids a chunk: some CHUNK_BYTES of the table's rows, by a sample."""
    if not table.rowid or (table.known and table.known.whole):
        return 2**62
    names = " + ".join(f'coalesce(length("{name}"), 0)' for name in table.names)
    with opened(source.directory / table.file) as connection:
        low, high = connection.execute(f'SELECT min(rowid), max(rowid) FROM "{table.name}"').fetchone()
        if low is None:
            return 1000
        sizes = [
            row[0]
            for at in {low + (high - low) * i // 8 for i in range(9)}
            for row in connection.execute(f'SELECT {names} FROM "{table.name}" WHERE rowid >= ? LIMIT 20', (at,))
        ]
    mean = max(sum(sizes) / len(sizes), 50.0)
    return max(int(CHUNK_BYTES / mean), 10)


def tasks(conn: Connection, source: Source, found: State, table: Found, *, fresh: bool) -> Iterator[Task]:
    """The chunks of a table: where the source has rows, and where it had some."""
    step = found.widths[table.name]
    noted = [
        int(lo)
        for (lo,) in conn.execute("SELECT lo FROM orcheo_archive.chunk WHERE tab = %s ORDER BY lo", (table.name,))
    ]
    if not table.rowid or step >= 2**62:
        yield Task(table.name, -(2**61), fresh)
        return
    with opened(source.directory / table.file) as connection:
        there = set(stretches(connection, table, step))
    for lo in sorted({*noted, *there}):
        yield Task(table.name, lo, fresh and lo in there)


def copy(
    dsn: str, conn: Connection, source: Source, found: State, options: Options, report: Report, *, fresh: bool, former: Path | None = None
) -> dict[str, Any]:  # fmt: skip
    """Bring the target to what the source holds; returns counts.

    Args:
        fresh: nothing was copied yet but chunks of this very source, so that no row can be in another's way.
        former: the snapshot of the last copy, where it is there: it knows the keys of rows that the source has no more.

    Raises:
        CheckFailed: it could not be finished; running it again goes on.
    """
    catalogue = state.catalogue(conn)
    if found.phase == COPYING:
        if not marked(found):
            _restore(dsn, conn, found)
        _drop_indexes(conn, found)
    setting = Setting(dsn, source, catalogue, found.home, options, found.widths)
    progress = Progress(_bytes(source))
    changed: dict[str, int] = {}
    # Tables that may hold rows which the source has no more: of an earlier pass too, which did not come to its end.
    suspects: set[str] = {*found.report.pop("suspects", []), *_pending(conn)}
    thorough = set(suspects)
    brought: dict[tuple[str, int], Check] = {}
    lost = Lost(former)

    def each(done: Done) -> None:
        progress.bytes += done.bytes
        progress.rows += done.rows
        progress.table = done.task.table
        if done.changed:
            changed[done.task.table] = changed.get(done.task.table, 0) + done.brought
            at = done.task.table, done.task.lo
            whole = not done.compared or at in brought
            brought[at] = Check(*at, None if whole else done.only)
            if done.before:
                suspects.add(done.task.table)
                lost.add(done.task.table, done.since)
        report(progress)

    def through(tables: list[Found]) -> None:
        with Pool(setting) as pool:
            for _, same in groupby(tables, key=lambda table: table.level):
                pool.run((task for table in same for task in tasks(conn, source, found, table, fresh=fresh)), each)

    tables = sorted(source.data, key=lambda table: table.level)
    _look_again(conn, [table.name for table in tables], ORPHAN)  # the parent may be there now
    through(tables)
    unsaid = _pending(conn) - suspects  # what a worker brought and could not say
    suspects |= unsaid
    thorough |= unsaid
    again = set()
    for table in reversed(tables):
        if table.known and table.name in suspects:
            children = [t.name for t in tables if t.known and t.known.parent and t.known.parent.table == table.name]
            # PostgreSQL deletes or changes children with their parents, SQLite may have left them.
            with conn.transaction():
                if gone.delete(setting, conn, found, table, lost, thorough=table.name in thorough):
                    again |= _look_again(conn, children)
    # A row that was refused may have been in the way of one that was to be deleted or changed.
    again |= _look_again(conn, sorted(suspects), REFUSED)
    if again:
        fresh = False
        through([table for table in tables if table.name in again])
    _finish(dsn, conn, found, suspects)
    return {
        "rows": progress.rows,
        "bytes": progress.bytes,
        "seconds": round(time.monotonic() - progress.begun, 2),
        "changed": changed,
        "tasks": list(brought.values()),
    }


def _pending(conn: Connection) -> set[str]:
    """Tables with chunks that had rows before and were brought again since somebody looked for what the source has no more."""
    return {tab for (tab,) in conn.execute("SELECT DISTINCT tab FROM orcheo_archive.chunk WHERE pending")}


def _look_again(conn: Connection, tables: list[str], reason: str | None = None) -> set[str]:
    """Have the next pass bring all rows of the chunks of some tables, or of those with a row kept for a reason; returns the tables."""
    query = "UPDATE orcheo_archive.chunk c SET marks = '', compared = false WHERE tab = ANY (%s)"
    if reason is not None:
        query += """ AND EXISTS (SELECT FROM orcheo_archive.quarantine q
                                  WHERE q.tab = c.tab AND q.lo = c.lo AND starts_with(q.reason, %s))"""
    found = conn.execute(f"{query} RETURNING tab".encode(), [tables, reason][: 1 + (reason is not None)])
    return {name for (name,) in found}


Ignore = Mapping[str, tuple[frozenset[str], frozenset[str]]]


def verify(
    dsn: str, conn: Connection, source: Source, found: State, options: Options, report: Report, ignore: Ignore | None = None
) -> list[Compared]:  # fmt: skip
    """Compare all rows of the source with the target's; one result a table.

    Args:
        source: what was copied last. ignore: what is not compared (`Setting`), given for files that a rollback wrote.
    """
    catalogue = state.catalogue(conn)
    setting = Setting(dsn, source, catalogue, found.home, options, found.widths, ignore or {}, originals=ignore is None)
    progress = Progress(_bytes(source))

    def each(one: Compared) -> None:
        progress.bytes += one.bytes
        progress.rows += one.rows
        progress.table = one.table
        report(progress)

    with Pool(setting) as pool:
        return everything(
            setting, conn, found, pool.run, lambda table: list(tasks(conn, source, found, table, fresh=False)), each
        )


def _bytes(source: Source) -> int:
    return sum((source.directory / name).stat().st_size for name in source.files)


def for_reading(conn: Connection) -> dict[str, str]:
    """The indexes that only make reading faster and can't refuse a row: name to definition.

    One over a text may refuse it (a B-tree's entry has 2704 bytes at most; but what is in the primary key has been there), and so may the
    full-text index of messages (1 MB of words): these stay, so that such a row is known by the time that it comes, and goes into the
    quarantine. What an expression costs, it costs there too, but on as many processors as there are workers.
    """
    query = """
        SELECT pg_get_indexdef(i.indexrelid), c.oid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
         WHERE i.indrelid = ANY (%s::regclass[]) AND NOT i.indisunique AND i.indexprs IS NULL AND i.indpred IS NULL
           AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid)
           AND (SELECT bool_and(a.attlen > 0)
                    OR bool_and(EXISTS (SELECT FROM pg_index p WHERE p.indrelid = i.indrelid AND p.indisprimary AND a.attnum = ANY (p.indkey)))
                    OR bool_and(a.atttypid = 'jsonb'::regtype AND (SELECT amname FROM pg_am WHERE oid = c.relam) = 'gin')
                  FROM unnest(i.indkey::int2[]) AS number JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = number)
    """
    rows = conn.execute(query, ([f"public.{name}" for name in TARGETS],)).fetchall()
    return {name: definition for definition, name in rows}


def marked(found: State) -> bool:
    """Whether all chunks have marks of today's form: an earlier version of this toolkit made others."""
    return bool(found.report.get("marks") == Marks.FORM)


def _restore(dsn: str, conn: Connection, found: State) -> None:
    """Have all indexes: an earlier version of this toolkit left out those, too, that may refuse a row, and made them at its end.

    Raises:
        CheckFailed: it brought such a row.
    """
    rebuild(
        dsn,
        found.indexes,
        "This copy was begun by an earlier version of orcheo-db: begin a new one, in an empty database ([database] name in the spec)",
    )
    found.indexes = []
    state.write(conn, found)


def _drop_indexes(conn: Connection, found: State) -> None:
    """They are made again when the rows are there: several times faster than feeding them."""
    with conn.transaction():
        for name, definition in for_reading(conn).items():
            if definition not in found.indexes:
                found.indexes.append(definition)
            conn.execute(f"DROP INDEX {name}".encode())
        state.write(conn, found)


def _finish(dsn: str, conn: Connection, found: State, suspects: Collection[str]) -> None:
    """Indexes, statistics, sequences, owners of workspaces; then the copy counts as done."""
    if found.indexes:
        rebuild(dsn, found.indexes)
    with conn.transaction():
        found.indexes = []
        if "workspace_memberships" not in found.ours:
            where = workspaces.Destination(found.home.id, found.home.slug, found.home.new) if found.home.id else None
            found.ours["workspace_memberships"] = list(workspaces.adopt_orphans(conn, where))
        conn.execute(
            "SELECT setval(pg_get_serial_sequence('public.service_token_audit_log', 'id'), greatest(max(id), 1), max(id) IS NOT NULL)"
            " FROM public.service_token_audit_log"
        )
        found.phase = COPIED
        found.report["marks"] = Marks.FORM
        state.write(conn, found)
        state.stamp(conn, "copied_at")
        conn.execute(
            "UPDATE orcheo_archive.chunk SET pending = false WHERE pending AND tab = ANY (%s)", (list(suspects),)
        )
    conn.execute(_CLEAN, ([f"public.{name}" for name in TARGETS],))
    # By columns: what the expressions of indexes give (the full-text search's, of every message) takes a hundred times longer, and no
    # plan of the app or of `orcheo-db search` needs it; autovacuum sees to it later.
    types = state.catalogue(conn).types
    tables = sql.SQL(", ").join(
        sql.SQL("{} ({})").format(sql.Identifier("public", name), sql.SQL(", ").join(map(sql.Identifier, types[name])))
        for name in TARGETS
    )
    conn.execute(sql.SQL("ANALYZE {}").format(tables))


# GIN indexes that were fed: what is still on their lists of new entries, every search would read.
_CLEAN = """
    SELECT gin_clean_pending_list(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
     WHERE i.indrelid = ANY (%s::regclass[]) AND m.amname = 'gin'
"""


def rebuild(dsn: str, definitions: list[str], advice: str = "Run it again: it goes on where it was") -> None:
    """Make the dropped indexes again, two at a time.

    Raises:
        CheckFailed: one can't be made; `advice`: what to do then.
    """

    def one(definition: str) -> None:
        with closing(connected(dsn)) as own:
            own.execute("SET maintenance_work_mem = '256MB'")
            own.execute(definition.replace("CREATE INDEX ", "CREATE INDEX IF NOT EXISTS ", 1).encode())

    try:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(one, definitions))
    except (psycopg.Error, UserError) as error:
        said = " ".join(str(error).split())[:300]
        raise CheckFailed(f"an index could not be made again: {said}. {advice}") from None


def moment() -> str:
    """What stands in for a timestamp that is none: the beginning of the migration."""
    return datetime.now(UTC).isoformat()
