"""A restore drill: a marker, the newest backup and the WAL restored beside production to just after it, and proof that it is the same.

Production gets two small rows (`orcheo_db.drill_markers`) and a restore point, and is read (`moment`); nothing else. The copy lives on
the scratch volume, has no network, is compared (`digest`), examined (pg_amcheck), read through Orcheo's own stores (`stores`), and
removed. What was found becomes a record of the evidence, also when the answer is no.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

import psycopg

from orcheo_db.backup import archive, evidence, findings, moment
from orcheo_db.backup.config import Config
from orcheo_db.backup.engine import Backup, PgBackRest
from orcheo_db.backup.findings import Findings, failure_of
from orcheo_db.backup.operations import Heard, connect, wait_archived
from orcheo_db.backup.scratch import GENTLE, Cluster, Target, check_room, scratch
from orcheo_db.errors import CheckFailed

RECOVERY_SECONDS = 6 * 3600.0  # replaying an hour of WAL takes minutes; a drill that takes longer than this is no use
ARCHIVE_SLACK = 60.0  # seconds that a segment may take beyond archive_timeout
STORES_SECONDS = 900


@dataclass
class Drill(Findings):
    """A drill of this installation's own backups."""

    config: Config = field(kw_only=True)


def run(config: Config, heard: Heard, *, switch: bool = False) -> dict[str, Any]:
    """Run a drill; returns its record, which is in the evidence by then. The caller holds the service's lock.

    Args:
        switch: don't wait for archive_timeout to end the segment with the marker: RPO is then not measured.

    Raises:
        CheckFailed: the evidence could not be written.
    """
    drill = Drill(config.installation_id, heard, config=config)
    failure = None
    try:
        _drill(drill, switch=switch)
    except Exception as error:  # whatever it is: a drill without a record would leave the last one's "pass" standing
        failure = failure_of(error)
    record = drill.record(failure)
    config.evidence.mkdir(mode=0o700, exist_ok=True)
    path = evidence.append(config.evidence, record, config.signing_key())
    written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return written


def _drill(drill: Drill, *, switch: bool) -> None:
    config = drill.config
    with connect(config) as production:
        row = production.execute("SELECT pg_walfile_name(pg_current_wal_insert_lsn())").fetchone()
        assert row is not None
        timeline = int(row[0][:8], 16)
        backup = _newest(drill, timeline)
        check_room(config.scratch, backup.size)
        with drill.timed("moment"):
            before = findings.mark(production, drill.id, "before")
            with connect(config) as other:
                taken = moment.take(
                    production,
                    drill.id,
                    findings.SCHEMAS,
                    config.drill_sample,
                    seed=drill.id,
                    after_restore_point=lambda: findings.mark(other, drill.id, "after"),
                )
            catalogues = findings.catalogues(production)
            segment = _segment(production, taken.lsn)
        drill.target = {"restore_point": drill.id, "lsn": taken.lsn, "time": before.isoformat()}
        if switch:
            production.execute("SELECT pg_switch_wal()")
        findings.tidy(production)
    with drill.timed("archive"):
        came = wait_archived(config, segment, config.archive_timeout + ARCHIVE_SLACK)
    if not switch:
        drill.rpo = round(max(0.0, (came - before).total_seconds()), 1)
    with scratch(config, drill.id, Target(name=drill.id, timeline=timeline)) as copy:
        started = time.monotonic()
        drill.heard("restore")
        copy.restore(drill.heard, f"--set={backup.label}")
        copy.start(RECOVERY_SECONDS, drill.heard)
        with psycopg.connect(copy.dsn(config.database)) as connection:
            findings.check_markers(drill, connection)
        drill.rto = round(time.monotonic() - started, 1)
        drill.durations |= copy.durations
        _prove(drill, copy, taken, catalogues)


def _newest(drill: Drill, timeline: int) -> Backup:
    """The newest backup that leads to production's timeline; with the WAL after it, it is what a restore would start from."""
    lineage = archive.lineage(drill.config, timeline)
    found = [b for b in PgBackRest(drill.config).info().backups if archive.on_timeline(b, timeline, lineage)]
    if not found:
        raise CheckFailed("there is no backup to restore: run `orcheo-db backup run --type full`")
    backup = found[-1]
    drill.backup = {name: backup.document()[name] for name in ("label", "type", "stop", "size", "stored", "stop_lsn")}
    drill.versions = {
        "pgbackrest": subprocess.run(
            ["pgbackrest", "version"], capture_output=True, text=True, check=True
        ).stdout.split()[-1],
        **_app_versions(drill.config),
    }
    return backup


