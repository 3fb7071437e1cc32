"""The backup service's schedule: what runs when, what is caught up, what survives a kill, a jump of the clock, a damaged file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from orcheo_db.backup import plan
from orcheo_db.backup.record import moment
from orcheo_db.backup.running import utc
from orcheo_db.backup.scheduler import JobResult, Loop, Stop, exclusive, lock_file, run_now
from orcheo_db.errors import CheckFailed, UserError

SCHEDULES = {
    "full": "15 1 * * 0",
    "differential": "15 1 * * 1-6",
    "incremental": "45 * * * *",
    "drill": "15 4 * * *",
}
SLOW = 300.0  # seconds between looks here, so that a day is few of them
SUNDAY = "2026-07-05T00:00:00Z"


@pytest.fixture(autouse=True)
def few_looks(monkeypatch):
    monkeypatch.setattr("orcheo_db.backup.scheduler.POLL", SLOW)


class World:
    """A service whose clock and sleep are the test's."""

    def __init__(self, home: Path, schedules=None, at=SUNDAY):
        self.home, self.now = home, moment(at)
        self.runs: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.results: dict[str, JobResult | Exception] = {}
        self.takes = 60.0
        self.config = home / "backup.json"
        self.write(SCHEDULES if schedules is None else schedules)
        self.loop = self.start()

    def start(self, stop=None):
        return Loop(self.run, self.home, self.config, clock=lambda: self.now, stop=stop, say=self.said.append)

    def write(self, schedules):
        self.config.write_text(json.dumps({"schedule": schedules}))

    def run(self, job):
        self.runs.append((job, utc(self.now)))
        self.now += self.takes
        result = self.results.get(job, JobResult(True, "done"))
        if isinstance(result, Exception):
            raise result
        return result

    def until(self, text):
        while self.now < moment(text):
            self.now += max(self.loop.step(), 0.001)

    def take(self):
        runs, self.runs = self.runs, []
        return runs

    @property
    def state(self):
        return plan.load(self.home, self.now)[0]


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    made.until("2026-07-05T00:01:30Z")
    assert [job for job, _ in made.take()] == ["full"]  # the first one waits for no tick
    return made


def test_a_day_of_the_schedule(world):
    world.until("2026-07-05T05:00:00Z")
    assert world.take() == [
        ("incremental", "2026-07-05T00:45:00Z"),
        ("full", "2026-07-05T01:15:00Z"),
        ("incremental", "2026-07-05T01:45:00Z"),
        ("incremental", "2026-07-05T02:45:00Z"),
        ("incremental", "2026-07-05T03:45:00Z"),
        ("drill", "2026-07-05T04:15:00Z"),
        ("incremental", "2026-07-05T04:45:00Z"),
    ]
    assert world.state["full"].last_success == moment("2026-07-05T01:16:00Z")


def test_schedules_are_utc_whatever_the_time_zone_and_its_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        # Berlin skips 02:00-03:00 on 2026-03-29 and has 02:00-03:00 twice on 2026-10-25.
        for day in ("2026-03-29", "2026-10-25"):
            home = tmp_path / day
            home.mkdir()
            world = World(home, {"incremental": "30 * * * *"}, f"{day}T00:00:00Z")
            world.until(f"{day}T04:00:00Z")
            assert world.take() == [("incremental", f"{day}T0{hour}:30:00Z") for hour in range(4)]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_after_downtime_each_job_is_caught_up_once_the_full_one_standing_for_the_lesser(world):
    world.now = moment("2026-07-21T12:00:00Z")  # two Sundays, 16 drills and hundreds of hours later
    world.loop = world.start()
    world.until("2026-07-21T12:40:00Z")
    assert [job for job, _ in world.take()] == ["full", "drill"]


def test_a_differential_stands_for_an_incremental_but_not_for_a_full(world):
    world.until("2026-07-05T06:00:00Z")
    world.take()
    world.now = moment("2026-07-07T12:00:00Z")
    world.until("2026-07-07T12:30:00Z")
    assert [job for job, _ in world.take()] == ["differential", "drill"]


def test_a_full_that_fails_stands_for_nothing(world):
    world.results["full"] = JobResult(False, "no space left")
    world.now = moment("2026-07-12T02:00:00Z")
    world.until("2026-07-12T02:04:30Z")
    assert [job for job, _ in world.take()][:3] == ["full", "differential", "drill"]


def test_order_of_what_is_due():
    now = moment(SUNDAY)
    schedules = dict.fromkeys(plan.JOBS, "0 0 * * *")
    state = {job: plan.Entry(schedule="0 0 * * *", handled=now - 10) for job in plan.JOBS}
    order = []
    while (job := plan.decide(schedules, state, now).job) and plan.decide(schedules, state, now).at <= now:
        order.append(job)
        state[job] = replace(state[job], handled=now)
    assert order == ["full", "differential", "incremental", "logical", "drill"]


