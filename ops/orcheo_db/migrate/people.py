"""Export for people: every table of the app, at one moment, in a file that other programs read, with a manifest and checksums.

`people_import` takes one in. How values stand in the files is in `people_rows`, the manifest in `people_manifest`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors, sql

from orcheo_db import __version__
from orcheo_db.bootstrap import installation
from orcheo_db.bootstrap.job import OWNER
from orcheo_db.console import Step, step
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.migrate import people_manifest, people_rows, people_tables, run
from orcheo_db.migrate.back import sync
from orcheo_db.migrate.people_manifest import Manifest, TableEntry
from orcheo_db.migrate.people_tables import Connection, Table

APPLICATION = "orcheo-db export"
MARKER = ".orcheo-db-export"  # in DIR.part: it is an export's, which lives as long as it holds the lock
SHOWN_BYTES = 2**20  # between two moves of a bar


def export(dsn: str, out: Path, form: str, names: Sequence[str]) -> dict[str, Any]:
    """Write the app's tables into a new directory, as they are at one moment.

    Args:
        dsn: the administrator's, direct. out: is made; DIR.part beside it until all is there. form: jsonl or csv. names: of tables; all
            where there is none.

    Raises:
        UserError: the directory exists or can't be made, or there is no such table. CheckFailed: the server ended it; nothing is left.
    """
    if out.exists() or out.is_symlink():
        raise UserError(
            f"{out} exists: an export makes its own directory, name another with --to. Nothing was changed."
        )
    begun = time.monotonic()
    with closing(run.connected(dsn)) as conn, _part(out) as part, answers(f"the export failed, {out} was not made"):
        people_tables.settle(conn, APPLICATION)
        conn.isolation_level, conn.read_only = psycopg.IsolationLevel.REPEATABLE_READ, True
        manifest = _write(conn, part, form, names)
        _keep(part / people_manifest.NAME, [people_manifest.text(manifest).encode()])
        (part / MARKER).unlink()
        sync(part)
        part.rename(out)
        sync(out.parent)
    written = manifest.tables
    return {
        "directory": str(out), "format": form, "database": manifest.database, "moment": manifest.moment, "lsn": manifest.lsn,
        "rows": sum(table.rows for table in written.values()), "bytes": sum(table.bytes for table in written.values()),
        "seconds": round(time.monotonic() - begun, 2),
        "tables": [{"table": name, **written[name].model_dump(include={"rows", "bytes", "sha256"})} for name in manifest.order],
    }  # fmt: skip


def _write(conn: Connection, part: Path, form: str, names: Sequence[str]) -> Manifest:
    row = conn.execute("SELECT current_database()").fetchone()
    database = str(row[0]) if row else ""
    order = people_tables.ordered(people_tables.read(conn))
    wanted = people_manifest.chosen(order, names, f"database {database}")
    if not wanted:
        raise CheckFailed(f"database {database} has no table of an app: run `orcheo-db up` first, which makes them")
    files = {name: people_manifest.file_name(name, form) for name in wanted}
    with conn.transaction():
        # Before the snapshot, which the first query takes: no table may be rewritten between the two.
        places = sql.SQL(", ").join(sql.Identifier("public", name) for name in wanted)
        conn.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(places))
        row = conn.execute("SELECT now(), current_setting('server_version')").fetchone()
        assert row is not None
        lsn, releases, found = _lsn(conn), _releases(conn), people_tables.read(conn)
        with step(f"Exporting {len(wanted)} tables") as running:
            count = counting(running, _size(conn, wanted))
            written = {name: _table(conn, found[name], part / files[name], form, count) for name in wanted}
    return Manifest(
        format=people_manifest.FORMAT, kind=people_manifest.KIND, rows="csv" if form == people_rows.CSV else "jsonl",
        legend=people_rows.LEGEND[form], database=database, server=str(row[1]), toolkit=__version__,
        releases=releases, moment=row[0].isoformat(), lsn=lsn, order=wanted, tables=written,
    )  # fmt: skip


def _table(conn: Connection, table: Table, path: Path, form: str, count: Callable[[int, str], None]) -> TableEntry:
    hashed, written = hashlib.sha256(), 0

    def through(blocks: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal written
        for block in blocks:
            hashed.update(block)
            written += len(block)
            count(len(block), table.name)
            yield block

    with conn.cursor() as cursor:
        with cursor.copy(people_rows.copy_out(form, table.place, table.columns)) as copy:
            _keep(path, through(map(bytes, copy)))
        rows = cursor.rowcount
    sequences = people_tables.last_values(conn, table)
    return people_tables.entry(table, path.name, rows, written, hashed.hexdigest(), sequences)


def _lsn(conn: Connection) -> str | None:
    """How far the WAL was written (at a standby: replayed) at the snapshot; None where that may not be read."""
    query = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text"
    try:
        with conn.transaction():
            row = conn.execute(query).fetchone()
    except errors.InsufficientPrivilege:
        return None
    return row[0] if row else None


def _releases(conn: Connection) -> dict[str, str]:
    """The app's releases that the bootstrap noted; none where it did not, or where that may not be read."""
    try:
        with conn.transaction():
            conn.execute("SET LOCAL ROLE NONE")  # the note is the administrator's, not the app's
            noted = installation.read(conn)
            conn.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(OWNER)))
    except errors.InsufficientPrivilege:
        return {}
    return {"orcheo": noted.orcheo_version, "orcheo-backend": noted.backend_version} if noted else {}


