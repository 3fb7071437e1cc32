"""What is there already. Looked at under the lock and before the first change; what doesn't fit is named
and nothing is touched.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orcheo_db import database
from orcheo_db.bootstrap import installation
from orcheo_db.bootstrap.expected import CORE_TABLES, Expected, Table, is_known, known_tables, present
from orcheo_db.bootstrap.installation import Installation
from orcheo_db.bootstrap.job import APP_LOGINS, LOGINS, OWNER, REPLICATOR, Job
from orcheo_db.bootstrap.session import Session
from orcheo_db.database import ServerFacts
from orcheo_db.errors import CheckFailed, UserError

MIN_VERSION = 140000
UNTOUCHED = "Nothing was changed."


def check_server(job: Job, facts: ServerFacts) -> list[str]:
    """Refuse a server that can't serve; return warnings.

    Raises:
        UserError: too old, a standby, a pooler, or an administrator who may not administer.
    """
    where = job.address
    if facts.version_num < MIN_VERSION:
        raise UserError(f"{where} runs PostgreSQL {facts.version}: Orcheo needs 14 or newer, upgrade the server first")
    if facts.in_recovery:
        raise UserError(f"{where} is a standby (read only): give the primary's address in the administrator's DSN")
    if facts.pooled:
        raise UserError(
            f"{where} is a connection pooler: give PostgreSQL's own address (usually port 5432), not the pooler's"
        )
    if not (facts.superuser or (facts.createrole and facts.createdb)):
        raise UserError(
            f"role {facts.user!r} at {where} may not administer: it needs CREATEROLE and CREATEDB (or use"
            " another administrator)"
        )
    if facts.session_user in APP_LOGINS or facts.user == OWNER:
        raise UserError(f"role {facts.user!r} is the app's own: give an administrator's DSN")
    return list(job.warnings)


def check_roles(rows: Iterable[tuple[str, bool, tuple[str, ...]]]) -> None:
    """Refuse a role of ours that exists with more power than it should have, or an owner that logs in.

    Args:
        rows: (name, can log in, attributes it should not have).

    Raises:
        CheckFailed: naming the role and the statement that would mend it.
    """
    for name, login, powers in rows:
        if name == OWNER and login:
            raise CheckFailed(
                f"role {OWNER} exists and can log in, but here it only owns the database: if nothing uses"
                " that login,"
                f" run ALTER ROLE {OWNER} NOLOGIN, then run again. {UNTOUCHED}"
            )
        if powers:
            raise CheckFailed(
                f"role {name} exists with {', '.join(powers)}, which it must not have: if it is this"
                " installation's,"
                f" run ALTER ROLE {name} {' '.join('NO' + power for power in powers)}, then run again."
                f" {UNTOUCHED}"
            )


@dataclass(frozen=True)
class Contents:
    """What the app's database holds before the job."""

    tables: Mapping[str, Table]
    encoding: str
    installed: Installation | None


def check_contents(contents: Contents, expected: Expected | None, job: Job, team_column: bool = True) -> list[str]:
    """Refuse a database that isn't this release's, or somebody else's; return warnings.

    Args:
        expected: the list for the installed releases, or None.
        team_column: whether the installed release needs `workflows.team_id` (only used without a list).

    Raises:
        CheckFailed: naming the database and what was found in it.
    """
    where = f"database {job.database} at {job.address}"
    if contents.encoding != "UTF8":
        raise CheckFailed(
            f"{where} is encoded in {contents.encoding}, Orcheo needs UTF8: give another database. {UNTOUCHED}"
        )
    known, warnings = known_tables(expected), list[str]()
    ours = {name: table for name, table in contents.tables.items() if is_known(name, known, expected is not None)}
    foreign = sorted(set(contents.tables) - set(ours))
    installed = contents.installed
    _refuse_older(where, ours, _lacking(ours, expected, team_column))
    if foreign and not installed:
        if not ours:
            raise CheckFailed(
                f"{where} holds {_count(foreign, 'table')} of something else ({_some(foreign)}): give an"
                f" empty database, or move them to a schema other than public. {UNTOUCHED}"
            )
        warnings.append(f"{where} also holds tables that are not Orcheo's: {_some(foreign)}")
    others = sorted({table.owner for table in ours.values()} - {OWNER})
    if others:
        theirs = sorted(name for name, table in ours.items() if table.owner != OWNER)
        raise CheckFailed(
            f"{where} has tables of Orcheo that belong to {', '.join(others)} instead of {OWNER}"
            f" ({_some(theirs)}):"
            f" make role {OWNER} their owner (REASSIGN OWNED BY ... TO {OWNER}), then run again. {UNTOUCHED}"
        )
    if installed and installed.installation_id != job.installation_id and not job.adopt:
        raise CheckFailed(
            f"{where} belongs to installation {installed.installation_id}, the mounted secrets to"
            f" {job.installation_id}: mount the"
            " right secrets, or take it over with new passwords: `orcheo-db up --new-secrets` (ORCHEO_DB_ADOPT=1)."
            f" {UNTOUCHED}"
        )
    return warnings


