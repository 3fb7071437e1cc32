"""Is what the target holds what the source holds? Row by row, over canonical values, on both sides.

Each chunk of the source is read and converted again; the target's rows of the same keys are read back. Both sides' digests add up per
table, whatever the order; a row that is missing, is one too many or differs is named by its key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from orcheo_db.migrate import text
from orcheo_db.migrate.canonical import canonical, digest, total
from orcheo_db.migrate.convert import (
    EXTRA,
    NO_FILE,
    REFUSED,
    RENAMED,
    UNSPLIT,
    WORKSPACE,
    Converted,
    Converter,
    Kept,
    Row,
    dumps,
    loads,
    unform,
    whole,
)
from orcheo_db.migrate.layout import ARCHIVE, ATTACHMENT_BLOBS, BLOBS
from orcheo_db.migrate.source import Found, Source, opened
from orcheo_db.migrate.state import Catalogue, State
from orcheo_db.migrate.sync import ROWID, Setting, Task, Worker, read, size_of

Connection = psycopg.Connection[Any]
BATCH_BYTES = 2 * 2**20  # of rows compared at a time: each worker holds them several times over
BY_US = (WORKSPACE, RENAMED, EXTRA, NO_FILE)  # originals of what the migration itself set or has no place for
LISTED = 50  # mismatches of a table that are named


Read = tuple[tuple[str, ...], Converted, tuple[Any, ...]]


@dataclass(frozen=True)
class Check:
    """One chunk to compare, or only some of its rows, by their rowids."""

    table: str
    lo: int
    only: tuple[int, ...] | None = None


@dataclass
class Compared:
    """A chunk's, or a table's, result. wrong: key and what is wrong with it."""

    table: str
    rows: int = 0
    found: int = 0
    source: int = 0
    target: int = 0
    bytes: int = 0
    wrong: list[tuple[str, str]] = field(default_factory=list)
    mismatches: int = 0
    bad: set[int] = field(default_factory=set)  # chunks with a mismatch

    def add(self, other: Compared) -> None:
        self.rows += other.rows
        self.found += other.found
        self.bytes += other.bytes
        self.source, self.target = total((self.source, other.source)), total((self.target, other.target))
        self.mismatches += other.mismatches
        self.wrong += other.wrong[: LISTED - len(self.wrong)]
        self.bad |= other.bad

    def note(self, key: Sequence[str], what: str) -> None:
        self.mismatches += 1
        if len(self.wrong) < LISTED:
            self.wrong.append((", ".join(key), what))

    @property
    def ok(self) -> bool:
        return not self.mismatches and self.source == self.target

    def document(self) -> dict[str, Any]:
        return {
            "table": self.table, "ok": self.ok, "rows": self.rows, "bytes": self.bytes, "digest_source": f"{self.source:032x}",
            "digest_target": f"{self.target:032x}", "mismatches": self.mismatches, "wrong": [{"key": k, "what": w} for k, w in self.wrong],
        }  # fmt: skip


def normal(kind: str, value: Any, unknown: frozenset[str] = frozenset()) -> bytes | None:
    """A value of either side in its one form, by the column's type in PostgreSQL ("": it is not compared).

    Args:
        unknown: keys of a JSON document that don't count.
    """
    if value is None or not kind:
        return None
    if isinstance(value, bytes | memoryview):
        return hashlib.sha256(value).hexdigest().encode()
    if kind == "jsonb":
        try:
            return canonical(_without(str(value), unknown) if unknown else str(value))
        except ValueError:
            return b"no JSON: " + str(value).encode("utf-8", "surrogateescape")
    return str(value).encode("utf-8", "surrogatepass")


def _without(document: str, unknown: frozenset[str]) -> str:
    found = loads(document)
    if not isinstance(found, dict):
        return document
    return dumps({key: value for key, value in found.items() if key not in unknown}).decode()


def from_target(kind: str, value: Any) -> Any:
    """A value that PostgreSQL gave as text, as the converter would have made it."""
    if value is None or kind == "bytea":
        return value
    if kind == "timestamp with time zone":
        return text.iso(str(value))
    if kind == "boolean":
        return "t" if value in ("true", "t") else "f"
    return value


class Checker:
    """Compares chunks with a worker's connection."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.conn, self.catalogue = worker, worker.conn, worker.setting.catalogue

    def check(self, task: Check) -> Compared:
        """One chunk."""
        table = self.worker.setting.source.table(task.table)
        assert table is not None
        found = Compared(task.table)
        with opened(self.worker.setting.source.directory / table.file) as reading:
            rows = read(reading, table, task.lo, self.worker.setting.widths[task.table], task.only)
            if table.known is None:
                self._archive(table, rows, found)
                return found
            converter = self.worker.converter(table)
            batch: list[Read] = []
            size = 0
            for _, row in rows:
                key = converter.key_of(row)
                made = converter.convert(row)
                batch.append((key, made, row))
                length = size_of(row)
                found.bytes += length
                # With an attachment's contents; a checkpoint's blobs are parts of its row.
                size += max(length, sum(size_of(values) for _, values in made.rows))
                if size > BATCH_BYTES:
                    self._batch(table, converter, batch, found)
                    batch, size = [], 0
            self._batch(table, converter, batch, found)
        if found.mismatches:
            found.bad.add(task.lo)
        return found

    def _batch(self, table: Found, converter: Converter, rows: list[Read], found: Compared) -> None:
        if not rows:
            return
        assert table.known is not None
        into = table.known.into
        kinds = [self.catalogue.types[into][name] for name in converter.into]
        kept = originals(self.conn, table.name, [key for key, _, _ in rows])
        # That PostgreSQL refused a row only PostgreSQL can say; the converter would let it through.
        refused = {
            key: of_row[0].reason
            for key, of_row in kept.items()
            if of_row[0].column is None and (of_row[0].reason.startswith(REFUSED) or of_row[0].reason == UNSPLIT)
        }
        batch = [(key, converter.apart(row, refused[key]) if key in refused else made) for key, made, row in rows]
        wanted = [(key, made) for key, made in batch if made.rows]
        place = [converter.into.index(name) for name in self.catalogue.keys[into]]
        there = self._named(into, converter.into, [tuple(made.rows[0][1][i] for i in place) for _, made in wanted])
        extra = self._extra(into, wanted)
        ignored, unknown = self.worker.setting.ignore.get(table.name, (frozenset(), frozenset()))
        kinds = ["" if name in ignored else kind for name, kind in zip(converter.into, kinds, strict=True)]

        def form(values: Sequence[Any]) -> list[bytes | None]:
            return [
                normal(kind, value, unknown if name in table.known.models else frozenset())  # type: ignore[union-attr]
                for name, kind, value in zip(converter.into, kinds, values, strict=True)
            ]

        for key, made in batch:
            found.rows += 1
            expected = form(made.rows[0][1]) if made.rows else []
            if made.rows and extra is not None:
                expected.append(_joined([_blob_form(into, row) for into, row in made.rows[1:]]))
            actual = None
            if made.rows:
                name = tuple(str(made.rows[0][1][i]) for i in place)
                row = there.get(name)
                if row is not None and not self.worker.setting.originals:
                    row = _as_written(converter, row, kept.get(key, []))
                actual = None if row is None else form([from_target(k, v) for k, v in zip(kinds, row, strict=True)])
                if actual is not None and extra is not None:
                    actual.append(_joined(extra.get(name, [])))
            mine, theirs = _kept_form(made.kept), _kept_form(kept.get(key, []))
            if made.rows and not self.worker.setting.originals:
                mine = theirs = b""
            found.source = total((found.source, digest([*expected, mine])))
            if made.rows and actual is None:
                found.note(key, "is missing in the target")
                continue
            found.found += 1
            found.target = total((found.target, digest([*(actual or []), theirs])))
            if actual is not None and actual != expected:
                names = [*converter.into, "blobs"]
                bad = [names[i] for i, (a, b) in enumerate(zip(expected, actual, strict=True)) if a != b]
                found.note(key, f"differs in {', '.join(bad)}")
            elif row_left := self._left_out(converter, made, kept.get(key, []), actual):
                found.note(key, f"has not its original {row_left} again")
            elif mine != theirs:
                found.note(
                    key, "its originals in the quarantine differ" if made.rows else "is not in the quarantine as it was"
                )

    def _left_out(
        self, converter: Converter, made: Converted, kept: Sequence[Kept], actual: Sequence[bytes | None] | None
    ) -> str | None:
        """In files that a rollback wrote: a column whose original is missing although the app has left alone what stands for it."""
        if actual is None or self.worker.setting.originals:
            return None
        there = {(one.column, one.original) for one in made.kept}
        for i, (_, name, to) in enumerate(converter.pairs):
            for one in kept:
                if one.column != name or one.path is not None or one.reason in BY_US or (name, one.original) in there:
                    continue
                apart = frozenset({"workspace_id", "scope", "handle", "name"} if to == "payload" else ())
                kind = converter.types[to]
                stand_in = normal(kind, converter.makers[i](unform(one.original, one.form), Converted()), apart)
                value = actual[converter.into.index(to)]
                if stand_in is not None and stand_in == (
                    normal(kind, value.decode(), apart) if apart and value else value
                ):
                    return name
        return None

    def _named(self, table: str, columns: Sequence[str], keys: Sequence[Row]) -> dict[tuple[str, ...], tuple[Any, ...]]:
        """The target's rows, by key; in files that a rollback wrote U+FDD0 in a key may be the newest app's own, and is not escaped then."""
        if self.worker.setting.originals:
            return self._rows(table, columns, keys)
        raw = {tuple(map(str, key)): _unescaped(key) for key in keys}
        found = self._rows(
            table, columns, [*keys, *(other for key, other in raw.items() if tuple(map(str, other)) != key)]
        )
        for key, other in raw.items():
            if key not in found and (row := found.get(tuple(map(str, other)))) is not None:
                found[key] = row
        return found

    def _rows(self, table: str, columns: Sequence[str], keys: Sequence[Row]) -> dict[tuple[str, ...], tuple[Any, ...]]:
        """The target's rows of these keys, by key."""
        if not keys:
            return {}
        names = self.catalogue.keys[table]
        types = self.catalogue.types[table]
        selected = [
            sql.SQL("t.{}").format(sql.Identifier(c))
            if types[c] == "bytea"
            else sql.SQL("t.{}::text").format(sql.Identifier(c))
            for c in columns
        ]
        query = sql.SQL("SELECT {}, {} FROM unnest({}) k({}) JOIN public.{} t ON {}").format(
            sql.SQL(", ").join(sql.SQL("t.{}::text").format(sql.Identifier(name)) for name in names),
            sql.SQL(", ").join(selected),
            sql.SQL(", ").join(sql.SQL("%s::{}[]").format(sql.SQL(types[name])) for name in names),
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.Identifier(table),
            sql.SQL(" AND ").join(sql.SQL("t.{0} = k.{0}").format(sql.Identifier(name)) for name in names),
        )
        values = [[key[i] for key in keys] for i in range(len(names))]
        found = self.conn.execute(query, values, binary=True)
        return {tuple(map(str, row[: len(names)])): row[len(names) :] for row in found}

    def _extra(
        self, into: str, wanted: Sequence[tuple[tuple[str, ...], Converted]]
    ) -> dict[tuple[str, ...], list[bytes]] | None:
        """What belongs to a row in another table: a checkpoint's blobs, an attachment's contents."""
        rows = [made.rows[0][1] for _, made in wanted]
        found: dict[tuple[str, ...], list[bytes]] = {}
        if into == "checkpoints":
            keys = [tuple(map(str, row[:3])) for row in rows]
            shown = "b.channel, b.version, b.type, encode(sha256(b.blob), 'hex')"
            for *key, channel, version, kind, content in blobs(self.conn, keys, shown):
                found.setdefault(tuple(key), []).append("\x00".join((channel, version, kind, content or "")).encode())
            return found
        if into == "chat_attachments":
            query = "SELECT attachment_id, encode(sha256(content), 'hex'), sha256 FROM chat_attachment_blobs WHERE attachment_id = ANY (%s)"
            for key, content, noted in self.conn.execute(query, ([row[0] for row in rows],)):
                found.setdefault((key,), []).append(f"{content}\x00{noted}".encode())
            return found
        return None

    def _archive(self, table: Found, rows: Any, found: Compared) -> None:
        place = sql.Identifier(ARCHIVE, table.name)
        for rowid, row in rows:
            mine = whole(table.names, row)
            there = self.conn.execute(
                sql.SQL("SELECT row::text FROM {} WHERE {} = %s").format(place, sql.Identifier(ROWID)), (rowid,)
            ).fetchone()
            found.rows += 1
            found.bytes += len(mine)
            found.source = total((found.source, digest([mine])))
            if there is None:
                found.note((str(rowid),), "is missing in the archive")
                continue
            found.found += 1
            found.target = total((found.target, digest([str(there[0]).encode()])))
            if str(there[0]).encode() != mine:
                found.note((str(rowid),), "differs in the archive")


