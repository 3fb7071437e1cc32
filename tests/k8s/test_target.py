"""`orcheo-db --target kubernetes`, by the command line, on the pods of overlay dev as containers (pods.py) behind a kubectl of this suite's
(control.py). A real cluster's turn is test_live.py.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import psycopg
import pytest

from orcheo_db import app_secrets
from orcheo_db.cluster.volume import RESTORING
from tests.conftest import PROGRAM, ROOT, Installation
from tests.k8s.control import Control
from tests.migrate.conftest import KEPT
from tests.migrate.whole import there_and_back

pytestmark = pytest.mark.disruptive


def sql(own: Installation, text: str) -> str:
    """As the superuser, by the server's socket."""
    done = own.place().run("postgres", ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "orcheo", "-c", text])
    assert done.code == 0, done.stderr
    return done.stdout.strip()


def pods(control: Control, prefix: str) -> list[str]:
    return [name for name in control.cluster.pods if name.startswith(prefix)]


def test_status_says_what_runs(own: Installation):
    found = own.ok("status", "--json").json
    names = {each["name"]: each["health"] for each in found["services"]}
    assert names == {
        **dict.fromkeys(
            (
                "postgres",
                "pgbackrest",
                "pgbouncer",
                "archive",
                "backup",
                "redis",
                "backend",
                "worker",
                "beat",
                "second",
            ),
            "healthy",
        ),
        "secrets": "done",
        "init": "done",
    }
    assert found["backups"]["ok"] is not None  # whether all is well with them is said once a drill has passed, below
    text = own.ok("status").stderr
    assert "pgbouncer" in text and "healthy" in text


