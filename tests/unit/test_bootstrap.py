"""The bootstrap's pure parts: its input, what it recognises and refuses, which schema it expects."""

from __future__ import annotations

import json
import os
import re
import signal
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors

from orcheo_db import database
from orcheo_db.bootstrap import __main__ as command
from orcheo_db.bootstrap import app, expected, installation, recognise, report, session
from orcheo_db.bootstrap.expected import Table
from orcheo_db.bootstrap.installation import Installation
from orcheo_db.bootstrap.job import LOGINS, OWNER, Job, read_job
from orcheo_db.errors import CheckFailed, UserError

VERIFIER = "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"
DSN = "postgresql://orcheo_admin@postgres:5432/postgres?sslmode=verify-full&sslrootcert=/ca.crt"
RELEASE = ("0.46.1", "0.39.0")


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    for role in (*LOGINS, "orcheo_admin"):
        (tmp_path / f"{role}.password").write_text(f"pw-of-{role}\n")
        (tmp_path / f"{role}.scram").write_text(VERIFIER + "\n")
    (tmp_path / "installation.json").write_text(json.dumps({"installation_id": "id-1", "format": 1}))
    return tmp_path


@pytest.fixture
def environ(secrets: Path) -> dict[str, str]:
    return {"ORCHEO_DB_ADMIN_DSN": DSN, "ORCHEO_DB_SECRETS": str(secrets), "ORCHEO_DB_MANAGED": "1"}


@pytest.fixture
def job(environ: dict[str, str]) -> Job:
    return read_job(environ)


@pytest.fixture(scope="module")
def listed() -> expected.Expected:
    found = expected.load(*RELEASE)
    assert found is not None
    return found


def full(listed: expected.Expected, owner: str = OWNER) -> dict[str, Table]:
    return {name: Table(table.columns, table.indexes, owner) for name, table in listed.tables.items()}


# --- input -----------------------------------------------------------------------------------------------


def test_job_takes_the_password_from_the_secrets_and_shows_none(job: Job) -> None:
    assert database.parse(job.admin_dsn)["password"] == "pw-of-orcheo_admin"
    assert "pw-of" not in repr(job)
    assert "SCRAM" not in repr(job)
    assert (job.database, job.wait, job.lock_wait, job.managed) == ("orcheo", 120.0, 600.0, True)
    assert job.extensions == ("uuid-ossp", "pgcrypto", "pg_trgm", "pg_stat_statements")


def test_dsn_and_password_may_come_from_files(environ: dict[str, str], tmp_path: Path) -> None:
    environ["ORCHEO_DB_ADMIN_DSN"] = "the file wins"
    (tmp_path / "dsn").write_text("postgresql://cloud@rds.example?sslmode=verify-full\n")
    (tmp_path / "pw").write_text("from-file")
    environ |= {"ORCHEO_DB_ADMIN_DSN_FILE": str(tmp_path / "dsn")}
    environ |= {"ORCHEO_DB_ADMIN_PASSWORD_FILE": str(tmp_path / "pw")}
    parameters = database.parse(read_job(environ).admin_dsn)
    assert (parameters["user"], parameters["password"], parameters["dbname"]) == (
        "cloud",
        "from-file",
        "postgres",
    )


