"""A directory of SQLite files: what is in it, which release made it, and reading it without ever writing to it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.migrate.layout import BY_NAME, COUNTERS, FORMER, NEWER, STORE_MIGRATIONS, Table
from orcheo_db.migrate.text import clean

MAGIC = b"SQLite format 3\x00"
SUFFIXES = (".sqlite", ".sqlite3", ".db")
R = TypeVar("R")
UNTOUCHED = "Nothing was changed."
# Bytes beyond the files themselves that a snapshot leaves free on its disk.
SPARE = 256 * 2**20
JOURNALS = ("", "-wal", "-journal")
TRIES = 5  # a file that changes while it is copied is copied again
LOCKED_BYTES = 256 * 2**20  # copied in a second or so, for which a writer of a rollback journal's file may have to wait
BUSY_SECONDS = 30.0


def unreadable(error: sqlite3.DatabaseError) -> CheckFailed:
    """What a damaged file ends a command with."""
    return CheckFailed(
        f"a file of the source can't be read ({error}): see `sqlite3 FILE 'PRAGMA integrity_check'`; `sqlite3 FILE .recover` saves what is left into"
        " another file"
    )


@dataclass(frozen=True)
class Column:
    """One column of a table as its file declares it."""

    name: str
    type: str


@dataclass(frozen=True)
class Found:
    """One table of one file. known: its place in the newest release; None for a table that none of the releases makes."""

    file: str
    name: str
    columns: tuple[Column, ...]
    known: Table | None
    rowid: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def former(self) -> bool:
        return self.name in FORMER

    @property
    def level(self) -> int:
        """Parents have a lower one than their children."""
        return self.known.level if self.known else 0


@dataclass
class Source:
    """What a directory holds. directory: where the files to be read lie; origin: where the user has them."""

    directory: Path
    origin: Path
    files: list[str] = field(default_factory=list)
    tables: list[Found] = field(default_factory=list)

    def table(self, name: str) -> Found | None:
        return next((table for table in self.tables if table.name == name), None)

    @property
    def data(self) -> list[Found]:
        """The tables that hold somebody's rows, and do not only count migrations of their file."""
        return [table for table in self.tables if table.name not in COUNTERS]

    @property
    def release(self) -> str:
        """The class of release that made it: `0.15` (no workspaces) or `0.34` (the bridge releases)."""
        workflows = self.table("workflows") or self.table("execution_history")
        columns = workflows.names if workflows else [c for t in self.tables for c in t.names]
        return "0.34" if "workspace_id" in columns else "0.15"

    def __repr__(self) -> str:
        return f"Source({str(self.origin)!r}, {self.files})"


def look(directory: Path, origin: Path | None = None) -> Source:
    """Read which files and tables a directory holds.

    Raises:
        UserError: it is no directory, holds none of Orcheo's SQLite files, or one that can't be read.
    """
    origin = origin or directory
    if not directory.is_dir():
        why = "is no directory" if directory.exists() else "does not exist"
        raise UserError(f"{origin} {why}: name the directory with Orcheo's SQLite files (usually ~/.orcheo)")
    found = Source(directory, origin.resolve())
    try:
        names = sorted(p.name for p in directory.iterdir() if p.is_file() and p.suffix in SUFFIXES and p.stat().st_size)
    except PermissionError as error:
        raise UserError(f"{origin} can't be read ({error.strerror}): run this as its owner or as root") from None
    for name in names:
        tables = _tables(directory / name, name)
        if any(table.known or table.former or table.name in NEWER for table in tables):
            found.files.append(name)
            found.tables += tables
    if not found.files:
        more = f" ({', '.join(names)} hold none of its tables)" if names else ""
        raise UserError(
            f"{origin} holds no SQLite file of Orcheo{more}: name the directory with workflows.sqlite and the others"
        )
    _refuse_newer(found)
    _refuse_twice(found)
    return found