def test_a_dsn_for_the_clusters_pods_and_one_for_this_machine(own: Installation, control: Control):
    inside = own.ok("dsn").stdout.strip()
    assert "@pgbouncer.orcheo.svc:6432/orcheo?sslmode=verify-full" in inside
    direct = own.ok("dsn", "--direct", "--role", "orcheo_ro").stdout.strip()
    assert direct.startswith("postgresql://orcheo_ro:") and "@postgres.orcheo.svc:5432/" in direct
    # As from a terminal: a shell that runs this suite in the background has told its children to ignore Ctrl-C.
    argv = ["env", "--default-signal=INT", str(PROGRAM), "--target", "kubernetes", "dsn", "--forward"]
    with subprocess.Popen(
        argv, env=own.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            value = process.stdout.readline().strip()
            with psycopg.connect(value) as connection:
                assert connection.execute("SELECT session_user, current_user").fetchone() == ("orcheo_app_a", "orcheo")
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        finally:
            process.kill()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(value, connect_timeout=3)


def test_psql_runs_where_the_server_is_and_leaves_no_password(own: Installation, control: Control):
    assert own.ok("psql", "--", "-XAtc", "SELECT current_user").stdout.strip() == "orcheo"
    assert own.ok("psql", "--direct", "--role", "orcheo_ro", "--", "-XAtc", "SHOW port").stdout.strip() == "5432"
    assert own.run("psql", "--", "-XAtc", "SELECT 1/0").code != 0
    for pod, container in (("pgbouncer-0", "pgbouncer"), ("postgres-0", "postgres")):
        assert "pgpass" not in control.cluster.pods[pod].run(container, "ls", "/tmp").stdout
    assert not any(own.place().store.password("orcheo_app_a") in word for argv in control.calls for word in argv)


def test_doctor_finds_nothing_wrong(own: Installation):
    ran = own.run("doctor", "--json")
    assert ran.code == 0, ran.stdout + ran.stderr
    names = {check["name"] for check in ran.json["checks"]}
    assert {"settings as meant", "TLS verified", "app answers from the database"} <= names


def test_the_verify_suite_passes_over_kubectl(own: Installation):
    # Without a minute of SQL that is the same on every target.
    own.verify("--deselect=tests/verify/test_search.py::test_huge_and_deep_documents")


def test_backups_and_the_jobs_that_want_a_volume(own: Installation, control: Control):
    made = own.ok("backup", "run", "--json").json
    assert made["label"] and own.ok("backup", "check").code == 0
    logical = own.ok("backup", "run", "--type", "logical", "--json")
    assert logical.json["rows"] >= 0 and "Job backup-logical-" in logical.stderr
    record = own.ok("drill", "--switch", "--json").json
    assert record["result"] == "pass" and record["rto_seconds"] > 0
    told = control.cluster.objects["configmaps"]["orcheo-db-results"]["data"]
    assert (
        json.loads(told["drill.json"])["ok"] is True
        and json.loads(told["logical.json"])["label"] == logical.json["label"]
    )
    listed = own.ok("backup", "list", "--json").json
    assert made["label"] in {each["label"] for each in listed["backups"]} and listed["last_drill"]["result"] == "pass"
    assert own.ok("status", "--json").json["backups"]["ok"] is True


def test_the_bucket_has_backups_wal_and_drills_of_its_own(own: Installation, control: Control):
    made = own.ok("backup", "run", "--repository", "second", "--json").json
    listed = own.ok("backup", "list", "--repository", "second", "--json").json
    assert made["label"] in {each["label"] for each in listed["backups"]}
    checks = own.ok("backup", "check", "--json").json["checks"]
    assert any(each["name"].startswith("second repository: ") for each in checks)
    record = own.ok("drill", "--repository", "second", "--switch", "--json").json
    assert record["result"] == "pass"
    told = control.cluster.objects["configmaps"]["orcheo-db-results"]["data"]
    assert json.loads(told["second-drill.json"])["ok"] is True


def test_restore_beside_then_in_place_then_back(own: Installation, control: Control):
    sql(
        own,
        "CREATE TABLE public.moment (i int); INSERT INTO public.moment VALUES (1); GRANT SELECT ON public.moment TO orcheo_ro",
    )
    own.ok("backup", "point", "before")
    sql(own, "INSERT INTO public.moment VALUES (2)")
    done = own.ok("restore", "--to-name", "before", "--json").json
    name = done["volume"]
    assert name.startswith("restored-") and sql(own, "SELECT count(*) FROM public.moment") == "2"
    assert not pods(control, "restore")

    refused = own.run("restore", "--use", name)
    assert refused.code == 2 and "--confirm orcheo" in refused.message
    unknown = own.run("restore", "--use", "restored-20200101T000000Z", "--confirm", "orcheo")
    assert unknown.code == 2 and name in unknown.message

    own.ok("restore", "--use", name, "--confirm", "orcheo")
    assert sql(own, "SELECT count(*) FROM public.moment") == "1"
    assert own.ok("doctor").code == 0
    volume = next(iter((control.cluster.base / "claims" / "data-postgres-0").parent.glob("data-postgres-0")))
    (former,) = [path.name for path in volume.iterdir() if path.name.startswith("former-")]

    back = own.ok("restore", "--use", former, "--confirm", "orcheo", "--json").json
    assert sql(own, "SELECT count(*) FROM public.moment") == "2"
    refused = own.run("restore", "--remove", back["kept"])
    assert refused.code == 2 and back["kept"] in refused.message
    own.ok("restore", "--remove", back["kept"], "--confirm", back["kept"])
    assert not (volume / back["kept"]).exists() and not (volume / former).exists()


def test_out_of_the_bucket_alone(own: Installation, control: Control):
    sql(own, "INSERT INTO public.moment VALUES (3)")
    own.ok("backup", "run", "--repository", "second", "--type", "full")
    done = own.ok("restore", "--repository", "second", "--json").json
    own.ok("restore", "--remove", done["volume"], "--confirm", done["volume"])
    assert done["tables"] >= 59
    sql(own, "DELETE FROM public.moment WHERE i = 3")
    own.ok("backup", "point", "rows")


def test_rows_of_one_table_come_out(own: Installation, control: Control, tmp_path: Path):
    file = tmp_path / "rows.csv"
    done = own.ok("restore", "--to-name", "rows", "--table", "public.moment", "--out", str(file), "--json").json
    assert done["rows_extracted"] == 2 and sorted(file.read_text().split())[:2] == ["1", "2"]
    volume = control.cluster.base / "claims" / "data-postgres-0"
    assert not [path for path in volume.iterdir() if path.name.startswith("restored-")]
    sql(own, "DROP TABLE public.moment")


def test_two_restores_are_not_made_at_once(own: Installation, control: Control):
    with subprocess.Popen(
        [PROGRAM, "--target", "kubernetes", "restore"], env=own.env, cwd=ROOT, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        while not pods(control, "restore"):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.2)
        process.kill()  # its operator's machine is gone, the pod is not
    refused = own.run("restore")
    assert refused.code == 2 and "another restore is at work" in refused.message
    own.place().kubectl.text("delete", "pod", "restore")  # type: ignore[attr-defined]
    # What it began is there. It went on without its operator, so it may be whole by now: then as one that was cut off a moment before its end.
    volume = control.cluster.base / "claims" / "data-postgres-0"
    begun = [path for path in volume.iterdir() if path.name.startswith("restored-")]
    assert begun
    for path in begun:
        (path / RESTORING).touch()
        cut_off = own.run("restore", "--use", path.name, "--confirm", "orcheo")
        assert cut_off.code == 2 and "was cut off" in cut_off.message
        own.ok("restore", "--remove", path.name, "--confirm", path.name)


def test_a_restore_pod_that_no_node_takes_is_said(own: Installation, control: Control, monkeypatch: pytest.MonkeyPatch):
    control.unscheduled.add("restore")
    control.events.append(
        {
            "involvedObject": {"name": "restore"},
            "lastTimestamp": "1",
            "message": "0/1 nodes are available: volume node affinity conflict",
        }
    )
    try:
        ran = own.run("restore")
    finally:
        control.unscheduled.clear()
        control.events.clear()
        control.cluster.pods.pop("restore", None)
    assert ran.code == 1 and "volume node affinity conflict" in ran.message and "nothing was changed" in ran.message


@pytest.fixture
def empty(own: Installation) -> None:
    """The database as after the init job."""
    names = sql(
        own,
        f"SELECT string_agg(quote_ident(tablename), ', ') FROM pg_tables WHERE schemaname = 'public' AND tablename <> ALL ('{{{','.join(KEPT)}}}')",
    )
    sql(own, f"SET client_min_messages = error; TRUNCATE {names} CASCADE")


def test_migration_there_and_back(own: Installation, control: Control, empty: None, tmp_path: Path):
    there_and_back(own, tmp_path, "pgbouncer.orcheo.svc:6432")
    # The app is stopped now, as the rollback says; started again by an apply.
    ran = own.run("status", "--json")
    assert ran.code == 1 and "scaled to 0" in ran.message and "kubectl apply" in ran.message
    states = {each["name"]: each["state"] for each in ran.json["services"]}
    assert states["backend"] == states["worker"] == states["beat"] == "scaled to 0"


def test_a_service_that_is_restarted_or_killed_comes_back(own: Installation):
    target = own.place()
    for name in ("pgbouncer", "postgres"):
        target.restart(name)
        target.kill(name)
        assert target.run(name, ["true"]).code == 0
    with psycopg.connect(target.dsn()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_vault_key_comes_to_the_apps_secret(own: Installation, control: Control):
    from orcheo_db import app_kubernetes  # noqa: PLC0415
    from orcheo_db.targets.kubernetes import KubernetesTarget  # noqa: PLC0415

    target = own.place()
    assert isinstance(target, KubernetesTarget)
    before = app_secrets.read(target.store, app_secrets.VAULT_KEY)
    app_secrets.replace_vault_key(target.store, "another-key-0123456789")
    assert app_kubernetes.use_vault_key(target) is True
    assert app_kubernetes.use_vault_key(target) is False
    own_secret = control.cluster.objects["secrets"]["orcheo-db-installation"]["data"]
    assert {name for name in own_secret if app_secrets.VAULT_KEY in name} >= {
        f"app__{app_secrets.VAULT_KEY}",
        f"app__{app_secrets.VAULT_KEY}.old-1",
    }
    app_secrets.replace_vault_key(target.store, before)
    assert app_kubernetes.use_vault_key(target) is True


def test_a_drill_that_fails_says_so(own: Installation, control: Control):
    """The server is away: no marker can be set."""
    own.place().kubectl.text("scale", "statefulset/postgres", "--replicas=0")  # type: ignore[attr-defined]
    try:
        ran = own.run("drill", "--switch")
        assert ran.code == 1 and "the drill failed" in ran.message, ran.stderr
        assert "command terminated" not in ran.stderr
    finally:
        own.place().kubectl.text("scale", "statefulset/postgres", "--replicas=1")  # type: ignore[attr-defined]
        own.place().ready("postgres")  # type: ignore[attr-defined]
