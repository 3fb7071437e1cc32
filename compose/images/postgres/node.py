#!/usr/bin/env python3
"""Entry point of the postgres image: check the volume, make the cluster on first boot, become the server.

    node.py start       the checks, the first boot if the volume is empty, then exec of postgres (the default)
    node.py preflight   the checks alone; exit code 0 if `start` would go on
    node.py inspect     one JSON document about the volume on stdout; never writes

A refusal is one line on stderr, "orcheo-db postgres: <what> in <where>: <what to do>", and exit code 78.
Nothing is ever deleted but `<major>/main.init`, which only an interrupted first boot of this program leaves.

Standard library only; python3 is in the image because Patroni needs it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from volume import (
    LOCK,
    MARKER,
    Refusal,
    Settings,
    check_volume,
    collation_version,
    glibc_version,
    image_collation,
    look,
    preflight,
    read_json,
    settings_from,
    superuser_digest,
)

EX_CONFIG = 78  # sysexits.h: something is found in an unconfigured or misconfigured state
MARKER_FORMAT = 1
LOCK_LIMIT = 5.0  # seconds to wait for the volume: an `inspect` elsewhere holds it for a moment
START_LIMIT = 900.0  # seconds for the temporary server, which may have a crash to recover from first


def log(message: str) -> None:
    """Print one line to stderr, where the server's log goes too."""
    print(f"orcheo-db postgres: {message}", file=sys.stderr, flush=True)


def inspect(settings: Settings) -> dict[str, Any]:
    """Return the document of `inspect`: the volume's facts, and what `start` would do or why not.

    `action` is that of volume.decide, "refuse", or None where no secrets are mounted, which a decision needs.
    """
    volume = look(settings)
    status = os.statvfs(settings.volume)
    action: str | None = None
    problem: str | None = None
    try:
        if settings.secrets.is_dir():
            action, _, _ = preflight(settings, writes=not status.f_flag & os.ST_RDONLY)
        else:  # the volume alone is mounted, to be looked at
            check_volume(volume, settings)
    except Refusal as refusal:
        action, problem = "refuse", str(refusal)
    mounted = read_json(settings.secrets / "installation.json")
    return {
        **asdict(volume),
        "volume": str(settings.volume),
        "major": settings.major,
        "installation_id": volume.installation_id,
        "mounted_installation_id": mounted and mounted["installation_id"],
        "running": is_held(settings),
        # Also true of a running server: whether someone has, or had until a crash, this cluster open.
        "postmaster_pid_file": (settings.data / "postmaster.pid").exists(),
        "free_bytes": status.f_bavail * status.f_frsize,
        "action": action,
        "problem": problem,
    }