def _app_versions(config: Config) -> dict[str, str]:
    """Orcheo's, where it is installed here."""
    if not config.app_python:
        return {}
    script = "import json, importlib.metadata as m; print(json.dumps({n.replace('-', '_'): m.version(n) for n in ('orcheo', 'orcheo-backend')}))"
    done = subprocess.run([config.app_python, "-c", script], capture_output=True, text=True)
    if done.returncode != 0:
        raise CheckFailed(f"Orcheo is not installed where the drill looks for it ({config.app_python})")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _segment(connection: psycopg.Connection[Any], lsn: str) -> str:
    row = connection.execute("SELECT pg_walfile_name(%s::pg_lsn)", (lsn,)).fetchone()
    assert row is not None
    return str(row[0])


def _prove(drill: Drill, copy: Cluster, taken: moment.Moment, catalogues: dict[str, list[Any]]) -> None:
    config = drill.config
    with psycopg.connect(copy.dsn(config.database), autocommit=True) as connection:
        findings.check_content(drill, connection, taken)
        for name, here in findings.catalogues(connection).items():
            findings.check_same(drill, name, catalogues[name], here)
        findings.check_server(drill, connection, set(config.extensions))
    _settings(drill, copy)
    _amcheck(drill, copy)
    _stores(drill, copy)


def _settings(drill: Drill, copy: Cluster) -> None:
    """The spec's postgresql.conf is what a restored server would start with: the copy's PostgreSQL must take it."""
    argv = [
        "postgres",
        "-D",
        str(copy.data),
        "-c",
        f"config_file={drill.config.conf}/postgresql.conf",
        "-C",
        "archive_mode",
    ]
    done = subprocess.run(argv, capture_output=True, text=True)
    auto = [
        line
        for line in (copy.data / "postgresql.auto.conf").read_text().splitlines()
        if line.strip() and line[0] != "#"
    ]
    strange = [line for line in auto if not line.startswith(("recovery_target", "restore_command", "archive_mode"))]
    good = done.returncode == 0 and not strange
    found = (
        "the spec's postgresql.conf is accepted, nothing is set beside it"
        if good
        else " ".join((done.stderr or "; ".join(strange)).split())
    )
    drill.note("settings as the spec says", good, found)


def _amcheck(drill: Drill, copy: Cluster) -> None:
    """Every table's and index's structure, with the pages' checksums verified as they are read."""
    with drill.timed("pg_amcheck"):
        argv = [
            *GENTLE,
            "pg_amcheck",
            "--all",
            "--install-missing=pg_catalog",
            "--jobs=2",
            f"--host={copy.sockets}",
            "--username=postgres",
            "--no-password",
        ]
        done = subprocess.run(argv, capture_output=True, text=True)
    words = " ".join((done.stdout + done.stderr).split())
    drill.note("pg_amcheck", done.returncode == 0, "clean" if done.returncode == 0 else words[:500])


def _stores(drill: Drill, copy: Cluster) -> None:
    """Orcheo's own stores read the copy, in a process of their own: they leave threads behind."""
    if not drill.config.app_python:  # a repository host without it: said in the record's sizes, and no check is made up
        drill.heard("not read through Orcheo's stores: Orcheo is not on this host (ansible/README.md, group bootstrap)")
        return
    with drill.timed("app"):
        argv = [
            drill.config.app_python,
            "-m",
            "orcheo_db.backup.stores",
            copy.dsn(drill.config.database, "orcheo_app_a"),
        ]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=STORES_SECONDS)
        except subprocess.TimeoutExpired:
            drill.note("read through Orcheo's stores", False, f"not done after {STORES_SECONDS} s")
            return
    if done.returncode != 0:
        drill.note(
            "read through Orcheo's stores", False, (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:500]
        )
        return
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    words = (
        "; ".join(seen["problems"][:3])
        or ", ".join(f"{count} {kind}" for kind, count in seen["counts"].items() if count)
        or "no rows yet"
    )
    drill.note("read through Orcheo's stores", not seen["problems"], words, counts=seen["counts"])


__all__ = ["Drill", "run"]
