"""Cron's fields as systemd's calendar events: the same minutes, by systemd's own word."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime

import pytest

from orcheo_db.backup.plan import following
from orcheo_db.render.calendar import on_calendar


@pytest.mark.parametrize(
    ("schedule", "events"),
    [
        ("15 1 * * 0", ["Sun *-*-* 01:15:00 UTC"]),
        ("15 1 * * 1-6", ["Mon,Tue,Wed,Thu,Fri,Sat *-*-* 01:15:00 UTC"]),
        ("45 * * * *", ["*-*-* *:45:00 UTC"]),
        ("*/20 */6 * * *", ["*-*-* 00/6:00/20:00 UTC"]),
        ("5-10/2,40 3 1,15 */3 *", ["*-01/3-01,15 03:05..10/2,40:00 UTC"]),
        ("0 4 13 * 5,7", ["*-*-13 04:00:00 UTC", "Sun,Fri *-*-* 04:00:00 UTC"]),
        ("0 0 * * */2", ["Sun,Tue,Thu,Sat *-*-* 00:00:00 UTC"]),
    ],
)
def test_the_events_of_a_schedule(schedule: str, events: list[str]):
    assert on_calendar(schedule) == events
    if shutil.which("systemd-analyze"):  # systemd reads them, and next comes up when our own schedule does
        nexts = []
        for event in events:
            done = subprocess.run(
                ["systemd-analyze", "calendar", "--iterations=1", "--base-time=2026-07-01 00:00:30 UTC", event],
                capture_output=True, text=True, env={"TZ": "UTC", "LC_ALL": "C"},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            words = next(line for line in done.stdout.splitlines() if "Next elapse:" in line).split()
            nexts.append(datetime.fromisoformat(f"{words[3]}T{words[4]}").replace(tzinfo=UTC))
        assert min(nexts).timestamp() == following(schedule, datetime(2026, 7, 1, 0, 0, 30, tzinfo=UTC).timestamp())