def _refuse_newer(found: Source) -> None:
    newer = sorted(table.name for table in found.tables if table.name in NEWER)
    store = found.table("store_migrations")
    if store is not None:
        row = _ask(found, store, f"SELECT max({store.names[0]}) FROM store_migrations")
        if row and isinstance(row[0], int) and row[0] > STORE_MIGRATIONS:
            newer.append(f"store_migrations v={row[0]}")
    if newer:
        raise UserError(
            f"{found.origin} was made by a release that this toolkit doesn't know (it has {', '.join(newer)}): 0.14 to 0.34 are known. {UNTOUCHED}"
        )


def _refuse_twice(found: Source) -> None:
    where: dict[str, list[str]] = {}
    for table in found.data:
        if _ask(found, table, f'SELECT 1 FROM "{table.name}" LIMIT 1'):
            where.setdefault(table.name, []).append(table.file)
    for name, files in where.items():
        if len(files) > 1:
            raise UserError(
                f"table {name} has rows in {' and '.join(files)} of {found.origin}: move the one that the app doesn't use out of it. {UNTOUCHED}"
            )
    twice = {t.name for t in found.data} - set(where)
    kept: list[Found] = []
    for table in found.tables:  # an empty one beside the one that is used is none
        if table.name in where and table.file not in where[table.name]:
            continue
        if table.name in twice and any(k.name == table.name for k in kept):
            continue
        kept.append(table)
    found.tables[:] = kept


def _ask(found: Source, table: Found, query: str) -> tuple[Any, ...] | None:
    """The first row of an answer."""

    def first(connection: sqlite3.Connection) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = connection.execute(query).fetchone()
        return row

    return steady(found.directory / table.file, first)


# A file that comes and goes under us, as far as SQLite can say so: "unable to open" where its -shm has just gone, a lock, a lost race.
PASSING = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL})


def steady(path: Path, ask: Callable[[sqlite3.Connection], R]) -> R:
    """Ask a file something short; again where it changed meanwhile.

    Raises:
        UserError: it can't be read.
    """
    for left in reversed(range(TRIES)):
        before, known = stamp(path), real(path) in _live
        try:
            with opened(path) as connection:
                found = ask(connection)
            if known or not left or not changed(path, before):
                return found
        except (sqlite3.DatabaseError, FileNotFoundError) as error:
            if not left or not (_passing(error) or changed(path, before)):
                raise _unreadable(path, error) from None
            _live.add(real(path))
    raise AssertionError


def _passing(error: Exception) -> bool:
    return isinstance(error, sqlite3.DatabaseError) and getattr(error, "sqlite_errorcode", 0) & 0xFF in PASSING


def changed(path: Path, before: Stamp) -> bool:
    """Whether a file has changed since; then somebody writes to it, and from now on it is read as beside a writer."""
    if stamp(path) == before:
        return False
    _live.add(real(path))
    return True


def live(more: frozenset[Path] = frozenset()) -> frozenset[Path]:
    """The files that changed while this process read them; `more`: what another process has seen."""
    _live.update(more)
    return frozenset(_live)


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} can't be read ({error}): see `sqlite3 {path.name} 'PRAGMA integrity_check'`. {UNTOUCHED}")


def _tables(path: Path, name: str) -> list[Found]:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): run this as its owner or as root") from None
    if head != MAGIC:
        what = "is encrypted or no SQLite file" if head[:6] != MAGIC[:6] else "has a damaged header"
        raise UserError(f"{path} {what}: take it out of the directory, or decrypt it first. {UNTOUCHED}")

    def tables(connection: sqlite3.Connection) -> list[Found]:
        rows = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name"
        ).fetchall()
        found = []
        for table, sql in rows:
            info = connection.execute(f'PRAGMA table_info("{table}")').fetchall()
            columns = tuple(Column(row[1], row[2].upper()) for row in info)
            rowid = "WITHOUT ROWID" not in (sql or "").upper()
            found.append(Found(name, table, columns, BY_NAME.get(table), rowid))
        return found

    return steady(path, tables)


def real(path: Path) -> Path:
    """The file itself, where the directory holds a link to it: SQLite keeps its journals beside that."""
    return path.resolve()


