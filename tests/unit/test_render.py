"""Rendered files: committed ones are current, they parse, and nothing can break out of a line."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

from orcheo_db import render
from orcheo_db.render.backup import PARTIES, render_pgbackrest
from orcheo_db.render.compose import HEADER, _quoted, render_pgbouncer, render_postgresql
from orcheo_db.spec import Spec, load_spec, parse_memory
from orcheo_db.tuning import pgbouncer_settings, pool_arithmetic, postgresql_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def spec() -> Spec:
    return load_spec(env={})


@pytest.fixture(scope="module")
def files(spec: Spec) -> dict[str, str]:
    return render.render(spec)


def read_conf(text: str) -> dict[str, str]:
    """postgresql.conf as PostgreSQL reads it: quotes taken off, doubled ones undone."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z_.]+) = (?:'((?:[^']|'')*)'|([0-9A-Za-z_.-]+))", line)
            assert match, line
            assert match[1] not in found, f"{match[1]} is set twice"
            found[match[1]] = match[3] if match[3] is not None else match[2].replace("''", "'").replace("\\\\", "\\")
    return found


def read_ini(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def test_the_committed_files_are_current(files: dict[str, str]) -> None:
    assert render.stale(ROOT, files) == [], "run make render"


def test_the_set_of_files(spec: Spec, files: dict[str, str]) -> None:
    wanted = {
        f"compose/conf/{size}/{name}"
        for size in spec.sizes
        for name in ("postgresql.conf", "pgbouncer.ini", "stack.env")
    }
    alone = ("pg_hba.conf", "pg_ident.conf", *(f"pgbackrest-{party}.conf" for party in PARTIES))
    shared = (
        "postgresql.conf",
        "pgbouncer.ini",
        "backup.json",
        "app.json",
        "redis.conf",
        "init.yaml",
        "jobs.yaml",
        "kustomization.yaml",
        *alone,
    )
    pods = {f"k8s/components/size-{size}/{name}" for size in spec.sizes for name in shared}
    pods |= {"k8s/components/images/kustomization.yaml", "k8s/components/s3-backup/jobs.yaml"}
    pods |= {f"k8s/cloudnative-pg/cluster-{size}.yaml" for size in spec.sizes}
    pods |= {
        f"terraform/modules/{module}/{name}"
        for module in ("aws-rds", "gcp-cloudsql", "azure-flexible")
        for name in ("sizes.json", "REFERENCE.md")
    }
    pods |= {
        f"ansible/roles/{role}/defaults/main/spec.yml" for role in ("postgres", "pgbouncer", "pgbackrest", "bootstrap")
    }
    assert set(files) == wanted | {f"compose/conf/{name}" for name in alone} | pods
    for path, text in files.items():
        assert text.startswith(HEADER) or path.endswith((".json", "REFERENCE.md")), path
        assert text.endswith("\n"), path
        assert not text.endswith("\n\n"), path
        assert all(line == line.rstrip() for line in text.splitlines()), path


def test_committed_files_do_not_depend_on_the_environment(files: dict[str, str]) -> None:
    other = {"ORCHEO_DB_PROJECT": "second", "ORCHEO_DB_PORT": "7000", "ORCHEO_DB_SIZE": "large"}
    assert render.render(load_spec(env=other)) == files


def test_postgresql_conf_says_what_tuning_says(spec: Spec, files: dict[str, str]) -> None:
    for size in spec.sizes.values():
        text = files[f"compose/conf/{size.name}/postgresql.conf"]
        settings = postgresql_settings(size, spec)
        assert read_conf(text) == {setting.name: setting.value for setting in settings}
        flat = text.replace("\n# ", " ")
        assert all(setting.reason in flat for setting in settings)


def test_pgbouncer_ini_says_what_tuning_says(spec: Spec, files: dict[str, str]) -> None:
    for size in spec.sizes.values():
        ini = read_ini(files[f"compose/conf/{size.name}/pgbouncer.ini"])
        assert dict(ini["pgbouncer"]) == {setting.name: setting.value for setting in pgbouncer_settings(size, spec)}
        assert ini["databases"]["orcheo"] == "host=postgres port=5432 dbname=orcheo"
        assert ini["databases"]["postgres"].startswith("host=postgres port=5432 dbname=postgres pool_size=")
        budget = pool_arithmetic(spec, size)
        assert ini["users"]["orcheo_ro"] == f"pool_size={budget.read_only_pool}"
        assert ini["users"]["orcheo_monitor"] == f"pool_size={budget.monitor_pool}"


def test_stack_env(spec: Spec, files: dict[str, str]) -> None:
    for size in spec.sizes.values():
        lines = files[f"compose/conf/{size.name}/stack.env"].splitlines()
        values = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
        memory = {name: parse_memory(values[name]) for name in values if name.endswith(("_MEMORY", "_SHM_SIZE"))}
        assert memory["POSTGRES_MEMORY"] == size.memory
        assert memory["POSTGRES_SHM_SIZE"] < size.memory
        assert set(memory) == {
            "POSTGRES_MEMORY",
            "POSTGRES_SHM_SIZE",
            "PGBOUNCER_MEMORY",
            "INIT_MEMORY",
            "BACKUP_MEMORY",
        }
        budget = pool_arithmetic(spec, size)
        assert int(values["PGBOUNCER_NOFILE"]) > budget.max_client_conn + budget.max_db_connections + 100
        assert values["POSTGRES_IMAGE"] == spec.image_tags()["postgres"]
        assert values["ORCHEO_POSTGRES_POOL_MAX_SIZE"] == "20"
        assert not {"COMPOSE_PROJECT_NAME", "PGBOUNCER_PORT"} & set(values), "belongs to one installation"


def test_pg_hba_has_the_fewest_lines(files: dict[str, str]) -> None:
    lines = [line.split() for line in files["compose/conf/pg_hba.conf"].splitlines() if not line.startswith("#")]
    assert lines == [
        ["local", "all", "postgres", "peer"],
        ["local", "all", "orcheo_backup", "peer", "map=backup"],
        ["hostssl", "orcheo,postgres", "orcheo_backup", "all", "scram-sha-256"],
        ["hostssl", "orcheo,postgres", "orcheo_admin,orcheo_monitor", "all", "scram-sha-256"],
        ["hostssl", "orcheo", "+orcheo,+orcheo_ro", "all", "scram-sha-256"],
        ["hostssl", "postgres", "pgbouncer", "all", "scram-sha-256"],
        ["hostssl", "replication", "replicator", "all", "scram-sha-256"],
    ]


def test_another_database_name_is_used_everywhere(spec: Spec) -> None:
    other = spec.model_copy(update={"database": spec.database.model_copy(update={"name": "flows"})})
    found = render.render(other)
    assert "flows,postgres" in found["compose/conf/pg_hba.conf"]
    assert "flows = host=postgres port=5432 dbname=flows\n" in found["compose/conf/small/pgbouncer.ini"]
    assert not re.search(r"dbname=orcheo\b", found["compose/conf/small/pgbouncer.ini"])


def test_pgbouncer_for_a_server_elsewhere_without_auth_query(spec: Spec) -> None:
    text = render_pgbouncer(
        spec,
        spec.size(),
        databases={"orcheo": "host=db.example.net port=5433 dbname=orcheo"},
        auth_query=False,
        server_tls_sslmode="verify-ca",
        server_tls_ca_file="/run/orcheo-db/secrets/server-ca.crt",
    )
    ini = read_ini(text)
    assert dict(ini["databases"]) == {"orcheo": "host=db.example.net port=5433 dbname=orcheo"}
    assert not {"auth_query", "auth_user", "auth_dbname"} & set(ini["pgbouncer"])
    assert ini["pgbouncer"]["auth_file"] == "/run/orcheo-db/secrets/userlist.txt"
    assert ini["pgbouncer"]["server_tls_sslmode"] == "verify-ca"
    assert ini["pgbouncer"]["server_tls_ca_file"] == "/run/orcheo-db/secrets/server-ca.crt"
    assert ini["pgbouncer"]["client_tls_ca_file"] == "/run/orcheo-db/secrets/ca.crt"


def test_auth_query_in_another_database(spec: Spec) -> None:
    databases = {"orcheo": "host=h dbname=orcheo", "rdsadmin": "host=h dbname=rdsadmin"}
    ini = read_ini(render_pgbouncer(spec, spec.size(), databases=databases, auth_query=True, auth_dbname="rdsadmin"))
    assert ini["pgbouncer"]["auth_dbname"] == "rdsadmin"
    assert "max_db_connections=" in ini["databases"]["rdsadmin"]
    only = render_pgbouncer(spec, spec.size(), databases={"orcheo": "host=h"}, auth_query=True, auth_dbname="orcheo")
    assert read_ini(only)["databases"]["orcheo"] == "host=h", "the app's own database keeps its full pool"
    with pytest.raises(ValueError, match="needs a \\[databases\\] entry for 'postgres'"):
        render_pgbouncer(spec, spec.size(), databases={"orcheo": "host=h"}, auth_query=True)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("256MB", "256MB"),
        ("0.9", "0.9"),
        ("-1", "-1"),
        ("on", "on"),
        ("", "''"),
        ("it's", "'it''s'"),
        ("a\\b", "'a\\\\b'"),
        ("*", "'*'"),
        ("x # y", "'x # y'"),
        ("TLSv1.2", "'TLSv1.2'"),
        ("%m [%p] ", "'%m [%p] '"),
    ],
)
def test_quoting(value: str, written: str) -> None:
    assert _quoted(value) == written