def test_another_roles_dsn_keeps_the_encryption_and_the_machines_certificate_and_drops_what_is_the_administrators(
    environ: dict[str, str],
) -> None:
    environ["ORCHEO_DB_ADMIN_DSN"] = DSN + "&sslcert=/client.crt&sslkey=/client.key&options=-cx"
    parameters = database.parse(read_job(environ).login("orcheo_app_a"))
    assert parameters["user"] == "orcheo_app_a"
    assert parameters["password"] == "pw-of-orcheo_app_a"
    assert parameters["dbname"] == "orcheo"
    assert (parameters["sslmode"], parameters["sslrootcert"]) == ("verify-full", "/ca.crt")
    assert (parameters["sslcert"], parameters["sslkey"]) == ("/client.crt", "/client.key")
    assert "options" not in parameters


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ORCHEO_DB_ADMIN_DSN": ""}, "ORCHEO_DB_ADMIN_DSN"),
        ({"ORCHEO_DB_ADMIN_DSN": "postgresql://u@host:x y/"}, "can't be read"),
        ({"ORCHEO_DB_ADMIN_DSN": "postgresql://u@db.example/postgres"}, "sslmode=prefer"),
        ({"ORCHEO_DB_ADMIN_DSN": "postgresql://u@db.example/x?sslmode=disable"}, "sslmode=disable"),
        ({"ORCHEO_DB_SECRETS": "/nonexistent"}, "/nonexistent/"),
        ({"ORCHEO_DB_DATABASE": "postgres"}, "ORCHEO_DB_DATABASE"),
        ({"ORCHEO_DB_DATABASE": 'x"; DROP'}, "ORCHEO_DB_DATABASE"),
        ({"ORCHEO_DB_EXTENSIONS": "pgcrypto;drop"}, "ORCHEO_DB_EXTENSIONS"),
        ({"ORCHEO_DB_WAIT": "soon"}, "ORCHEO_DB_WAIT"),
        ({"ORCHEO_DB_WAIT": "nan"}, "ORCHEO_DB_WAIT"),
        ({"ORCHEO_DB_LOCK_WAIT": "-1"}, "ORCHEO_DB_LOCK_WAIT"),
        ({"ORCHEO_DB_MANAGED": "perhaps"}, "ORCHEO_DB_MANAGED"),
    ],
)
def test_wrong_input_is_named_in_one_line(environ: dict[str, str], change: dict[str, str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        read_job(environ | change)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("orcheo_app_a.password", ""),
        ("orcheo_ro.scram", "a plaintext password"),
        ("orcheo_ro.scram", "md5" + "0" * 32),
        ("installation.json", "{}"),
        ("installation.json", "no json"),
    ],
)
def test_damaged_secrets_are_named_and_not_shown(
    environ: dict[str, str], secrets: Path, name: str, content: str
) -> None:
    (secrets / name).write_text(content)
    with pytest.raises(UserError) as caught:
        read_job(environ)
    assert name in str(caught.value)
    assert "plaintext" not in str(caught.value)


@pytest.mark.parametrize(
    ("dsn", "warns"),
    [
        ("postgresql://u@db.example/x?sslmode=verify-full", ""),
        ("postgresql://u@db.example/x?sslmode=require", "use verify-full"),
        ("postgresql://u@127.0.0.1/x", "loopback"),
        ("postgresql://u@localhost/x?sslmode=disable", "loopback"),
        ("postgresql://u@[::1]/x", "loopback"),
        ("host=/run/postgresql user=u", ""),
    ],
)
def test_encryption_warnings(environ: dict[str, str], dsn: str, warns: str) -> None:
    warnings = read_job(environ | {"ORCHEO_DB_ADMIN_DSN": dsn}).warnings
    assert bool(warnings) is bool(warns)
    assert warns in " ".join(warnings)


def test_no_extensions_can_be_asked_for(environ: dict[str, str]) -> None:
    assert read_job(environ | {"ORCHEO_DB_EXTENSIONS": ""}).extensions == ()
    assert read_job(environ | {"ORCHEO_DB_EXTENSIONS": "a, b b"}).extensions == ("a", "b")


# --- what it recognises ----------------------------------------------------------------------------------