def beside(path: Path, end: str) -> Path:
    """A file's `-wal`, `-shm` or `-journal`."""
    path = real(path)
    return path.with_name(path.name + end)


Stamp = tuple[tuple[int, int], ...]
_live: set[Path] = set()  # files that changed while this process read them


def stamp(path: Path) -> Stamp:
    """Sizes and times of a file and its journals: another one where it was written to. An empty journal is none."""
    found = []
    for end in JOURNALS:
        try:
            stat = beside(path, end).stat()
        except OSError:
            stat = None
        found.append((stat.st_size, stat.st_mtime_ns) if stat is not None and (stat.st_size or not end) else (0, 0))
    return tuple(found)


class opened:
    """A read-only connection to a file that is not written to, nor its -shm.

    A file that nobody has open and that has no WAL is read as it is (`immutable`), since SQLite itself would leave a -wal and a -shm; else
    SQLite's own locks give a consistent view; one whose journal was left behind is read from a copy, for SQLite would write beside it.
    The old app opens its files for each operation: one that has changed while it was read is from then on read under a lock (a WAL's readers
    stand in nobody's way), or from a copy.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> sqlite3.Connection:
        self.connection = connect(self.path)
        return self.connection

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def connect(path: Path) -> sqlite3.Connection:
    """Open a file read-only; see `opened`.

    Raises:
        sqlite3.DatabaseError: it can't be read. UserError: there is no space for a copy of it.
    """
    return _connect_as(real(path), _way(real(path)))


APART, SHARED, ALONE, JOURNAL, LIVE = "a copy", "its -shm", "immutable", "a journal", "beside writers"


def _way(path: Path) -> str:
    """How a file is to be read now."""
    wal, shm, journal = (beside(path, end) for end in ("-wal", "-shm", "-journal"))
    if path in _live:
        return LIVE
    if _size(wal) > 0 and not shm.exists():
        return APART
    if _size(journal):
        return JOURNAL
    return SHARED if shm.exists() else ALONE


def _connect_as(path: Path, way: str) -> sqlite3.Connection:
    if way == LIVE:
        return _beside_writers(path)
    if way in (SHARED, ALONE):
        return _connect(path, "&readonly_shm=1" if way == SHARED else "&immutable=1")
    if way == JOURNAL:
        connection = _connect(path, "")
        try:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
            return connection
        except sqlite3.OperationalError:  # no writer's at work: it has to be rolled back
            connection.close()
    return _connect(_apart(path), "&immutable=1")


def _beside_writers(path: Path) -> sqlite3.Connection:
    """For a file in WAL mode a read transaction: what it sees is not overwritten. Of any other a copy: its writers would wait for us."""
    if _wal(path):
        connection = _connect(path, "")
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
            return connection
        except sqlite3.OperationalError:  # SQLite can't make its -shm here
            connection.close()
    return _connect(_apart(path), "&immutable=1")


def _connect(path: Path, more: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=ro{more}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = _text
    return connection


_copies: dict[Path, tuple[Stamp, tempfile.TemporaryDirectory[str]]] = {}


def _apart(path: Path) -> Path:
    """This process' own copy of a file, with its journal worked in; made again where the file has changed."""
    stamps = stamp(path)
    if path not in _copies or _copies[path][0] != stamps:
        directory = tempfile.TemporaryDirectory(prefix="orcheo-db-")
        part = Path(directory.name) / path.name
        try:
            if path in _live and not _wal(path):
                _locked(path, part)
            else:
                _copy_bytes(path, part)
        except OSError as error:
            raise UserError(
                f"{path} has a journal that was left behind or is being written to, and can be read from a copy alone, and that fails in {directory.name}"
                f" ({error.strerror}): make room, or name another place with TMPDIR. {UNTOUCHED}"
            ) from None
        _settle(part)
        _copies[path] = (stamps, directory)
    return Path(_copies[path][1].name) / path.name


def _text(raw: bytes) -> str:
    """TEXT as it is; bytes that are no UTF-8 become lone surrogates (PEP 383), which `text.clean` undoes."""
    return raw.decode("utf-8", "surrogateescape")


