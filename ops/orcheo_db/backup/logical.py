"""The logical copy: pg_dump of the app's database, in parallel, into the repository, each proven by restoring it.

A second way that depends on no engine of ours: `gpg --decrypt` with the cipher key as its passphrase, tar, and pg_restore of any later major
bring the data back. A copy is logical/<UTC time>/: dump.tar.gpg (pg_dump's directory format, zstd), globals.sql (roles, without passwords),
manifest.json (versions, sizes, each table's rows at the dump's own snapshot).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from orcheo_db.backup.config import UNFINISHED, Config
from orcheo_db.backup.operations import Heard, connect, logical_copies
from orcheo_db.backup.scratch import GENTLE, Cluster, Target, check_room, scratch
from orcheo_db.errors import CheckFailed
from orcheo_db.upgrade.session import settled

DUMP = "dump.tar.gpg"
JOBS = "2"  # of pg_dump and pg_restore: the machine's other work goes on
HASHED = 64 * 2**20  # bytes of a table up to which its contents are compared and not its number of rows alone
START_SECONDS = 120.0
COPIES = 2  # times the database on the scratch volume: the dump (packed, then unpacked) and what is restored of it
# Every ordinary table with its rows and, where it is small, an order-independent hash of them.
_TABLES = """
SELECT n.nspname::text, c.relname::text, pg_table_size(c.oid)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
 ORDER BY 1, 2
"""


def run(config: Config, heard: Heard) -> dict[str, Any]:
    """Dump, store encrypted, restore into a scratch cluster, compare, and remove copies beyond the retention.

    Raises:
        CheckFailed: a step failed, or the restored copy is not what was dumped. A copy that can't be restored isn't kept.
    """
    label = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    home = config.repository / "logical"
    home.mkdir(mode=0o700, exist_ok=True)
    for left in home.glob(f"*{UNFINISHED}"):  # a killed run's; never listed, never counted
        shutil.rmtree(left)
    place = home / f"{label}{UNFINISHED}"
    with scratch(config, f"logical-{label}", Target()) as cluster:
        place.mkdir(mode=0o700)
        try:
            manifest = _dump(config, cluster.directory, place, heard)
            _prove(config, cluster, place, manifest, heard)
        except BaseException:
            shutil.rmtree(place)
            raise
    (place / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    place.rename(home / label)
    return {**manifest, "label": label, "removed": _expire(config, home)}


def _dump(config: Config, directory: Path, place: Path, heard: Heard) -> dict[str, Any]:
    """Write the copy; returns its manifest."""
    started = time.monotonic()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with connect(config) as connection, connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        row = connection.execute(
            "SELECT pg_export_snapshot(), pg_database_size(current_database()), current_setting('server_version')"
        ).fetchone()
        assert row is not None
        check_room(config.scratch, COPIES * row[1])
        check_room(config.repository, row[1] // 2)
        heard("pg_dump")
        argv = [
            "pg_dump",
            f"--dbname={config.dsn()}",
            "--format=directory",
            f"--jobs={JOBS}",
            "--compress=zstd:3",
            "--no-password",
        ]
        argv += [f"--snapshot={row[0]}", "--lock-wait-timeout=10s", f"--file={directory / 'dump'}"]
        _tool(argv, "pg_dump")
        heard("counting what was dumped")
        tables = list(_counted(connection))
    _tool(
        ["pg_dumpall", f"--dbname={config.dsn('postgres')}", "--globals-only", "--no-role-passwords", "--no-password", f"--file={place / 'globals.sql'}"],
        "pg_dumpall",
    )  # fmt: skip
    heard("storing it, encrypted")
    _pack(config, directory / "dump", place / DUMP)
    shutil.rmtree(directory / "dump")
    return {
        "format": "orcheo-db-logical/1",
        "installation_id": config.installation_id,
        "database": config.database,
        "server_version": row[2],
        "database_bytes": int(row[1]),
        "stored_bytes": (place / DUMP).stat().st_size,
        "sha256": sha256(place / DUMP),
        "tables": tables,
        "seconds": round(time.monotonic() - started, 1),
    }


def _counted(connection: psycopg.Connection[Any]) -> Iterator[dict[str, Any]]:
    """Each table's rows, and a hash of those of small ones, in this session's snapshot."""
    for schema, table, size in connection.execute(_TABLES).fetchall():
        yield {"table": f"{schema}.{table}", **count(connection, schema, table, hashed=size <= HASHED)}


def count(connection: psycopg.Connection[Any], schema: str, table: str, *, hashed: bool) -> dict[str, Any]:
    """A table's rows and, with `hashed`, the sum of their hashes."""
    what = "coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text" if hashed else "NULL"
    query = sql.SQL("SELECT count(*), {} FROM {} t").format(sql.SQL(what), sql.Identifier(schema, table))
    with connection.transaction():
        settled(connection)
        row = connection.execute(query).fetchone()
    assert row is not None
    return {"rows": int(row[0]), "hash": row[1]}


