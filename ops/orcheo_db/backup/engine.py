"""pgBackRest, behind a thin adapter: run it, understand its answers, say its errors in one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orcheo_db.backup.config import Config
from orcheo_db.errors import CheckFailed, UserError

TYPES = {"full": "full", "differential": "diff", "incremental": "incr"}
WAL = re.compile(r"([0-9A-F]{24})-[0-9a-f]{40}(?:\.(?:zst|lz4|gz|bz2))?")
_HEAD = re.compile(r"^(?:\d{4}-\d\d-\d\d [\d:.]+ )?(?:P\d+\s+)?(?:INFO|WARN|ERROR|DETAIL):\s*")
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
    """pgBackRest with the service's configuration, or with that for a cluster of its own in this container (`local`)."""

    def __init__(self, config: Config, *, local: bool = False) -> None:
        self.config = config
        self.file = config.conf / ("pgbackrest-restore.conf" if local else "pgbackrest.conf")

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PGBACKREST_CONFIG": str(self.file),
            "PGBACKREST_CONFIG_INCLUDE_PATH": str(self.config.secrets),
        }

    def run(
        self, command: str, *options: str, heard: Callable[[str], None] | None = None, prefix: Sequence[str] = ()
    ) -> str:
        """Run a command on the stanza and return its stdout.

        Args:
            heard: called with each line that it logs. prefix: words before it (nice, ionice).

        Raises:
            CheckFailed: it failed, with its own first error in one line.
        """
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


def archived(config: Config, segment: str) -> datetime | None:
    """When a WAL segment arrived in the archive; None if it has not."""
    for history in _histories(config):
        directory = history / segment[:16]
        for file in directory.glob(f"{segment}-*") if directory.is_dir() else ():
            if WAL.fullmatch(file.name):
                return datetime.fromtimestamp(file.stat().st_mtime, tz=UTC)
    return None


def newest_archived(config: Config, timeline: int | None = None) -> tuple[str, datetime] | None:
    """The last segment of a timeline in the archive and when it came; None where there is none.

    Args:
        timeline: default: the one whose last segment came last. That isn't always the highest: production may be back on the
            volume from before a restore.
    """
    last: dict[int, tuple[str, Path]] = {}
    for history in _histories(config):
        for directory in sorted(entry for entry in history.iterdir() if re.fullmatch(r"[0-9A-F]{16}", entry.name)):
            names = [(m[1], file) for file in directory.iterdir() if (m := WAL.fullmatch(file.name))]
            if names:
                last[int(directory.name[:8], 16)] = max(names)
    found = [last[timeline]] if timeline in last else list(last.values()) if timeline is None else []
    if not found:
        return None
    at, segment = max((file.stat().st_mtime, segment) for segment, file in found)
    return segment, datetime.fromtimestamp(at, tz=UTC)


def gaps(config: Config, oldest: str | None) -> list[tuple[str, str]]:
    """Pairs of segments of one timeline between which at least one is missing, from segment `oldest` on (16 MB segments)."""
    found = []
    for home in _histories(config):
        before: str | None = None
        for directory in sorted(entry for entry in home.iterdir() if re.fullmatch(r"[0-9A-F]{16}", entry.name)):
            for name in sorted(m[1] for file in directory.iterdir() if (m := WAL.fullmatch(file.name))):
                if oldest is not None and name[8:] < oldest[8:]:
                    continue
                if before is not None and before[:8] == name[:8] and _number(name) != _number(before) + 1:
                    found.append((before, name))
                before = name
    return found


def _number(segment: str) -> int:
    """A segment's place in the WAL, counted in segments."""
    return (int(segment[8:16], 16) << 8) + int(segment[16:24], 16)


def history(config: Config, timeline: int) -> str | None:
    """The .history file of a timeline in the archive (26.3.6 of PostgreSQL's manual); None where it hasn't one."""
    directory = _histories(config)[-1:]
    if not directory or not (directory[0] / f"{timeline:08X}.history").is_file():
        return None
    return PgBackRest(config, local=True).run(
        "repo-get", f"archive/{config.stanza}/{directory[0].name}/{timeline:08X}.history"
    )


def lineage(config: Config, timeline: int) -> dict[int, int]:
    """The timelines that `timeline` came from, each with the position where it was left.

    Raises:
        CheckFailed: the archive hasn't its .history file.
    """
    if timeline == 1:
        return {}
    text = history(config, timeline)
    if text is None:
        raise CheckFailed(
            f"the archive has WAL of timeline {timeline} and not its {timeline:08X}.history: it may be on its way"
        )
    found = {}
    for line in text.splitlines():
        if match := re.match(r"\s*(\d+)\s+([0-9A-F]+)/([0-9A-F]+)", line):
            found[int(match[1])] = (int(match[2], 16) << 32) + int(match[3], 16)
    return found


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


def on_timeline(backup: Backup, timeline: int, lineage: dict[int, int]) -> bool:
    """Whether recovery from `backup` can follow `timeline`: it is on it, or on an earlier one before that was left."""
    own = int(backup.start_wal[:8], 16)
    return own == timeline or (own in lineage and parse_lsn(backup.stop_lsn) <= lineage[own])


def _histories(config: Config) -> list[Path]:
    if not config.archive.is_dir():
        return []
    return sorted(entry for entry in config.archive.iterdir() if re.fullmatch(r"\d+-\d+", entry.name))