def _lacking(ours: Mapping[str, Table], expected: Expected | None, team_column: bool) -> list[str]:
    if expected is None:
        workflows = ours.get("workflows")
        return ["workflows.team_id"] if team_column and workflows and "team_id" not in workflows.columns else []
    tables = ((name, table) for name, table in sorted(ours.items()) if name in expected.tables)
    return [
        f"{name}.{column}"
        for name, table in tables
        for column in sorted(expected.required_columns(name) - table.columns)
    ]


def _refuse_older(where: str, ours: Mapping[str, Table], lacking: list[str]) -> None:
    if not lacking:
        return
    first = [name for name in ("workflows.team_id",) if name in lacking]
    shown = _some(first + [name for name in lacking if name not in first])
    if {"workflows", "workflow_versions"} <= set(ours):
        raise CheckFailed(
            f"{where} was made by a bridge release of Orcheo (0.16 to 0.34) or another one older than the"
            " installed: it lacks"
            f" {shown}, which the newer release doesn't add by itself. `orcheo-db upgrade-app`"
            " brings it up to date; or give an empty database."
            f" {UNTOUCHED}"
        )
    raise CheckFailed(
        f"{where} has tables with Orcheo's names that are not Orcheo's (they lack {shown}): give an empty"
        f" database. {UNTOUCHED}"
    )


def _count(names: list[str], noun: str) -> str:
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def recognise(session: Session, expected: Expected | None, versions: tuple[str, str]) -> None:
    """Look at roles and at the app's database, if there is one, and refuse what doesn't fit.

    Raises:
        CheckFailed: see `check_roles` and `check_contents`.
    """
    job, conn = session.job, session.maintenance
    check_roles(_powers(session))
    row = conn.execute("SELECT datallowconn FROM pg_database WHERE datname = %s", (job.database,)).fetchone()
    if row is None:
        return
    if not row[0]:
        raise CheckFailed(
            f"database {job.database} at {job.address} doesn't allow connections (datallowconn). {UNTOUCHED}"
        )
    try:
        app = database.connect(job.admin(job.database), timeout=job.wait)
    except database.ConnectionRefused as refused:
        raise CheckFailed(f"{refused}. {UNTOUCHED}") from None
    with app:
        encoding = app.execute("SELECT current_setting('server_encoding')").fetchone()
        contents = Contents(present(app), str(encoding[0]) if encoding else "?", installation.read(app))
    session.warnings += check_contents(contents, expected, job, expected is not None or _needs_team_column())
    if contents.installed and _release(contents.installed.orcheo_version) > _release(versions[0]):
        session.warnings.append(
            f"database {job.database} was prepared for orcheo {contents.installed.orcheo_version}, now"
            f" {versions[0]} is installed"
        )


def _powers(session: Session) -> list[tuple[str, bool, tuple[str, ...]]]:
    query = """
        SELECT rolname::text, rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication
          FROM pg_roles WHERE rolname = ANY(%s)
    """
    rows = session.maintenance.execute(query, ([OWNER, *LOGINS],)).fetchall()
    names = ("SUPERUSER", "CREATEROLE", "CREATEDB", "BYPASSRLS", "REPLICATION")
    return [
        (
            str(row[0]),
            bool(row[1]),
            tuple(
                n
                for n, has in zip(names, row[2:], strict=True)
                if has and not (n == "REPLICATION" and row[0] == REPLICATOR)
            ),
        )
        for row in rows
    ]


def _needs_team_column() -> bool:
    try:
        base = importlib.import_module("orcheo_backend.app.repository_postgres._base")
    except ModuleNotFoundError:
        return False
    return "team_id" in str(getattr(base, "POSTGRES_SCHEMA", ""))


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


__all__ = ["CORE_TABLES", "Contents", "check_contents", "check_roles", "check_server", "recognise"]