def needs_copy(path: Path) -> bool:
    """Whether a file can be read only beside a copy of its journal: left by a process that ended half-way."""
    wal, shm, journal = (beside(path, end) for end in ("-wal", "-shm", "-journal"))
    return (_size(wal) > 0 and not shm.exists()) or _size(journal) > 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def size(source: Source) -> int:
    """Bytes of the files and of what is in their WALs."""
    paths = [source.directory / name for name in source.files]
    return sum(_size(path) + _size(beside(path, "-wal")) for path in paths)


def snapshot(source: Source, directory: Path) -> Source:
    """A consistent copy of each file, while the old app goes on; a copy that is whole is taken again as it is.

    Raises:
        UserError: no space. CheckFailed: a file is damaged or does not hold still.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    free, wanted = shutil.disk_usage(directory).free, size(source)
    missing = sum(_size(source.directory / name) for name in source.files if not (directory / name).is_file())
    if missing and free < wanted + SPARE:
        raise UserError(
            f"a snapshot of {source.origin} takes {wanted / 2**20:.0f} MB and {directory} has {free / 2**20:.0f} MB free: make room,"
            f" or name another place with --work. {UNTOUCHED}"
        )
    for name in source.files:
        if not (directory / name).is_file():
            copy(source.directory / name, directory / name)
    return Source(directory, source.origin, list(source.files), list(source.tables))


def copy(path: Path, to: Path) -> None:
    """One file, consistently: by SQLite's backup where it can be opened beside its writers, else byte by byte with its journal.

    Raises:
        CheckFailed: it is damaged, or changes all the time.
    """
    part = to.with_name(f"{to.name}.part")
    for end in ("", "-wal", "-journal", "-shm"):
        part.with_name(part.name + end).unlink(missing_ok=True)
    path = real(path)
    if not needs_copy(path):
        _back_up(path, part)
    elif _size(beside(path, "-journal")):
        _locked(path, part)
    else:
        _copy_bytes(path, part)
    _settle(part)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.rename(to)


def _back_up(path: Path, part: Path) -> None:
    """By SQLite's backup: at first as if nobody wrote, then under a lock."""
    before, way = stamp(path), _way(path)
    try:
        _backup(_connect_as(path, way), part)
        if way != ALONE or not changed(path, before):
            return
    except sqlite3.DatabaseError as error:
        if not (_passing(error) or changed(path, before)):
            raise _damaged(path, error) from None
    try:
        if _wal(path):
            _backup(_beside_writers(path), part)
        else:
            _locked(path, part)
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from None


def _locked(path: Path, part: Path) -> None:
    """Copy a rollback journal's file while somebody writes to it: under its lock, if that is short; else between two writes."""
    if _size(path) <= LOCKED_BYTES:
        with suppress(sqlite3.OperationalError):  # its journal is no writer's at work: it has to be rolled back
            _backup(_connect(path, ""), part)
            return
    _copy_bytes(path, part)


def _damaged(path: Path, error: sqlite3.DatabaseError) -> Exception:
    """What a copy that failed ends a command with; a full disk is no damage."""
    if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
        return error
    return CheckFailed(
        f"{path} can't be copied ({error}): see `sqlite3 {path.name} 'PRAGMA integrity_check'`. {UNTOUCHED}"
    )


def _backup(reading: sqlite3.Connection, part: Path) -> None:
    try:
        part.unlink(missing_ok=True)
        writing = sqlite3.connect(part, isolation_level=None)
        try:
            reading.backup(writing)
        finally:
            writing.close()
    finally:
        reading.close()


def _copy_bytes(path: Path, part: Path) -> None:
    for _ in range(TRIES):
        for end in JOURNALS:  # another try's journal is not this one's
            part.with_name(part.name + end).unlink(missing_ok=True)
        before = stamp(path)
        with suppress(FileNotFoundError):  # a journal that goes is a transaction that ended
            for end in JOURNALS:
                if not end or beside(path, end).exists():
                    shutil.copyfile(beside(path, end), part.with_name(part.name + end))
            if before == stamp(path):
                return
        time.sleep(1)
    raise CheckFailed(f"{path} changed at each of {TRIES} tries to copy it: stop the old app first. {UNTOUCHED}")