def _prove(config: Config, cluster: Cluster, place: Path, manifest: dict[str, Any], heard: Heard) -> None:
    """Restore what was stored, with its own roles, and compare each table.

    Raises:
        CheckFailed: it can't be restored, or differs.
    """
    started = time.monotonic()
    heard("restoring it")
    _unpack(config, place / DUMP, cluster.directory)
    with fresh(cluster) as dsn:
        globals_sql = cluster.directory / "globals.sql"
        text = (place / "globals.sql").read_text(encoding="utf-8")
        globals_sql.write_text(
            re.sub(r"(?m)^CREATE ROLE postgres;$", "", text), encoding="utf-8"
        )  # a cluster has it from the start
        _tool(["psql", "-Xq", "--set=ON_ERROR_STOP=1", f"--dbname={dsn}", f"--file={globals_sql}"], "psql (roles)")
        argv = [
            *GENTLE,
            "pg_restore",
            f"--dbname={dsn}",
            "--create",
            "--exit-on-error",
            f"--jobs={JOBS}",
            str(cluster.directory / "dump"),
        ]
        _tool(argv, "pg_restore")
        with psycopg.connect(cluster.dsn(config.database), autocommit=True) as connection:
            there = {entry["table"]: entry for entry in manifest["tables"]}
            here = {}
            for name, was in there.items():
                schema, _, table = name.partition(".")
                try:
                    here[name] = {"table": name, **count(connection, schema, table, hashed=was["hash"] is not None)}
                except psycopg.errors.UndefinedTable:
                    here[name] = {"table": name, "rows": None, "hash": None}
    wrong = [
        f"{name} has {here[name]['rows']} rows, dumped were {was['rows']}"
        for name, was in there.items()
        if here[name]["rows"] != was["rows"]
    ]
    wrong += [
        f"{name}: the contents differ"
        for name, was in there.items()
        if here[name]["rows"] == was["rows"] and here[name]["hash"] != was["hash"]
    ]
    if wrong:
        raise CheckFailed(f"the logical copy does not restore to what was dumped: {'; '.join(wrong[:3])}")
    manifest["restored_seconds"] = round(time.monotonic() - started, 1)
    manifest["rows"] = sum(entry["rows"] for entry in manifest["tables"])


@contextmanager
def fresh(cluster: Cluster) -> Iterator[str]:
    """A new cluster's server on the scratch volume; yields the superuser's DSN."""
    _tool(["initdb", "--pgdata", str(cluster.data), "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale-provider=builtin",
           "--builtin-locale=C.UTF-8", "--locale=C", "--no-sync"], "initdb")  # fmt: skip
    cluster.sockets.mkdir(mode=0o700, exist_ok=True)
    cluster.start(START_SECONDS)
    try:
        yield cluster.dsn()
    finally:
        cluster.stop(clean=False)


def _tool(argv: Sequence[str], name: str) -> None:
    """Run a program; its last line says why it failed.

    Raises:
        CheckFailed: it failed.
    """
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "PGCONNECT_TIMEOUT": "10"})
    if done.returncode != 0:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        told = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()] or lines
        raise CheckFailed(f"{name}: {(told or ['it said nothing'])[0]}")


def _gpg(config: Config, *mode: str) -> list[str]:
    """gpg with the repository's cipher key as its passphrase; no key ring, no agent that remembers."""
    return [
        "gpg", "--batch", "--quiet", "--no-options", "--no-symkey-cache", "--homedir=/tmp/gnupg", "--pinentry-mode=loopback",
        f"--passphrase-file={config.secrets}/cipher.key", *mode,
    ]  # fmt: skip


def _pack(config: Config, directory: Path, file: Path) -> None:
    Path("/tmp/gnupg").mkdir(mode=0o700, exist_ok=True)  # noqa: S108 - the container's own tmpfs
    tar = subprocess.Popen(
        ["tar", "--create", f"--directory={directory.parent}", directory.name], stdout=subprocess.PIPE
    )
    encrypt = _gpg(config, "--symmetric", "--cipher-algo=AES256", "--compress-algo=none", f"--output={file}")
    done = subprocess.run(encrypt, stdin=tar.stdout, capture_output=True, text=True)
    if tar.stdout is not None:
        tar.stdout.close()  # where gpg ended early, tar is told so; else it would wait for ever
    if tar.wait() != 0 or done.returncode != 0:
        raise CheckFailed(
            f"storing the logical copy failed: {(done.stderr.strip().splitlines() or ['tar failed'])[-1]}"
        )


def _unpack(config: Config, file: Path, directory: Path) -> None:
    decrypt = subprocess.Popen(
        _gpg(config, "--decrypt", str(file)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=False
    )
    done = subprocess.run(
        ["tar", "--extract", f"--directory={directory}"], stdin=decrypt.stdout, capture_output=True, text=True
    )
    if decrypt.stdout is not None:
        decrypt.stdout.close()
    errors = decrypt.stderr.read() if decrypt.stderr is not None else b""
    decrypt.wait()
    if decrypt.returncode != 0 or done.returncode != 0:
        said = (
            errors.decode(errors="replace").strip().splitlines()
            or done.stderr.strip().splitlines()
            or ["it said nothing"]
        )
        raise CheckFailed(f"the logical copy {file.parent.name} can't be read: {said[-1]}")


def sha256(file: Path) -> str:
    """A file's digest, as manifest.json has it of the dump."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _expire(config: Config, home: Path) -> list[str]:
    """Remove the oldest copies beyond the retention, now that a newer one is proven; returns their labels."""
    labels = [entry["label"] for entry in logical_copies(config)]
    gone = labels[: max(0, len(labels) - config.logical_copies)]
    for label in gone:
        shutil.rmtree(home / label)
    return gone
