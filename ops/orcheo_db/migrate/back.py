"""From PostgreSQL back into SQLite files of the release that the data came from, with all rows written since and the originals again."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from orcheo_db.bootstrap.job import APP_LOGINS
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.migrate import langgraph, text
from orcheo_db.migrate.convert import (
    CHATKIT,
    EXTRA,
    RENAMED,
    WORKSPACE,
    Converted,
    Converter,
    Kept,
    dumps,
    from_whole,
    loads,
    unform,
)
from orcheo_db.migrate.layout import ARCHIVE, BY_NAME, DERIVED, Table
from orcheo_db.migrate.source import Source
from orcheo_db.migrate.state import TARGETS, Catalogue, State
from orcheo_db.migrate.sync import ROWID, size_of
from orcheo_db.migrate.verify import BY_US, blobs, columns_escaped, from_target, normal, originals
from orcheo_db.upgrade.tables import COUNTERS

Connection = psycopg.Connection[Any]
BATCH, BATCH_BYTES = 500, 4 * 2**20  # rows worked on at a time, and what they may hold, with what belongs to them
FETCHED = 20  # rows that a cursor brings at a time: one may hold megabytes
LONGEST_NAME = 255  # bytes, on every file system of Linux
LEFT_BEHIND = "left-behind.jsonl"


@dataclass
class Back:
    """What was written. left: what the old release has no place for: "table" or "table.column" to number."""

    rows: dict[str, int] = field(default_factory=dict)
    originals: int = 0
    left: dict[str, int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


class Writer:
    """Writes one installation's files. out: a directory that is there and empty."""

    def __init__(
        self, conn: Connection, state: State, catalogue: Catalogue, converters: Mapping[str, Converter], out: Path
    ) -> None:
        self.conn, self.state, self.catalogue, self.converters, self.out = conn, state, catalogue, converters, out
        self.done = Back()
        self.left = (out / LEFT_BEHIND).open("w", encoding="utf-8")

    def everything(self) -> Back:
        """All files and tables; the caller holds a transaction in which nothing changes."""
        for file, statements in self.state.files.items():
            with closing(sqlite3.connect(self.out / file, isolation_level=None)) as writing:
                writing.execute("PRAGMA synchronous = OFF")
                for statement in statements:
                    if statement.upper().startswith(("CREATE INDEX", "CREATE UNIQUE", "CREATE TRIGGER")):
                        continue
                    writing.execute(statement)
                writing.execute("BEGIN")
                for name, table in self.state.tables.items():
                    if table["file"] == file:
                        self._table(writing, name, table["columns"])
                writing.execute("COMMIT")
                for statement in statements:  # faster over rows that are there
                    if statement.upper().startswith(("CREATE INDEX", "CREATE UNIQUE", "CREATE TRIGGER")):
                        writing.execute(statement)
                writing.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                writing.execute("PRAGMA synchronous = FULL")
            self.done.files.append(file)
        self._new_tables()
        self.left.close()
        if not self.done.left:
            (self.out / LEFT_BEHIND).unlink()
        return self.done

    def _table(self, writing: sqlite3.Connection, name: str, columns: Sequence[str]) -> None:
        known = BY_NAME.get(name)
        insert = f'INSERT INTO "{name}" ({", ".join(chr(34) + c + chr(34) for c in columns)}) VALUES ({", ".join("?" * len(columns))})'
        rows = self._archived(name) if known is None else self._rows(known, columns)
        count = 0
        ours = set(self.state.ours.get(known.into, ())) if known else set()
        for row in rows:
            if ours and row.get("id") in ours:
                continue
            values = [_store(row.get(column)) for column in columns]
            if any(isinstance(value, RawText) for value in values):
                marks = ", ".join("CAST(? AS TEXT)" if isinstance(value, RawText) else "?" for value in values)
                writing.execute(
                    f"{insert[: insert.rindex('(')]}({marks})",
                    [bytes(v) if isinstance(v, RawText) else v for v in values],
                )
            else:
                writing.execute(insert, values)
            count += 1
        self.done.rows[name] = count

    def _archived(self, name: str) -> Iterator[dict[str, Any]]:
        place = self.conn.execute("SELECT to_regclass(%s) IS NOT NULL", (f'{ARCHIVE}."{name}"',)).fetchone()
        if not (place and place[0]):
            return
        with self.conn.cursor(name=f"archive_{name}") as cursor:
            cursor.execute(
                sql.SQL("SELECT row::text FROM {} ORDER BY {}").format(
                    sql.Identifier(ARCHIVE, name), sql.Identifier(ROWID)
                )
            )
            for (row,) in cursor:
                yield from_whole(row.encode())

    def _rows(self, known: Table, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows of one table for SQLite, those of the quarantine among them."""
        into = known.into
        types = self.catalogue.types[into]
        names = list(types)
        selected = [
            sql.SQL("{}").format(sql.Identifier(c))
            if types[c] == "bytea"
            else sql.SQL("{}::text").format(sql.Identifier(c))
            for c in names
        ]
        order = sql.SQL(", ").join(map(sql.Identifier, self.catalogue.keys[into]))
        if "created_at" in types and "created_at" not in self.catalogue.keys[into]:
            order = sql.SQL("created_at, {}").format(order)
        moved = self._moved_keys(known)
        with self.conn.cursor(name=f"back_{into}", binary=True) as cursor:
            cursor.execute(
                sql.SQL("SELECT {} FROM public.{} ORDER BY {}").format(
                    sql.SQL(", ").join(selected), sql.Identifier(into), order
                )
            )
            for rows in self._batches(known, names, cursor):
                keys = [self._key(known, row, moved) for row in rows]
                kept = originals(self.conn, known.name, keys)
                parts = self._blobs(keys) if known.name == "checkpoints" else {}
                for key, row in zip(keys, rows, strict=True):
                    made = self._one(known, columns, row, types, [one for one in kept.get(key, []) if one.column])
                    if known.name == "checkpoints":
                        head = str(row["checkpoint"])
                        if "checkpoint" in columns_escaped(kept.get(key, [])):
                            head = text.from_jsonb(head)
                        made["checkpoint"] = _joined(key, head, parts.get(key, {}))
                        made["type"] = "msgpack"
                    if known.name == "chat_attachments":
                        self._file(str(row["id"]), str(row["name"]))
                    yield made
        with self.conn.cursor(name=f"originals_{into}", binary=True) as cursor:
            cursor.itersize = FETCHED
            query = "SELECT original FROM orcheo_archive.quarantine WHERE tab = %s AND col IS NULL ORDER BY key"
            for (original,) in cursor.execute(query, (known.name,)):
                self.done.originals += 1
                yield from_whole(bytes(original))

    def _batches(
        self, known: Table, names: Sequence[str], cursor: psycopg.ServerCursor[Any]
    ) -> Iterator[list[dict[str, Any]]]:
        """Rows, so many that they and their blobs can be held at once."""
        rows: list[dict[str, Any]] = []
        size = 0
        while fetched := cursor.fetchmany(FETCHED):
            made = [dict(zip(names, row, strict=True)) for row in fetched]
            beside = (
                self._blob_sizes([self._key(known, row, {}) for row in made]) if known.name == "checkpoints" else {}
            )
            for row in made:
                length = size_of(tuple(row.values())) + beside.get(self._key(known, row, {}), 0)
                if rows and (size + length > BATCH_BYTES or len(rows) == BATCH):
                    yield rows
                    rows, size = [], 0
                rows.append(row)
                size += length
        if rows:
            yield rows

    def _key(
        self, known: Table, row: Mapping[str, Any], moved: Mapping[tuple[str, ...], tuple[str, ...]]
    ) -> tuple[str, ...]:
        key = tuple(str(row[name]) for name in known.key)
        return moved.get(key, key)

    def _moved_keys(self, known: Table) -> dict[tuple[str, ...], tuple[str, ...]]:
        """For the tables whose key holds a workspace: the key in PostgreSQL to the key in SQLite."""
        if known.name not in ("store", "plugin_installations"):
            return {}
        home = self.state.home.id
        found: dict[tuple[str, ...], tuple[str, ...]] = {}
        query = "SELECT key FROM orcheo_archive.quarantine WHERE tab = %s AND reason = %s AND col IS NOT NULL"
        for (key,) in self.conn.execute(query, (known.name, WORKSPACE)):
            first, second = key
            rest = first[len(first.partition(".")[0]) :]
            found[(home + rest, second) if known.name == "store" else (first, home)] = (first, second)
        return found

    def _one(
        self, known: Table, columns: Sequence[str], row: dict[str, Any], types: Mapping[str, str], kept: Sequence[Kept]
    ) -> dict[str, Any]:
        document = {name: row.get(name) for name in known.models if name in row}
        for one in kept:
            if one.path is not None and one.column in document and document[one.column] is not None:
                document[one.column] = self._path(known, row, str(document[one.column]), one)
        for name, value in document.items():
            if value is not None and known.kept:
                document[name] = self._known_keys(known, row, name, str(value))
        made: dict[str, Any] = {}
        escaped = columns_escaped(kept)
        # Of two originals of one column the raw one counts, and what the migration did last says whether the app has changed it.
        ordered = sorted((one for one in kept if one.path is None), key=lambda one: one.reason not in BY_US)
        raw = {one.column: one for one in ordered}
        rules = {one.column: one for one in reversed(ordered)}
        for name in columns:
            to = known.renamed.get(name, name)
            value = document.get(to, row.get(to)) if to in types else None
            original = raw.get(name)
            if original is not None and self._is_unchanged(known, name, to, row, rules[name]):
                made[name] = unform(original.original, original.form)
                self.done.originals += 1
            elif to in types:
                made[name] = _back(
                    types[to],
                    value,
                    sqlite_times=known.sqlite_times,
                    zone=name == "expires_at",
                    escaped=name in escaped,
                )
                if name in known.texts and made[name] is not None:
                    made[name] = text.python_style(made[name])
                if name in known.blobs and isinstance(made[name], str):  # as the app writes them
                    made[name] = made[name].encode()
        for to in types:
            if (
                to not in {known.renamed.get(c, c) for c in columns}
                and row.get(to) is not None
                and to not in DERIVED.get(known.name, ())
            ):
                self._leave(known, row, to, from_target(types[to], row[to]))
        return made

    def _is_unchanged(self, known: Table, name: str, to: str, row: Mapping[str, Any], kept: Kept) -> bool:
        """Whether the app has left alone what stands for an original."""
        value = row.get(to)
        if kept.reason == EXTRA or (kept.reason == WORKSPACE and name != "workspace_ids"):
            return True
        converter = self.converters[known.name]
        if kept.reason == RENAMED:
            return bool(value == self.state.home.renames.get((known.name, str(row["id"]))))
        if kept.reason == WORKSPACE:
            before = loads(bytes(kept.original or b"[]").decode()) if kept.original else []
            listed = {w if w in self.state.home.known else None for w in before} if isinstance(before, list) else set()
            now = json.loads(value) if value else []
            return {w for w in listed if w} <= set(now) and len(now) <= max(len(before), 1)
        try:
            i = next(i for i, (_, n, _) in enumerate(converter.pairs) if n == name)
        except StopIteration:
            return True
        stand_in = converter.makers[i](unform(kept.original, kept.form), Converted())
        kind, apart = converter.types[to], self._set_by_us(known, name, row)
        return normal(kind, stand_in, apart) == normal(kind, from_target(kind, value), apart)

    def _set_by_us(self, known: Table, name: str, row: Mapping[str, Any]) -> frozenset[str]:
        """Keys of a payload that the migration itself has set: they say nothing of what the app did."""
        scoped = known.scoped
        if scoped is None or not scoped.payload or name != "payload":
            return frozenset()
        found = {"workspace_id"} | ({"scope"} if scoped.scope else set())
        if scoped.unique and row.get(scoped.unique) == self.state.home.renames.get((known.name, str(row["id"])), ""):
            found.add(scoped.unique)
        return frozenset(found)

    def _path(self, known: Table, row: Mapping[str, Any], document: str, one: Kept) -> str:
        found = loads(document)
        if not isinstance(found, dict) or one.path not in found:
            return document
        original = loads(bytes(one.original or b"null").decode())
        if one.reason == RENAMED and found[one.path] != self.state.home.renames.get((known.name, str(row["id"]))):
            return document
        if one.path == "scope":
            before, now = dict(original), dict(found["scope"])
            before.pop("workspace_ids", None)
            now.pop("workspace_ids", None)
            if dumps(before) != dumps(now):
                return document
        found[one.path] = original
        self.done.originals += 1
        return dumps(found).decode()

    def _known_keys(self, known: Table, row: Mapping[str, Any], column: str, document: str) -> str:
        """Without what the old release's model does not know: it refuses a document with more."""
        keys = allowed(known, self.state)
        found = loads(document)
        if not isinstance(found, dict) or set(found) <= keys:
            return document
        for key in sorted(set(found) - keys):
            value = found.pop(key)
            if (
                value is not None
                and not (key == "workspace_id" and self.state.release == "0.15")
                and not _repeats(row, key, value)
            ):
                self._leave(known, row, f"{column}.{key}", dumps(value).decode())
        return dumps(found).decode()

    def _leave(self, known: Table, row: Mapping[str, Any], column: str, value: Any) -> None:
        if (column == "workspace_id" and value == self.state.home.id) or value in ("f", ""):
            return
        name = f"{known.name}.{column}"
        self.done.left[name] = self.done.left.get(name, 0) + 1
        key = [str(row[name]) for name in known.key if name in row]
        shown = bytes(value).hex() if isinstance(value, bytes | memoryview) else value
        self.left.write(json.dumps({"table": known.name, "key": key, "column": column, "value": shown}) + "\n")

    def _blobs(self, keys: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], dict[str, tuple[str, bytes]]]:
        found: dict[tuple[str, ...], dict[str, tuple[str, bytes]]] = {}
        for *key, channel, kind, blob in blobs(self.conn, keys, "b.channel, b.type, b.blob"):
            found.setdefault(tuple(key), {})[channel] = (kind, bytes(blob or b""))
        return found

    def _blob_sizes(self, keys: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
        found: dict[tuple[str, ...], int] = {}
        for *key, size in blobs(self.conn, keys, "octet_length(b.blob)"):
            found[tuple(key)] = found.get(tuple(key), 0) + int(size or 0)
        return found

    def _file(self, key: str, name: str) -> None:
        """An attachment's contents become a file again, where both classes of old releases look for it."""
        query = "SELECT content FROM chat_attachment_blobs WHERE attachment_id = %s"
        found = self.conn.execute(query, (key,), binary=True).fetchone()
        if found is not None:
            directory = self.out / CHATKIT
            directory.mkdir(exist_ok=True)
            (directory / file_name(key, text.restore(name))).write_bytes(bytes(found[0]))

    def _new_tables(self) -> None:
        """Rows of tables that the old release doesn't have: they stay in PostgreSQL, and are said."""
        covered = {BY_NAME[name].into for name in self.state.tables if name in BY_NAME} | set(TARGETS[-2:])
        skipped = {*COUNTERS, "hosted_app_runtime_state"}
        ours = set(self.state.ours)
        for table in self.catalogue.types:
            if table in covered or table in skipped or table in ours:
                continue
            row = self.conn.execute(sql.SQL("SELECT count(*) FROM public.{}").format(sql.Identifier(table))).fetchone()
            if row and row[0]:
                self.done.left[table] = int(row[0])
                for (document,) in self.conn.execute(
                    sql.SQL("SELECT to_jsonb(t)::text FROM public.{} t").format(sql.Identifier(table))
                ):
                    self.left.write(json.dumps({"table": table, "row": json.loads(document)}) + "\n")


def file_name(key: str, name: str) -> str:
    """An attachment's file, ID_NAME; of a name that no file can have so much as fits, with its suffix."""
    whole = f"{key}_{name}".translate({0: "_", ord("/"): "_"}).encode("utf-8", "surrogateescape")
    if len(whole) > LONGEST_NAME:
        suffix = Path(name).suffix.encode("utf-8", "surrogateescape")[-20:]
        whole = whole[: LONGEST_NAME - len(suffix)] + suffix
        return whole.decode("utf-8", "ignore")
    return whole.decode("utf-8", "surrogateescape")


def allowed(known: Table, found: State) -> frozenset[str]:
    """The keys that a payload may have in the old release: its models refuse others.

    What the source's own rows have counts, if that is more than the oldest release's: the releases of one class (`Source.release`) differ.
    """
    oldest, seen = known.kept["0.15"], frozenset(found.report.get("keys", {}).get(known.name, ()))
    return seen | oldest if seen - oldest else known.kept[found.release]


def _repeats(row: Mapping[str, Any], key: str, value: Any) -> bool:
    """Whether a payload's key only says again what a column of the row says."""
    return row.get(key) is not None and str(row[key]) == str(value)


def _joined(key: tuple[str, ...], head: str, blobs: Mapping[str, tuple[str, bytes]]) -> bytes:
    try:
        return langgraph.join(head, dict(blobs))
    except (langgraph.NotSplit, OverflowError) as error:
        raise CheckFailed(
            f"checkpoint {', '.join(key)} can't be written as the old release keeps them ({error}): delete its thread in the app and run it again"
        ) from None


class RawText(bytes):
    """Text that is no UTF-8, as its bytes: SQLite gets it by a cast."""


def _store(value: Any) -> Any:
    """For SQLite's binding."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return RawText(value.encode("utf-8", "surrogateescape"))
    return value


def _back(kind: str, value: Any, *, sqlite_times: bool, zone: bool, escaped: bool) -> Any:  # noqa: PLR0911 - one a type
    """A value that PostgreSQL gave (as text; bytea as bytes) for SQLite.

    escaped: it may hold what stands for characters that PostgreSQL can't; else whatever looks like that is the app's own.
    """
    if value is None:
        return None
    match kind:
        case "bytea":
            return bytes(value)
        case "jsonb":
            return text.from_jsonb(str(value)) if escaped else str(value)
        case "timestamp with time zone":
            return text.from_timestamp(str(value), sqlite_style=sqlite_times, zone=zone)
        case "boolean":
            return 1 if value in ("true", "t") else 0
        case "integer" | "bigint" | "smallint":
            return int(value)
        case _:
            return text.restore(str(value)) if escaped else str(value)


def settle(directory: Path) -> None:
    """Have everything in a directory on the disk, before the target notes that it is there."""
    for place, _, files in os.walk(directory):
        for name in files:
            sync(Path(place) / name)
        sync(Path(place))


def sync(path: Path) -> None:
    """fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# pg_stat_activity shows a session's state to its own role alone; locks are everybody's to see.
_AT_WORK = """
SELECT a.pid, a.application_name, bool_or(NOT l.granted) FROM pg_stat_activity a JOIN pg_locks l USING (pid)
 WHERE a.datname = current_database() AND a.usename = ANY (%s) AND l.relation = ANY (%s::regclass[]) AND l.database = a.datid
 GROUP BY a.pid, a.application_name ORDER BY a.pid
"""


def quiet(conn: Connection) -> None:
    """Nobody works as the app.

    Raises:
        UserError: somebody does.
    """
    for pid, name, _ in _at_work(conn):
        raise UserError(
            f"the app still works on the database (server process {pid}, {name or 'no name'}): stop it first. Nothing was changed."
        )


def refuse_waiting(conn: Connection) -> None:
    """Nobody waits to write as the app, for what it writes would be in PostgreSQL alone.

    Raises:
        UserError: somebody does.
    """
    for pid, name, waits in _at_work(conn):
        if waits:
            raise UserError(
                f"the app writes again (server process {pid}, {name or 'no name'}): stop it and run it again. Nothing was rolled back."
            )


def _at_work(conn: Connection) -> list[tuple[int, str, bool]]:
    found = conn.execute(_AT_WORK, (list(APP_LOGINS), [f"public.{name}" for name in TARGETS])).fetchall()
    return [(int(pid), str(name), bool(waits)) for pid, name, waits in found]


def lock(conn: Connection) -> None:
    """For the rest of this transaction nobody writes; reading goes on.

    Raises:
        CheckFailed: somebody does not let go of a table.
    """
    tables = sql.SQL(", ").join(sql.Identifier("public", name) for name in TARGETS)
    try:
        conn.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(tables))
    except psycopg.errors.LockNotAvailable as error:
        raise CheckFailed(
            f"a table is in use ({error.diag.message_primary}): stop the app and run it again. Nothing was changed."
        ) from None


def beside(original: Source, out: Path) -> list[str]:
    """Copy what the old release needs beside its databases: the vault's key file; returns the names."""
    copied = []
    for file in sorted(original.directory.glob("*.key")):
        shutil.copy2(file, out / file.name)
        copied.append(file.name)
    return copied