def test_an_override_can_not_add_a_second_setting(spec: Spec) -> None:
    size = spec.size("medium")
    size = size.model_copy(update={"settings": {"search_path": "a' # fsync = off"}})
    assert read_conf(render_postgresql(spec, size))["search_path"] == "a' # fsync = off"


def test_write_changes_only_what_differs_and_removes_what_is_gone(tmp_path: Path, files: dict[str, str]) -> None:
    assert render.stale(tmp_path, files) == sorted(files)
    assert render.write(tmp_path, files) == sorted(files)
    assert render.write(tmp_path, files) == []
    hba = tmp_path / "compose/conf/pg_hba.conf"
    hba.write_text("host all all all trust\n")
    old = tmp_path / "compose/conf/tiny/postgresql.conf"
    old.parent.mkdir()
    old.write_text("left over\n")
    other = tmp_path / "compose/compose.yaml"
    other.write_text("not rendered\n")
    kept = (tmp_path / "compose/conf/small/stack.env").stat().st_mtime_ns
    assert render.stale(tmp_path, files) == ["compose/conf/pg_hba.conf", "compose/conf/tiny/postgresql.conf"]
    assert render.write(tmp_path, files) == ["compose/conf/pg_hba.conf", "compose/conf/tiny/postgresql.conf"]
    assert hba.read_text() == files["compose/conf/pg_hba.conf"]
    assert not old.exists()
    assert other.read_text() == "not rendered\n"
    assert (tmp_path / "compose/conf/small/stack.env").stat().st_mtime_ns == kept
    assert not list(tmp_path.rglob("*.partial"))


