"""The WAL archive of a repository: which segments it has, since when, and how its timelines hang together.

In a volume its files are looked at; in a bucket pgBackRest lists them (`repo-ls`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime

from orcheo_db.backup.config import Config
from orcheo_db.backup.engine import Backup, PgBackRest, parse_lsn
from orcheo_db.errors import CheckFailed

WAL = re.compile(r"([0-9A-F]{24})-[0-9a-f]{40}(?:\.(?:zst|lz4|gz|bz2))?")  # as pgBackRest names a segment's file
_HISTORY_ID = re.compile(r"\d+-\d+")  # PostgreSQL's major and a counter: the directory of one cluster's WAL
SEGMENT = 16 * 2**20  # bytes: initdb's default, which this toolkit's clusters have
_LOG = re.compile(r"[0-9A-F]{16}")


def files(config: Config, below: str = "") -> dict[str, float]:
    """The files of the stanza's archive below a directory of it: path relative to that -> Unix seconds of its writing.

    Raises:
        CheckFailed: the repository can't be read.
    """
    if config.remote:
        place = "/".join(part for part in ("archive", config.stanza, below) if part)
        listed = json.loads(PgBackRest(config, local=True).run("repo-ls", "--recurse", "--output=json", place))
        return {name: float(entry["time"]) for name, entry in listed.items() if entry["type"] == "file"}
    home, found = config.archive / below, {}
    for file in home.rglob("*"):
        with suppress(FileNotFoundError):  # expired, or renamed, this moment
            if file.is_file():
                found[str(file.relative_to(home))] = file.stat().st_mtime
    return found


def _homes(config: Config) -> list[str]:
    """The directories of clusters, oldest first (more than one after a major upgrade)."""
    if config.remote:
        listed = PgBackRest(config, local=True).run("repo-ls", f"archive/{config.stanza}").splitlines()
    else:
        listed = [entry.name for entry in config.archive.iterdir()] if config.archive.is_dir() else []
    found = [name for name in listed if _HISTORY_ID.fullmatch(name)]
    return sorted(found, key=lambda name: int(name.partition("-")[2]))


def segments(listed: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Of `files`: the cluster's directory -> segment -> when it came."""
    found: dict[str, dict[str, float]] = {}
    for path, at in listed.items():
        home, _, rest = path.partition("/")
        log, _, name = rest.partition("/")
        if _HISTORY_ID.fullmatch(home) and _LOG.fullmatch(log) and (match := WAL.fullmatch(name)):
            found.setdefault(home, {})[match[1]] = at
    return found


def archived(config: Config, segment: str) -> datetime | None:
    """When a WAL segment arrived in the archive; None if it has not."""
    for home in _homes(config):
        for name, at in files(config, f"{home}/{segment[:16]}").items():
            if (match := WAL.fullmatch(name)) and match[1] == segment:
                return datetime.fromtimestamp(at, tz=UTC)
    return None


def newest_archived(config: Config, timeline: int | None = None) -> tuple[str, datetime] | None:
    """The last segment of a timeline in the archive and when it came; None where there is none.

    Args:
        timeline: default: the one whose last segment came last. That isn't always the highest: production may be back on the
            volume from before a restore.
    """
    last: dict[int, tuple[str, float]] = {}
    for found in segments(files(config)).values():
        for segment, at in found.items():
            number = int(segment[:8], 16)
            last[number] = max(last.get(number, ("", 0.0)), (segment, at))
    wanted = [last[timeline]] if timeline in last else list(last.values()) if timeline is None else []
    if not wanted:
        return None
    at, segment = max((at, segment) for segment, at in wanted)
    return segment, datetime.fromtimestamp(at, tz=UTC)


def gaps(config: Config, oldest: str | None) -> list[tuple[str, str]]:
    """Pairs of segments of one timeline between which at least one is missing, from segment `oldest` on (16 MB segments)."""
    missing = []
    for found in segments(files(config)).values():
        before: str | None = None
        for name in sorted(found):
            if oldest is not None and name[8:] < oldest[8:]:
                continue
            if before is not None and before[:8] == name[:8] and number(name) != number(before) + 1:
                missing.append((before, name))
            before = name
    return missing


def number(segment: str) -> int:
    """A segment's place in the WAL, counted in segments of 16 MB."""
    return (int(segment[8:16], 16) << 8) + int(segment[16:24], 16)


def begin(segment: str) -> int:
    """The position of a segment's first byte."""
    return number(segment) * SEGMENT


def history(config: Config, timeline: int) -> str | None:
    """The .history file of a timeline in the archive (26.3.6 of PostgreSQL's manual); None where it hasn't one."""
    pgbackrest, name = PgBackRest(config, local=True), f"{timeline:08X}.history"
    for home in _homes(config)[-1:]:
        place = f"archive/{config.stanza}/{home}"
        if config.remote:
            there = name in pgbackrest.run("repo-ls", place).splitlines()
        else:
            there = (config.archive / home / name).is_file()
        if there:
            return pgbackrest.run("repo-get", f"{place}/{name}")
    return None


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
    return parse_history(text)


def parse_history(text: str) -> dict[int, int]:
    """A .history file: the timelines before its own, oldest first, each with the position where it was left."""
    found = {}
    for line in text.splitlines():
        if match := re.match(r"\s*(\d+)\s+([0-9A-F]+)/([0-9A-F]+)", line):
            found[int(match[1])] = (int(match[2], 16) << 32) + int(match[3], 16)
    return found


def on_timeline(backup: Backup, timeline: int, lineage: dict[int, int]) -> bool:
    """Whether recovery from `backup` can follow `timeline`: it is on it, or on an earlier one before that was left."""
    own = int(backup.start_wal[:8], 16)
    return own == timeline or (own in lineage and parse_lsn(backup.stop_lsn) <= lineage[own])