def columns_escaped(kept: Sequence[Kept]) -> frozenset[str]:
    """A row's columns (SQLite's) in which something stands for characters that PostgreSQL can't hold: others have none of the escapes."""
    return frozenset(one.column for one in kept if one.column and one.path is None and one.reason not in BY_US)


def _unescaped(name: Row) -> Row:
    """A key as the newest app may have made it: only of what PostgreSQL itself could hold."""

    def part(value: Any) -> Any:
        raw = text.restore(value) if isinstance(value, str) else value
        return raw if isinstance(raw, str) and text.clean(raw)[1] <= {text.MARKED} else value

    return tuple(part(value) for value in name)


def _as_written(converter: Converter, row: Sequence[Any], kept: Sequence[Kept]) -> tuple[Any, ...]:
    """The target's row as a migration of the files that a rollback wrote would give it: U+FDD0 of the app's own is escaped then."""
    names = {to: name for _, name, to in converter.pairs}
    escaped = columns_escaped(kept)
    return tuple(
        text.there_and_back(converter.types[to], value, escaped=names.get(to) in escaped)
        if isinstance(value, str)
        else value
        for to, value in zip(converter.into, row, strict=True)
    )


def originals(conn: Connection, table: str, keys: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], list[Kept]]:
    """What the quarantine keeps of a table's rows, by key."""
    query = """
        SELECT q.key, q.col, q.path, q.original, q.form, q.reason FROM orcheo_archive.quarantine q
         WHERE q.tab = %s AND q.key = ANY (SELECT ARRAY(SELECT jsonb_array_elements_text(k)) FROM unnest(%s::jsonb[]) k)
    """
    found: dict[tuple[str, ...], list[Kept]] = {}
    for key, column, path, original, form, reason in conn.execute(query, (table, [json.dumps(key) for key in keys])):
        kept = Kept(column, path, None if original is None else bytes(original), form, reason)
        found.setdefault(tuple(key), []).append(kept)
    return found


