"""pgBackRest's answers understood, its errors in one line, and recovery targets checked before anything is done."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orcheo_db.backup import archive, engine, restore
from orcheo_db.backup.config import Config
from orcheo_db.backup.engine import Backup, Info
from orcheo_db.backup.scratch import Target
from orcheo_db.errors import UserError

START = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


def config(path: Path) -> Config:
    return Config("orcheo", 17, "orcheo", (), "id", {}, 400, 7, 1, 60, 1 << 30, path, path, path, path)


def backup(number: int, *, lsn: str, timeline: int = 1) -> Backup:
    stop = START + timedelta(hours=number)
    return Backup(f"b{number}", "full", stop, stop, 1, 1, lsn, lsn, f"{timeline:08X}" + "0" * 16, "w", False, 1)


def test_errors_are_one_line() -> None:
    lines = [
        "P00   WARN: something small",
        "P00  ERROR: [082]: WAL segment 000000010000000000000005 was not archived before the 120000ms timeout",
        "            HINT: check the archive_command to ensure that all options are correct (especially --stanza).",
        "P00   INFO: check command end: aborted with exception [082]",
    ]
    assert engine.reason(lines) == (
        "[082] WAL segment 000000010000000000000005 was not archived before the 120000ms timeout"
        " HINT: check the archive_command to ensure that all options are correct (especially --stanza)."
    )
    assert engine.reason([]) == "it said nothing"
    assert engine.clean("2026-11-25 09:00:00.123 P01   INFO: backup file x") == "backup file x"


def test_the_newest_segment_is_the_one_that_came_last(tmp_path: Path) -> None:
    found = config(tmp_path)
    assert archive.newest_archived(found) is None
    times: list[Path] = []
    for name in ("0000000100000000/00000001000000000000000A", "0000000200000000/000000020000000000000009"):
        file = found.archive / "17-1" / f"{name}-{'a' * 40}.zst"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (1000 + len(times), 1000 + len(times)))
        times.append(file)
    (
        found.archive / "17-1" / "0000000200000000" / f"00000002000000000000000B-{'a' * 40}.zst.pgbackrest.tmp"
    ).touch()  # unfinished
    newest = archive.newest_archived(found)
    assert newest is not None and newest[0] == "000000020000000000000009"
    os.utime(times[0], (2000, 2000))  # production is back on the volume from before the restore
    newest = archive.newest_archived(found)
    assert newest is not None and newest[0] == "00000001000000000000000A"
    newest = archive.newest_archived(found, 2)
    assert newest is not None and newest[0] == "000000020000000000000009" and archive.newest_archived(found, 3) is None
    assert archive.archived(found, "00000001000000000000000A") is not None
    assert archive.archived(found, "00000001000000000000000B") is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("now", None, None), "is no time"),
        (("2026-11-23 10:15:00", None, None), 'has no time zone: write it as "2026-11-23 10:15:00+00"'),
        ((None, "1A2B", None), "is no position in the WAL"),
        ((None, "0/XYZ", None), "is no position in the WAL"),
        (("2026-11-23 10:15:00+00", None, "x"), "one of --to, --to-lsn and --to-name"),
    ],
)
def test_a_malformed_target(given: tuple[str | None, str | None, str | None], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        restore.parse_target(*given)
    assert "\n" not in str(caught.value)


def test_a_time_is_passed_on_in_utc() -> None:
    assert restore.parse_target("2026-11-23 12:15:00+02", None, None).options()[:2] == [
        "--type=time",
        "--target=2026-11-23 10:15:00+00:00",
    ]
    assert restore.parse_target(None, None, None).options() == ["--type=default"]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Backups that ended at 11:00 and 13:00, the archive until 14:00."""
    info = Info(0, "ok", (backup(1, lsn="0/3000028"), backup(3, lsn="0/9000028")), (("0" * 24, "0" * 24),), "1")
    monkeypatch.setattr(engine.PgBackRest, "info", lambda _self: info)
    monkeypatch.setattr(
        archive, "newest_archived", lambda _config, _timeline: ("00000001000000000000000B", START + timedelta(hours=4))
    )
    monkeypatch.setattr(
        restore,
        "points",
        lambda _config: [
            {"name": "early", "lsn": "0/1000000", "at": "x"},
            {"name": "good", "lsn": "0/4000000", "at": "x"},
        ],
    )
    return config(tmp_path)


@pytest.mark.parametrize(
    ("target", "label"),
    [
        (Target(), "b3"),
        (Target(time="2026-11-23 12:00:00+00:00"), "b1"),
        (Target(time="2026-11-23 13:30:00+00:00"), "b3"),
        (Target(lsn="0/8000000"), "b1"),
        (Target(lsn="0/BFFFFFF"), "b3"),
        (Target(name="good"), "b1"),
    ],
)
def test_the_backup_that_a_restore_starts_from(repository: Config, target: Target, label: str) -> None:
    assert restore.check_target(repository, target).label == label


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target(time="2026-11-23 10:59:59+00:00"), "outside of the archive"),
        (Target(time="2026-11-23 14:00:01+00:00"), "outside of the archive"),
        (Target(lsn="0/3000000"), "outside of the archive"),
        (Target(lsn="0/C000001"), "outside of the archive"),
        (Target(name="early"), "older than every backup"),
        (Target(name="other"), "known are early, good"),
    ],
)
def test_outside_of_the_archive_the_range_is_said(repository: Config, target: Target, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        restore.check_target(repository, target)
    assert "begins 2026-11-23 11:00:00+00 (LSN 0/3000028) and ends 2026-11-23 14:00:00+00" in str(caught.value)


def test_only_backups_that_lead_to_the_timeline(repository: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timeline 2 began at 0/5000000, before the backup of 13:00 was made on timeline 1: that one doesn't lead to it."""
    made = (backup(1, lsn="0/3000028"), backup(3, lsn="0/9000028"), backup(5, lsn="0/5000100", timeline=2))
    monkeypatch.setattr(engine.PgBackRest, "info", lambda _self: Info(0, "ok", made, (), "1"))
    ends = {
        1: ("00000001000000000000000B", START + timedelta(hours=4)),
        2: ("000000020000000000000006", START + timedelta(hours=6)),
    }
    monkeypatch.setattr(archive, "newest_archived", lambda _config, timeline: ends.get(timeline or 2))
    monkeypatch.setattr(archive, "lineage", lambda _config, timeline: {1: 0x5000000} if timeline == 2 else {})
    between = "2026-11-23 13:30:00+00:00"
    found = Target(time=between)
    assert restore.check_target(repository, found).label == "b1" and "--target-timeline=2" in found.options()
    assert restore.check_target(repository, Target(time=between, timeline=1)).label == "b3"
    assert restore.check_target(repository, Target()).label == "b5"
    with pytest.raises(UserError, match="no timeline 3"):
        restore.check_target(repository, Target(timeline=3))


def test_a_missing_segment_is_a_gap(tmp_path: Path) -> None:
    """Also across the end of a directory's 256 segments; the first segment of another timeline follows nothing."""
    found = config(tmp_path)
    for name in (
        "0000000100000000000000FE",
        "0000000100000000000000FF",
        "000000010000000100000000",
        "000000010000000100000002",
        "000000020000000100000009",
    ):
        file = found.archive / "17-1" / name[:16] / f"{name}-{'a' * 40}.zst"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    gap = ("000000010000000100000000", "000000010000000100000002")
    assert archive.gaps(found, None) == [gap] == archive.gaps(found, "0000000100000000000000FF")
    assert archive.gaps(found, "000000010000000100000002") == []
