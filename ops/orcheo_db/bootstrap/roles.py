"""Roles, memberships, settings and passwords."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import psycopg
from psycopg import errors, sql

from orcheo_db import database
from orcheo_db.bootstrap.job import (
    APP_LOGINS,
    MAINTENANCE_DATABASE,
    MONITOR,
    OWNER,
    POOLER,
    READER,
    REPLICATOR,
)
from orcheo_db.bootstrap.session import Session
from orcheo_db.errors import CheckFailed

ADMIN = "orcheo_admin"
PG16 = 160000  # since then a role's creator may grant it but neither inherits from it nor may act as it


@dataclass(frozen=True)
class Role:
    """A role as it should be. Its settings hold on every database; what is not listed is left alone."""

    name: str
    login: bool = True
    replication: bool = False
    member_of: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


def wanted(session: Session) -> list[Role]:
    """The roles for this server; what this administrator can't make is noted as left out."""
    # On the own server postgresql.conf (from the spec) sets the app's timeouts; elsewhere the provider's
    # defaults have none.
    app_settings = {"role": OWNER}
    if not session.job.managed:
        app_settings["idle_in_transaction_session_timeout"] = "5min"
    read_only = {"default_transaction_read_only": "on", "idle_in_transaction_session_timeout": "1min"}
    roles = [Role(OWNER, login=False)]
    roles += [Role(name, member_of=(OWNER,), settings=app_settings) for name in APP_LOGINS]
    roles.append(Role(READER, settings=read_only | {"statement_timeout": "5min"}))
    roles.append(Role(MONITOR, member_of=("pg_monitor",), settings=read_only | {"statement_timeout": "30s"}))
    if session.job.managed:
        return [*roles, Role(POOLER)]
    if session.may_read_verifiers or POOLER in _names(session):
        roles.append(Role(POOLER))
    if session.facts.superuser or (session.facts.version_num >= PG16 and session.facts.replication):
        roles.append(Role(REPLICATOR, replication=True))
    else:
        why = f"role {session.facts.user!r} may not make a REPLICATION role; standbys are the provider's here"
        session.leave_out(f"role {REPLICATOR}", why)
    return roles


def ensure_roles(session: Session, changes: list[str]) -> None:
    """Every role exists; a new one starts with its verifier, so no login is ever without a password."""
    present = _names(session)
    for role in wanted(session):
        if role.name in present:
            continue
        options = [sql.SQL("LOGIN" if role.login else "NOLOGIN")]
        options += [sql.SQL("NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS")] if session.facts.superuser else []
        options += [sql.SQL("REPLICATION")] if role.replication else []
        parts: list[sql.Composable] = [
            sql.SQL("CREATE ROLE {} WITH").format(sql.Identifier(role.name)),
            *options,
        ]
        if role.login:
            parts.append(sql.SQL("PASSWORD {}").format(sql.Literal(session.job.verifiers[role.name])))
        session.maintenance.execute(sql.SQL(" ").join(parts))
        changes.append(f"role {role.name}")


def ensure_memberships(session: Session, changes: list[str]) -> None:
    """The administrator acts for `orcheo` (superusers do anyway), the app's logins belong to it, the
    monitor sees statistics.
    """
    conn, user = session.maintenance, session.facts.user
    if not _acts_for(session, user, OWNER):
        options = sql.SQL(" WITH INHERIT TRUE, SET TRUE") if session.facts.version_num >= PG16 else sql.SQL("")
        grant = sql.SQL("GRANT {} TO {}").format(sql.Identifier(OWNER), sql.Identifier(user))
        conn.execute(grant + options)
        changes.append(f"{user} acts for {OWNER}")
    for role in wanted(session):
        for group in role.member_of:
            if _member(session, role.name, group):
                continue
            try:
                conn.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(role.name)))
            except errors.InsufficientPrivilege:
                if group == OWNER:
                    raise
                why = f"role {user!r} may not grant {group}; {role.name} sees only its own activity"
                session.leave_out(f"{group} for {role.name}", why)
            else:
                changes.append(f"{role.name} in {group}")


