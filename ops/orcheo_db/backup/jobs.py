"""The jobs by name, as the schedule and a person run them, and the service around them."""

from __future__ import annotations

import threading
import time
import urllib.request
from typing import Any

from orcheo_db.backup import drill, evidence, logical, metrics, operations, relay, report
from orcheo_db.backup.config import Config
from orcheo_db.backup.engine import TYPES, PgBackRest
from orcheo_db.backup.operations import Heard
from orcheo_db.backup.plan import JobResult, Runner, load, lock_file
from orcheo_db.backup.running import POLL, Pulse, Stop, exclusive
from orcheo_db.backup.scheduler import Loop, run_job
from orcheo_db.backup.scheduler import run_now as run_recorded
from orcheo_db.backup.scratch import clear
from orcheo_db.errors import CheckFailed, UserError

FIRST_SECONDS = 3600.0  # the schedule's own first backup of a big cluster
PORT = 9188  # of the service's pages; PostgreSQL's own exporter has 9187
ADDRESS = "0.0.0.0"  # noqa: S104 - in the container, whose only network is internal


def runner(config: Config, heard: Heard, *, switch: bool = False) -> Runner:
    """What the schedule calls: a job's name in, its result out."""

    def run(job: str) -> JobResult:
        if job in TYPES:
            made = operations.run(config, job, heard)
            more = _offload(config)
            return JobResult(True, f"{made['label']}, {made['stored']} bytes stored in {made['seconds']} s{more}", made)
        if job == "logical":
            copy = logical.run(config, heard)
            words = (
                f"{copy['label']}: {copy['rows']} rows of {len(copy['tables'])} tables dumped, restored and compared"
            )
            return JobResult(
                True,
                words,
                {
                    name: copy[name]
                    for name in ("label", "rows", "stored_bytes", "seconds", "restored_seconds", "removed")
                },
            )
        record = drill.run(config, heard, switch=switch)
        passed = record["result"] == "pass"
        words = f"RTO {record['rto_seconds']} s, RPO {record['rpo_seconds']} s" if passed else str(record["failure"])
        try:
            evidence.prune(config.evidence, config.evidence_days, time.time(), config.signing_key())
            words += _offload(config)
        except CheckFailed as error:  # the drill is one thing, the history another: both are said
            passed, words = False, f"{words}; the evidence: {error}"
        return JobResult(passed, words, record)

    return run


def _offload(config: Config) -> str:
    """Have the evidence in the bucket, too; what goes wrong with it is said and makes no backup of no use: the next job tries again."""
    try:
        if config.remote:
            operations.offload(config)
    except (CheckFailed, OSError, ValueError) as error:
        return f"; evidence and restore points are not all in the bucket: {' '.join(str(error).split())}"
    return ""


def prepare(config: Config, heard: Heard, *, set_aside: bool = False) -> dict[str, Any]:
    """The stanza and the first backup, where there are none; it is recorded like the schedule's, which waits for this one.

    Raises:
        UserError: the repository is another cluster's. CheckFailed: pgBackRest can't do it.
    """
    done = operations.set_aside(config) if set_aside else []
    if PgBackRest(config).info().backups:  # without the lock: a job may run for hours, and nothing is to be made
        return {"done": done + operations.make_stanza(config, heard)}
    with exclusive(
        lock_file(config.repository), FIRST_SECONDS, "the first backup"
    ):  # the schedule may be at it already
        done += operations.make_stanza(config, heard)
        if not PgBackRest(config).info().backups:
            heard("first full backup")
            result = run_job(config.repository, "full", runner(config, heard))
            if not result.ok:
                raise CheckFailed(f"the first backup failed: {result.message}")
            made = result.details
            done.append(
                f"first full backup made ({made['size'] / 2**20:.0f} MB, {made['stored'] / 2**20:.0f} MB stored)"
            )
    return {"done": done}


def run_now(config: Config, kind: str, heard: Heard, *, wait_seconds: float = 0.0) -> dict[str, Any]:
    """A person's backup; a job that runs is waited for.

    Raises:
        UserError: another job runs. CheckFailed: it failed.
    """
    result = run_recorded_job(config, kind, heard, wait_seconds=wait_seconds)
    if not result.ok:
        raise CheckFailed(result.message)
    return result.details


def run_recorded_job(
    config: Config, kind: str, heard: Heard, *, wait_seconds: float = 0.0, switch: bool = False
) -> JobResult:
    """One run of a job by its name, recorded; a job that runs is waited for.

    Raises:
        UserError: another job still runs.
    """
    return run_recorded(config.repository, kind, runner(config, heard, switch=switch), wait_seconds=wait_seconds)


