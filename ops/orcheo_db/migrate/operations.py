"""The commands: copy, verify, cut over. Each is written over a DSN and a directory for its own files, for any target."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psycopg
from psycopg import sql

from orcheo_db.console import say
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.migrate import back, run, state, vault
from orcheo_db.migrate.convert import Converter, Options
from orcheo_db.migrate.home import Lookup
from orcheo_db.migrate.layout import BY_NAME, Table
from orcheo_db.migrate.pool import Pool
from orcheo_db.migrate.run import Report
from orcheo_db.migrate.source import (
    Column,
    Found,
    Source,
    Stamp,
    keys,
    look,
    needs_copy,
    snapshot,
    stamp,
    unreadable,
    writers,
)
from orcheo_db.migrate.state import COPIED, COPYING, CUT_OVER, ROLLED_BACK, State
from orcheo_db.migrate.sync import Setting
from orcheo_db.migrate.verify import Check, Compared, surplus

ATTEMPTS = 4
PAUSE_SECONDS = 5.0  # a PostgreSQL that was killed serves again after some seconds
P = ParamSpec("P")
R = TypeVar("R")
SNAPSHOT, FINAL = "snapshot", "final"
MARKER = ".orcheo-db-migrate"  # in a directory that this toolkit made and may remove
LATE_SECONDS = 2.0  # in which a write of an app that was not stopped is noticed after a cutover


@dataclass(frozen=True)
class Place:
    """The target. dsn: its administrator's, direct. work: a directory for snapshots.

    source: how the migration names its source, where that is another machine or directory now (`run.identity`).
    """

    dsn: str
    work: Path
    source: str | None = None

    def name(self, origin: Path) -> str:
        return run.identity(origin, self.source)


def _lasting(function: Callable[P, R]) -> Callable[P, R]:
    """Begin again where the target was lost on the way, since everything done is noted there; damage of a source is one line."""

    @wraps(function)
    def work(*args: P.args, **kwargs: P.kwargs) -> R:
        for left in reversed(range(ATTEMPTS)):
            try:
                return function(*args, **kwargs)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if not left or isinstance(error, psycopg.errors.DiskFull | psycopg.errors.LockNotAvailable):
                    raise CheckFailed(
                        f"the target was lost on the way ({' '.join(str(error).split())[:300]}): run it again, it goes on where it was"
                    ) from None
                say("the target was lost on the way: trying again")
                time.sleep(PAUSE_SECONDS)
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                    raise _no_space() from None
                raise unreadable(error) from None
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise _no_space() from None
                raise
        raise AssertionError

    return work


def _no_space() -> CheckFailed:
    return CheckFailed(
        "no space left where the files are written: make room, or name another place with --work or --to, and run it again"
    )


@contextmanager
def _opened(place: Place) -> Iterator[run.Connection]:
    conn = run.connected(place.dsn)
    try:
        run.alone(conn)
        if state.read(conn) is not None:
            state.prepare(conn)
        yield conn
    finally:
        conn.close()


@_lasting
def migrate(place: Place, directory: Path, options: Options, workspace: str | None, report: Report) -> dict[str, Any]:
    """Copy everything; run again it goes on, or brings what has changed since.

    Raises:
        UserError: wrong input; nothing was changed. CheckFailed: it could not be finished; run it again.
    """
    original = look(directory)
    vault.check(original)
    with _opened(place) as conn:
        state.catalogue(conn)
        before = state.read(conn)
        state.refuse_others(conn, before, place.name(original.origin))
        directory = _own(place.work / SNAPSHOT, original)
        # Only a copy that was cut off goes on with its snapshot; any other is of an earlier moment, or of another source.
        goes_on = before is not None and before.phase == COPYING and _is_of(directory, before)
        whole = goes_on and all((directory / name).is_file() for name in original.files)
        taken = snapshot(original, directory if goes_on else _anew(directory))
        source = look(taken.directory, original.origin)
        found = run.begin(conn, source, original, options, workspace, place.name(original.origin))
        found.report["snapshot"] = (directory / MARKER).read_text(encoding="utf-8")
        found.report["keys"] = {**found.report.get("keys", {}), **keys(source)}
        state.write(conn, found)
        chosen = _there(run.options_of(found, options))
        fresh = before is None or (before.phase == COPYING and whole)
        counts = run.copy(place.dsn, conn, source, found, chosen, report, fresh=fresh)
        return {
            "source": found.source,
            "release": found.release,
            **counts,
            "quarantine": quarantine(conn),
            "home": _home(found),
        }


@_lasting
def verify(place: Place, directory: Path, options: Options, report: Report) -> dict[str, Any]:
    """Compare the target with the snapshot that was copied, row by row.

    Raises:
        UserError: nothing was copied from there.
    """
    original = look(directory)
    key = vault.check(original)
    with _opened(place) as conn:
        found = _found(conn, original, place)
        if found.phase == COPYING:
            raise UserError("the copy is not finished: run `orcheo-db migrate run` again, it goes on where it was")
        if not _is_of(place.work / SNAPSHOT, found):
            raise UserError(
                f"the snapshot in {place.work} is gone: `orcheo-db migrate run` takes a new one and brings what has changed since"
            )
        source = look(place.work / SNAPSHOT, original.origin)
        results = run.verify(place.dsn, conn, source, found, _there(run.options_of(found, options)), report)
        ok = all(result.ok for result in results)
        if ok:
            with conn.transaction():
                conn.execute("UPDATE orcheo_archive.chunk SET compared = true WHERE NOT compared")
                state.stamp(conn, "verified_at")
        else:
            _forget(conn, found, results)
        tables = [result.document() for result in results]
        return {"ok": ok, "tables": tables, "quarantine": quarantine(conn), "key": key}


def _forget(conn: run.Connection, found: State, results: list[Compared]) -> None:
    """Have the next `run` bring what differs again."""
    with conn.transaction():
        for result in results:
            for lo in result.bad:
                conn.execute("DELETE FROM orcheo_archive.chunk WHERE tab = %s AND lo = %s", (result.table, lo))
                conn.execute("DELETE FROM orcheo_archive.quarantine WHERE tab = %s AND lo = %s", (result.table, lo))
        found.report["suspects"] = [result.table for result in results if not result.ok]
        state.write(conn, found)


@_lasting
def cutover(
    place: Place, directory: Path, options: Options, report: Report, finish: Callable[[dict[str, str]], Path], *, force: bool = False
) -> dict[str, Any]:  # fmt: skip
    """With the old app stopped: bring what has changed since the copy, verify that, and write the new environment.

    Args:
        finish: takes the new app's environment and writes it; returns where.
        force: go on although a process has a file open (its reader is known).

    Raises:
        UserError: nothing was copied, or something still writes. CheckFailed: what was brought differs; nothing was cut over.
    """
    original = look(directory)
    busy = writers(original)
    if busy and not force:
        raise UserError(
            f"the old app still runs: {busy[0]}{f' and {len(busy) - 1} more' if len(busy) > 1 else ''}: stop it first (or --force, if that only reads)."
            " Nothing was changed."
        )
    if os.geteuid():
        say("not root: another user's process that has a file open would not be seen; a file that changes is")
    begun = time.monotonic()
    key = vault.check(original)
    stamps = _stamps(original)
    with _opened(place) as conn:
        found = _found(conn, original, place)
        if found.phase != COPIED:
            raise UserError("the copy is not finished: run `orcheo-db migrate run` first, while the old app may go on")
        if not run.marked(found):
            raise UserError(
                "an earlier version of orcheo-db made this copy, and the cutover would have to read the target for every row: `orcheo-db migrate run`"
                " once more first, while the old app may go on. Nothing was changed."
            )
        verified = _verified(conn)
        source, direct = original, True
        if any(needs_copy(original.directory / name) for name in original.files):
            final = _anew(_own(place.work / FINAL, original))
            source, direct = look(snapshot(original, final).directory, original.origin), False
        found = run.begin(conn, source, original, options, None, place.name(original.origin))
        former = place.work / SNAPSHOT if _is_of(place.work / SNAPSHOT, found) else None
        if found.report.pop("snapshot", None):  # from now on an older one than what was copied last
            state.write(conn, found)
        chosen = _there(run.options_of(found, options))
        counts = run.copy(place.dsn, conn, source, found, chosen, report, fresh=False, former=former)
        results = _compare(place, conn, source, found, chosen, counts["tasks"])
        if any(not result.ok for result in results):
            bad = next(result for result in results if not result.ok)
            raise CheckFailed(
                f"table {bad.table} differs after the last pass ({bad.wrong[0][0]}: {bad.wrong[0][1]}): nothing was cut over, the old app may go on."
                f" `orcheo-db migrate run {directory}` and then `verify` say more"
            )
        _refuse_writes(original, stamps)
        file = finish({"ORCHEO_VAULT_ENCRYPTION_KEY": key} if key else {})
        found.phase = CUT_OVER
        with conn.transaction():
            state.write(conn, found)
            state.stamp(conn, "cut_over_at")
        seconds = round(time.monotonic() - begun, 1)
        # The old app opens its files for each operation: no process has to be seen that has one open.
        time.sleep(LATE_SECONDS)
        try:
            _refuse_writes(original, stamps)
        except CheckFailed:
            found.phase = COPIED
            state.write(conn, found)
            raise
        for name in (SNAPSHOT, FINAL):
            if (place.work / name / MARKER).is_file():
                shutil.rmtree(place.work / name)
        return {
            "downtime_seconds": seconds,
            "rows_compared": sum(result.rows for result in results),
            "changed": counts["changed"],
            "read_directly": direct,
            "fully_verified": verified,
            "environment": str(file),
            "quarantine": quarantine(conn),
        }


def _there(options: Options) -> Options:
    """Options whose directories of attachments are all there: a missing mount is not taken for deleted files.

    Raises:
        UserError: one is not.
    """
    for place in options.attachments:
        if not place.is_dir():
            raise UserError(
                f"{place}, where attachments' files were looked for before (--attachments), is no directory any more: have it back first. Nothing was changed."
            )
    return options


def _refuse_writes(original: Source, stamps: Mapping[str, Stamp]) -> None:
    if stamps != _stamps(original):
        raise CheckFailed(
            "a file changed during the cutover: the old app still writes. Nothing was cut over: stop it and run it again"
        )


def _verified(conn: run.Connection) -> bool:
    """Whether everything that was brought has been compared with its source."""
    row = conn.execute("SELECT coalesce(bool_and(compared), true) FROM orcheo_archive.chunk").fetchone()
    return bool(row and row[0])


def _own(directory: Path, original: Source) -> Path:
    """A directory for a snapshot, checked: nothing is ever removed there but an earlier snapshot.

    Raises:
        UserError: it holds something else, or the user's own files.
    """
    place, theirs = directory.resolve(), original.directory.resolve()
    if place == theirs or place in theirs.parents or theirs in place.parents:
        raise UserError(
            f"the snapshot's place {directory} is in or around {theirs} itself: name another one with --work"
        )
    if directory.exists() and not (directory / MARKER).is_file() and any(directory.iterdir()):
        raise UserError(
            f"{directory} is there and no snapshot of this toolkit (it has no file {MARKER}): name another place with --work, or remove it."
            " Nothing was changed."
        )
    return directory


def _anew(directory: Path) -> Path:
    """An empty directory with a marker of its own, by which the migration knows its snapshot again."""
    if directory.exists():
        for file in directory.iterdir():
            if file.name != MARKER:  # that goes last, or what is left behind would be nobody's
                file.unlink()
        shutil.rmtree(directory)
    directory.mkdir(mode=0o700, parents=True)
    (directory / MARKER).write_text(f"{uuid.uuid4()}\n", encoding="utf-8")
    return directory


def _is_of(directory: Path, found: State) -> bool:
    """Whether a snapshot is the one that this migration was copied from."""
    try:
        return (directory / MARKER).read_text(encoding="utf-8") == found.report.get("snapshot")
    except OSError:
        return False


@_lasting
def rollback(place: Place, directory: Path, out: Path, options: Options, report: Report) -> dict[str, Any]:
    """Write PostgreSQL's present rows into SQLite files of the old release in `out`, and compare them with PostgreSQL.

    Args:
        directory: the user's own, for the vault's key file and for attachments; it is only read. out: is made; must not exist.

    Raises:
        UserError: nothing was migrated from there, the app works, or `out` exists. CheckFailed: what was written differs.
    """
    unfinished = (out / MARKER).is_file()  # renamed, and then the target was lost before it noted that
    if out.exists() and not unfinished:
        raise UserError(f"{out} exists: name a directory that doesn't with --to. Nothing was changed.")
    with _opened(place) as conn:
        found = state.read(conn)
        if found is None or found.phase == COPYING:
            raise UserError(
                "this target holds no migration that was finished: there is nothing to take back. Nothing was changed."
            )
        _refuse_other(found, directory, place)
        back.quiet(conn)
        chosen = run.options_of(found, options)
        part = out.with_name(f"{out.name}.part")
        if part.exists() and not (part / MARKER).is_file():
            raise UserError(f"{part} is there and not a rollback's: name another place with --to. Nothing was changed.")
        for earlier in (part, out) if unfinished else (part,):
            shutil.rmtree(earlier, ignore_errors=True)
        part.mkdir(mode=0o700, parents=True)
        (part / MARKER).touch()
        begun = time.monotonic()
        with conn.transaction():
            back.lock(conn)
            catalogue = state.catalogue(conn)
            written = _write(conn, found, catalogue, chosen, part)
            if directory.is_dir():
                written.files += back.beside(look(directory), part)
            results = _compare_back(place, conn, found, chosen, part, directory, report)
            ok = all(result.ok for result in results)
            if ok:
                back.refuse_waiting(conn)
                back.settle(part)
                part.rename(out)
                back.sync(out.parent)
                found.phase = ROLLED_BACK
                found.report["rolled_back_to"] = str(out)
                state.write(conn, found)
        if ok:
            (out / MARKER).unlink()
        tables = [result.document() for result in results]
        if not ok:
            bad = next(result for result in results if not result.ok)
            raise CheckFailed(
                f"table {bad.table} of {part} differs from PostgreSQL ({bad.wrong[0][0]}: {bad.wrong[0][1]}): the files are left there to be looked at,"
                " and are not to be used"
            )
        return {
            "directory": str(out), "release": found.release, "seconds": round(time.monotonic() - begun, 1), "rows": written.rows,
            "originals": written.originals, "left_behind": written.left, "files": written.files, "tables": tables,
        }  # fmt: skip


def _write(conn: run.Connection, found: State, catalogue: state.Catalogue, options: Options, part: Path) -> back.Back:
    empty = Source(part, part)
    converters = {}
    lookup = Lookup(empty, found.home)
    for name, table in found.tables.items():
        known = BY_NAME.get(name)
        if known is not None:
            shape = Found(table["file"], name, tuple(Column(c, "") for c in table["columns"]), known, True)
            converters[name] = Converter(empty, shape, catalogue.types, catalogue.nullable, found.home, options, lookup)
    return back.Writer(conn, found, catalogue, converters, part).everything()


def _compare_back(
    place: Place, conn: run.Connection, found: State, options: Options, part: Path, directory: Path, report: Report
) -> list[Compared]:  # fmt: skip
    """The files against the database, as if they were to be migrated; less what the old release has no place for."""
    source = look(part, directory)
    ignore = {}
    for name, table in found.tables.items():
        known = BY_NAME.get(name)
        if known is not None:
            columns = frozenset({"workspace_id", "handle", "task_path"} - set(table["columns"]))
            unknown = _unknown_keys(conn, known, found) if known.kept else frozenset()
            ignore[name] = (columns, unknown | (columns & {"workspace_id"}))
    chosen = Options(options.naive, False, (part,), options.moment, only_there=True)
    return run.verify(place.dsn, conn, source, found, chosen, report, ignore)


def _unknown_keys(conn: run.Connection, known: Table, found: State) -> frozenset[str]:
    query = sql.SQL("SELECT DISTINCT jsonb_object_keys(payload) FROM public.{} WHERE jsonb_typeof(payload) = 'object'")
    return frozenset(key for (key,) in conn.execute(query.format(sql.Identifier(known.into)))) - back.allowed(
        known, found
    )


def _compare(
    place: Place, conn: run.Connection, source: Source, found: State, options: Options, brought: Sequence[Check]
) -> list[Compared]:
    """The rows that were brought and not compared since, now or by an earlier command; and the number of rows of every table."""
    catalogue = state.catalogue(conn)
    setting = Setting(place.dsn, source, catalogue, found.home, options, found.widths)
    results = {table.name: Compared(table.name) for table in source.tables}
    checks = {(check.table, check.lo): check for check in brought}
    for tab, lo in conn.execute("SELECT tab, lo FROM orcheo_archive.chunk WHERE NOT compared"):
        if tab in results:
            checks.setdefault((tab, int(lo)), Check(tab, int(lo)))
    if checks:
        with Pool(setting) as pool:
            pool.run(iter(checks.values()), lambda one: results[one.table].add(one))
    counted = {name: Compared(name) for name in results}
    for tab, rows in conn.execute("SELECT tab, sum(rows)::bigint FROM orcheo_archive.chunk GROUP BY tab"):
        if tab in counted:
            counted[tab].rows = int(rows)
    surplus(conn, found, source, catalogue, counted)
    for name, result in results.items():
        result.mismatches += counted[name].mismatches
        result.wrong += counted[name].wrong
    return list(results.values())


def _refuse_other(found: State, origin: Path, place: Place) -> None:
    if found.source != place.name(origin):
        raise UserError(
            f"the target holds the migration of {found.source}, not of {place.name(origin)}: if that is the same directory, moved or on a renamed"
            f" machine, say so with --source {found.source}. Nothing was changed."
        )


def _found(conn: run.Connection, original: Source, place: Place) -> State:
    found = state.read(conn)
    if found is None:
        raise UserError(f"nothing was copied from {original.origin} to this target: run `orcheo-db migrate run` first")
    _refuse_other(found, original.origin, place)
    if found.phase not in (COPYING, COPIED):
        state.refuse_others(conn, found, found.source)
    return found


def quarantine(conn: run.Connection) -> list[dict[str, Any]]:
    """What is kept beside the rows: table, column, reason and number."""
    query = "SELECT tab, col, reason, count(*), bool_or(lossy) FROM orcheo_archive.quarantine GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    return [
        {"table": tab, "column": column, "reason": reason, "count": count, "lossy": lossy}
        for tab, column, reason, count, lossy in conn.execute(query)
    ]


def _home(found: State) -> dict[str, Any]:
    decided = found.home
    return {
        "workspace": decided.slug or None, "id": decided.id or None, "new": decided.new,
        "renamed": [{"table": t, "id": i, "new": n} for (t, i), n in sorted(decided.renames.items())],
    }  # fmt: skip


def _stamps(source: Source) -> dict[str, Stamp]:
    return {name: stamp(source.directory / name) for name in source.files}


__all__ = ["Place", "cutover", "migrate", "rollback", "verify"]