def facts(**changes: Any) -> database.ServerFacts:
    values: dict[str, Any] = {
        "version": "17.6", "version_num": 170006, "in_recovery": False, "database": "postgres",
        "user": "orcheo_admin", "session_user": "orcheo_admin", "superuser": False, "createrole": True,
        "createdb": True, "replication": False, "reads_passwords": False, "tls": True,
        "tls_version": "TLSv1.3", "tls_cipher": "TLS_AES_256_GCM_SHA384", "pooled": False, "settings": {},
    }  # fmt: skip
    return database.ServerFacts(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": "13.20", "version_num": 130020}, "PostgreSQL 13.20"),
        ({"in_recovery": True}, "standby"),
        ({"pooled": True}, "pooler"),
        ({"createrole": False}, "CREATEROLE"),
        ({"createdb": False}, "CREATEDB"),
        ({"user": "orcheo", "session_user": "orcheo_app_a"}, "app's own"),
    ],
)
def test_servers_that_cannot_serve(job: Job, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        recognise.check_server(job, facts(**changes))


def test_servers_that_can(job: Job) -> None:
    assert recognise.check_server(job, facts()) == []
    assert recognise.check_server(job, facts(superuser=True, createrole=False, createdb=False)) == []
    assert recognise.check_server(job, facts(version_num=140000)) == []


def test_roles_with_too_much_power_are_refused_with_the_statement_that_mends_them() -> None:
    recognise.check_roles([(OWNER, False, ()), ("orcheo_app_a", True, ())])
    with pytest.raises(CheckFailed, match="ALTER ROLE orcheo NOLOGIN"):
        recognise.check_roles([(OWNER, True, ())])
    with pytest.raises(CheckFailed, match="ALTER ROLE orcheo_ro NOSUPERUSER NOCREATEDB"):
        recognise.check_roles([("orcheo_ro", True, ("SUPERUSER", "CREATEDB"))])


def contents(tables: dict[str, Table], **changes: Any) -> recognise.Contents:
    return recognise.Contents(**({"tables": tables, "encoding": "UTF8", "installed": None} | changes))


def without(table: Table, *columns: str) -> Table:
    return Table(table.columns - set(columns), table.indexes, table.owner)


def test_empty_half_made_and_complete_databases_are_accepted(job: Job, listed: expected.Expected) -> None:
    tables = full(listed)
    half = dict(list(tables.items())[:20])
    for found in ({}, half, tables):
        assert recognise.check_contents(contents(found), listed, job) == []


def test_a_bridge_database_is_named(job: Job, listed: expected.Expected) -> None:
    tables = full(listed, owner="postgres")
    tables["workflows"] = without(tables["workflows"], "team_id")
    tables["workflow_run_remediations"] = Table(frozenset({"id"}), frozenset(), "postgres")
    with pytest.raises(CheckFailed) as caught:
        recognise.check_contents(contents(tables), listed, job)
    text = str(caught.value)
    assert "bridge release" in text
    assert "workflows.team_id" in text
    assert "database orcheo at postgres:5432" in text
    assert "Nothing was changed" in text
    with pytest.raises(CheckFailed, match=r"workflows\.team_id"):  # also without a list for the release
        recognise.check_contents(contents(tables), None, job)
    tables["workflows"] = listed.tables["workflows"]
    recognise.check_contents(contents({"workflows": Table(frozenset({"id"}), frozenset(), OWNER)}), None, job, False)


def test_columns_that_the_app_adds_itself_are_no_reason_to_refuse(job: Job, listed: expected.Expected) -> None:
    tables = full(listed)
    tables["chat_threads"] = without(tables["chat_threads"], "owner_key")
    tables["checkpoint_writes"] = without(tables["checkpoint_writes"], "task_path")
    assert recognise.check_contents(contents(tables), listed, job) == []


def test_somebody_elses_database_is_refused(job: Job, listed: expected.Expected) -> None:
    shop = {"shop": Table(frozenset({"id"}), frozenset(), "shop")}
    with pytest.raises(CheckFailed, match="1 table of something else"):
        recognise.check_contents(contents(shop), listed, job)
    with pytest.raises(CheckFailed, match="not Orcheo's"):
        recognise.check_contents(contents(shop | {"users": Table(frozenset({"id"}), frozenset())}), listed, job)
    warnings = recognise.check_contents(contents(shop | full(listed)), listed, job)
    assert "shop" in warnings[0]


def test_tables_of_another_owner_are_refused(job: Job, listed: expected.Expected) -> None:
    with pytest.raises(CheckFailed, match="belong to alice instead of orcheo"):
        recognise.check_contents(contents(full(listed, owner="alice")), listed, job)


def test_encoding_and_installation(job: Job, environ: dict[str, str], listed: expected.Expected) -> None:
    with pytest.raises(CheckFailed, match="LATIN1"):
        recognise.check_contents(contents({}, encoding="LATIN1"), listed, job)
    other = contents(full(listed), installed=Installation("id-2", *RELEASE, "digest", 59))
    with pytest.raises(CheckFailed, match="id-2"):
        recognise.check_contents(other, listed, job)
    assert recognise.check_contents(other, listed, read_job(environ | {"ORCHEO_DB_ADOPT": "1"})) == []


# --- what it expects -------------------------------------------------------------------------------------


def test_the_list_of_the_default_release(listed: expected.Expected) -> None:
    assert (len(listed.tables), listed.indexes) == (59, 167)
    assert set(listed.stores) == {store.name for store in app.STORES} == set(expected.CORE_TABLES)
    by_store = [table for tables in listed.stores.values() for table in tables]
    assert sorted(by_store) == sorted(listed.tables)
    for store, tables in expected.CORE_TABLES.items():
        assert set(tables) <= set(listed.stores[store])
    assert expected.load("0.46.1", "0.38.0") is None
    assert expected.load("9.9.9", "0.39.0") is None


def test_problems_names_everything_that_is_missing(listed: expected.Expected) -> None:
    tables = full(listed)
    assert expected.problems(tables, listed.routines, listed, (), OWNER) == []
    del tables["store"]
    tables["workflows"] = Table(
        tables["workflows"].columns - {"team_id"},
        tables["workflows"].indexes - {"idx_workflows_handle"},
        "alice",
    )
    assert set(expected.problems(tables, frozenset(), listed, (), OWNER)) == {
        "table store is missing",
        "table workflows belongs to alice instead of orcheo",
        "column workflows.team_id is missing",
        "index idx_workflows_handle is missing or invalid",
        *(f"function or trigger {name} is missing" for name in listed.routines),
    }


def test_without_a_list_the_known_tables_of_the_stores_that_ran_are_checked() -> None:
    found = {"plugin_installations": Table(frozenset(), frozenset(), OWNER)}
    assert expected.problems(found, frozenset(), None, ["plugins", "hosted_apps"], OWNER) == []
    assert expected.problems(found, frozenset(), None, ["graph_store"], OWNER) == [
        "table store is missing",
        "table store_migrations is missing",
    ]


def test_added_columns_are_found_in_source() -> None:
    source = """
        "ALTER TABLE a ADD COLUMN IF NOT EXISTS x TEXT",
        ("ALTER TABLE b ADD COLUMN IF NOT EXISTS y "
         "TIMESTAMP WITH TIME ZONE"),
        ALTER TABLE c
            ADD COLUMN IF NOT EXISTS p TEXT NOT NULL DEFAULT 'v',
            ADD COLUMN IF NOT EXISTS q JSONB;
        CREATE TABLE d (ADD TEXT);
    """
    assert expected.added_in(source) == {"a": {"x"}, "b": {"y"}, "c": {"p", "q"}}


def test_a_snapshot_reads_back_as_the_list_it_came_from(listed: expected.Expected) -> None:
    text = expected.snapshot(full(listed), listed.routines, {k: list(v) for k, v in listed.stores.items()}, RELEASE)
    again = expected.decode(json.loads(text))
    assert (again.tables, again.stores, again.routines) == (listed.tables, listed.stores, listed.routines)


# --- its parts -------------------------------------------------------------------------------------------


def test_every_sql_file_is_used_and_has_no_stray_braces() -> None:
    code = "".join(file.read_text() for file in Path(str(resources.files("orcheo_db.bootstrap"))).glob("*.py"))
    used = set(re.findall(r'statement\(\s*"(\w+)"', code))
    files = {file.name.removesuffix(".sql") for file in (resources.files("orcheo_db.bootstrap") / "sql").iterdir()}
    assert used == files


def test_no_sql_takes_a_plaintext_password() -> None:
    folder = Path(str(resources.files("orcheo_db.bootstrap")))
    for file in folder.glob("*.py"):
        for line in file.read_text().splitlines():
            assert not re.search(r"PASSWORD.*passwords\[", line), f"{file.name}: {line}"


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (errors.DeadlockDetected(), True),
        (errors.LockNotAvailable(), True),
        (errors.UniqueViolation(), True),
        (errors.InternalError_("tuple concurrently updated"), True),
        (errors.InsufficientPrivilege(), False),
        (errors.SyntaxError(), False),
        (psycopg.OperationalError("server closed the connection unexpectedly"), False),
    ],
)
def test_what_a_step_tries_again(error: psycopg.Error, again: bool) -> None:
    assert session.passing(error) is again


