"""pgBackRest, behind a thin adapter: run it, understand its answers, say its errors in one line."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orcheo_db.backup.config import Config
from orcheo_db.errors import CheckFailed, UserError

TYPES = {"full": "full", "differential": "diff", "incremental": "incr"}
_HEAD = re.compile(r"^(?:\d{4}-\d\d-\d\d [\d:.]+ )?(?:P\d+\s+)?(?:INFO|WARN|ERROR|DETAIL):\s*")
REACH_SECONDS = 5.0  # to a bucket's server; pgBackRest itself tries for nine times its io-timeout
LOCKED = 50  # pgBackRest's LockAcquireError: another one of its processes works on the stanza


@dataclass(frozen=True)
class Backup:
    """One backup in a repository. Sizes are bytes; `stop` is when it was complete."""

    label: str
    type: str  # full, diff, incr
    start: datetime
    stop: datetime
    size: int  # of the cluster
    stored: int  # of what this backup added to the repository
    start_lsn: str
    stop_lsn: str
    start_wal: str
    stop_wal: str
    error: bool  # pages whose checksum was wrong when they were copied
    repository: int

    def document(self) -> dict[str, Any]:
        return {**self.__dict__, "start": self.start.isoformat(), "stop": self.stop.isoformat()}


@dataclass(frozen=True)
class Info:
    """A stanza as pgBackRest sees it."""

    code: int
    message: str
    backups: tuple[Backup, ...]  # oldest first
    archive: tuple[tuple[str, str], ...]  # first and last segment of each history
    system_id: str | None


class PgBackRest:
    """pgBackRest with the service's configuration, with that for a cluster of its own in this container (`local`), or as the `second`
    service reads the first repository (`first`).
    """

    def __init__(self, config: Config, *, local: bool = False, first: bool = False) -> None:
        self.config = config
        name = "pgbackrest-relay.conf" if first else "pgbackrest-restore.conf" if local else "pgbackrest.conf"
        self.file = config.conf / name
        self.secrets = config.secrets / "relay" if first else config.secrets

    def reach(self) -> None:
        """Whether the bucket's server answers with a certificate that holds, where the repository is a bucket.

        Raises:
            CheckFailed: it doesn't.
        """
        if not self.config.reach or self.secrets != self.config.secrets:
            return
        host, _, port = self.config.reach.rpartition(":")
        try:
            context = ssl.create_default_context(cafile=self.config.ca_file or None)
            # pgBackRest takes what OpenSSL takes by default: an authority's certificate need not have every extension of RFC 5280.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            with socket.create_connection((host, int(port)), REACH_SECONDS) as connection:
                context.wrap_socket(connection, server_hostname=host).close()
        except ssl.SSLCertVerificationError as error:
            raise CheckFailed(
                f"the certificate of the bucket's server {self.config.reach} does not hold: {error.verify_message}"
            ) from None
        except ssl.SSLError as error:  # no PEM, or no TLS at the other end
            raise CheckFailed(
                f"no TLS with the bucket's server {self.config.reach}: {error.reason or error} ([backup.second] ca_file, endpoint)"
            ) from None
        except OSError as error:
            raise CheckFailed(
                f"the bucket's server {self.config.reach} can't be reached: {error.strerror or error}"
            ) from None

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PGBACKREST_CONFIG": str(self.file),
            "PGBACKREST_CONFIG_INCLUDE_PATH": str(self.secrets),
        }

    def get(self, path: str, *, raw: bool = False) -> bytes:
        """A file of the repository, decrypted (not with `raw`) and as compressed as it is.

        Raises:
            CheckFailed: it isn't there, or can't be read.
        """
        return self._transfer(["repo-get", *(["--raw"] if raw else []), path])

    def put(self, path: str, content: bytes) -> None:
        """Write a file of ours into the repository, as it is.

        Raises:
            CheckFailed: it can't be written.
        """
        self._transfer(["repo-put", "--raw", path], content)

    def _transfer(self, words: Sequence[str], given: bytes = b"") -> bytes:
        self.reach()
        argv = ["pgbackrest", f"--stanza={self.config.stanza}", "--log-level-console=off", "--log-level-stderr=warn"]
        done = subprocess.run([*argv, *words], env=self.environment(), input=given, capture_output=True)
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").splitlines()
            raise EngineError(done.returncode, f"pgbackrest {words[0]}: {reason(lines)}")
        return done.stdout

    def run(
        self, command: str, *options: str, heard: Callable[[str], None] | None = None, prefix: Sequence[str] = ()
    ) -> str:
        """Run a command on the stanza and return its stdout.

        Args:
            heard: called with each line that it logs. prefix: words before it (nice, ionice).

        Raises:
            CheckFailed: it failed, with its own first error in one line.
        """
        self.reach()
        level = "info" if heard else "warn"
        argv = [*prefix, "pgbackrest", f"--stanza={self.config.stanza}", "--log-level-console=off"]
        argv += [
            f"--log-level-stderr={level}",
            *(o for o in options if o[:1] == "-"),
            command,
            *(o for o in options if o[:1] != "-"),
        ]
        process = subprocess.Popen(
            argv,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",  # with a wrong key it shows what it read
        )
        lines: list[str] = []
        assert process.stderr is not None and process.stdout is not None
        try:
            if heard is None:
                output, errors = process.communicate()
                lines = errors.splitlines()
            else:  # its stdout is empty where it logs progress
                for line in process.stderr:
                    lines.append(line.rstrip())
                    heard(clean(line))
                output = process.stdout.read()
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()
        if process.returncode != 0:
            raise EngineError(process.returncode, f"pgbackrest {command}: {reason(lines)}")
        for line in lines:
            if heard is None and "WARN" in line:
                print(clean(line), file=sys.stderr, flush=True)
        return output

    def info(self) -> Info:
        """What the repository has.

        Raises:
            CheckFailed: it can't be read.
        """
        found = json.loads(self.run("info", "--output=json"), strict=False)  # messages hold what it could not read
        if not found:
            return Info(1, "no such stanza", (), (), None)
        return parse_info(found[0])


class EngineError(CheckFailed):
    """pgBackRest failed; `code` is its exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def clean(line: str) -> str:
    """A line of its log without process and level: "P00   INFO: backup start …" -> "backup start …"."""
    return _HEAD.sub("", line.strip())


