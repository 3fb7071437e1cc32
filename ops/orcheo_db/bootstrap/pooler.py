"""How PgBouncer learns the password verifiers: by its lookup function (auth_query) where one can exist,
else by a file.
"""

from __future__ import annotations

import psycopg
from psycopg import sql

from orcheo_db import database
from orcheo_db.bootstrap.job import APP_LOGINS, MAINTENANCE_DATABASE, POOLER
from orcheo_db.bootstrap.session import Session, statement
from orcheo_db.errors import CheckFailed, UserError

LOOKUP = "SELECT uname, phash FROM orcheo_pooler.user_lookup(%s)"
WHAT = "PgBouncer's lookup function (auth_query)"


def ensure_lookup(session: Session, changes: list[str]) -> None:
    """The function exists and works for role pgbouncer; otherwise the session says `auth_file` and why.

    Raises:
        CheckFailed: on the own server, where it must work.
    """
    problem = _try_lookup(session) if _role_exists(session) else f"role {session.facts.user!r} may not read pg_authid"
    if problem and not session.job.managed:
        problem = _create(session, changes) or _try_lookup(session)
    if not problem:
        session.pooler_auth = "auth_query"
        return
    if session.job.managed:
        raise CheckFailed(
            f"PgBouncer's lookup function doesn't work at {session.job.address}: {problem};"
            " the first boot of the postgres image makes it: look at that container's log"
        )
    session.leave_out(WHAT, f"{problem}; PgBouncer takes an auth file instead")


def _role_exists(session: Session) -> bool:
    return session.maintenance.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (POOLER,)).fetchone() is not None


def _create(session: Session, changes: list[str]) -> str | None:
    if not session.may_read_verifiers:
        return f"role {session.facts.user!r} may not read pg_authid"
    names = {"pooler": sql.Identifier(POOLER), "database": sql.Identifier(MAINTENANCE_DATABASE)}
    try:
        with database.connect(session.job.admin(MAINTENANCE_DATABASE), timeout=session.job.wait) as conn:
            conn.execute(statement("pooler_lookup", **names))
    except UserError as error:
        return str(error)
    except psycopg.errors.InsufficientPrivilege as error:
        return f"role {session.facts.user!r} may not make it ({error.diag.message_primary})"
    changes.append("function orcheo_pooler.user_lookup")
    return None


def _try_lookup(session: Session) -> str | None:
    """Ask as PgBouncer will ask; None if the answer is the app's verifier, else what is wrong."""
    role = APP_LOGINS[0]
    try:
        with database.connect(session.job.login(POOLER, MAINTENANCE_DATABASE), timeout=15) as conn:
            row = conn.execute(LOOKUP, (role,)).fetchone()
    except UserError as error:
        return str(error) if session.may_read_verifiers else f"role {session.facts.user!r} may not read pg_authid"
    except psycopg.Error as error:
        return str(error.diag.message_primary or "the lookup failed")
    if row is None or row[0] != role or not str(row[1]).startswith("SCRAM-SHA-256$"):
        return f"it returns no SCRAM verifier for {role}"
    return None