def pgbackrest(spec: Spec, party: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(render_pgbackrest(spec, party))
    return parser


def test_pgbackrest_of_each_party(spec: Spec) -> None:
    database, archive, backup = (pgbackrest(spec, party) for party in ("database", "archive", "backup"))
    # The database reaches the archive alone, and has neither a repository nor its key.
    assert database["global"]["repo1-host"] == "archive"
    assert not [
        name for name in database["global"] if name.startswith(("repo1-path", "repo1-cipher", "repo1-retention"))
    ]
    assert (
        database["global"]["tls-server-auth"] == "backup=orcheo"
        and archive["global"]["tls-server-auth"] == "database=orcheo"
    )
    assert "tls-server-auth" not in backup["global"] and backup["orcheo"]["pg1-host"] == "pgbackrest"
    for parser in (archive, backup):
        assert parser["global"]["repo1-cipher-type"] == "aes-256-cbc"
    assert not [
        name for party in PARTIES for name in pgbackrest(spec, party)["global"] if "cipher-pass" in name
    ]  # a secret
    assert "pg1-host" not in pgbackrest(spec, "restore")["orcheo"]  # a restore never reaches for production
    with pytest.raises(ValueError, match="no party"):
        render_pgbackrest(spec, "other")


def test_without_backups_nothing_is_archived(spec: Spec) -> None:
    off = spec.model_copy(update={"backup": spec.backup.model_copy(update={"enabled": False})})
    size = off.size()
    assert read_conf(render_postgresql(off, size))["archive_mode"] == "off"
    assert not [name for name in render.render(off) if "pgbackrest" in name and name.startswith("compose/")]
    on = read_conf(render_postgresql(spec, size))
    assert on["archive_command"] == "pgbackrest --stanza=orcheo archive-push %p" and on["archive_timeout"] == "60s"
