"""A cluster beside production: pgBackRest restores it, a server of its own recovers it to a target, without any network."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from orcheo_db.backup.config import Config
from orcheo_db.backup.engine import PgBackRest
from orcheo_db.errors import CheckFailed

GENTLE = ("nice", "-n", "10", "ionice", "-c", "3")  # behind everything that production does on this machine
STOP_SECONDS = 120  # a clean shutdown writes at most shared_buffers
ROOM = 1.1  # times the cluster's size: temporary files
RESERVE = (
    2 * 2**30
)  # bytes that stay free beyond that: the copy's own WAL (max_wal_size), and production's on the same disk

# The copy's own configuration: the spec's is for the machine that production has. hot_standby off: no setting need be as high as
# production's to replay its WAL. autovacuum off: nothing moves while the copy is compared. fsync stays on: the time is to be honest.
SETTINGS = """\
listen_addresses = ''
unix_socket_directories = '{sockets}'
unix_socket_permissions = 0700
hba_file = '{directory}/pg_hba.conf'
ident_file = '{directory}/pg_ident.conf'
shared_buffers = '{shared_buffers}MB'
maintenance_work_mem = '64MB'
max_connections = 20
hot_standby = off
autovacuum = off
archive_mode = off
jit = off
wal_level = replica
max_wal_size = '1GB'
checkpoint_timeout = '30min'
logging_collector = off
log_destination = 'stderr'
lc_messages = 'C'
TimeZone = 'UTC'
"""


@dataclass
class Target:
    """Where recovery ends: exactly one of these, or none of them for the end of the archive."""

    time: str | None = None
    lsn: str | None = None
    name: str | None = None
    timeline: int | None = None  # the one to follow; None: the newest
    last: str | None = None  # the last segment of it in the archive: recovery to the end must have read that

    def options(self) -> list[str]:
        """pgBackRest's options for it."""
        line = [f"--target-timeline={self.timeline}"] if self.timeline else []
        return [*self._end(), *line]

    def _end(self) -> list[str]:
        for kind in ("time", "lsn", "name"):
            if value := getattr(self, kind):
                return [f"--type={kind}", f"--target={value}", "--target-action=promote"]
        return ["--type=default"]

    def __str__(self) -> str:
        words = {"time": self.time, "LSN": self.lsn, "restore point": self.name}
        return next((f"{kind} {value}" for kind, value in words.items() if value), "the end of the archive")