def steps(job: Job) -> session.Session:
    return session.Session(job, None, facts())  # type: ignore[arg-type]


def test_a_step_that_is_tried_again_forgets_no_change(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    running, tries = steps(job), list[int]()

    def action(changes: list[str]) -> None:
        tries.append(1)
        changes.append(f"change {len(tries)}")
        if len(tries) < 3:
            raise errors.DeadlockDetected("deadlock detected")

    running.run("roles", action)
    assert running.steps[0].changes == ["change 1", "change 2", "change 3"]


def test_a_step_that_fails_says_where_why_and_what_to_do(job: Job) -> None:
    def action(_: list[str]) -> None:
        raise errors.InsufficientPrivilege("permission denied to create role")

    with pytest.raises(CheckFailed) as caught:
        steps(job).run("roles", action)
    text = str(caught.value)
    for part in ("'roles'", "postgres:5432", "permission denied to create role", "orcheo_admin", "run again"):
        assert part in text
    assert "\n" not in text


def test_each_thing_is_left_out_once(job: Job) -> None:
    running = steps(job)
    running.leave_out("x", "first")
    running.leave_out("x", "second")
    assert running.left_out == [{"what": "x", "why": "first"}]


def test_the_digest_is_stable() -> None:
    assert installation.digest() == installation.digest()
    assert re.fullmatch(r"[0-9a-f]{64}", installation.digest())


def test_outside_the_image_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(UserError, match="orcheo image"):
        app.versions()


def test_a_store_that_a_release_lacks_is_told_apart_from_a_broken_image() -> None:
    with pytest.raises(app.MissingStore):
        app._load("json", "PostgresStore")
    with pytest.raises(app.MissingStore):
        app._load("orcheo_db.no_such_module", "X")


def test_the_apps_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHEO_POSTGRES_DSN", "before")
    monkeypatch.delenv("ORCHEO_VAULT_ENCRYPTION_KEY", raising=False)
    with app._app_environment("inside"):
        assert os.environ["ORCHEO_POSTGRES_DSN"] == "inside"
        assert os.environ["ORCHEO_VAULT_ENCRYPTION_KEY"]
    assert os.environ["ORCHEO_POSTGRES_DSN"] == "before"
    assert "ORCHEO_VAULT_ENCRYPTION_KEY" not in os.environ


@pytest.mark.parametrize(("error", "code"), [(UserError("wrong"), 2), (CheckFailed("no"), 1)])
def test_a_failure_is_one_document_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    def fail() -> Job:
        raise error

    monkeypatch.setattr(command, "read_job", fail)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert command.main(["--json"]) == code
    out, err = capsys.readouterr()
    assert json.loads(out) == {"ok": False, "changed": None, "error": str(error), "exit_code": code}
    assert err == f"bootstrap: {error}\n"
    assert command.main([]) == code
    assert capsys.readouterr().out == ""


def test_the_summary_for_a_person_names_what_was_left_out() -> None:
    result = {
        "server": {"version": "17.6", "address": "postgres:5432", "tls": "TLSv1.3"},
        "database": {"name": "orcheo", "owner": "orcheo", "encoding": "UTF8"},
        "release": {"orcheo": "0.46.1", "orcheo_backend": "0.39.0", "checked": "all"},
        "tables": {"expected": 59, "present": 59, "indexes": 167},
        "roles": [{"name": "orcheo"}],
        "extensions": {"pg_trgm": "1.6"},
        "pooler_auth": "auth_file",
        "left_out": [{"what": "extension x", "why": "not there"}],
        "warnings": ["look"],
        "steps": [{"changes": ["one"]}],
        "changed": True,
        "seconds": 1.25,
    }
    text = report.human(result)
    for part in ("59 of 59, 167 indexes", "extension x: not there", "look", "1 change in 1.2 s", "auth_file"):
        assert part in text