def ensure_settings(session: Session, changes: list[str]) -> None:
    """ALTER ROLE ... SET where a setting differs. The administrator's own are set on the own server only."""
    settings = [(role.name, role.settings) for role in wanted(session)]
    if session.job.managed and session.facts.user == ADMIN:
        settings.append((ADMIN, {"lock_timeout": "30s"}))  # an administrator's DDL must not queue the app behind it
    for name, pairs in settings:
        present = _settings(session, name)
        for key, value in pairs.items():
            if present.get(key) == value:
                continue
            query = sql.SQL("ALTER ROLE {} SET {} = {}")
            try:
                session.maintenance.execute(query.format(sql.Identifier(name), sql.Identifier(key), sql.Literal(value)))
            except errors.InsufficientPrivilege as error:
                if name in APP_LOGINS:
                    raise
                session.leave_out(f"{key} for {name}", str(error.diag.message_primary))
            else:
                changes.append(f"{name} {key}={value}")


def ensure_passwords(session: Session, changes: list[str]) -> None:
    """Each login works with the installation's password; only where it doesn't, its verifier is set and
    tried again.
    """
    present = _names(session)
    for role in wanted(session):
        if not role.login or role.name not in present or _login(session, role):
            continue
        query = sql.SQL("ALTER ROLE {} WITH LOGIN PASSWORD {}")
        verifier = sql.Literal(session.job.verifiers[role.name])
        session.maintenance.execute(query.format(sql.Identifier(role.name), verifier))
        changes.append(f"password of {role.name}")
        if not _login(session, role):
            raise CheckFailed(
                f"role {role.name} still can't log in at {session.job.address} after its SCRAM verifier was"
                " set:"
                " check that the server takes SCRAM-SHA-256 (pg_hba.conf, password policies)"
            )


def _login(session: Session, role: Role) -> bool:
    """Whether the role logs in with its password. A login that can't be tried from here is a warning,
    except the app's.
    """
    dbname = MAINTENANCE_DATABASE if role.name == POOLER else session.job.database
    extra = {"replication": "true"} if role.replication else {}
    try:
        database.connect(session.job.login(role.name, dbname, **extra), timeout=15).close()
    except database.ConnectionRefused as refused:
        if refused.kind in (database.Refusal.PASSWORD, database.Refusal.ROLE):
            return False
        if refused.kind is database.Refusal.HBA and role.name not in APP_LOGINS:
            session.warnings.append(f"the login of {role.name} can't be tried from here: {refused}")
            return True
        raise
    return True


def _names(session: Session) -> set[str]:
    return {str(row[0]) for row in session.maintenance.execute("SELECT rolname FROM pg_roles")}


def _acts_for(session: Session, user: str, role: str) -> bool:
    # 'USAGE' = inherits its privileges; 'SET' (16) or 'MEMBER' (before) = may SET ROLE. Both true for a
    # superuser.
    act = "SET" if session.facts.version_num >= PG16 else "MEMBER"
    query = "SELECT pg_has_role(%s, %s, 'USAGE') AND pg_has_role(%s, %s, %s)"
    row = session.maintenance.execute(query, (user, role, user, role, act)).fetchone()
    return bool(row and row[0])


def _member(session: Session, role: str, group: str) -> bool:
    """Direct membership (not "could act as it", which is true for any superuser)."""
    query = "SELECT 1 FROM pg_auth_members WHERE roleid = %s::regrole AND member = %s::regrole"
    return session.maintenance.execute(query, (group, role)).fetchone() is not None


def _settings(session: Session, role: str) -> dict[str, str]:
    query = "SELECT unnest(setconfig) FROM pg_db_role_setting WHERE setdatabase = 0 AND setrole = %s::regrole"
    try:
        rows = session.maintenance.execute(query, (role,)).fetchall()
    except psycopg.errors.UndefinedObject:
        return {}
    return dict(str(row[0]).split("=", 1) for row in rows)