@dataclass
class Cluster:
    """A restored cluster in `data`, its server's files in `directory`. gentle: behind everything else on this machine, as a drill is."""

    config: Config
    data: Path
    directory: Path
    target: Target
    gentle: bool = True
    durations: dict[str, float] = field(default_factory=dict)  # seconds of each step
    _server: subprocess.Popen[bytes] | None = None

    @property
    def sockets(self) -> Path:
        return self.directory / "sockets"

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    def dsn(self, database: str = "postgres", user: str = "postgres", **more: str) -> str:
        rest = "".join(f" {key}='{value}'" for key, value in more.items())
        return f"host={self.sockets} dbname={database} user={user}{rest}"

    def restore(self, heard: Callable[[str], None], *options: str) -> None:
        """Lay the files of the newest fitting backup (or the one in `options`) into `data`.

        Raises:
            CheckFailed: pgBackRest can't, with its own words.
        """
        started = time.monotonic()
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        engine = PgBackRest(self.config, local=True)
        engine.run(
            "restore",
            f"--config={engine.file}",  # it stands in restore_command then
            f"--pg1-path={self.data}",
            "--archive-mode=off",
            *self.target.options(),
            *options,
            heard=heard,
            prefix=GENTLE if self.gentle else (),
        )
        self.durations["restore"] = round(time.monotonic() - started, 2)

    def start(self, seconds: float, heard: Callable[[str], None] = lambda _: None) -> None:
        """Start the server and wait until it has recovered to the target and been promoted.

        Raises:
            CheckFailed: it ended or didn't get there in time, with the last line of its log that says why.
        """
        started = time.monotonic()
        shared = max(64, min(512, self.config.memory // 8 // 2**20))
        text = SETTINGS.format(sockets=self.sockets, directory=self.directory, shared_buffers=shared)
        (self.directory / "postgresql.conf").write_text(text)
        (self.directory / "pg_hba.conf").write_text("local all all trust\n")  # in a directory of mode 0700
        (self.directory / "pg_ident.conf").write_text("")
        argv = [
            *(GENTLE if self.gentle else ()),
            "postgres",
            "-D",
            str(self.data),
            "-c",
            f"config_file={self.directory}/postgresql.conf",
        ]
        with self.log.open("ab") as log:
            environment = PgBackRest(self.config, local=True).environment()
            self._server = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT, env=environment)
        deadline, said = time.monotonic() + seconds, ""
        while not self.is_promoted():
            if self._server.poll() is not None:
                raise CheckFailed(f"recovery to {self.target} failed: {self.why()}")
            if time.monotonic() > deadline:
                raise CheckFailed(f"recovery to {self.target} was not done after {seconds:.0f} s: {self.why()}")
            if (line := self.last_line()) != said:
                heard(line)
                said = line
            time.sleep(0.1)
        self.durations["recovery"] = round(time.monotonic() - started, 2)

    def is_promoted(self) -> bool:
        try:
            with psycopg.connect(self.dsn(), connect_timeout=5) as connection:
                row = connection.execute("SELECT NOT pg_is_in_recovery()").fetchone()
        except psycopg.OperationalError:
            return False
        return bool(row and row[0])

    def lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines() if self.log.is_file() else []

    def last_line(self) -> str:
        return (self.lines() or ["starting"])[-1]

    def why(self) -> str:
        """The last FATAL or ERROR of the server's log, else its last line."""
        lines = self.lines()
        told = [line for line in lines if re.search(r"\b(FATAL|PANIC|ERROR):", line)]
        return re.sub(r"^.*?\b(FATAL|PANIC|ERROR):\s*", "", (told or lines or ["it said nothing"])[-1])

    def stop(self, *, clean: bool) -> None:
        """End the server: with a checkpoint (`clean`), or at once."""
        if self._server is None or self._server.poll() is not None:
            return
        started = time.monotonic()
        self._server.send_signal(signal.SIGINT if clean else signal.SIGQUIT)
        try:
            self._server.wait(STOP_SECONDS if clean else 10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self.durations["shutdown"] = round(time.monotonic() - started, 2)


FILE_SYSTEMS_OWN = "lost+found"  # root's, in the root of a volume that is a file system of its own


@contextmanager
def scratch(config: Config, name: str, target: Target) -> Iterator[Cluster]:
    """A cluster in the scratch volume that is gone at the end, whatever happens; what a killed drill left is removed first."""
    clear(config)
    directory = config.scratch / name
    cluster = Cluster(config, directory / "data", directory, target)
    try:
        yield cluster
    finally:
        cluster.stop(clean=False)
        shutil.rmtree(directory, ignore_errors=True)


def clear(config: Config) -> list[str]:
    """End servers and remove clusters that a killed drill left on the scratch volume; returns their names."""
    found = []
    entries = sorted(config.scratch.iterdir()) if config.scratch.is_dir() else []
    for directory in (entry for entry in entries if entry.name != FILE_SYSTEMS_OWN):
        pid_file = directory / "data" / "postmaster.pid"
        with suppress(OSError, ValueError, IndexError):
            pid = int(pid_file.read_text().splitlines()[0])
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if str(directory / "data").encode() in command:  # the number may be another process' by now
                os.kill(pid, signal.SIGQUIT)
                _gone(pid)
        shutil.rmtree(directory)
        found.append(directory.name)
    return found


def _gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def check_room(path: Path, size: int) -> None:
    """Refuse a restore that would fill the volume.

    Raises:
        CheckFailed: less is free than the cluster needs.
    """
    free = shutil.disk_usage(path).free
    needed = size * ROOM + RESERVE
    if free < needed:
        raise CheckFailed(
            f"{path} has {free / 2**30:.1f} GB free and this needs {needed / 2**30:.1f} GB (2 GB of it stay free): free space on that volume"
        )
