"""The job from beginning to end."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from orcheo_db import database
from orcheo_db.bootstrap import app, expected, extensions, guard, installation, objects, pooler, report, roles, search
from orcheo_db.bootstrap.job import OWNER, Job
from orcheo_db.bootstrap.recognise import check_server, recognise
from orcheo_db.bootstrap.session import Session, say
from orcheo_db.errors import CheckFailed


@dataclass(frozen=True)
class Options:
    """How to run: `full` calls the app's bootstraps even where all is recorded as done; `snapshot` writes
    what was made.
    """

    full: bool = False
    snapshot: Path | None = None


def run(job: Job, options: Options = Options()) -> dict[str, Any]:
    """Make the server ready and return the summary.

    Raises:
        UserError: wrong input, no connection.
        CheckFailed: the job ran and the server or the database doesn't fit, or the schema is incomplete.
    """
    start = time.monotonic()
    versions = app.versions()
    maintenance = database.connect(job.admin(), timeout=job.wait, on_retry=_waiting())
    try:
        with maintenance:
            result = _connected(job, maintenance, versions, options)
    except psycopg.Error as error:  # between the steps, which name themselves
        reason = " ".join(str(error).split())
        raise CheckFailed(f"lost {job.address} on the way ({reason}); run again when it answers") from error
    result["seconds"] = round(time.monotonic() - start, 3)
    return result


def _connected(
    job: Job, maintenance: database.Connection, versions: tuple[str, str], options: Options
) -> dict[str, Any]:
    facts = database.server_facts(maintenance)
    session = Session(job, maintenance, facts, warnings=check_server(job, facts))
    encryption = facts.tls_version or "not encrypted"
    say(f"connected to PostgreSQL {facts.version} at {job.address} as {facts.user} ({encryption})")
    guard.acquire(maintenance, job.lock_wait)
    try:
        return _locked(session, versions, options)
    finally:
        session.close()


def _locked(session: Session, versions: tuple[str, str], options: Options) -> dict[str, Any]:
    job, wanted = session.job, expected.load(*versions)
    recognise(session, wanted, versions)
    session.run("roles", lambda changes: roles.ensure_roles(session, changes))
    session.run("memberships", lambda changes: roles.ensure_memberships(session, changes))
    session.run("role settings", lambda changes: roles.ensure_settings(session, changes))
    session.run("database", lambda changes: objects.ensure_database(session, changes))
    session.run("passwords", lambda changes: roles.ensure_passwords(session, changes))
    session.app = database.connect(job.admin(job.database), timeout=job.wait)
    if session.facts.database != job.database:
        # Locks are per database: this one keeps out a bootstrap whose administrator connects through another
        # maintenance database.
        guard.acquire(session.app, job.lock_wait)
    session.run("schema privileges", lambda changes: objects.ensure_schema_privileges(session, changes))
    session.run("read grants", lambda changes: objects.ensure_read_grants(session, changes))
    session.run("extensions", lambda changes: extensions.ensure_extensions(session, changes))
    session.run("pooler", lambda changes: pooler.ensure_lookup(session, changes))
    row = installation.Installation(
        job.installation_id, *versions, installation.digest(), len(wanted.tables) if wanted else 0
    )
    stores = [] if not options.full and _complete(session, wanted, row) else _stores(session)
    found, release = _verify(session, wanted, versions, [store["name"] for store in stores if store["present"]])
    session.run("search", lambda changes: search.ensure(session, changes))
    if options.snapshot:
        _write_snapshot(session, options.snapshot, found, stores, versions)
    known = expected.known_tables(wanted)
    names = frozenset(name for name in found if expected.is_known(name, known, wanted is not None))
    if not guard.held(session.maintenance):
        raise CheckFailed("the lock was lost on the way (did the server restart?): run again")
    tables = report.table_summary(found, wanted, names)
    row = replace(row, tables=tables["present"])
    session.run("installation", lambda changes: installation.write(session, row, changes))
    return report.summary(session, release, tables, stores)


def _complete(session: Session, wanted: expected.Expected | None, row: installation.Installation) -> bool:
    """Whether a finished run of this very job with these very releases is recorded and its schema is still
    whole.

    Then the app's bootstraps have nothing to do, and importing the app would take most of a second run's
    time.
    """
    found = expected.present(session.app)
    if wanted is None or installation.read(session.app) != row or app.invalid_indexes(session):
        return False
    if expected.problems(found, expected.routines(session.app), wanted, (), OWNER):
        return False
    session.run("app", lambda _: None)
    return True


def _store(session: Session, store: app.Store, done: list[dict[str, Any]], changes: list[str]) -> None:
    done.append(app.timed(session, store, changes))


def _stores(session: Session) -> list[dict[str, Any]]:
    session.run("app import", lambda _: app.preload())
    app.check_login(session)
    done: list[dict[str, Any]] = []
    for store in app.STORES:
        session.run(f"app {store.name}", partial(_store, session, store, done))
    session.run("indexes", lambda changes: app.repair_indexes(session, changes))
    return done


def _verify(
    session: Session, wanted: expected.Expected | None, versions: tuple[str, str], ran: list[str]
) -> tuple[dict[str, expected.Table], dict[str, Any]]:
    found = expected.present(session.app)
    problems = expected.problems(found, expected.routines(session.app), wanted, ran, OWNER)
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckFailed(
            f"the schema of database {session.job.database} is incomplete: {'; '.join(problems[:8])}{more}"
        )
    checked = "every table, column, index, function and trigger checked"
    if wanted is None:
        checked = "no list for these releases: only the tables that its stores are known to make were checked"
        session.warnings.append(checked)
    release = {
        "orcheo": versions[0],
        "orcheo_backend": versions[1],
        "listed": wanted is not None,
        "checked": checked,
    }
    return found, release


def _write_snapshot(
    session: Session,
    path: Path,
    found: dict[str, expected.Table],
    stores: list[dict[str, Any]],
    versions: tuple[str, str],
) -> None:
    made = {store["name"]: store["tables"] for store in stores}
    path.write_text(expected.snapshot(found, expected.routines(session.app), made, versions), encoding="utf-8")
    say(f"snapshot of {len(found)} tables written to {path}")


def _waiting() -> Any:
    """Progress while the server doesn't answer: the first failure, then one line every ten seconds."""
    last = -10.0

    def on_retry(attempt: int, elapsed: float, reason: str) -> None:
        nonlocal last
        if elapsed - last >= 10.0:
            say(f"waiting for the server ({elapsed:.0f} s, attempt {attempt}): {reason}")
            last = elapsed

    return on_retry
