"""Bringing one chunk of a table to the target: a range of rowids, in one transaction with the note of what it held.

The same function copies at first and mends later: a row whose digest is the noted one is left alone.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import errors, sql

from orcheo_db import database
from orcheo_db.errors import CheckFailed
from orcheo_db.migrate.convert import LOSSY, REFUSED, UNSPLIT, Converted, Converter, Kept, Options, Row, whole
from orcheo_db.migrate.home import Home, Lookup
from orcheo_db.migrate.layout import ARCHIVE, ATTACHMENT_BLOBS, BLOBS
from orcheo_db.migrate.source import Found, Source, opened
from orcheo_db.migrate.state import APPLICATION, Catalogue, settle

Connection = psycopg.Connection[Any]
Rows = Iterator[tuple[int, tuple[Any, ...]]]
Noted = tuple[int, list[str], Kept]  # rowid, key, original
Before = tuple[int, bytes]  # rowid, mark
NAMED = 20_000  # changed rows of a chunk that are named one by one
LARGE = 2**20  # bytes: one call for all of a row is faster, but is a copy of it
FLUSH_BYTES = 8 * 2**20  # rows in memory before they are sent; a row may be larger
# What PostgreSQL may say about one row; anything else ends the run.
OF_A_ROW = (errors.DataError, errors.IntegrityError, errors.ProgramLimitExceeded, errors.StatementTooComplex)
# Entries of the full-text index are merged into it in lots of this: by a fourth faster than in the default's 4 MB, and the index grows by
# no more than this beyond its contents (measured: 400 MB of files; 64 MB are no faster).
PENDING = "16MB"
SAME_KEY = f"{REFUSED}: another row has the same key"
LAST_ROWID = 2**63 - 1
ROWID = "sqlite_rowid"  # the key of a table of the archive
# Several rows of these may share something in the target (a blob, a prefix or a plugin's state of two workspaces that become one):
# where one has changed, its whole chunk is looked at.
SHARING = frozenset({"checkpoints", "store", "plugin_installations"})


@dataclass(frozen=True)
class Setting:
    """Everything a worker process needs."""

    dsn: str = field(repr=False)
    source: Source
    catalogue: Catalogue
    home: Home
    options: Options
    widths: dict[str, int]
    # What is not compared, by table: columns, and keys of JSON documents that an old release's model doesn't know.
    ignore: Mapping[str, tuple[frozenset[str], frozenset[str]]] = field(default_factory=dict)
    # Whether the rows' originals must be those of the quarantine: not after a rollback, where the app has changed some since.
    originals: bool = True


@dataclass(frozen=True)
class Task:
    """One chunk. fresh: nothing of it was copied and no other row may be in its way."""

    table: str
    lo: int
    fresh: bool


@dataclass
class Done:
    """What happened to a chunk.

    brought: rows that were written. only: their rowids, where they are not all rows of the chunk. before: rows that it held according to
    the last note; since: those that are others now, or gone (None: too many). compared: whether that note's rows were compared with the source.
    """

    task: Task
    since: tuple[Before, ...] | None = ()
    rows: int = 0
    away: int = 0
    bytes: int = 0
    changed: bool = False
    brought: int = 0
    only: tuple[int, ...] | None = None
    before: int = 0
    compared: bool = False


class Marks:
    """What a chunk holds: of each row its rowid and a digest of SQLite's values, in the order of the rowids."""

    FORM = "sha256"  # noted with the migration: marks of another form tell nothing
    _ONE = struct.Struct(">q8s")  # two different values of one row have the same eight bytes once in 2^64 changes

    def __init__(self) -> None:
        self.raw = bytearray()
        self.rows = self.bytes = 0

    def add(self, rowid: int, row: Sequence[Any]) -> None:
        parts: list[bytes] = []
        size = 0
        for value in row:
            kind = type(value)
            if kind is str or kind is bytearray:  # TEXT, decoded or not
                raw = value.encode("utf-8", "surrogateescape") if kind is str else value
                parts.append(b"t%d:" % len(raw))
            elif kind is bytes:
                raw = value
                parts.append(b"b%d:" % len(raw))
            else:
                raw = repr(value).encode()
                parts.append(b"r%d:" % len(raw))
            parts.append(raw)
            size += len(raw)
        self.rows += 1
        self.bytes += size
        # Of Python's hashes the fastest on a processor that has instructions for it (all x86 since 2019, ARM): twice blake2b, measured.
        hashed = hashlib.sha256()
        for part in parts if size > LARGE else (b"".join(parts),):
            hashed.update(part)
        self.raw += self._ONE.pack(rowid, hashed.digest()[:8])

    @classmethod
    def of(cls, row: Sequence[Any]) -> bytes:
        """The mark of one row."""
        one = cls()
        one.add(0, row)
        return next(mark for _, mark in cls.each(one.raw))

    @classmethod
    def each(cls, noted: bytes | bytearray) -> Iterator[Before]:
        """Rowids and marks."""
        return cls._ONE.iter_unpack(noted)

    def since(self, noted: bytes) -> tuple[list[int], list[int]]:
        """Rowids of what is new or another than noted, and of what was noted and is gone."""
        before = dict(self.each(noted))
        changed = [rowid for rowid, mark in self.each(self.raw) if before.pop(rowid, None) != mark]
        return changed, sorted(before)


