"""Extensions: trusted ones as the database's owner, the others as the administrator, and the reason where
one is impossible.
"""

from __future__ import annotations

import psycopg
from psycopg import errors, sql

from orcheo_db.bootstrap.session import Session

_FACTS = """
SELECT a.name::text, a.installed_version, v.trusted
  FROM pg_available_extensions a
  JOIN pg_available_extension_versions v ON v.name = a.name AND v.version = a.default_version
 WHERE a.name = ANY(%s)
"""
STATEMENTS = "pg_stat_statements"


def ensure_extensions(session: Session, changes: list[str]) -> None:
    """Every extension that was asked for exists or is listed in `left_out`; the app itself needs none."""
    names = list(session.job.extensions)
    rows = session.app.execute(_FACTS, (names,)).fetchall()
    facts = {str(name): (installed is not None, bool(trusted)) for name, installed, trusted in rows}
    for name in names:
        installed, trusted = facts.get(name, (False, False))
        if name not in facts:
            session.leave_out(f"extension {name}", "the server doesn't have its files (package or provider's list)")
        elif installed or _create(session, name, trusted):
            if not installed:
                changes.append(f"extension {name}")
            if name == STATEMENTS:
                _check_statements(session)


def _create(session: Session, name: str, trusted: bool) -> bool:
    query = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} WITH SCHEMA public").format(sql.Identifier(name))
    if trusted:
        try:
            session.as_owner(query)
        except errors.InsufficientPrivilege:
            pass  # a provider may have taken the trust away; its administrator may still be allowed
        else:
            return True
    try:
        session.app.execute(query)
    except (
        errors.InsufficientPrivilege,
        errors.FeatureNotSupported,
        errors.ObjectNotInPrerequisiteState,
    ) as error:
        session.leave_out(f"extension {name}", str(error.diag.message_primary))
        return False
    return True


def _check_statements(session: Session) -> None:
    """The extension can be created without its library; then its view only raises an error."""
    try:
        session.app.execute("SELECT 1 FROM pg_stat_statements LIMIT 1")
    except errors.ObjectNotInPrerequisiteState:
        why = f"the server doesn't load it: add {STATEMENTS} to shared_preload_libraries and restart"
        session.leave_out(f"statistics of {STATEMENTS}", why)
    except psycopg.Error as error:
        session.warnings.append(f"{STATEMENTS} can't be read: {error.diag.message_primary}")