def _settle(part: Path) -> None:
    """Have what the copied journal holds in the file itself, and no journal left."""
    connection = sqlite3.connect(part, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = DELETE").fetchone()
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
            raise
        raise CheckFailed(
            f"the copy of {part.name.removesuffix('.part')} can't be read ({error}): it is damaged"
        ) from None
    finally:
        connection.close()


def writers(source: Source) -> list[str]:
    """The processes of this machine that have one of the files open: "pid name file"."""
    wanted: dict[tuple[int, int], str] = {}
    for name in source.files:
        for end in ("", "-wal"):
            path = beside(source.directory / name, end)
            if path.exists():
                found = path.stat()
                wanted[found.st_dev, found.st_ino] = path.name
    lines = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        held = sorted({wanted[key] for key in _open_files(process) if key in wanted})
        if held:
            try:
                name = (process / "comm").read_text().strip()
            except OSError:  # it has ended meanwhile
                continue
            lines.append(f"process {process.name} ({name}) has {', '.join(held)} open")
    return lines


def _open_files(process: Path) -> Iterator[tuple[int, int]]:
    try:
        entries = list((process / "fd").iterdir())
    except OSError:  # gone, or somebody else's
        return
    for entry in entries:
        try:
            found = entry.stat()
        except OSError:
            continue
        yield found.st_dev, found.st_ino


def schema(source: Source) -> dict[str, list[str]]:
    """File to the statements that make its tables, indexes, views and triggers, for files that are made anew."""
    return {name: steady(source.directory / name, partial(_statements, source, name)) for name in source.files}


def _statements(source: Source, name: str, connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        " ORDER BY type <> 'table', rowid"
    ).fetchall()
    user = connection.execute("PRAGMA user_version").fetchone()[0]
    counters = [
        f"INSERT INTO {table.name} VALUES ({int(row[0])})"
        for table in source.tables
        if table.file == name and table.name in COUNTERS and table.names == ("v",)
        for row in connection.execute(f"SELECT v FROM {table.name} ORDER BY v")
    ]
    return [
        *(["PRAGMA journal_mode = WAL"] if _wal(source.directory / name) else []),
        f"PRAGMA user_version = {user}",
        *(row[0] for row in rows),
        *counters,
    ]


def keys(source: Source) -> dict[str, list[str]]:
    """Table to the keys of its payloads, for those of which the old release's model refuses others (`Table.kept`)."""
    found = {}
    for table in source.data:
        if table.known is not None and table.known.kept:
            query = (
                "SELECT DISTINCT each.key FROM (SELECT CAST(payload AS TEXT) AS document FROM "
                f"\"{table.name}\") AS t, json_each(CASE WHEN json_valid(t.document) THEN t.document ELSE '{{}}' END) AS each"
                " WHERE typeof(each.key) = 'text'"
            )
            with opened(source.directory / table.file) as connection:
                given = (str(key) for (key,) in connection.execute(query))
                found[table.name] = sorted(
                    key for key in given if clean(key)[0] == key
                )  # no model's field has another name
    return found


def _wal(path: Path) -> bool:
    """Whether a file is in WAL mode: its format's write and read version are 2 (SQLite file format, 1.3)."""
    with path.open("rb") as file:
        return file.read(20)[18:20] == b"\x02\x02"


def unknown(source: Source, target: Mapping[str, Sequence[str]]) -> list[str]:
    """Tables and columns that have no place in the newest release, as `table` or `table.column`."""
    found = []
    for table in source.data:
        if table.known is None:
            if not table.former:
                found.append(table.name)
            continue
        there = target.get(table.known.into, ())
        found += [f"{table.name}.{name}" for name in table.names if table.known.renamed.get(name, name) not in there]
    return found
