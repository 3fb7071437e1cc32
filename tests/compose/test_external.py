"""`make up TARGET=external`: PgBouncer and the schema for a server that this toolkit does not run."""

from __future__ import annotations

import psycopg
import pytest

from tests.compose.conftest import ADMINS, containers
from tests.compose.outside_server import Outside
from tests.conftest import Installation, free_port
from tests.e2e.conftest import DIRECT, caller, with_spec


@pytest.mark.disruptive
@pytest.mark.parametrize("admin", sorted(ADMINS))
def test_up_against_postgresql_15(external: Installation, outside: Outside, admin):
    external.extra = {"ORCHEO_DB_ADMIN_DSN": outside.dsn(f"{admin}_admin", "probe-only")}
    document = external.ok("up", "--json").json
    assert document["app_sees"]["tables"] == 59 and document["app_sees"]["acts_as"] == "orcheo"
    assert document["app_sees"]["server_version"].startswith("15.")
    summary = document["init"]
    assert summary["pooler_auth"] == {"superuser": "auth_query", "cloud": "auth_file"}[admin]
    if admin == "cloud":
        left_out = " ".join(map(str, summary["left_out"]))
        assert "pg_stat_statements" in left_out and "pg_authid" in left_out
    # Kept from the first up: the next needs no environment, and nothing changes.
    external.extra = {}
    assert external.ok("up", "--json").json["changed"] == []
    doctor = external.run("doctor", "--json")
    assert doctor.code == 0, [check for check in doctor.json["checks"] if not check["ok"]]
    assert (
        outside.sql(
            "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename ~ '^orcheo' AND NOT ssl"
        )
        == "0"
    )
    # The administrator's password is where secrets are, and nowhere else.
    target = external.target()
    for name in target.service_names:
        container = target.container(name)
        assert container is not None and "probe-only" not in str(container.attrs)
    assert "probe-only" not in (external.state / "compose.env").read_text()
    # The same suite as for every target.
    external.verify()
    # Its secrets are lost: said, and taken over only when asked for, with new passwords and the same rows.
    external.state.rename(external.state.with_name("elsewhere"))
    external.extra = {"ORCHEO_DB_ADMIN_DSN": outside.dsn(f"{admin}_admin", "probe-only")}
    ran = external.run("up")
    assert ran.code == 1 and "belongs to installation" in ran.message and "--new-secrets" in ran.message
    taken = external.ok("up", "--new-secrets", "--confirm", f"{external.project}-external", "--json").json
    assert taken["app_sees"]["tables"] == 59
    external.extra = {}
    # destroy takes our part away and nothing of theirs.
    external.ok("destroy", "--confirm", "yes")
    assert outside.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", "orcheo") == "59"


@pytest.mark.disruptive
def test_a_server_that_wants_to_see_a_clients_certificate(external: Installation, outside: Outside, tmp_path):
    """As Cloud SQL with TRUSTED_CLIENT_CERTIFICATE_REQUIRED: its own authority, an address that is not in its certificate, a password by itself."""
    key, certificate = outside.authority.issue("some-machine", ("some-machine",), client=True)
    for name, content in (("client.crt", certificate), ("client.key", key)):
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_bytes(content)
    dsn = outside.dsn("cloud_admin", "probe-only", sslmode="verify-ca").replace(":probe-only@", "@")
    with outside.client_certificates():
        external.extra = {"ORCHEO_DB_ADMIN_DSN": dsn, "ORCHEO_DB_ADMIN_PASSWORD": "probe-only"}
        refused = external.run("up")
        assert refused.code == 2 and "sslcert and sslkey" in refused.message, refused.stderr
        external.extra["ORCHEO_DB_ADMIN_DSN"] = f"{dsn}&sslcert={tmp_path}/client.crt&sslkey={tmp_path}/client.key"
        assert external.ok("up", "--json").json["app_sees"]["tables"] == 59
        # Kept: neither the environment nor the files are needed again.
        external.extra = {}
        for name in ("client.crt", "client.key"):
            (tmp_path / name).unlink()
        assert external.ok("up", "--json").json["changed"] == []
        assert external.ok("doctor").code == 0
        for words in ((), ("--direct",)):
            assert external.ok("psql", *words, "--", "-XAtc", "SELECT current_user").stdout.strip() == "orcheo"
        with psycopg.connect(external.ok("dsn", "--direct").stdout.strip()) as connection:
            assert connection.execute("SELECT current_user").fetchone() == ("orcheo",)
            shown = "SELECT DISTINCT client_dn FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename LIKE 'orcheo%'"
            assert outside.sql(shown) == "/CN=some-machine", "PgBouncer's connections too"
        # The cloud gives its administrator another password (RDS: every seven days): the kept one is refused, the new one alone is enough.
        outside.sql("ALTER ROLE cloud_admin PASSWORD 'probe-rotated'")
        try:
            refused = external.run("bootstrap")
            assert refused.code == 2 and "password" in refused.message and "cloud_admin" in refused.message
            assert external.ok("psql", "--", "-XAtc", "SELECT 1").stdout.strip() == "1", "the app goes on"
            external.extra = {"ORCHEO_DB_ADMIN_PASSWORD": "probe-rotated"}
            assert external.ok("up", "--json").json["app_sees"]["tables"] == 59
            external.extra = {}
            assert external.ok("bootstrap").code == 0
        finally:
            outside.sql("ALTER ROLE cloud_admin PASSWORD 'probe-only'")