def _size(conn: Connection, names: Sequence[str]) -> int:
    """Bytes that the tables take, for the bar."""
    query = "SELECT sum(pg_table_size(format('public.%%I', name)::regclass))::bigint FROM unnest(%s::text[]) name"
    row = conn.execute(query, (list(names),)).fetchone()
    return int(row[0]) if row else 0


@contextmanager
def _part(out: Path) -> Iterator[Path]:
    """The directory that is renamed at the end. What fails leaves none; what is killed leaves it to the next export.

    Raises:
        UserError: it can't be made, is somebody else's, or its export still runs.
    """
    part = out.with_name(f"{out.name}.part")
    if part.exists() and not (part / MARKER).is_file():
        raise UserError(f"{part} exists and no export left it there: move it away. Nothing was changed.")
    try:
        part.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UserError(f"{part} can't be made ({error.strerror}): name another directory with --to") from None
    with open(part / MARKER, "ab", opener=_private) as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"an export to {out} is at work: wait for it, or end it") from None
        part.chmod(0o700)
        for left in part.iterdir():
            if left.name != MARKER:
                left.unlink()
        try:
            yield part
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def _keep(path: Path, blocks: Iterable[bytes]) -> None:
    with open(path, "xb", opener=_private, buffering=people_manifest.BLOCK) as file:
        for block in blocks:
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


# --- also the import's -------------------------------------------------------------------------------------------------------------


def counting(running: Step, size: int) -> Callable[[int, str], None]:
    """Moves a bar by the bytes that are told, with a note. size: in bytes, as far as it is known."""
    done, shown = 0, -SHOWN_BYTES

    def count(more: int, note: str) -> None:
        nonlocal done, shown
        done += more
        if done - shown >= SHOWN_BYTES:
            shown = done
            running.update(done, max(size, done), note)

    return count


@contextmanager
def answers(what: str) -> Iterator[None]:
    """What PostgreSQL says, in one line.

    Raises:
        CheckFailed: it says something.
    """
    try:
        yield
    except psycopg.Error as error:
        raise CheckFailed(f"{what}: {words(error)}") from None


def words(error: psycopg.Error) -> str:
    """PostgreSQL's words without a value of a row, which may be anybody's secret."""
    text = error.diag.message_primary or " ".join(str(error).split())
    text = re.sub(r': ".*', "", text, flags=re.DOTALL)
    return re.sub(r'^value ".*" is', "a value is", text, flags=re.DOTALL)[:300]
