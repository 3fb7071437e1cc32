"""What backups, restores, drills and archiving cost, each against a baseline of the same run, on an installation of its own.

The installation (project `<project>-bench`, port and state directory of its own) is brought up by the command line, as its user would,
and removed at the end. Baselines: pg_basebackup of the same cluster, `cp -a` of the same files, the same writes without archiving.
"""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import psycopg

from orcheo_db.bench.watched import PROGRAM
from orcheo_db.console import say
from orcheo_db.errors import CheckFailed
from orcheo_db.secrets import Store
from orcheo_db.spec import DEFAULT_PATH, load_spec
from orcheo_db.targets.compose import ComposeTarget

RESTORE_AIM = 0.8  # issue 4: of the speed of `cp -a` and the same recovery
OVERHEAD_AIM = 0.10  # issue 4: of the writes without archiving
ROW = 1000  # bytes, half of them random: compresses about as run history does
ROUNDS, SECONDS, CLIENTS = 10, 12, 8  # of writes with and without archiving; single ones differ by a tenth and more
MB = 2**20
QUIET_SECONDS = 300.0
_ROWS = """
INSERT INTO orcheo_bench.rows SELECT i, repeat(md5(random()::text), 16) || (SELECT string_agg(md5(random()::text || i || j), '') FROM generate_series(1, 15) j)
  FROM generate_series({first}, {last}) i
"""
_WRITE = "INSERT INTO orcheo_bench.writes (body) VALUES (repeat(md5(random()::text), 30));\n"