def reason(lines: Sequence[str]) -> str:
    """Why it failed: its first error, with what stands indented below, in one line."""
    for number, line in enumerate(lines):
        if "ERROR:" in line:
            more = []
            for following in lines[number + 1 :]:
                if _HEAD.match(following.strip()):
                    break
                more.append(following.strip())
            text = re.sub(r"^\[(\d+)\]:\s*", r"[\1] ", clean(line))
            return " ".join([text, *more])[:600]
    return (lines or ["it said nothing"])[-1]


def parse_info(stanza: dict[str, Any]) -> Info:
    """A stanza of `info --output=json` (pgBackRest 2.55)."""
    backups = [
        Backup(
            label=item["label"],
            type=item["type"],
            start=_time(item["timestamp"]["start"]),
            stop=_time(item["timestamp"]["stop"]),
            size=int(item["info"]["size"]),
            stored=int(item["info"]["repository"]["delta"]),
            start_lsn=item["lsn"]["start"],
            stop_lsn=item["lsn"]["stop"],
            start_wal=item["archive"]["start"],
            stop_wal=item["archive"]["stop"],
            error=bool(item.get("error")),
            repository=int(item["database"]["repo-key"]),
        )
        for item in stanza.get("backup", [])
    ]
    archive = [(str(item["min"]), str(item["max"])) for item in stanza.get("archive", []) if item.get("min")]
    databases = stanza.get("db", [])
    told = [
        str(repo["status"]["message"])
        for repo in stanza.get("repo", [])
        if repo["status"]["code"] == stanza["status"]["code"]
    ]
    return Info(
        code=int(stanza["status"]["code"]),
        message=(told or [str(stanza["status"]["message"])])[0].partition("\n")[0],
        backups=tuple(backups),
        archive=tuple(archive),
        system_id=str(databases[-1]["system-id"]) if databases else None,
    )


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)


def parse_lsn(text: str) -> int:
    """A position in the WAL, such as 0/1A2B3C4D.

    Raises:
        UserError: it is none.
    """
    high, _, low = text.partition("/")
    try:
        if not low or len(high) > 8 or len(low) > 8:
            raise ValueError  # noqa: TRY301 - one message for all
        return (int(high, 16) << 32) + int(low, 16)
    except ValueError:
        raise UserError(f"--to-lsn {text!r} is no position in the WAL: expected for example 0/1A2B3C4D") from None