def blobs(conn: Connection, keys: Sequence[tuple[str, ...]], shown: str) -> psycopg.Cursor[Any]:
    """The blobs of checkpoints, as the PostgreSQL saver finds them: each row the checkpoint's key and what is `shown` of blob b."""
    query = f"""
        SELECT c.thread_id, c.checkpoint_ns, c.checkpoint_id, {shown}
          FROM unnest(%s::text[], %s::text[], %s::text[]) k(t, n, i)
          JOIN checkpoints c ON c.thread_id = k.t AND c.checkpoint_ns = k.n AND c.checkpoint_id = k.i
         CROSS JOIN LATERAL jsonb_each_text(c.checkpoint -> 'channel_versions') v
          JOIN checkpoint_blobs b ON b.thread_id = c.thread_id AND b.checkpoint_ns = c.checkpoint_ns AND b.channel = v.key AND b.version = v.value
    """
    return conn.execute(query.encode(), [[key[i] for key in keys] for i in range(3)], binary=True)


def _blob_form(table: str, row: Row) -> bytes:
    if table == BLOBS:
        _, _, channel, version, kind, data = row
        content = hashlib.sha256(data or b"").hexdigest()  # type: ignore[arg-type]
        return "\x00".join((str(channel), str(version), str(kind), content)).encode()
    assert table == ATTACHMENT_BLOBS
    return "\x00".join((hashlib.sha256(row[1] or b"").hexdigest(), str(row[3]))).encode()  # type: ignore[arg-type]