def hold_volume(settings: Settings) -> int:
    """Lock the volume for the life of this process and of the server that it becomes; return the descriptor.

    postmaster.pid can't tell two containers apart: each has its own process 1 and its own shared memory, so a
    second server would take the first one's file for its own stale one. A kernel lock on the volume can.
    """
    descriptor = os.open(settings.volume / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_LIMIT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise in_use(settings) from None
            time.sleep(0.1)
            continue
        except OSError as error:  # a network file system without locks
            log(f"warning: no locks ({error.strerror}) in {settings.volume}: start one container only on it")
        return descriptor


def clear_stale_pid(settings: Settings, lock: int) -> None:
    """Remove the postmaster.pid of a server that was killed, where the lock proves that none is left.

    PostgreSQL asks whether the process of that number lives, and in a new container another one may have it: the server would refuse to
    start until somebody intervenes. The lock says more than the number: every process of a server inherits it.
    """
    file = settings.data / "postmaster.pid"
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held already; no error: locks work here
        file.unlink()
    except OSError:  # no such file, or a file system without locks: PostgreSQL's own check stands
        return
    log(f"{file} of a server that was killed is removed: no process of it is left")


def in_use(settings: Settings) -> Refusal:
    """Return the refusal for a volume on which another container's server runs."""
    return Refusal(f"another container's server is running in {settings.volume}: stop that container first")


def is_held(settings: Settings) -> bool:
    """Return whether a node runs on this volume, in whichever container (writes nothing)."""
    try:
        descriptor = os.open(settings.volume / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks on this file system: the best guess
        return (settings.data / "postmaster.pid").exists()
    finally:
        os.close(descriptor)
    return False


def sync_directory(path: Path) -> None:
    """Make renames in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_marker(data: Path, marker: Mapping[str, Any]) -> None:
    """Write PGDATA's marker, whole or not at all."""
    fresh = data / f"{MARKER}.new"
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(marker, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(data / MARKER)
    sync_directory(data)


def new_marker(settings: Settings, installation_id: str, system_identifier: str) -> dict[str, Any]:
    """Return the marker of a cluster that was just made."""
    return {
        "format": MARKER_FORMAT,
        "installation_id": installation_id,
        "system_identifier": system_identifier,
        "major": int(settings.major),
        "locale_provider": settings.locale_provider,
        "locale": settings.locale,
        "collation_version": collation_version(settings.locale_provider, settings.locale),
        "glibc": glibc_version(),
        "superuser_sql": superuser_digest(settings),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def run(command: list[str], what: str) -> str:
    """Run a program to its end and return its output; raise Refusal with its last line if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        errors = [line for line in lines if "error" in line.lower()]
        raise Refusal(f"{what} failed: {(errors or lines)[-1]}")
    return done.stdout


def initdb_command(settings: Settings, data: Path) -> list[str]:
    """Return the command that makes an empty cluster."""
    command = ["initdb", f"--pgdata={data}", "--username=postgres", "--encoding=UTF8", "--data-checksums"]
    command += ["--auth-local=peer", "--auth-host=reject", "--no-instructions"]
    command += [f"--locale-provider={settings.locale_provider}"]
    if settings.locale_provider == "libc":
        return [*command, f"--locale={settings.locale}"]
    return [*command, f"--{settings.locale_provider}-locale={settings.locale}", "--locale=C.UTF-8"]


def server_command(data: Path, scratch: Path) -> list[str]:
    """Return the temporary server's command: the local socket only, no TCP, no statement ever logged."""
    options: dict[str, object] = {
        "config_file": data / "postgresql.conf",  # initdb's own, not the stack's: small, no TLS
        "hba_file": scratch / "pg_hba.conf",
        "listen_addresses": "",
        "unix_socket_directories": scratch,
        "ssl": "off",
        "archive_mode": "off",
        "shared_preload_libraries": "",
        "autovacuum": "off",
        "log_statement": "none",
        "log_min_duration_statement": "-1",
        "log_min_error_statement": "panic",
        "log_checkpoints": "off",
        "logging_collector": "off",
    }
    words = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
    return ["postgres", "-D", str(data), *words]


def apply_superuser_sql(settings: Settings, data: Path) -> None:
    """Start a temporary server on `data`, run superuser.sql in it, and stop it with a checkpoint."""
    scratch = settings.scratch / "first-boot"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    (scratch / "pg_hba.conf").write_text("local all postgres peer\n", encoding="utf-8")
    server = subprocess.Popen(server_command(data, scratch), stdout=sys.stderr)
    try:
        wait_until_ready(server, scratch)
        psql = ["psql", "-XqAt", f"--host={scratch}", "--username=postgres", "--dbname=postgres"]
        psql += [f"--set=secrets={settings.secrets}", f"--file={settings.library / 'superuser.sql'}"]
        run(psql, f"superuser.sql in {data}")
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)  # fast shutdown
        code = server.wait()
        shutil.rmtree(scratch, ignore_errors=True)
    if code:
        raise Refusal(f"the temporary server ended with exit code {code} in {data}: see its log above")


def wait_until_ready(server: subprocess.Popen[bytes], scratch: Path) -> None:
    """Wait until the temporary server takes connections; raise Refusal if it ends or START_LIMIT passes."""
    deadline = time.monotonic() + START_LIMIT
    while subprocess.run(["pg_isready", "-q", "-h", str(scratch)], check=False).returncode:
        if server.poll() is not None or time.monotonic() > deadline:
            raise Refusal(f"the temporary server is not ready (exit code {server.poll()}): see its log above")
        time.sleep(0.05)


def first_boot(settings: Settings, installation_id: str) -> None:
    """Make the cluster beside its final place and move it there when complete: PGDATA is whole or absent."""
    if settings.unfinished.exists():
        shutil.rmtree(settings.unfinished)
    settings.unfinished.parent.mkdir(mode=0o700, exist_ok=True)
    run(initdb_command(settings, settings.unfinished), f"initdb in {settings.unfinished}")
    apply_superuser_sql(settings, settings.unfinished)
    control = run(["pg_controldata", "-D", str(settings.unfinished)], "pg_controldata")
    found = re.search(r"^Database system identifier:\s+(\d+)$", control, re.MULTILINE)
    identifier = found[1] if found else "unknown"
    write_marker(settings.unfinished, new_marker(settings, installation_id, identifier))
    settings.unfinished.rename(settings.data)
    sync_directory(settings.data.parent)
    sync_directory(settings.volume)
    log(f"the new cluster is complete in {settings.data}")


def prepare(settings: Settings) -> None:
    """Bring the volume to where the server can start on it; raise Refusal if that must not be."""
    action, why, mounted_id = preflight(settings)
    if why:
        log(why)
    if action in ("first-boot", "redo"):
        first_boot(settings, mounted_id)
        return
    marker = look(settings).marker or {}
    # Other than the recorded one only if preflight accepted it.
    changes = {"collation_version": image_collation(marker)}
    if action in ("adopt", "refresh"):
        apply_superuser_sql(settings, settings.data)
        changes |= {"installation_id": mounted_id, "superuser_sql": superuser_digest(settings)}
    if changes.items() - marker.items():
        write_marker(settings.data, {**marker, **changes})
    if changes["collation_version"] != marker.get("collation_version"):
        log("warning: the order of text has changed, as accepted: REINDEX every database before using it")


def wake_checkpointer(lock: int) -> None:
    """Have the server's configuration read again (SIGHUP) when it accepts connections, by a child that then ends.

    The checkpointer starts before recovery is over, and sleeps then without regard to archive_timeout: for up to checkpoint_timeout
    (15 minutes) after each start, WAL that doesn't fill a segment would not be archived (CheckpointerMain, PostgreSQL 17). Any signal
    wakes it.
    """
    server = os.getpid()
    if os.fork() > 0:
        return
    try:
        os.close(lock)  # a server that has gone must not seem to be there
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        while os.getppid() == server:
            ready = subprocess.run(["pg_isready", "--quiet", "--host=/run/postgresql"], check=False)
            if ready.returncode == 0:
                os.kill(server, signal.SIGHUP)
                break
            time.sleep(1)
    finally:
        os._exit(0)  # whatever happened: to the server it is a child that ended well


def become_server(settings: Settings, lock: int, arguments: list[str]) -> NoReturn:
    """Replace this process by the server, which keeps the lock and, as process 1, gets the signals."""
    os.set_inheritable(lock, True)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, and exec would keep that
        signal.signal(number, signal.SIG_DFL)
    config = f"config_file={settings.conf / 'postgresql.conf'}"
    wake_checkpointer(lock)
    os.execvp("postgres", ["postgres", "-D", str(settings.data), "-c", config, *arguments])  # noqa: S606


def stop(number: int, _frame: object) -> NoReturn:
    """Turn a stop signal during the preparation into an orderly end, which stops the temporary server."""
    sys.exit(128 + number)


def start(settings: Settings, arguments: list[str]) -> NoReturn:
    """Prepare the volume and become the server; raise Refusal where that must not be."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, stop)
    preflight(settings)  # also before the lock, which is a file: a stranger's volume stays untouched
    lock = hold_volume(settings)
    clear_stale_pid(settings, lock)
    prepare(settings)
    become_server(settings, lock, arguments)


def main(arguments: list[str], environ: Mapping[str, str]) -> int:
    """Do one subcommand; return the exit code."""
    settings = settings_from(environ)
    command, *rest = arguments or ["start"]
    try:
        match command:
            case "start":
                start(settings, rest)
            case "inspect":
                print(json.dumps(inspect(settings)))
            case "preflight":
                preflight(settings)
                if is_held(settings):
                    raise in_use(settings)
            case _:
                log(f"unknown subcommand {command!r} in the command line: use start, preflight or inspect")
                return 64
    except Refusal as refusal:
        log(str(refusal))
        return EX_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
