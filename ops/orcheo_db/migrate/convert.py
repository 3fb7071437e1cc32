"""One row of a SQLite file to rows of the newest release's tables, with the originals of what changes on the way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Any

import orjson

from orcheo_db.migrate import langgraph, text
from orcheo_db.migrate.home import Home, Lookup
from orcheo_db.migrate.layout import ATTACHMENT_BLOBS, BLOBS, LISTS, Table
from orcheo_db.migrate.source import Found, Source

Value = str | bytes | None
Row = tuple[Value, ...]
ORPHAN, INVALID, BYTES, ODD, NULL, REFUSED, PLUGIN, RENAMED, WORKSPACE, NO_FILE, UNSPLIT, EXTRA = (
    "orphan", "invalid JSON", "bytes in a text column", "value of another type", "NULL where the release has none",
    "refused by PostgreSQL", "plugin state of another workspace", "renamed", "workspace", "attachment without its file",
    "checkpoint of another form", "column that the release does not have",
)  # fmt: skip
DEEP = "nested too deeply to be given a workspace"
LOSSY = text.LOSSY | {DEEP, ORPHAN, INVALID, BYTES, ODD, NULL, REFUSED, UNSPLIT}
CHATKIT = "chatkit"  # where the app keeps attachments: ID_NAME (orcheo_backend.app.chatkit, both classes of release)
MIRRORED = ("handle", "is_archived")  # columns of `workflows` that say what its payload says; 0.15 lacks them
MOVED = frozenset({"store", "plugin_installations"})  # whose key names a workspace, which may have become another one
LARGEST_FILE = 1 << 30  # bytes: PostgreSQL's limit for one value


@dataclass(frozen=True)
class Kept:
    """An original that the target does not show. column None: the whole row is here and nowhere else. path: only what was under
    this key of the JSON document; original None there: it was not there.
    """

    column: str | None
    path: str | None
    original: bytes | None
    form: str  # text, blob, integer, real, null, json
    reason: str


@dataclass
class Converted:
    """rows: target table and values, the row's own first; empty where the whole row went into the quarantine."""

    rows: list[tuple[str, Row]] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)


class Away(Exception):
    """The row has no place in the target; with the reason."""


@dataclass
class Options:
    """What the user decides. naive: the zone of timestamps that name none. moment: stands in for a timestamp that is none.

    attachments: further directories where the attachments' files are looked for. only_there: and nowhere else, not at their noted places
    either (for files that a rollback wrote).
    """

    naive: tzinfo = UTC
    strict: bool = False
    attachments: Sequence[Path] = ()
    moment: str = ""
    only_there: bool = False


def form(value: object) -> tuple[bytes | None, str]:
    """A SQLite value as bytes and its storage class."""
    match value:
        case None:
            return None, "null"
        case bytes():
            return value, "blob"
        case str():
            return value.encode("utf-8", "surrogateescape"), "text"
        case float():
            return repr(value).encode(), "real"
        case _:
            return str(value).encode(), "integer"


def unform(original: bytes | None, kind: str) -> Any:
    """The SQLite value again."""
    if original is None or kind == "null":
        return None
    match kind:
        case "blob":
            return bytes(original)
        case "text":
            return bytes(original).decode("utf-8", "surrogateescape")
        case "real":
            return float(original)
        case _:
            return int(original)


def whole(columns: Sequence[str], row: Sequence[Any]) -> bytes:
    """A whole row as JSON, exactly: column to [storage class, hexadecimal bytes or text]."""
    document = {}
    for column, value in zip(columns, row, strict=True):
        raw, kind = form(value)
        try:
            document[column] = [kind, None if raw is None else raw.decode() if kind != "blob" else raw.hex()]
        except UnicodeDecodeError:
            document[column] = ["text-hex", raw.hex() if raw else ""]
    return json.dumps(document).encode()


def from_whole(document: bytes) -> dict[str, Any]:
    """What `whole` was made from."""
    found: dict[str, Any] = {}
    for column, (kind, value) in json.loads(document).items():
        if value is None:
            found[column] = None
        elif kind == "text-hex":
            found[column] = bytes.fromhex(value).decode("utf-8", "surrogateescape")
        else:
            found[column] = unform(bytes.fromhex(value) if kind == "blob" else value.encode(), kind)
    return found