@pytest.mark.disruptive
def test_a_wrong_ca_and_a_wrong_password_are_one_line(external: Installation, outside: Outside, tmp_path):
    external.extra = {"ORCHEO_DB_ADMIN_DSN": outside.dsn("cloud_admin", "wrong")}
    ran = external.run("up")
    assert ran.code == 2 and "password" in ran.message and "wrong" not in ran.message.replace("wrong password", "")
    from orcheo_db.secrets import Authority  # noqa: PLC0415

    (tmp_path / "other.crt").write_bytes(Authority.create().certificate_pem())
    external.extra = {
        "ORCHEO_DB_ADMIN_DSN": outside.dsn("cloud_admin", "probe-only").replace(
            str(outside.ca), str(tmp_path / "other.crt")
        )
    }
    ran = external.run("up")
    assert ran.code == 2 and "certificate" in ran.message
    assert outside.sql("SELECT count(*) FROM pg_roles WHERE rolname ~ '^orcheo'") == "0", "nothing may be changed"


@pytest.mark.parametrize(
    ("dsn", "words"),
    [
        ("", "ORCHEO_DB_ADMIN_DSN is not set"),
        ("nonsense", "is not a PostgreSQL DSN"),
        ("postgresql://h/postgres", "has no user"),
        ("postgresql://u@h/postgres", "has no password"),
        ("postgresql://u@h/postgres", "(the password by ORCHEO_DB_ADMIN_PASSWORD, if you like)"),
        ("postgresql://u:p@h/postgres?sslcert=/c.pem", "has one of sslcert and sslkey"),
        (
            "postgresql://u:p@h/postgres?sslcert=/nonexistent/c&sslkey=/nonexistent/k",
            "sslcert=/nonexistent/c, and there is no such file",
        ),
        ("postgresql://u:p@localhost/postgres", "names this machine itself"),
        (
            "postgresql://u:p@h/postgres?sslmode=disable",
            "sslmode=disable, which does not protect the password",
        ),
        ("postgresql://u:p@h/postgres?sslrootcert=/nonexistent/ca.pem", "there is no such file"),
    ],
)
def test_bad_admin_dsns_are_one_line_and_change_nothing(installation: Installation, tmp_path, dsn, words):
    own = Installation(
        "orcheo-db-test-second",
        free_port(),
        tmp_path / "state",
        kind="external",
        extra={"ORCHEO_DB_ADMIN_DSN": dsn},
    )
    ran = own.run("up")
    assert ran.code == 2 and words in ran.message, ran.stderr
    assert containers(f"{own.project}-external") == []


@pytest.mark.disruptive
def test_the_app_on_a_server_that_is_not_ours(external: Installation, outside: Outside, tmp_path):
    """WITH=app against PostgreSQL 15, through our PgBouncer and past it: a workflow runs, and its rows are on that server."""
    external.extra = {
        "ORCHEO_DB_ADMIN_DSN": outside.dsn("cloud_admin", "probe-only"),
        "ORCHEO_DB_APP_PORT": str(free_port()),
    }
    external.ok("up", "--with", "app")
    api = caller(external)
    api.enter("outside")
    for via in ("pgbouncer", "postgres"):
        if via == "postgres":
            with_spec(external, tmp_path, DIRECT)
            external.ok("--size", "medium", "up")
        run = api.finished(api.dispatch(api.workflow(via)["id"]))
        assert run["status"] == "succeeded", run["error"]
        stored = f"SELECT status FROM workflow_runs WHERE id = '{run['id']}'"
        assert outside.sql(stored, database="orcheo") == "succeeded"
        if via == "pgbouncer":  # size medium wants more connections than that server has, which doctor says
            doctor = external.run("doctor", "--json")
            assert doctor.code == 0, [check for check in doctor.json["checks"] if not check["ok"]]
    external.ok("destroy", "--confirm", "yes")
    assert outside.sql("SELECT count(*) FROM workflow_runs", database="orcheo") == "2"  # the server is never touched