@dataclass
class Bench:
    """The installation under measurement."""

    root: Path
    project: str
    state: Path
    port: int
    spec: Path = DEFAULT_PATH
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        own = {
            "ORCHEO_DB_PROJECT": self.project,
            "ORCHEO_DB_PORT": str(self.port),
            "ORCHEO_DB_STATE_DIR": str(self.state),
        }
        return {**os.environ, **own, "ORCHEO_DB_SPEC": str(self.spec), "ORCHEO_DB_WITH": "none"}

    def run(self, *arguments: str) -> Any:
        """The command line, with --json.

        Raises:
            CheckFailed: it failed, with its last line.
        """
        argv = [PROGRAM, *arguments, "--json"]
        done = subprocess.run(
            argv, cwd=self.root, env=self.env, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0:
            raise CheckFailed(f"orcheo-db {' '.join(arguments)}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        return json.loads(done.stdout)

    def destroy(self) -> None:
        """Remove it, whatever there is of it."""
        subprocess.run([PROGRAM, "destroy", "--confirm", "yes"], cwd=self.root, env=self.env, capture_output=True)

    def target(self) -> ComposeTarget:
        spec = load_spec(self.spec, self.env)
        return ComposeTarget(spec, spec.size(), Store(self.state / self.project), self.root)

    def sql(self, *statements: str) -> str:
        """By the server's own socket, as its superuser; what the last one answers.

        Raises:
            CheckFailed: it was refused five times.
        """
        words = [word for statement in statements for word in ("-c", statement)]
        argv = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres", *words]
        for _ in range(5):
            done = self.target().run("postgres", argv)
            if done.code == 0:
                return done.stdout.strip()
            time.sleep(1)  # a session came between, or it is starting
        raise CheckFailed(f"psql: {(done.stderr.strip().splitlines() or ['?'])[-1]}")

    def archive(self, mode: str) -> None:
        """Restart the server with archive_mode `mode`: in the configuration that is mounted, which the next `up` writes again.

        Raises:
            CheckFailed: it does not run with it.
        """
        file = self.state / self.project / "mounts" / "postgres" / "conf" / "postgresql.conf"
        text, count = re.subn(r"^archive_mode = \w+$", f"archive_mode = {mode}", file.read_text(), flags=re.M)
        if count != 1:
            raise CheckFailed(f"{file} has no line archive_mode")
        with file.open("r+", encoding="utf-8") as opened:  # the same file: it is mounted
            opened.truncate()
            opened.write(text)
        self.target().restart("postgres")
        self.rest()
        if (found := self.sql("SHOW archive_mode")) != mode:
            raise CheckFailed(f"archive_mode is {found} and not {mode}")

    def rest(self) -> None:
        """Have what was written on the disk and in the archive: the next measurement shall not pay for the last one."""
        self.sql("CHECKPOINT")
        deadline = time.monotonic() + QUIET_SECONDS
        waiting = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
        while self.sql(waiting) != "0" and time.monotonic() < deadline:
            time.sleep(1)


def bench(root: Path, project: str, sizes: list[int]) -> dict[str, Any]:
    """Measure; the document has seconds, bytes and ratios.

    Args:
        sizes: megabytes of rows.

    Raises:
        CheckFailed: a step failed.
    """
    with tempfile.TemporaryDirectory(prefix="orcheo-db-bench-", dir="/var/tmp") as scratch:
        own = Bench(root, f"{project}-bench", Path(scratch), free_port())
        try:
            say("bringing an installation of its own up …")
            own.run("up")
            rows = 0
            found = []
            for size in sizes:
                say(f"{size} MB …")
                rows = _fill(own, rows, size)
                found.append(_measure(own, size))
            say("writes with and without archiving …")
            archiving = _archiving(own)
        finally:
            own.destroy()
    # At the largest size: a small restore is mostly the start of processes (about a second), which says nothing of its speed.
    ok = found[-1]["restore_to_copy"] >= RESTORE_AIM and archiving["overhead"] < OVERHEAD_AIM
    return {
        "sizes": found,
        "archiving": archiving,
        "ok": ok,
        "aims": {"restore_to_copy": RESTORE_AIM, "overhead": OVERHEAD_AIM},
    }


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _fill(own: Bench, there: int, size: int) -> int:
    """Have `size` MB of rows; returns how many there are."""
    wanted = size * MB // ROW
    with psycopg.connect(own.target().dsn(direct=True), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS orcheo_bench")
        connection.execute("CREATE TABLE IF NOT EXISTS orcheo_bench.rows (id bigint PRIMARY KEY, body text)")
        connection.execute("SET statement_timeout = 0")
        for first in range(there, wanted, 100_000):
            last = min(first + 100_000, wanted) - 1
            connection.execute(_ROWS.format(first=first, last=last).encode())
    return wanted


def _measure(own: Bench, size: int) -> dict[str, Any]:
    """Backup, pg_basebackup, restore, cp -a, drill at this size."""
    made = own.run("backup", "run", "--type", "full")
    base = _base_backup(own)
    restored = own.run("restore")
    copied = _copy(own, restored["volume"])
    docker.from_env().volumes.get(restored["volume"]).remove()
    drill = own.run("drill", "--switch")
    steps, bytes_ = restored["durations"], int(made["size"])
    recovery = steps["recovery"]
    return {
        "rows_mb": size,
        "cluster_bytes": bytes_,
        "stored_bytes": int(made["stored"]),
        "backup_seconds": made["seconds"],
        "backup_mb_s": round(bytes_ / MB / made["seconds"], 1),
        "pg_basebackup_seconds": base,
        "pg_basebackup_mb_s": round(bytes_ / MB / base, 1),
        "backup_to_pg_basebackup": round(base / made["seconds"], 2),
        "restore_seconds": steps["restore"],
        "restore_mb_s": round(bytes_ / MB / steps["restore"], 1),
        "recovery_seconds": recovery,
        "cp_seconds": copied,
        "cp_mb_s": round(bytes_ / MB / copied, 1),
        "restore_to_copy": round((copied + recovery) / (steps["restore"] + recovery), 2),
        "rto_seconds": restored["rto_seconds"],
        "drill_seconds": round(sum(drill["durations"].values()), 1),
        "drill_steps": drill["durations"],
    }


def _base_backup(own: Bench) -> float:
    """Seconds of pg_basebackup into a new volume, as a standby would be made: over TLS, with its WAL."""
    target = own.target()
    volume = f"{own.project}-base"
    script = (
        "export PGPASSWORD=$(cat) && pg_basebackup --pgdata=/var/lib/postgresql/base --checkpoint=fast --wal-method=stream"
        " --dbname='host=postgres user=replicator sslmode=verify-full sslrootcert=/ca.crt'"
    )
    options = [f"--network={own.project}_database", f"--volume={target.store.ca_file}:/ca.crt:ro"]
    return _timed(target, volume, script, options, told=target.store.password("replicator"))


def _copy(own: Bench, source: str) -> float:
    """Seconds of `cp -a` of a restored cluster, and writing it to the disk, into a new volume."""
    script = "cp -a /source/. /var/lib/postgresql/ && sync"
    return _timed(own.target(), f"{own.project}-copy", script, ["--network=none", f"--volume={source}:/source:ro"])


def _timed(target: ComposeTarget, volume: str, script: str, options: list[str], told: str = "") -> float:
    """Seconds of a shell script in a container of the postgres image with a new volume, which is removed again."""
    client = docker.from_env()
    client.volumes.create(volume)
    argv = [
        "docker",
        "run",
        "--rm",
        "--interactive",
        "--user=999:999",
        f"--volume={volume}:/var/lib/postgresql",
        *options,
    ]
    argv += ["--entrypoint=sh", target.tags["postgres"], "-euc", f"s=$(date +%s.%N); {script}; echo $s $(date +%s.%N)"]
    try:
        done = subprocess.run(argv, input=told, capture_output=True, text=True)
        if done.returncode != 0:
            raise CheckFailed(f"the baseline failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        begun, ended = (float(word) for word in done.stdout.split()[-2:])
    finally:
        client.volumes.get(volume).remove()
    return round(ended - begun, 2)


def _archiving(own: Bench) -> dict[str, Any]:
    """Committed inserts a second with and without archiving, in turn, the other one first each time, so that what changes with time falls on
    both. The same services run in both; PostgreSQL is restarted before each. The overhead is the median of the pairs' ones.
    """
    rates: dict[str, list[float]] = {"on": [], "off": []}
    with psycopg.connect(own.target().dsn(direct=True), autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE orcheo_bench.writes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)"
        )
    for number in range(ROUNDS):
        for name in ("on", "off")[:: 1 if number % 2 else -1]:
            with psycopg.connect(own.target().dsn(direct=True), autocommit=True) as connection:
                connection.execute("TRUNCATE orcheo_bench.writes")
            own.archive(name)
            rates[name].append(_writes(own))
    own.archive("on")
    overhead = 1 - statistics.median(on / off for on, off in zip(rates["on"], rates["off"], strict=True))
    return {"writes_s_on": rates["on"], "writes_s_off": rates["off"], "overhead": round(overhead, 3)}


def _writes(own: Bench) -> float:
    """pgbench's transactions a second, over the server's own socket: nothing but the server is measured."""
    target = own.target()
    argv = [
        "pgbench",
        "--no-vacuum",
        f"--client={CLIENTS}",
        "--jobs=2",
        f"--time={SECONDS}",
        "--file=/dev/stdin",
        target.spec.database.name,
    ]
    time.sleep(2)  # what `up` started comes to rest
    result = target.run("postgres", argv, input=_WRITE)
    match = re.search(r"tps = ([\d.]+)", result.stdout)
    if result.code != 0 or match is None:
        raise CheckFailed(f"pgbench: {(result.stderr.strip().splitlines() or ['?'])[-1]}")
    return float(match[1])
