"""The jobs by name, as the schedule and a person run them, and the service around them."""

from __future__ import annotations

import threading
import time
from typing import Any

from orcheo_db.backup import drill, evidence, metrics, operations, report
from orcheo_db.backup.config import Config
from orcheo_db.backup.engine import TYPES, PgBackRest
from orcheo_db.backup.operations import Heard
from orcheo_db.backup.plan import JobResult, load, lock_file
from orcheo_db.backup.running import Pulse, Stop, exclusive
from orcheo_db.backup.scheduler import Loop, run_job
from orcheo_db.backup.scheduler import run_now as run_recorded
from orcheo_db.backup.scratch import clear
from orcheo_db.errors import CheckFailed, UserError

DAY = 86400.0


def runner(config: Config, heard: Heard, *, switch: bool = False) -> Any:
    """What the schedule calls: a job's name in, its result out."""

    def run(job: str) -> JobResult:
        try:
            if job in TYPES:
                made = operations.run(config, job, heard)
                return JobResult(True, f"{made['label']}, {made['stored']} bytes stored in {made['seconds']} s", made)
            record = drill.run(config, heard, switch=switch)
        except (CheckFailed, UserError) as error:
            return JobResult(False, str(error))
        evidence.prune(config.evidence, config.evidence_days, time.time(), config.signing_key())
        words = (
            f"RTO {record['rto_seconds']} s, RPO {record['rpo_seconds']} s"
            if record["result"] == "pass"
            else record["failure"]
        )
        return JobResult(record["result"] == "pass", words, record)

    return run


def prepare(config: Config, heard: Heard) -> dict[str, Any]:
    """See `operations.prepare`; the first backup is recorded like the schedule's, which waits for this one.

    Raises:
        UserError, CheckFailed: as there.
    """
    done = operations.make_stanza(config, heard)
    if not PgBackRest(config).info().backups:
        with exclusive(lock_file(config.repository), 600.0, "the first backup"):
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


def run_now(config: Config, kind: str, heard: Heard) -> dict[str, Any]:
    """A person's backup.

    Raises:
        UserError: another job runs. CheckFailed: it failed.
    """
    result = run_recorded(config.repository, kind, runner(config, heard))
    if not result.ok:
        raise CheckFailed(result.message)
    return result.details


def drill_now(config: Config, heard: Heard, *, switch: bool) -> dict[str, Any]:
    """A person's drill; its record, whatever the answer.

    Raises:
        UserError: another job runs. CheckFailed: the evidence could not be written.
    """
    result = run_recorded(config.repository, "drill", runner(config, heard, switch=switch))
    if not result.details:
        raise CheckFailed(result.message)
    return {"record": result.details, "report": text(config)}


def _evidence(config: Config) -> tuple[list[dict[str, Any]], list[str]]:
    if not config.evidence.is_dir():
        return [], []
    return evidence.load_all(config.evidence), evidence.verify(
        config.evidence, evidence.public_key(config.signing_key())
    )


def text(config: Config) -> str:
    """The drills' short report."""
    return report.text(*_evidence(config))


def page(config: Config) -> str:
    """The drills' page."""
    return report.html(*_evidence(config))


def rendered(config: Config) -> str:
    """The metrics, Prometheus' text format."""
    records, problems = _evidence(config)
    now = time.time()
    state, _ = load(config.repository, now)
    return metrics.render(state, records, problems, now)


def serve(config: Config, address: str, port: int, say: Heard) -> None:
    """The service: what a killed drill left is removed, then the schedule goes on until SIGTERM."""
    for name in clear(config):
        say(f"removed what a killed drill left: {name}")
    stop, pulse = Stop(), Pulse()
    loop = Loop(runner(config, say), config.repository, config.conf / "backup.json", stop=stop, pulse=pulse, say=say)
    server = threading.Thread(
        target=metrics.serve, args=(address, port, lambda: rendered(config), lambda: page(config), pulse), daemon=True
    )
    server.start()
    stop.install()
    loop.forever()