def test_a_failure_is_repeated_with_backoff_then_at_the_next_tick_and_is_said(world):
    world.takes = 0.0
    world.results["drill"] = JobResult(False, "restore: WAL 0000000100000001 is missing")
    world.until("2026-07-06T05:45:00Z")
    drills = [at for job, at in world.take() if job == "drill"]
    first = ["2026-07-05T04:15", "2026-07-05T04:20", "2026-07-05T04:35", "2026-07-05T05:20"]
    assert [at[:16] for at in drills] == first + [at.replace("-05T", "-06T") for at in first]
    assert world.state["drill"].failures_total == 8
    failures = [line for line in world.said if "FAILED" in line]
    assert len(failures) == 8
    assert "restore: WAL 0000000100000001 is missing; again at 2026-07-05T04:20:00Z" in failures[0]
    assert "again when the schedule says" in failures[3]
    world.results.clear()
    world.until("2026-07-07T05:00:00Z")
    assert (world.state["drill"].attempts, world.state["drill"].result, world.state["drill"].failures_total) == (
        0,
        "ok",
        8,
    )


def test_a_runner_that_raises_fails_that_job_only(world, capsys):
    world.results["incremental"] = ZeroDivisionError("division by zero")
    world.results["drill"] = CheckFailed("table a.b differs")
    world.until("2026-07-05T04:16:30Z")
    assert world.state["incremental"].message == "ZeroDivisionError: division by zero"
    assert world.state["drill"].message == "table a.b differs"
    assert "Traceback" in capsys.readouterr().err
    assert ("full", "2026-07-05T01:15:00Z") in world.runs


def test_a_killed_run_is_interrupted_and_repeated_with_backoff(world):
    class Killed(BaseException):
        pass

    def kill(job):
        raise Killed

    world.now = moment("2026-07-05T00:45:00Z")
    with pytest.raises(Killed):
        Loop(kill, world.home, world.config, clock=lambda: world.now, say=world.said.append).step()
    assert world.state["incremental"].running
    world.now += 3600 * 0.1
    world.loop = world.start()
    world.loop.step()
    assert "incremental: the run of 2026-07-05T00:45:00Z was interrupted (the service was killed)" in world.said[-1]
    entry = world.state["incremental"]
    assert (entry.result, entry.running, entry.failures_total) == ("interrupted", False, 1)
    world.until("2026-07-05T01:00:00Z")
    assert world.take() == [("incremental", "2026-07-05T00:56:00Z")]


def test_a_job_that_kills_the_service_each_time_does_not_run_without_end(world):
    class Killed(BaseException):
        pass

    runs = []

    def kill(job):
        runs.append(utc(world.now))
        raise Killed

    world.now = moment("2026-07-05T04:15:00Z")
    world.write({"drill": SCHEDULES["drill"]})
    while world.now < moment("2026-07-05T23:00:00Z"):
        try:
            world.now += Loop(kill, world.home, world.config, clock=lambda: world.now, say=world.said.append).step()
        except Killed:
            world.now += 1
    assert [at[11:16] for at in runs] == ["04:15", "04:20", "04:35", "05:20"]


def test_the_clock_set_back_neither_repeats_what_ran_nor_stops_everything(world):
    world.until("2026-07-05T05:00:00Z")
    world.take()
    world.now = moment("2026-07-05T03:50:00Z")  # 70 minutes back
    world.until("2026-07-05T03:51:00Z")
    assert world.take() == []
    assert any("the clock was set back" in line for line in world.said)
    world.until("2026-07-05T05:50:00Z")
    assert [job for job, _ in world.take()] == ["drill", "incremental", "incremental"]


def test_a_visit_of_the_future_does_not_silence_the_present(world):
    world.now = moment("2031-01-01T00:00:00Z")
    world.until("2031-01-01T00:10:00Z")
    assert [job for job, _ in world.take()] == ["full", "drill"]
    world.now = moment("2026-07-06T00:30:00Z")
    world.until("2026-07-06T01:50:00Z")
    assert world.take() == [
        ("incremental", "2026-07-06T00:45:00Z"),
        ("differential", "2026-07-06T01:15:00Z"),
        ("incremental", "2026-07-06T01:45:00Z"),
    ]
    assert world.state["full"].last_success <= world.now


def test_a_small_step_back_right_after_a_tick_does_not_run_it_twice(world):
    world.takes = 0.5
    world.until("2026-07-05T00:45:01Z")
    world.now = moment("2026-07-05T00:44:58Z")
    world.until("2026-07-05T00:50:00Z")
    assert world.take() == [("incremental", "2026-07-05T00:45:00Z")]