class Converter:
    """For one table. `target`: columns and types of the tables in PostgreSQL."""

    def __init__(
        self, source: Source, table: Found, target: Mapping[str, Mapping[str, str]], nullable: Mapping[str, frozenset[str]],
        home: Home, options: Options, lookup: Lookup, away: frozenset[tuple[str, ...]] = frozenset(),
    ) -> None:  # fmt: skip
        assert table.known is not None
        self.source, self.found, self.table = source, table, table.known
        self.home, self.options, self.lookup, self.away = home, options, lookup, away
        self.types = target[self.table.into]
        self.nullable = nullable[self.table.into]
        self.columns = table.names
        pairs = [(i, name, self.table.renamed.get(name, name)) for i, name in enumerate(self.columns)]
        self.pairs = [(i, name, to) for i, name, to in pairs if to in self.types]
        self.extra = [(i, name) for i, name, to in pairs if to not in self.types]
        self.into: tuple[str, ...] = (*(to for _, _, to in self.pairs), *self._added())
        self.makers = [self._maker(name, to) for _, name, to in self.pairs]
        self.key = [self.columns.index(name) for name in self.table.key]
        self.has_files = self.table.name == "chat_attachments"  # beside the rows: `beside`
        self._listed: dict[Path, Mapping[str, Path]] = {}

    def _added(self) -> tuple[str, ...]:
        """Columns that the source lacks and that are filled here."""
        has = {to for _, _, to in self.pairs}
        if self.table.name == "chat_attachments":
            return ("workspace_id", "workflow_id", "size_bytes", "sha256", "blob_backend")
        if self.table.name == "writes":
            return () if "task_path" in has else ("task_path",)
        scoped = self.table.scoped
        added = ("workspace_id",) if scoped and "workspace_id" in self.types and "workspace_id" not in has else ()
        mirrored = tuple(name for name in MIRRORED if name not in has) if self.table.name == "workflows" else ()
        return (*added, *mirrored)

    def columns_of(self, target: str) -> tuple[str, ...]:
        """The columns of the rows that are made for a target table."""
        if target == BLOBS:
            return ("thread_id", "checkpoint_ns", "channel", "version", "type", "blob")
        if target == ATTACHMENT_BLOBS:
            return ("attachment_id", "content", "size_bytes", "sha256", "created_at")
        return self.into

    def key_of(self, row: Sequence[Any]) -> tuple[str, ...]:
        """The row's key as texts, by which the quarantine names it."""
        return tuple("" if row[i] is None else text.clean(str(row[i]))[0] for i in self.key)

    def names(self, reading: Any, key: Sequence[str], away: Set[tuple[str, ...]]) -> Iterator[Row]:
        """The keys that the table's rows have in the target, but for those that are only in the quarantine.

        Args:
            reading: a connection to the table's file. key: of the target's table. away: keys as `key_of` gives them.
        """
        places = [self.into.index(name) for name in key]
        # Where the key is the row's own, nothing else of it is read.
        short = self.table.name not in MOVED
        columns = self.table.key if short else self.columns
        empty = [None] * len(self.columns)
        at = [self.columns.index(name) for name in columns]
        chosen = ", ".join(f'"{name}"' for name in columns)
        for values in reading.execute(f'SELECT {chosen} FROM "{self.found.name}"'):
            row = list(empty)
            for i, value in zip(at, values, strict=True):
                row[i] = value
            if self.key_of(row) in away:
                continue
            if short:
                yield self.name_of(row, places)
            elif made := self.convert(row).rows:
                yield tuple(made[0][1][i] for i in places)

    def name_of(self, row: Sequence[Any], places: Sequence[int]) -> Row:
        """What a row's own values become in the target, of the columns at some places of `into`."""
        return tuple(self.makers[i](row[self.pairs[i][0]], Converted()) for i in places)

    def convert(self, row: Sequence[Any]) -> Converted:
        """One row. Raises nothing but on a defect: what has no place comes back as kept whole."""
        done = Converted()
        try:
            self._row(row, done)
        except Away as error:
            return self.apart(row, str(error))
        return done

    def apart(self, row: Sequence[Any], reason: str) -> Converted:
        """A row that goes into the quarantine whole."""
        return Converted([], [Kept(None, None, whole(self.columns, row), "json", reason)])

    # --- columns ----------------------------------------------------------------------------------------------------------

    def _row(self, row: Sequence[Any], done: Converted) -> None:
        self._parent(row)
        if self.table.name == "checkpoints":
            self._checkpoint(row, done)
            return
        values = [make(row[i], done) for make, (i, _, _) in zip(self.makers, self.pairs, strict=True)]
        for i, name in self.extra:
            original, kind = form(row[i])
            if original is not None:
                done.kept.append(Kept(name, None, original, kind, EXTRA))
        main = dict(zip((to for _, _, to in self.pairs), values, strict=True))
        if self.table.name == "chat_attachments":
            self._attachment(row, main, done)
        elif self.table.name == "store":
            main["prefix"] = self._store(main, done)
        elif self.table.name == "writes":
            main.setdefault("task_path", "")
        elif self.table.name == "plugin_installations":
            self._plugin(main, done)
        elif self.table.scoped is not None and "workspace_id" in self.types:
            if self.table.name == "workflows":
                _mirror(main, self.into)
            self._scope(row, main, done)
        done.rows.insert(0, (self.table.into, tuple(main[name] for name in self.into)))

    def _parent(self, row: Sequence[Any]) -> None:
        parent = self.table.parent
        if parent is None or parent.nullable:
            return
        key = tuple(row[self.columns.index(name)] for name in parent.columns)
        if not self._there(parent.table, key):
            raise Away(ORPHAN)

    def _there(self, name: str, key: tuple[Any, ...]) -> bool:
        found = self.source.table(name)
        if found is None or found.known is None:
            return False
        if tuple(text.clean(str(part))[0] for part in key) in self.away:
            return False
        return self.lookup.exists(name, found.known.key, key)

    def _maker(self, name: str, to: str) -> Callable[[Any, Converted], Value]:
        kind, nullable = self.types[to], to in self.nullable
        parent = self.table.parent
        orphans = parent is not None and parent.nullable and name in parent.columns

        def missing(value: Any, done: Converted, stand_in: Value, reason: str) -> Value:
            original, storage = form(value)
            done.kept.append(Kept(name, None, original, storage, reason))
            return stand_in

        def as_text(value: Any, done: Converted) -> Value:
            if value is None:
                return None if nullable else missing(value, done, "", NULL)
            if isinstance(value, bytes):
                shown = text.clean(value.decode("utf-8", "surrogateescape"))[0]
                return missing(value, done, shown, BYTES)
            if not isinstance(value, str):
                return missing(value, done, str(value), ODD)
            shown, reasons = text.clean(value)
            if reasons:
                missing(value, done, shown, _first(reasons))
            if orphans and parent is not None and not self._there(parent.table, (value,)):
                return missing(value, done, None, ORPHAN)
            return shown

        def as_json(value: Any, done: Converted) -> Value:
            if value is None and nullable:
                return None
            stand_in = "[]" if name in LISTS else "{}"
            if value is None:
                return missing(value, done, stand_in, NULL)
            raw = (
                value.decode("utf-8", "surrogateescape")
                if isinstance(value, bytes)
                else value
                if isinstance(value, str)
                else json.dumps(value)
            )
            try:
                shown, reasons = text.to_jsonb(raw)
            except text.NotJson:
                if name in self.table.models:
                    raise Away(INVALID) from None
                return missing(value, done, stand_in, INVALID)
            if isinstance(value, bytes) != (name in self.table.blobs):
                reasons.add(BYTES if isinstance(value, bytes) else ODD)
            if reasons:
                missing(value, done, shown, _first(reasons))
            return shown

        def as_time(value: Any, done: Converted) -> Value:
            found = text.to_timestamp(value, self.options.naive, sqlite_style=self.table.sqlite_times)
            if found.text is None and not nullable:
                return missing(value, done, self.options.moment, text.NO_TIME)
            if found.reason:
                return missing(value, done, found.text, found.reason)
            return found.text

        def as_boolean(value: Any, done: Converted) -> Value:
            if value in (0, 1) and isinstance(value, int):
                return "t" if value else "f"
            if value is None and nullable:
                return None
            return missing(value, done, "t" if value else "f", ODD)

        def as_number(value: Any, done: Converted) -> Value:
            if isinstance(value, int):
                if kind == "integer" and not -(2**31) <= value < 2**31:
                    raise Away(REFUSED)
                return str(value)
            if value is None and nullable:
                return None
            if isinstance(value, float) and value.is_integer() and abs(value) < 2**31:
                return str(int(value))  # the graph store's ttl_minutes is a REAL column
            try:
                return missing(value, done, str(int(value)), ODD)
            except (TypeError, ValueError, OverflowError):
                if nullable:
                    return missing(value, done, None, ODD)
                raise Away(ODD) from None

        def as_bytes(value: Any, done: Converted) -> Value:
            if isinstance(value, bytes):
                return value
            if value is None:
                return None if nullable else missing(value, done, b"", NULL)
            return missing(value, done, form(value)[0] or b"", ODD)

        makers = {
            "jsonb": as_json, "timestamp with time zone": as_time, "boolean": as_boolean, "integer": as_number, "bigint": as_number,
            "smallint": as_number, "bytea": as_bytes,
        }  # fmt: skip
        return makers.get(kind, as_text)

    # --- tables with rules of their own -------------------------------------------------------------------------------------

    def _checkpoint(self, row: Sequence[Any], done: Converted) -> None:
        values = dict(zip(self.columns, row, strict=True))
        try:
            made = langgraph.split(values["type"], values["checkpoint"] or b"")
        except langgraph.NotSplit:
            raise Away(UNSPLIT) from None
        values["checkpoint"] = made.head
        values["type"] = None  # of the whole document; the PostgreSQL saver leaves it empty, each blob has its own
        main = tuple(make(values[name], done) for make, (_, name, _) in zip(self.makers, self.pairs, strict=True))
        done.rows.append((self.table.into, main))
        place = tuple(main[self.into.index(name)] for name in ("thread_id", "checkpoint_ns"))
        for channel, (version, kind, data) in made.blobs.items():
            done.rows.append((BLOBS, (*place, channel, version, kind, data)))

    def _attachment(self, row: Sequence[Any], main: dict[str, Value], done: Converted) -> None:
        thread = row[self.columns.index("thread_id")]
        main["workspace_id"] = (
            self.lookup.workspace_of("chat_threads", "id", thread) if thread and main["thread_id"] else None
        )
        main["workflow_id"] = None
        threads = self.source.table("chat_threads")
        if threads is not None and main["thread_id"]:
            found = self.lookup.one(threads, "workflow_id", "id = ?", (thread,))
            main["workflow_id"] = text.clean(found[0])[0] if found and isinstance(found[0], str) else None
        main["size_bytes"] = main["sha256"] = main["blob_backend"] = None
        place = row[self.columns.index("storage_path")]
        content = self.content(str(place or ""), str(row[self.columns.index("id")]))
        if content is None:
            original, kind = form(place)
            done.kept.append(Kept("storage_path", None, original, kind, NO_FILE))
            return
        checksum = hashlib.sha256(content).hexdigest()
        main["size_bytes"], main["sha256"], main["blob_backend"] = str(len(content)), checksum, "postgres"
        done.rows.append((ATTACHMENT_BLOBS, (main["id"], content, str(len(content)), checksum, main["created_at"])))

    def content(self, place: str, key: str) -> bytes | None:
        """What an attachment's file holds; None where it is not found."""
        for file in self._files(place, key):
            with suppress(OSError, ValueError):  # a name with a NUL is no file's
                if file.is_file() and file.stat().st_size < LARGEST_FILE:
                    return file.read_bytes()
        return None

    def beside(self, row: Sequence[Any]) -> tuple[int, ...]:
        """What tells whether something outside of its table has changed for a row: an attachment's file, by its size and time."""
        if not self.has_files:
            return ()
        place, key = (row[self.columns.index(name)] for name in ("storage_path", "id"))
        for file in self._files(str(place or ""), str(key)):
            with suppress(OSError, ValueError):
                if file.is_file() and (found := file.stat()).st_size < LARGEST_FILE:
                    return found.st_size, found.st_mtime_ns
        return (-1,)

    def _files(self, place: str, key: str) -> Iterator[Path]:
        """Where an attachment's file may be.

        The noted path may be another machine's: its longest tail counts. orcheo-backend 0.30.0 forgets the path when a message uses the
        attachment; the file keeps its name, which begins with the attachment's id.
        """
        roots = self.options.attachments
        path = Path(place)
        if not self.options.only_there:
            roots = (*roots, self.source.origin)
            if path.is_absolute():
                yield path
        for root in roots if place else ():
            yield from (root.joinpath(*path.parts[i:]) for i in range(1 if path.is_absolute() else 0, len(path.parts)))
        for root in roots:
            for directory in (root / CHATKIT, root):
                if file := self._named(directory).get(key):
                    yield file

    def _named(self, directory: Path) -> Mapping[str, Path]:
        """Ids to a directory's files ID_NAME; an id may hold underscores itself. Read once: a look for each row would be quadratic."""
        if directory not in self._listed:
            found: dict[str, Path] = {}
            with suppress(OSError):
                for file in sorted(directory.iterdir()):
                    parts = file.name.split("_")
                    for i in range(1, len(parts)):
                        found.setdefault("_".join(parts[:i]), file)
            self._listed[directory] = found
        return self._listed[directory]

    def _store(self, main: dict[str, Value], done: Converted) -> str:
        prefix, key = str(main["prefix"]), str(main["key"])
        moved = self.home.store_prefix(prefix, key)
        if moved != prefix:
            done.kept.append(Kept("prefix", None, prefix.encode(), "text", WORKSPACE))
        return moved

    def _plugin(self, main: dict[str, Value], done: Converted) -> None:
        plugin, workspace = str(main["plugin_name"]), str(main["workspace_id"])
        if (plugin, workspace) in self.home.losers:
            raise Away(PLUGIN)
        if workspace not in self.home.known and self.home.id:
            done.kept.append(Kept("workspace_id", None, workspace.encode(), "text", WORKSPACE))
            main["workspace_id"] = self.home.id

    def _scope(self, row: Sequence[Any], main: dict[str, Value], done: Converted) -> None:
        scoped = self.table.scoped
        assert scoped is not None
        own = main.get("workspace_id")
        final = own if own in self.home.known else None
        if final is None and not (own is None and scoped.shared):
            final = self._follow(row) or self.home.id or None
        if final != own:
            main["workspace_id"] = final
            if "workspace_id" in self.columns:
                original, kind = form(row[self.columns.index("workspace_id")])
                done.kept.append(Kept("workspace_id", None, original, kind, WORKSPACE))
        new = self.home.renames.get((self.table.name, str(main.get(scoped.id))))
        if new and scoped.unique:
            done.kept.append(Kept(scoped.unique, None, str(main[scoped.unique]).encode(), "text", RENAMED))
            main[scoped.unique] = new
        if scoped.payload and isinstance(main.get("payload"), str):
            main["payload"] = self._payload(str(main["payload"]), str(final or ""), new, main, done)
        if self.table.name == "service_tokens" and final:
            self._token(main, str(final), done)

    def _follow(self, row: Sequence[Any]) -> str | None:
        scoped = self.table.scoped
        if scoped is None or scoped.follows is None:
            return None
        if self.table.name == "governance_alerts":
            try:
                key = json.loads(row[self.columns.index("payload")]).get("credential_id")
            except (ValueError, AttributeError, TypeError):
                return None
            return self.lookup.workspace_of("credentials", "id", str(key)) if key else None
        child = scoped.follows.child.removeprefix("t.")
        if child not in self.columns:
            return None
        return self.lookup.workspace_of(
            scoped.follows.parent, scoped.follows.key.removeprefix("p."), row[self.columns.index(child)]
        )

    def _payload(self, document: str, final: str, new: str | None, main: dict[str, Value], done: Converted) -> str:
        scoped = self.table.scoped
        assert scoped is not None
        found = _model(document)
        changed = False
        if final and found.get("workspace_id") != final:
            if "workspace_id" in found:
                done.kept.append(Kept("payload", "workspace_id", dumps(found["workspace_id"]), "json", WORKSPACE))
            found["workspace_id"], changed = final, True
        if new and scoped.unique and found.get(scoped.unique) != new:
            done.kept.append(Kept("payload", scoped.unique, dumps(found.get(scoped.unique)), "json", RENAMED))
            found[scoped.unique], changed = new, True
        scope = found.get("scope")
        listed = scope.get("workspace_ids") if scoped.scope and isinstance(scope, dict) else None
        if isinstance(scope, dict) and isinstance(listed, list) and any(not self._known(w) for w in listed):
            done.kept.append(Kept("payload", "scope", dumps(scope), "json", WORKSPACE))
            first = listed[0]
            found["scope"] = {**scope, "workspace_ids": sorted({w if self._known(w) else final for w in listed})}
            changed = True
            if scoped.hint and main.get(scoped.hint) == first and not self._known(first):
                done.kept.append(Kept(scoped.hint, None, str(first).encode(), "text", WORKSPACE))
                main[scoped.hint] = final
        try:
            return dumps(found).decode() if changed else document
        except TypeError:  # orjson writes no deeper than 254
            raise Away(DEEP) from None

    def _known(self, workspace: object) -> bool:
        return isinstance(workspace, str) and workspace in self.home.known

    def _token(self, main: dict[str, Value], final: str, done: Converted) -> None:
        before = main.get("workspace_ids")
        try:
            listed = loads(str(before)) if before else []
        except ValueError:
            original, kind = form(before)
            done.kept.append(Kept("workspace_ids", None, original, kind, INVALID))
            main["workspace_ids"] = "[]"
            return
        if isinstance(listed, list) and listed:
            after = (
                sorted({w if self._known(w) else final for w in listed})
                if any(not self._known(w) for w in listed)
                else listed
            )
        else:
            after = [final] if self.home.single else listed
        if after != listed:
            original, kind = form(before)
            done.kept.append(Kept("workspace_ids", None, original, kind, WORKSPACE))
            main["workspace_ids"] = dumps(after).decode()