class Writer:
    """Rows of one chunk on their way to the target, in order, with their originals; sent when there are enough."""

    def __init__(
        self, conn: Connection, task: Task, converter: Converter, catalogue: Catalogue, *, upsert: bool
    ) -> None:
        self.conn, self.task, self.converter, self.catalogue, self.upsert = conn, task, converter, catalogue, upsert
        self.rows: dict[str, list[Row]] = {}
        self.kept: list[Noted] = []
        self.bytes = 0

    def add(self, rowid: int, key: tuple[str, ...], made: Converted) -> None:
        for table, row in made.rows:
            self.rows.setdefault(table, []).append(row)
            self.bytes += sum(len(value) for value in row if value is not None)
        for kept in made.kept:
            self.kept.append((rowid, list(key), kept))
            self.bytes += len(kept.original or b"")
        if self.bytes > FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what there is, parents before what belongs to them."""
        for table, rows in self.rows.items():
            self._send(table, rows)
        if self.upsert and "chat_attachments" in self.rows:
            self._without_contents()
        keep(self.conn, self.task, self.kept)
        self.rows, self.kept, self.bytes = {}, [], 0

    def _without_contents(self) -> None:
        """An attachment whose file is gone has no contents any more (and a note of it in the quarantine)."""
        ids = {row[self.converter.into.index("id")] for row in self.rows["chat_attachments"]}
        ids -= {row[0] for row in self.rows.get(ATTACHMENT_BLOBS, [])}
        self.conn.execute(
            "DELETE FROM public.chat_attachment_blobs WHERE attachment_id = ANY (%s)", (sorted(map(str, ids)),)
        )

    def _send(self, table: str, rows: Sequence[Row]) -> None:
        names = sql.SQL(", ").join(map(sql.Identifier, self.converter.columns_of(table)))
        place = sql.Identifier("public", table)
        if not self.upsert and table != BLOBS:
            _copy(self.conn, sql.SQL("COPY {} ({}) FROM STDIN").format(place, names), rows)
            return
        stage = sql.Identifier(f"stage_{table}")
        self.conn.execute(
            sql.SQL(
                "CREATE TEMP TABLE IF NOT EXISTS {} ON COMMIT DELETE ROWS AS SELECT {} FROM {} WITH NO DATA"
            ).format(stage, names, place)
        )
        self.conn.execute(sql.SQL("TRUNCATE {}").format(stage))
        _copy(self.conn, sql.SQL("COPY {} ({}) FROM STDIN").format(stage, names), rows)
        key = self.catalogue.keys[table]
        rest = [name for name in self.converter.columns_of(table) if name not in key]
        keys = sql.SQL(", ").join(map(sql.Identifier, key))
        change: sql.Composable = sql.SQL(" DO NOTHING")
        if rest and not (table == BLOBS and not self.upsert):
            types = self.catalogue.types[table]
            # For jsonb 1 equals 1.0, which for the app are two values.
            exact = {name: sql.SQL("::text" if types[name] == "jsonb" else "") for name in rest}
            change = sql.SQL(" DO UPDATE SET {} WHERE ({}) IS DISTINCT FROM ({})").format(
                sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in rest),
                sql.SQL(", ").join(sql.SQL("t.{}{}").format(sql.Identifier(name), exact[name]) for name in rest),
                sql.SQL(", ").join(sql.SQL("EXCLUDED.{}{}").format(sql.Identifier(name), exact[name]) for name in rest),
            )
        # In the order of the key: two workers that bring the same blob wait for each other and never in a circle. Of several versions
        # of one row in a chunk there is one at most, but a blob may come with several checkpoints.
        query = sql.SQL(
            "INSERT INTO {} AS t ({names}) SELECT DISTINCT ON ({keys}) {names} FROM {} ORDER BY {keys} ON CONFLICT ({keys}){}"
        )
        self.conn.execute(query.format(place, stage, change, names=names, keys=keys))


def keep(conn: Connection, task: Task, kept: Sequence[Noted]) -> None:
    """Originals of a chunk into the quarantine."""
    if kept:
        statement = sql.SQL(
            "COPY orcheo_archive.quarantine (tab, lo, rowid, key, col, path, original, form, reason, lossy) FROM STDIN"
        )
        rows = [
            (task.table, task.lo, rowid, key, k.column, k.path, k.original, k.form, k.reason, is_lossy(k.reason))
            for rowid, key, k in kept
        ]
        _copy(conn, statement, rows)


def _copy(conn: Connection, statement: sql.SQL | sql.Composed, rows: Sequence[Sequence[Any]]) -> None:
    with conn.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)


class Worker:
    """One process' connections and converters."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.conn: Connection = database.connect(setting.dsn, application_name=APPLICATION)
        self.conn.prepare_threshold = None
        settle(self.conn)
        # The server notes a chunk as done in the transaction that copies it: nothing has to wait for the disk. lz4 packs several times
        # faster than pglz, and the setting is this session's alone.
        for name, value in (
            ("synchronous_commit", "off"),
            ("default_toast_compression", "lz4"),
            ("work_mem", "64MB"),
            ("temp_buffers", "64MB"),
            ("gin_pending_list_limit", PENDING),
        ):
            try:
                self.conn.execute("SELECT set_config(%s, %s, false)", (name, value))
            except errors.InvalidParameterValue:  # a server built without lz4
                continue
        self.lookup = Lookup(setting.source, setting.home)
        self._converters: dict[str, Converter] = {}

    def close(self) -> None:
        self.lookup.close()
        self.conn.close()

    def converter(self, table: Found) -> Converter:
        if table.name not in self._converters:
            away = self._away(table)
            catalogue = self.setting.catalogue
            self._converters[table.name] = Converter(
                self.setting.source,
                table,
                catalogue.types,
                catalogue.nullable,
                self.setting.home,
                self.setting.options,
                self.lookup,
                away,
            )
        return self._converters[table.name]

    def _away(self, table: Found) -> frozenset[tuple[str, ...]]:
        """Keys of parents that went into the quarantine whole: their children are orphans."""
        parent = table.known.parent if table.known else None
        if parent is None or parent.table == table.name:
            return frozenset()
        query = "SELECT key FROM orcheo_archive.quarantine WHERE tab = %s AND col IS NULL"
        return frozenset(tuple(key) for (key,) in self.conn.execute(query, (parent.table,)))

    def sync(self, task: Task) -> Done:
        """Bring one chunk up to date."""
        table = self.setting.source.table(task.table)
        assert table is not None
        done = Done(task)
        with self.conn.transaction(), opened(self.setting.source.directory / table.file) as reading:
            noted = self.conn.execute(
                "SELECT marks, rows, away, bytes, compared FROM orcheo_archive.chunk WHERE tab = %s AND lo = %s",
                (task.table, task.lo),
            ).fetchone()
            if noted is None:
                done.changed = True
                self._load(reading, table, done, upsert=not task.fresh)
                return done
            done.before, done.compared = int(noted[1]), bool(noted[4])
            marks, apart = self._look(reading, table, task)
            if noted[0] == marks.raw:
                done.rows, done.away, done.bytes = int(noted[1]), int(noted[2]), int(noted[3])
                return done
            done.changed = True
            changed, gone = marks.since(noted[0])
            touched = {*changed, *gone}
            since = tuple(one for one in Marks.each(noted[0]) if one[0] in touched)
            done.since = since if len(since) <= NAMED else None
            if apart and len(changed) < marks.rows:
                done.only = tuple(changed)
            self._forget(task, [*changed, *gone] if done.only is not None else None)
            self._load(reading, table, done, upsert=True, marks=marks)
        return done

    def _look(self, reading: Any, table: Found, task: Task) -> tuple[Marks, bool]:
        """What a chunk holds now, and whether each of its rows can be brought without the others."""
        marks = Marks()
        converter = self.converter(table) if table.known else None
        keys = [table.names.index(name) for name in table.known.key] if table.known else []
        kinds = set()  # a text and the same bytes are two keys in SQLite and one in the target: `_first_of_its_name`
        beside = converter.beside if converter is not None and converter.has_files else None
        decoded = reading.text_factory
        if beside is None:
            # The cutover reads everything here, with the app stopped: a text stays the bytes that it is in the file, of its own kind.
            reading.text_factory = bytearray
        for rowid, row in read(reading, table, task.lo, self.setting.widths[task.table]):
            marks.add(rowid, row if beside is None else (*row, *beside(row)))
            kinds.add(tuple([type(row[i]) for i in keys]))
        reading.text_factory = decoded
        return marks, bool(table.known and table.rowid and len(kinds) <= 1 and table.name not in SHARING)

    def _forget(self, task: Task, rowids: Sequence[int] | None) -> None:
        """Take a chunk's entries, or those of some of its rows, out of the quarantine."""
        statement = "DELETE FROM orcheo_archive.quarantine WHERE tab = %s AND lo = %s"
        if rowids is None:
            self.conn.execute(statement, (task.table, task.lo))
        else:
            self.conn.execute(f"{statement} AND rowid = ANY (%s)".encode(), (task.table, task.lo, list(rowids)))

    def _load(self, reading: Any, table: Found, done: Done, *, upsert: bool, marks: Marks | None = None) -> None:
        """Bring a chunk, or the rows `done.only` of it (then `marks` is what it holds)."""
        task = done.task

        def rows() -> Rows:
            return read(reading, table, task.lo, self.setting.widths[task.table], done.only)

        seen = Marks()
        try:
            with self.conn.transaction():
                self._fast(rows(), table, done, seen, upsert=upsert)
        except OF_A_ROW:
            done.away, seen = 0, Marks()
            self._carefully(rows(), table, done, seen, upsert=upsert)
        done.brought = seen.rows
        marks = seen if marks is None or done.only is None else marks
        done.rows, done.bytes = marks.rows, marks.bytes
        self._note(task, done, marks)

    def _fast(self, rows: Rows, table: Found, done: Done, marks: Marks, *, upsert: bool) -> None:
        if table.known is None:
            self._archive(rows, table, done, marks)
            return
        converter = self.converter(table)
        writer = Writer(self.conn, done.task, converter, self.setting.catalogue, upsert=upsert)
        blobs: dict[Row, bytes] = {}
        names: set[Row] = set()
        for rowid, row in rows:
            marks.add(rowid, (*row, *converter.beside(row)))
            key = converter.key_of(row)
            made = self._first_of_its_name(converter, converter.convert(row), row, names)
            if table.name == "checkpoints":
                made = _once(made, blobs, converter, row)
            done.away += not made.rows
            self._strict(table, key, made)
            writer.add(rowid, key, made)
        writer.flush()

    def _first_of_its_name(
        self, converter: Converter, made: Converted, row: Sequence[Any], names: set[Row]
    ) -> Converted:
        """SQLite tells a text from the same bytes as a blob; where two keys of a chunk become one, the second row is kept apart."""
        if not made.rows:
            return made
        into, values = made.rows[0]
        name = tuple(values[converter.into.index(column)] for column in self.setting.catalogue.keys[into])
        if name in names:
            return converter.apart(row, SAME_KEY)
        names.add(name)
        return made

    def _carefully(self, rows: Rows, table: Found, done: Done, marks: Marks, *, upsert: bool) -> None:
        """One row at a time: a row that PostgreSQL refuses goes into the quarantine whole."""
        converter = self.converter(table)
        names: set[Row] = set()
        for rowid, row in rows:
            marks.add(rowid, (*row, *converter.beside(row)))
            key, made = converter.key_of(row), converter.convert(row)
            made = self._first_of_its_name(converter, made, row, names)
            try:
                with self.conn.transaction():
                    writer = Writer(self.conn, done.task, converter, self.setting.catalogue, upsert=upsert)
                    writer.add(rowid, key, made)
                    writer.flush()
            except OF_A_ROW as error:
                reason = f"{REFUSED}: {error.diag.message_primary or error}"
                made = converter.apart(row, reason)
                keep(self.conn, done.task, [(rowid, list(key), one) for one in made.kept])
            done.away += not made.rows
            self._strict(table, key, made)

    def _archive(self, rows: Rows, table: Found, done: Done, marks: Marks) -> None:
        """A table that the newest release doesn't have: its rows as they are, as JSON (`convert.whole`)."""
        place = sql.Identifier(ARCHIVE, table.name)
        made = []
        for rowid, row in rows:
            marks.add(rowid, row)
            made.append((rowid, whole(table.names, row).decode()))
        lo, width = done.task.lo, self.setting.widths[table.name]
        self.conn.execute(
            sql.SQL("DELETE FROM {} WHERE {} BETWEEN %s AND %s").format(place, sql.Identifier(ROWID)),
            (lo, min(lo + width - 1, LAST_ROWID)),
        )
        _copy(self.conn, sql.SQL("COPY {} FROM STDIN").format(place), made)

    def _strict(self, table: Found, key: tuple[str, ...], made: Converted) -> None:
        bad = next((one for one in made.kept if is_lossy(one.reason)), None) if self.setting.options.strict else None
        if bad is not None:
            where = f"{table.name} {', '.join(key)}" + (f", column {bad.column}" if bad.column else "")
            raise CheckFailed(
                f"--strict: PostgreSQL can't hold {where} as it is ({bad.reason}); nothing of its chunk was copied"
            )

    def _note(self, task: Task, done: Done, marks: Marks) -> None:
        if done.only is not None:
            query = "SELECT count(*) FROM orcheo_archive.quarantine WHERE tab = %s AND lo = %s AND col IS NULL"
            row = self.conn.execute(query, (task.table, task.lo)).fetchone()
            done.away = int(row[0]) if row else 0
        self.conn.execute(
            "INSERT INTO orcheo_archive.chunk AS c (tab, lo, rows, away, bytes, marks) VALUES (%s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (tab, lo) DO UPDATE SET rows = EXCLUDED.rows, away = EXCLUDED.away, bytes = EXCLUDED.bytes, marks = EXCLUDED.marks,"
            " compared = false, pending = c.pending OR c.rows > 0",
            (task.table, task.lo, done.rows, done.away, done.bytes, bytes(marks.raw)),
        )