def test_a_changed_schedule_counts_from_the_change(world):
    world.until("2026-07-05T12:10:00Z")
    world.take()
    world.write(SCHEDULES | {"drill": "0 */6 * * *", "logical": "0 3 * * *"})  # both name times that were today
    world.until("2026-07-05T18:05:00Z")
    assert [run for run in world.take() if run[0] != "incremental"] == [("drill", "2026-07-05T18:00:00Z")]
    assert any("the schedule was read again" in line for line in world.said)


def test_what_was_due_by_the_old_schedule_stays_due_by_the_new_one(world):
    world.until("2026-07-05T05:00:00Z")
    world.take()
    world.now = moment("2026-07-06T05:00:00Z")
    world.write(SCHEDULES | {"drill": "15 5 * * *"})
    world.until("2026-07-06T05:10:00Z")
    assert "drill" in [job for job, _ in world.take()]


def test_a_wrong_change_of_the_schedule_leaves_the_one_before_and_shows(world):
    world.write(SCHEDULES | {"drill": "61 * * * *"})
    world.until("2026-07-05T00:50:00Z")
    assert ("incremental", "2026-07-05T00:45:00Z") in world.runs
    assert "schedule.drill" in world.loop.pulse.problem
    assert len([line for line in world.said if "schedule.drill" in line]) == 1
    world.config.unlink()
    world.loop.step()
    assert "can't be read" in world.loop.pulse.problem
    world.write(SCHEDULES)
    world.loop.step()
    assert world.loop.pulse.problem is None


@pytest.mark.parametrize(
    "expression",
    [
        "61 * * * *",
        "0 0 30 2 *",
        "* * * *",
        "*/5 * * * * *",
        "@daily",
        "R R * * *",
        "",
        "5-1-2 * * * *",
        "*/0 * * * *",
        7,
        None,
    ],
)
def test_a_wrong_expression_is_one_line_that_names_the_key(expression):
    with pytest.raises(UserError) as caught:
        plan.parse_schedules({"full": "0 1 * * *", "drill": expression}, "backup.json")
    assert str(caught.value).startswith("backup.json: schedule.drill: ")
    assert "\n" not in str(caught.value)


def test_an_unknown_job_and_no_schedule_are_refused():
    with pytest.raises(UserError, match=r"schedule\.fulll is no job"):
        plan.parse_schedules({"fulll": "0 1 * * *"}, "backup.json")
    with pytest.raises(UserError, match="must be an object"):
        plan.parse_schedules(["full"], "backup.json")


def test_nothing_scheduled_is_no_error(tmp_path):
    world = World(tmp_path, {})
    assert world.loop.step() == SLOW


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b'{"jobs": {"full": {"kno',
        b"[]",
        b'{"jobs": {"full": {}}}',
        b"\xff\xfe",
        b'{"jobs": []}',
        b'{"jobs": {"full": 3}}',
    ],
)
def test_a_damaged_state_is_set_aside_and_said(world, damage):
    file = plan.state_file(world.home)
    file.write_bytes(damage)
    world.loop.step()
    aside = list(file.parent.glob("jobs.json.damaged-*"))
    assert [path.read_bytes() for path in aside] == [damage]
    assert any(aside[0].name in line for line in world.said)
    world.until("2026-07-05T02:00:00Z")
    assert [job for job, _ in world.take()] == ["full", "incremental", "full", "incremental"]


@pytest.mark.parametrize("change", [{"schedule": "no cron"}, {"handled": "x"}, {"running": 1}, {"details": None}])
def test_a_state_with_a_wrong_value_is_damaged_too(world, change):
    file = plan.state_file(world.home)
    found = json.loads(file.read_text())
    found["jobs"]["full"] |= change
    file.write_text(json.dumps(found))
    assert plan.load(world.home, world.now)[0] == {}


def test_a_state_of_a_newer_release_is_read(world):
    file = plan.state_file(world.home)
    found = json.loads(file.read_text())
    found["jobs"]["full"]["mood"] = "good"
    file.write_text(json.dumps(found))
    before = world.state
    assert before["full"].last_success is not None
    assert not list(file.parent.glob("*damaged*"))


def test_a_writer_killed_in_the_middle_leaves_the_state_before(world):
    file = plan.state_file(world.home)
    before = world.state
    (file.parent / ".jobs.json.new").write_bytes(file.read_bytes()[:40])
    assert world.state == before
    world.until("2026-07-05T00:46:30Z")
    assert world.state["incremental"].result == "ok"
    assert not (file.parent / ".jobs.json.new").exists()