def _model(document: str) -> dict[str, Any]:
    """A payload that the app validates whole.

    Raises:
        Away: it is no JSON object.
    """
    try:
        found = loads(document)
    except (ValueError, RecursionError):
        raise Away(INVALID) from None
    if not isinstance(found, dict):
        raise Away(INVALID)
    return found


def _mirror(main: dict[str, Value], into: Sequence[str]) -> None:
    """Columns that the bridge releases added and filled from the payload."""
    if set(MIRRORED) - set(main) and "is_archived" in into:
        payload = _model(str(main["payload"]))
        main.setdefault("is_archived", "t" if payload.get("is_archived") else "f")
        handle = payload.get("handle")
        main.setdefault("handle", handle if isinstance(handle, str) else None)


def _first(reasons: set[str]) -> str:
    """The weightiest of several reasons."""
    return sorted(reasons, key=lambda reason: (reason not in LOSSY, reason))[0]


def loads(document: str) -> Any:
    """JSON whose numbers keep every digit (for `dumps`)."""
    return json.loads(document, parse_int=_number, parse_float=_number)


def _number(digits: str) -> orjson.Fragment:
    return orjson.Fragment(digits.encode())


def dumps(value: Any) -> bytes:
    """What `loads` gave, as JSON."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)


__all__ = [
    "LOSSY",
    "Away",
    "Converted",
    "Converter",
    "Kept",
    "Options",
    "Row",
    "Table",
    "form",
    "from_whole",
    "unform",
    "whole",
]