def is_lossy(reason: str) -> bool:
    """Whether a reason is something that the target does not hold (and not only another form of the same value)."""
    return reason in LOSSY or reason.startswith(REFUSED)


def _once(made: Converted, seen: dict[Row, bytes], converter: Converter, row: Sequence[Any]) -> Converted:
    """Blobs that an earlier checkpoint of the chunk brought are left out; one of the same name and other contents is trouble."""
    kept = []
    for table, values in made.rows:
        if table == BLOBS:
            name, digest = values[:4], hashlib.blake2b(values[5] or b"", digest_size=16).digest()  # type: ignore[arg-type]
            if name in seen:
                if seen[name] != digest:
                    return converter.apart(row, UNSPLIT)
                continue
            seen[name] = digest
        kept.append((table, values))
    made.rows = kept
    return made


def read(reading: Any, table: Found, lo: int, width: int, only: Sequence[int] | None = None) -> Rows:
    """A chunk's rows, or some of them, with their rowids and in their order."""
    names = ", ".join(f'"{name}"' for name in table.names)
    if not table.rowid:  # in one piece
        for i, row in enumerate(reading.execute(f'SELECT {names} FROM "{table.name}"')):
            yield i, row
        return
    query = f'SELECT rowid, {names} FROM "{table.name}" WHERE rowid BETWEEN ? AND ? ORDER BY rowid'
    spans = [(lo, min(lo + width - 1, LAST_ROWID))] if only is None else [(rowid, rowid) for rowid in only]
    for span in spans:
        for row in reading.execute(query, span):
            yield row[0], row[1:]


def stretches(reading: Any, table: Found, width: int) -> Iterator[int]:
    """The first rowids of a table's chunks. A table may have a few rows of very high rowids: where there are none is skipped."""
    lo = -(2**63)
    while lo <= LAST_ROWID:
        row = reading.execute(f'SELECT min(rowid) FROM "{table.name}" WHERE rowid >= ?', (lo,)).fetchone()
        if row[0] is None:
            return
        lo = row[0] // width * width
        yield lo
        lo += width


def size_of(row: Sequence[Any]) -> int:
    """A row's bytes, for progress and batches; a number counts as eight."""
    return sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