def _joined(parts: Sequence[bytes]) -> bytes:
    return b"\x01".join(sorted(parts))


def _kept_form(kept: Sequence[Kept]) -> bytes:
    parts = [
        b"\x02".join(
            x if isinstance(x, bytes) else b"" if x is None else str(x).encode()
            for x in (k.column, k.path, k.original, k.form, k.reason)
        )
        for k in kept
    ]
    return b"\x03".join(sorted(parts))


def surplus(
    conn: Connection, found: State, source: Source, catalogue: Catalogue, results: Mapping[str, Compared]
) -> list[str]:
    """Note the target's rows that the source does not have; returns the tables with some. They are only looked for where the number says so."""
    tables = []
    for table in source.tables:
        if table.known is None or table.name not in results:
            continue
        into, result = table.known.into, results[table.name]
        row = conn.execute(sql.SQL("SELECT count(*) FROM public.{}").format(sql.Identifier(into))).fetchone()
        away = conn.execute(
            "SELECT count(*) FROM orcheo_archive.quarantine WHERE tab = %s AND col IS NULL", (table.name,)
        ).fetchone()
        assert row is not None and away is not None
        present = int(row[0]) - len(found.ours.get(into, []))
        missing = sum("missing in the target" in what for _, what in result.wrong)
        wanted = result.rows - int(away[0]) - missing
        if present < wanted and result.mismatches <= LISTED:
            tables.append(table.name)
            result.note((), f"{wanted - present} rows are missing in the target")
        if present > wanted and result.mismatches <= LISTED:
            tables.append(table.name)
            names = _strangers(conn, found, source, table, catalogue)
            for name in names or [()]:
                result.note(name, "is a row that the source does not have")
    return tables


