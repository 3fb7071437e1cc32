"""The server is what the spec means: settings, roles, extensions, the app's schema."""

from __future__ import annotations

import psycopg
import pytest

from orcheo_db import effective
from orcheo_db.bootstrap import expected
from orcheo_db.doctor import ROLE_ATTRIBUTES
from orcheo_db.targets.base import Facts, Target


@pytest.fixture(autouse=True)
def _server_is_ours(request: pytest.FixtureRequest, facts: Facts) -> None:
    if request.node.get_closest_marker("any_server") is None and not facts.managed_server:
        pytest.skip(f"target {facts.target}: PostgreSQL is not run by this toolkit")


def test_effective_settings_are_the_specs(target: Target):
    meant = target.meant_settings()
    assert len(meant) > 50
    assert effective.compare(meant, effective.read(target.run)) == []


def test_every_line_of_the_file_was_applied(superuser):
    assert (
        superuser(
            "SELECT string_agg(name || ': ' || coalesce(error, 'not applied'), ', ') FROM pg_file_settings s WHERE error IS NOT NULL"
            # Of a setting that stands twice the last one counts: the distribution's file, then ours.
            " OR NOT EXISTS (SELECT FROM pg_file_settings a WHERE a.name = s.name AND a.applied)"
        )
        == ""
    )


def test_initdb_choices(connect, target: Target):
    connection = connect("orcheo_monitor", direct=True)
    has_builtin = connection.info.server_version >= 170000  # before, libc's C.UTF-8, which sorts alike
    provider, *row = connection.execute(
        "SELECT datlocprovider::text, current_setting('data_checksums'), current_setting('server_encoding'),"
        f" {'coalesce(datlocale, datcollate)' if has_builtin else 'datcollate'},"
        " datcollversion IS NOT DISTINCT FROM pg_database_collation_actual_version(oid) FROM pg_database WHERE datname = current_database()"
    ).fetchone()
    assert row == ["on", "UTF8", "C.UTF-8", True]
    meant = {"b"} if has_builtin else {"c"}
    if target.name == "host":
        meant.add("c")  # of a cluster that pg_upgrade has brought from an older version
    assert provider in meant


def test_role_attributes(connect):
    rows = connect("orcheo_monitor", direct=True).execute(
        "SELECT rolname, rolcanlogin, rolsuper, rolcreatedb, rolcreaterole, rolreplication FROM pg_roles WHERE rolname !~ '^pg_'"
    )
    actual = {row[0]: tuple(row[1:]) for row in rows}
    assert actual.pop("postgres")[1] is True, "the only superuser"
    assert actual == ROLE_ATTRIBUTES


def test_passwords_are_scram_and_the_superuser_has_none(superuser):
    assert (
        superuser("SELECT count(*) FROM pg_authid WHERE rolpassword IS NOT NULL AND rolpassword !~ '^SCRAM-SHA-256[$]'")
        == "0"
    )
    assert superuser("SELECT rolpassword IS NULL FROM pg_authid WHERE rolname = 'postgres'") == "t"
    assert (
        superuser("SELECT count(*) FROM pg_authid WHERE rolcanlogin AND rolname <> 'postgres' AND rolpassword IS NULL")
        == "0"
    )


def test_pg_hba_knows_scram_over_tls_and_peer_alone(superuser):
    rules = {
        tuple(line.split("|")) for line in superuser("SELECT type, auth_method FROM pg_hba_file_rules").splitlines()
    }
    assert rules == {("local", "peer"), ("hostssl", "scram-sha-256")}
    assert superuser("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL") == "0"


@pytest.mark.any_server
def test_app_logins_act_as_the_owner(connect):
    for login in ("orcheo_app_a", "orcheo_app_b"):
        for direct in (True, False):
            assert connect(login, direct=direct).execute("SELECT session_user, current_user").fetchone() == (
                login,
                "orcheo",
            )


@pytest.mark.any_server
def test_database_and_every_table_belong_to_orcheo(connect):
    connection = connect("orcheo_monitor", direct=True)
    assert connection.execute(
        "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
    ).fetchone() == ("orcheo",)
    owners = connection.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert owners == [("orcheo",)]


@pytest.mark.any_server
def test_read_only_role_reads_everything_and_writes_nothing(connect):
    connection = connect("orcheo_ro")
    names = [row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    for name in names:
        connection.execute(psycopg.sql.SQL("SELECT count(*) FROM {}").format(psycopg.sql.Identifier(name)))
    # Its transactions are read-only by default; a session that turns that off still has no right to write.
    connection = connect("orcheo_ro", direct=True, options="-c default_transaction_read_only=off")
    for statement in (
        "INSERT INTO workflows (id) VALUES ('x')",
        "DELETE FROM workflow_runs",
        "CREATE TABLE probe (i int)",
        "CREATE TEMP TABLE probe (i int)",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)


@pytest.mark.any_server
def test_app_role_administers_nothing(connect):
    connection = connect()
    for statement in (
        "CREATE ROLE probe",
        "CREATE DATABASE probe",
        "ALTER SYSTEM SET work_mem = '1GB'",
        "COPY workflows TO PROGRAM 'true'",
    ):
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported)):
            connection.execute(statement)


def test_roles_stay_in_their_databases(connect):
    for role, database in (
        ("orcheo_app_a", "postgres"),
        ("orcheo_ro", "postgres"),
        ("pgbouncer", "orcheo"),
        ("orcheo_monitor", "template1"),
    ):
        with pytest.raises(psycopg.OperationalError, match="no pg_hba.conf entry"):
            connect(role, direct=True, database=database)


def test_pooler_role_looks_up_app_logins_only(connect):
    connection = connect("pgbouncer", direct=True, database="postgres")
    lookup = "SELECT count(*) FROM orcheo_pooler.user_lookup(%s)"
    found = {
        role: connection.execute(lookup, (role,)).fetchone()[0]
        for role in ("orcheo_app_a", "orcheo_ro", "orcheo_admin", "postgres", "replicator")
    }
    assert found == {"orcheo_app_a": 1, "orcheo_ro": 1, "orcheo_admin": 0, "postgres": 0, "replicator": 0}
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("SELECT * FROM pg_authid")


@pytest.mark.any_server
def test_extensions(connect, target: Target):
    names = {row[0] for row in connect("orcheo_monitor", direct=True).execute("SELECT extname FROM pg_extension")}
    wanted = set(target.spec.database.extensions)
    assert wanted <= names if target.facts().managed_server else wanted - names <= {"pg_stat_statements"}


def test_statement_statistics_are_collected(connect):
    connection = connect("orcheo_monitor", direct=True)
    assert connection.execute("SELECT count(*) > 0 FROM pg_stat_statements").fetchone() == (True,)
    assert connection.execute(
        "SELECT track_io_timing_on FROM (SELECT current_setting('track_io_timing') = 'on' AS track_io_timing_on) AS s"
    ).fetchone() == (True,)


@pytest.mark.any_server
def test_the_apps_whole_schema_is_there(connect, target: Target):
    versions = target.spec.versions
    wanted = expected.load(versions.orcheo, versions.orcheo_backend)
    connection = connect("orcheo_ro")
    tables = {row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    if wanted is None:
        pytest.skip(f"no list of tables for orcheo {versions.orcheo} and backend {versions.orcheo_backend}")
    assert set(wanted.tables) <= tables
    if (versions.orcheo, versions.orcheo_backend) == ("0.46.1", "0.39.0"):
        assert len(tables) == 59
        assert connection.execute("SELECT count(*) FROM pg_indexes WHERE schemaname = 'public'").fetchone() == (167,)
