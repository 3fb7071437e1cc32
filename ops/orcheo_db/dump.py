"""A backup point: the app's database as one file (pg_dump's custom format), and that file as the database again.

PostgreSQL's own programs do it: in the server's container where the server is ours, else in a throw-away container of the postgres
image as the administrator. They are told passwords on stdin and write to stdout, so that nothing lies about.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from orcheo_db.bootstrap.job import OWNER
from orcheo_db.console import step
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.images import ensure_images
from orcheo_db.lifecycle_steps import last_line
from orcheo_db.targets.compose import ComposeTarget
from orcheo_db.targets.external import ExternalTarget

DIRECTORY = "backups"
# The first line of stdin is libpq's password file; the rest, if any, the program's own input. dash reads byte by byte, so it takes
# no more than its line.
_TOLD = 'IFS= read -r line; umask 077; printf "%s\\n" "$line" > /tmp/pgpass; PGPASSFILE=/tmp/pgpass exec "$@"'


def stamp() -> str:
    """The moment, as part of a name: 20261125_081500 (UTC)."""
    return datetime.now(UTC).strftime("%Y%m%d_%H%M%S")


def _argv(target: ComposeTarget, program: str, database: str, arguments: Sequence[str]) -> tuple[list[str], bytes]:
    """The command on this machine, and what must stand first on its stdin."""
    if not isinstance(target, ExternalTarget):
        container = target.container("postgres")
        if container is None or container.status != "running":
            raise UserError(f"PostgreSQL of project {target.project} does not run: run `{target.up_command}`")
        return ["docker", "exec", "--interactive", str(container.id), program, f"--dbname={database}", *arguments], b""
    ensure_images(target.spec, target.root, target.store.path / "logs", ["postgres"])
    parts = target.admin()
    where = {key: parts[key] for key in ("host", "hostaddr", "port", "user", "sslmode") if parts.get(key)}
    clients = target.client_files(direct=True)
    where |= {"dbname": database, "sslrootcert": "/server-ca.crt", **{word: f"/{word}" for word in clients}}
    dsn = " ".join(f"{key}={value}" for key, value in where.items())
    command = [
        "docker", "run", "--rm", "--interactive", f"--network={target.project}_clients", f"--user={os.getuid()}:{os.getgid()}",
        "--read-only", "--tmpfs=/tmp:mode=1777,size=16m", "--cap-drop=ALL", "--security-opt=no-new-privileges:true",
        f"--volume={target.ca_file(direct=True)}:/server-ca.crt:ro", *(f"--volume={file}:/{word}:ro" for word, file in clients.items()),
        "--entrypoint=sh", target.tags["postgres"],
        "-c", _TOLD, "sh", program, f"--dbname={dsn}", *arguments,
    ]  # fmt: skip
    password = str(parts["password"]).replace("\\", "\\\\").replace(":", "\\:")
    return command, f"*:*:*:*:{password}\n".encode()


def _run(argv: list[str], first: bytes, given: IO[bytes] | None, output: IO[bytes] | int) -> tuple[int, str]:
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.PIPE)
    assert process.stdin is not None and process.stderr is not None
    try:
        process.stdin.write(first)
        while given is not None and (block := given.read(1 << 20)):
            process.stdin.write(block)
        process.stdin.close()
    except BrokenPipeError:
        pass  # it ended early; its exit code and its words say why
    words = process.stderr.read().decode(errors="replace")
    return process.wait(), words


def sql(target: ComposeTarget, text: str, database: str = "postgres") -> str:
    """Run SQL as the server's superuser (ours) or administrator (elsewhere); returns what psql prints.

    Raises:
        CheckFailed: the server refuses.
    """
    argv, first = _argv(target, "psql", database, ["-XAtq", "--set=ON_ERROR_STOP=1", f"--command={text}"])
    done = subprocess.run(argv, input=first, capture_output=True)
    if done.returncode != 0:
        raise CheckFailed(f"PostgreSQL refuses: {last_line(done.stderr.decode(errors='replace'))}")
    return done.stdout.decode().strip()


def make(target: ComposeTarget, label: str) -> Path:
    """Write the app's database to a new file in the state directory (mode 0600) that is whole: synced, and its contents listed.

    Nothing here ever deletes one.

    Raises:
        CheckFailed: pg_dump failed or what it wrote can't be read; no file is left.
    """
    directory = target.store.path / DIRECTORY
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    final = directory / f"{target.spec.database.name}-{label}-{stamp()}.dump"
    partial = final.with_suffix(".partial")
    argv, first = _argv(target, "pg_dump", target.spec.database.name, ["--format=custom", "--compress=6"])
    try:
        with step(f"Writing the backup point {final.name}"), open(partial, "wb", opener=_private) as file:
            code, words = _run(argv, first, None, file)
            os.fsync(file.fileno())
        if code != 0:
            raise CheckFailed(f"no backup point could be made: {last_line(words)}")
        contents(target, partial)
        partial.rename(final)
    finally:
        partial.unlink(missing_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return final


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def contents(target: ComposeTarget, file: Path) -> list[str]:
    """The names of the tables whose rows are in a dump.

    Raises:
        UserError: there is no such file, or it is no dump of an Orcheo.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist: name a file in {target.store.path / DIRECTORY}")
    image = target.tags["postgres"]
    if isinstance(target, ExternalTarget):
        ensure_images(target.spec, target.root, target.store.path / "logs", ["postgres"])
    argv = [
        "docker",
        "run",
        "--rm",
        "--interactive",
        "--network=none",
        "--read-only",
        "--cap-drop=ALL",
        "--entrypoint=pg_restore",
        image,
        "--list",
    ]
    with file.open("rb") as given:
        done = subprocess.run(argv, stdin=given, capture_output=True)
    if done.returncode != 0:
        raise UserError(f"{file} is no whole dump: {last_line(done.stderr.decode(errors='replace'))}")
    lines = done.stdout.decode(errors="replace").splitlines()
    tables = [line.split("TABLE DATA", 1)[1].split() for line in lines if " TABLE DATA " in line]
    names = [words[1] for words in tables if words[0] == "public"]
    if "workflows" not in names:
        raise UserError(f"{file} is a dump of something else than Orcheo's database")
    return names