def test_a_state_that_cannot_be_written_stops_no_loop_and_runs_no_job(world, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    world.now = moment("2026-07-05T00:45:00Z")
    monkeypatch.setattr("orcheo_db.backup.plan.write_private", full)
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        world.now += seconds
        if len(pauses) == 2:
            monkeypatch.undo()
        world.loop.stop.requested = len(pauses) == 5

    world.loop.forever(sleep)
    assert next(line for line in world.said if "No space left" in line).endswith("[Errno 28] No space left on device")
    assert len([line for line in world.said if "No space left" in line]) == 1
    assert [job for job, _ in world.runs] == ["incremental"]  # once it can be recorded


def test_a_second_run_is_one_line_that_says_who_runs_since_when(world):
    with exclusive(lock_file(world.home), 0, "drill", lambda: moment(SUNDAY)):
        with pytest.raises(UserError) as caught:
            run_now(world.home, "full", world.run, clock=lambda: world.now)
        assert str(caught.value) == "drill (since 2026-07-05T00:00:00Z) is running; try again when it has ended"
        waits: list[float] = []
        with pytest.raises(UserError), exclusive(lock_file(world.home), 1, sleep=waits.append):
            pass
        assert sum(waits) == pytest.approx(1, abs=0.21)
        world.now = moment("2026-07-05T00:46:00Z")
        for _ in range(3):
            assert world.loop.step() == SLOW  # the schedule waits, and says it once
        assert len([line for line in world.said if "waiting: drill" in line]) == 1
    assert world.take() == []
    world.loop.step()
    assert [job for job, _ in world.take()] == ["incremental"]


def test_the_lock_of_a_killed_holder_is_free(tmp_path):
    lock = tmp_path / "state" / "lock"
    code = f"import sys; from pathlib import Path; from orcheo_db.backup.running import exclusive\nwith exclusive(Path({str(lock)!r}), 0, 'full'):\n  print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"1\n"
        with pytest.raises(UserError, match="full .since"), exclusive(lock, 0):
            pass
        child.kill()
    with exclusive(lock, 0):
        pass


def test_a_persons_run_counts_for_the_schedule_but_its_failure_is_the_persons(world):
    world.until("2026-07-05T00:50:00Z")
    world.take()
    world.results["full"] = JobResult(False, "no")
    assert not run_now(world.home, "full", world.run, clock=lambda: world.now).ok
    assert (world.state["full"].retry_at, world.state["full"].failures_total) == (None, 1)
    world.results.clear()
    world.now = moment("2026-07-05T01:15:30Z")  # the schedule's full is due, a person is faster
    details = {"label": "20260705-011530F", "at": Path("/x")}
    world.results["full"] = JobResult(True, "done", details)
    assert run_now(world.home, "full", world.run, clock=lambda: world.now).details == {
        "label": "20260705-011530F",
        "at": "/x",
    }
    world.take()
    world.until("2026-07-05T01:40:00Z")
    assert world.take() == []


def test_children_get_the_signal_and_are_waited_for_and_the_run_is_due_at_the_next_start(tmp_path):
    (tmp_path / "backup.json").write_text(json.dumps({"schedule": {"full": "0 0 1 1 *"}}))
    program = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from orcheo_db.backup.scheduler import JobResult, Stop, run_forever
        stop = Stop()
        child = "import signal,sys,time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.2), print('tidied'), sys.exit(3)));"
        child += "print('up', file=sys.stderr, flush=True); time.sleep(60)"
        def runner(job):
            done = stop.run([sys.executable, "-c", child], stderr=None)
            return JobResult(done.returncode == 0, f"{{done.returncode}} {{done.stdout.strip()}}")
        run_forever(runner, home=Path({str(tmp_path)!r}), config=Path({str(tmp_path / "backup.json")!r}), stop=stop)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stderr is not None
        assert service.stderr.readline() == "up\n"
        began = time.monotonic()
        service.send_signal(signal.SIGTERM)
        out, _ = service.communicate(timeout=20)
    assert service.returncode == 0, out
    assert time.monotonic() - began < 10
    entry = plan.load(tmp_path, time.time())[0]["full"]
    assert (entry.result, entry.message, entry.running, entry.failures_total) == ("interrupted", "3 tidied", False, 0)
    assert plan.decide({"full": "0 0 1 1 *"}, {"full": entry}, time.time()).at <= time.time()


def test_a_wish_to_stop_ends_the_sleep_and_reaches_a_child_that_begins_after_it():
    stop = Stop()
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop.install()
        os.kill(os.getpid(), signal.SIGTERM)
        began = time.monotonic()
        stop.sleep(30)
        assert stop.run(["sleep", "30"]).returncode == -signal.SIGTERM
        assert time.monotonic() - began < 10
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
