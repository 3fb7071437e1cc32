"""The database and the privileges in it."""

from __future__ import annotations

from psycopg import errors, sql

from orcheo_db.bootstrap.job import BACKUP, MONITOR, OWNER, READER
from orcheo_db.bootstrap.session import Session, statement

_DATABASE = """
SELECT datdba::regrole::text, pg_encoding_to_char(encoding) FROM pg_database WHERE datname = %s
"""
# An absent ACL means the built-in default, hence acldefault; grantee 0 is PUBLIC.
_PUBLIC_ON_DATABASE = """
SELECT a.privilege_type FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
 WHERE d.datname = %s AND a.grantee = 0
"""
_PUBLIC_ON_SCHEMA = """
SELECT a.privilege_type FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
 WHERE n.nspname = 'public' AND a.grantee = 0
"""


def ensure_database(session: Session, changes: list[str]) -> None:
    """The app's database exists, in UTF-8, owned by `orcheo`, and is closed to everybody else."""
    conn, name = session.maintenance, session.job.database
    database = sql.Identifier(name)
    row = conn.execute(_DATABASE, (name,)).fetchone()
    if row is None:
        conn.execute(
            sql.SQL("CREATE DATABASE {} OWNER {} {}").format(database, sql.Identifier(OWNER), _template(session))
        )
        changes.append(f"database {name}")
    elif row[0] != OWNER:
        conn.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, sql.Identifier(OWNER)))
        changes.append(f"owner of database {name} ({row[0]} before)")
    public = {str(r[0]) for r in conn.execute(_PUBLIC_ON_DATABASE, (name,))}
    if public:
        conn.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
        changes.append(f"{'/'.join(sorted(public))} on {name} revoked from PUBLIC")
    # The own server's first boot makes the backups' role; elsewhere there is none.
    for role in (READER, MONITOR, *((BACKUP,) if session.job.managed and _there(session, BACKUP) else ())):
        query = """
            SELECT EXISTS (SELECT FROM pg_database d, aclexplode(d.datacl) a WHERE d.datname = %s
                              AND a.grantee = %s::regrole AND a.privilege_type = 'CONNECT')
        """
        row = conn.execute(query, (name, role)).fetchone()
        if not (row and row[0]):
            conn.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, sql.Identifier(role)))
            changes.append(f"CONNECT on {name} to {role}")


def _there(session: Session, role: str) -> bool:
    return session.maintenance.execute("SELECT FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is not None


def _template(session: Session) -> sql.SQL:
    """template1 carries pg_stat_statements on the own server; template0 is the one that allows another
    encoding.
    """
    row = session.maintenance.execute(_DATABASE, ("template1",)).fetchone()
    if row and row[1] == "UTF8":
        return sql.SQL("TEMPLATE template1")
    return sql.SQL("TEMPLATE template0 ENCODING 'UTF8'")


def ensure_schema_privileges(session: Session, changes: list[str]) -> None:
    """Nobody but the owner creates objects in schema public (the rule since 15; on 14, and on databases
    that came from it, made).
    """
    conn = session.app
    query = "SELECT has_schema_privilege(%s, 'public', 'CREATE'), n.nspowner::regrole::text, "
    query += "pg_has_role(n.nspowner, 'USAGE') FROM pg_namespace n WHERE n.nspname = 'public'"
    row = conn.execute(query, (OWNER,)).fetchone()
    owner_creates, schema_owner, acts = row if row else (False, "nobody", False)
    public_creates = "CREATE" in {str(r[0]) for r in conn.execute(_PUBLIC_ON_SCHEMA)}
    if owner_creates and not public_creates:
        return
    if not acts:
        if not owner_creates:
            raise errors.InsufficientPrivilege(
                f"role {OWNER} may not create objects in schema public of {schema_owner}"
            )
        why = f"schema public belongs to {schema_owner}, for whom {session.facts.user!r} may not act"
        session.leave_out("revoking CREATE on schema public from PUBLIC", why)
        return
    conn.execute(statement("schema_public", owner=sql.Identifier(OWNER)))
    changes.append("CREATE on schema public: orcheo only")


def ensure_read_grants(session: Session, changes: list[str]) -> None:
    """orcheo_ro reads every table of the app, also those that a later release makes."""
    names = {"owner": sql.Identifier(OWNER), "reader": sql.Identifier(READER)}
    literals = {"owner": sql.Literal(OWNER), "reader": sql.Literal(READER)}
    row = session.app.execute(statement("read_grants_missing", **literals)).fetchone()
    missing, default_missing, usage_missing = row if row else ([], True, True)
    if usage_missing:
        session.as_owner(sql.SQL("GRANT USAGE ON SCHEMA public TO {reader}").format(**names))
        changes.append(f"USAGE on schema public to {READER}")
    if default_missing:
        session.as_owner(statement("default_privileges", **names))
        changes.append(f"SELECT on future tables to {READER}")
    if missing:
        tables = sql.SQL(", ").join(sql.Identifier("public", name) for name in missing)
        # The TABLE form takes sequences too.
        session.as_owner(sql.SQL("GRANT SELECT ON TABLE {} TO {}").format(tables, sql.Identifier(READER)))
        changes.append(f"SELECT on {len(missing)} relations to {READER}")