def restore_beside(target: ComposeTarget, file: Path, name: str) -> None:
    """Restore a dump into a new database of that name; the app's own is not touched.

    Raises:
        CheckFailed: it could not be restored whole; the new database is gone again.
    """
    template = sql(target, "SELECT pg_encoding_to_char(encoding) = 'UTF8' FROM pg_database WHERE datname = 'template1'")
    source = "TEMPLATE template1" if template == "t" else "TEMPLATE template0 ENCODING 'UTF8'"
    sql(target, f'CREATE DATABASE "{name}" OWNER {OWNER} {source}')
    try:
        sql(target, f'REVOKE ALL ON DATABASE "{name}" FROM PUBLIC')
        argv, first = _argv(target, "pg_restore", name, ["--exit-on-error", "--no-comments"])
        with step(f"Restoring {file.name} into database {name}"), file.open("rb") as given:
            code, words = _run(argv, first, given, subprocess.DEVNULL)
    except BaseException:
        sql(target, f'DROP DATABASE IF EXISTS "{name}"')
        raise
    if code != 0:
        sql(target, f'DROP DATABASE IF EXISTS "{name}"')
        raise CheckFailed(f"{file} could not be restored: {last_line(words)}; the app's database was not touched")


def swap(target: ComposeTarget, restored: str, aside: str) -> None:
    """Give the app's name to the restored database and `aside` to the one that had it, in one transaction.

    Raises:
        CheckFailed: somebody is still connected to it.
    """
    name = target.spec.database.name
    # The names are checked where they are made (`bootstrap.job`, `stamp`).
    end = f"SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"  # noqa: S608
    rename = (
        f'BEGIN; ALTER DATABASE "{name}" RENAME TO "{aside}"; ALTER DATABASE "{restored}" RENAME TO "{name}"; COMMIT'
    )
    sql(target, end)
    sql(target, rename)


__all__ = ["contents", "make", "restore_beside", "sql", "stamp", "swap"]