def scheduled(config: Config, kind: str, heard: Heard, *, wait_seconds: float) -> dict[str, Any]:
    """One run of a schedule's job, where the schedule is another's; what it gave.

    Raises:
        UserError: another job still runs. CheckFailed: it failed.
    """
    result = run_recorded_job(config, kind, heard, wait_seconds=wait_seconds)
    if not result.ok:
        raise CheckFailed(result.message)
    return {"job": kind, "said": result.message}


def drill_now(config: Config, heard: Heard, *, switch: bool) -> dict[str, Any]:
    """A person's drill; its record, whatever the answer.

    Raises:
        UserError: another job runs. CheckFailed: the evidence could not be written.
    """
    result = run_recorded(config.repository, "drill", runner(config, heard, switch=switch))
    if not result.details:
        raise CheckFailed(result.message)
    return {"record": result.details, "report": text(config)}


def _proofs(config: Config) -> metrics.Evidence:
    config.evidence.mkdir(mode=0o700, exist_ok=True)
    return metrics.Evidence(config.evidence, evidence.public_key(config.signing_key()))


def text(config: Config) -> str:
    """The drills' short report."""
    return report.text(*_proofs(config).read())


def page(config: Config) -> str:
    """The drills' page."""
    return report.html(*_proofs(config).read())


def _pages(config: Config, pulse: Pulse) -> metrics.Render:
    return metrics.pages(
        lambda: load(config.repository, time.time())[0], _proofs(config).read, pulse, time.time, lambda: numbers(config)
    )


def numbers(config: Config) -> dict[str, float]:
    """What there is to restore from, in numbers."""
    backups = PgBackRest(config).info().backups
    if not backups:
        return {"count": 0}
    return {
        "count": len(backups),
        "database_bytes": backups[-1].size,
        "oldest_timestamp_seconds": backups[0].stop.timestamp(),
        "newest_timestamp_seconds": backups[-1].stop.timestamp(),
    }


def rendered(config: Config, *, here: bool = False) -> str:
    """The metrics, Prometheus' text format, as the running service gives them; `here`: where timers run the jobs and there is none."""
    if here:
        state = load(config.repository, time.time())[0]
        return metrics.metrics(state, *_proofs(config).read(), time.time(), numbers(config))
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=30) as answer:
        found: bytes = answer.read()
    return found.decode()


def _start_relay(config: Config, say: Heard, stop: Stop) -> None:
    """Have WAL taken over into a second repository, beside whatever else the service does."""
    if config.remote:
        threading.Thread(target=relay.Relay(config, say).forever, args=(stop,), name="relay", daemon=True).start()


def serve_elsewhere(config: Config, say: Heard) -> None:
    """The service where the schedule is another's (Kubernetes' CronJobs): the stanza and the first backup, then its pages until SIGTERM;
    of a second repository, the WAL, too.

    Its health says no until there is a backup.
    """
    for directory in (config.repository, config.evidence, config.state):
        directory.mkdir(mode=0o700, exist_ok=True)
    stop, pulse = Stop(), Pulse()
    pulse.problem = "there is no backup yet"
    server = metrics.serve(ADDRESS, PORT, _pages(config, pulse))
    stop.install()
    _start_relay(config, say, stop)
    while not stop.requested:
        pulse.beat()
        if pulse.problem:
            pulse.job = "prepare"
            try:
                for line in prepare(config, say)["done"]:
                    say(line)
                pulse.problem = None
            except (UserError, CheckFailed) as error:  # PostgreSQL may not be there yet
                if str(error) != pulse.problem:
                    say(str(error))
                pulse.problem = str(error)
            finally:
                pulse.job = None
        stop.sleep(POLL)
    server.shutdown()


def serve(config: Config, say: Heard) -> None:
    """The service: what a killed drill left is removed, then the schedule goes on until SIGTERM."""
    config.repository.mkdir(mode=0o700, exist_ok=True)
    for directory in (config.evidence, config.state):
        directory.mkdir(mode=0o700, exist_ok=True)
    for name in clear(config):
        say(f"removed what a killed drill left: {name}")
    stop, pulse = Stop(), Pulse()

    def heard(line: str) -> None:
        say(line)
        if stop.requested:  # a drill or backup that would go on for long: the next start repeats it
            raise CheckFailed("the service is being stopped")

    server = metrics.serve(ADDRESS, PORT, _pages(config, pulse))
    loop = Loop(runner(config, heard), config.repository, config.conf / "backup.json", stop=stop, pulse=pulse, say=say)
    stop.install()
    _start_relay(config, say, stop)
    loop.forever()
    server.shutdown()