def _strangers(
    conn: Connection, found: State, source: Source, table: Found, catalogue: Catalogue
) -> list[tuple[str, ...]]:
    """Keys of the target that the source does not have, up to LISTED (of tables whose key is the same on both sides)."""
    assert table.known is not None
    if table.name in ("store", "plugin_installations"):
        return []
    key, ours = catalogue.keys[table.known.into], set(found.ours.get(table.known.into, []))
    where = " AND ".join(f'"{name}" = ?' for name in table.known.key)
    names = []
    with (
        opened(source.directory / table.file) as reading,
        conn.transaction(),
        conn.cursor(name="strangers") as cursor,
    ):
        cursor.execute(
            sql.SQL("SELECT {} FROM public.{}").format(
                sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in key),
                sql.Identifier(table.known.into),
            )
        )
        for row in cursor:
            if (
                row[0] in ours
                or reading.execute(
                    f'SELECT 1 FROM "{table.name}" WHERE {where}', [text.restore(v) for v in row]
                ).fetchone()
            ):
                continue
            names.append(tuple(row))
            if len(names) >= LISTED:
                break
    return names


def everything(
    setting: Setting, conn: Connection, found: State, run: Callable[..., None], work: Callable[[Found], Sequence[Task]],
    report: Callable[[Compared], None],
) -> list[Compared]:  # fmt: skip
    """Compare all tables; `run`: the pool's. Returns one result a table."""
    results: dict[str, Compared] = {table.name: Compared(table.name) for table in setting.source.tables}

    def each(one: Compared) -> None:
        results[one.table].add(one)
        report(one)

    checks = (Check(task.table, task.lo) for table in setting.source.data for task in work(table))
    run(checks, each)
    surplus(conn, found, setting.source, setting.catalogue, results)
    return list(results.values())
