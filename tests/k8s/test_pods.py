"""The pods of overlay dev (the default one's and the app's), as containers: from nothing to a served app, a drill, crashes; in an order that is
the worst for each.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from typing import Any

import psycopg
import pytest

from orcheo_db import app_secrets
from orcheo_db.secrets import Store
from tests.conftest import ROOT
from tests.k8s.pods import Cluster

pytestmark = pytest.mark.disruptive


def connect(
    cluster: Cluster, store: Store, role: str = "orcheo_app_a", *, pod: str = "pgbouncer-0", port: int = 6432
) -> psycopg.Connection[Any]:
    address, host = cluster.pods[pod].address(), pod.rpartition("-")[0]
    return psycopg.connect(
        f"host={host} hostaddr={address} port={port} dbname=orcheo user={role} sslmode=verify-full", password=store.password(role),
        sslrootcert=str(store.ca_file), autocommit=True, connect_timeout=10,
    )  # fmt: skip


def test_a_pod_waits_for_its_secrets(cluster: Cluster):
    assert cluster.pod("StatefulSet", "postgres").missing() == ["orcheo-db-postgres", "orcheo-db-pgbackrest"]
    log = cluster.job("Job", "secrets").log()
    assert "11 Secrets made" in log and cluster.api.refused == []
    assert cluster.pod("StatefulSet", "postgres").missing() == []
    before = json.dumps(cluster.objects["secrets"], sort_keys=True)
    cluster.pods.pop("secrets-0").remove()
    assert "every Secret is there" in cluster.job("Job", "secrets").log()
    assert json.dumps(cluster.objects["secrets"], sort_keys=True) == before


def test_everything_becomes_ready_whatever_comes_first(cluster: Cluster, store: Store):
    """PgBouncer, the init job and the backups begin before there is a PostgreSQL."""
    pooler, backup = cluster.start("Deployment", "pgbouncer"), cluster.start("StatefulSet", "backup")
    (name,) = [each["metadata"]["name"] for each in cluster.of("Job") if each["metadata"]["name"].startswith("init-")]
    early = cluster.start("Job", name, 99)
    time.sleep(5)
    assert not pooler.probe("pgbouncer", "readinessProbe") and pooler.probe("pgbouncer", "livenessProbe")
    assert not backup.probe("backup", "readinessProbe") and backup.probe("backup", "livenessProbe")
    postgres = cluster.start("StatefulSet", "postgres")
    postgres.ready()
    early.remove()
    cluster.job("Job", name)
    pooler.ready()
    backup.ready()
    with connect(cluster, store) as conn:
        row = conn.execute(
            "SELECT session_user, current_user, count(*) FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone()
        assert row == ("orcheo_app_a", "orcheo", 59)


def test_settings_are_those_of_compose_but_for_the_shared_pool(cluster: Cluster):
    maps = {name: each["data"] for name, each in cluster.objects["configmaps"].items() if "data" in each}
    own = {
        key: text
        for name, data in maps.items()
        if name.startswith("orcheo-db-conf-postgres-")
        for key, text in data.items()
    }
    for name in ("pg_hba.conf", "pg_ident.conf"):
        assert own[name] == (ROOT / "compose/conf" / name).read_text()
    assert own["postgresql.conf"] == (ROOT / "compose/conf/small/postgresql.conf").read_text()
    (pooler,) = [data["pgbouncer.ini"] for name, data in maps.items() if name.startswith("orcheo-db-conf-pgbouncer-")]
    compose = (ROOT / "compose/conf/small/pgbouncer.ini").read_text()

    def values(text: str) -> dict[str, str]:
        lines = (line.partition(" = ") for line in text.splitlines() if line and line[0] not in "#[;")
        return {name: value for name, _, value in lines}

    one, other = values(compose), values(pooler)
    assert {name for name in one if one[name] != other[name]} == {"default_pool_size", "max_db_connections"}
    assert all(int(other[name]) * 2 <= int(one[name]) for name in ("default_pool_size", "max_db_connections"))


def test_files_are_the_services_own_and_nothing_else_can_be_written(cluster: Cluster):
    for pod, container, user in (("postgres-0", "postgres", "999"), ("postgres-0", "pgbackrest", "999"), ("pgbouncer-0", "pgbouncer", "998"),
                                 ("backup-0", "backup", "999"), ("backup-0", "archive", "999")):  # fmt: skip
        found = (
            cluster.pods[pod].run(container, "sh", "-c", "stat -c '%a %u' /run/orcheo-db/secrets/*").stdout.split("\n")
        )
        assert set(filter(None, found)) == {f"400 {user}"}, (container, found)
        assert cluster.pods[pod].run(container, "touch", "/usr/probe").returncode != 0
    mode = cluster.pods["postgres-0"].run("postgres", "sh", "-c", 'stat -c "%a %u" "$PGDATA"').stdout.strip()
    assert mode in ("700 999", "2700 999")
    # Who reads the cluster for backups can't write there, and who takes WAL has no backups.
    assert cluster.pods["postgres-0"].run("pgbackrest", "touch", "/var/lib/postgresql/probe").returncode != 0
    assert cluster.pods["backup-0"].run("archive", "ls", "/var/lib/orcheo-backup/backup").returncode != 0


def test_the_app_serves(cluster: Cluster, store: Store):
    """A workspace by its API, which a worker and a scheduler beside it are ready for."""
    apps = [cluster.start("StatefulSet", "redis"), cluster.start("StatefulSet", "backend")]
    apps += [cluster.start("Deployment", name) for name in ("worker", "beat")]
    for pod in apps:
        pod.ready(240)
    request = urllib.request.Request(
        f"http://{cluster.pods['backend-0'].address()}:8000/api/workspaces",
        data=json.dumps({"slug": "home", "name": "Home"}).encode(),
        headers={
            "Authorization": f"Bearer {app_secrets.read(store, app_secrets.BOOTSTRAP_TOKEN)}",
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status in (200, 201)
    with connect(cluster, store) as conn:
        assert conn.execute("SELECT slug FROM workspaces").fetchall() == [("home",)]
    for pod in apps:
        assert pod.run(next(iter(pod.containers)), "touch", "/usr/probe").returncode != 0
        cluster.pods.pop(pod.name).remove()


def test_a_failed_drill_is_noted(cluster: Cluster, store: Store):
    """PostgreSQL is away: no marker can be set there."""
    cluster.pods["postgres-0"].kill()
    pod = cluster.start("CronJob", "drill", 7)
    try:
        assert pod.wait(180) == 1
    finally:
        pod.remove()
    data = cluster.objects["configmaps"]["orcheo-db-results"]["data"]
    assert data["drill"].startswith("FAILED at ") and json.loads(data["drill.json"])["ok"] is False


def test_a_crashed_server_comes_back_on_its_volume_though_its_mode_was_changed(cluster: Cluster, store: Store):
    """A volume plugin that applies fsGroup again gives the group rights on PGDATA, which PostgreSQL refuses."""
    cluster.pods.pop("postgres-0").remove()
    place = next((cluster.base / "claims" / "data-postgres-0").glob("*/main"))
    place.chmod(0o2770)
    postgres = cluster.start("StatefulSet", "postgres")
    postgres.ready()
    cluster.pods["pgbouncer-0"].ready()
    with connect(cluster, store) as conn:
        assert conn.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (59,)


@pytest.mark.parametrize("name", ["backup-incremental", "backup-logical", "drill"])
def test_the_schedules_jobs_note_how_they_went(cluster: Cluster, name: str):
    """A drill that passes takes the place of the failed one."""
    pod = cluster.job("CronJob", name)
    job = name.removeprefix("backup-")
    data = cluster.objects["configmaps"]["orcheo-db-results"]["data"]
    told = json.loads(data[f"{job}.json"])
    assert told["ok"] is True and data[job].startswith("ok at "), pod.log()
    assert (told["result"] == "pass" and told["rto_seconds"] > 0) if job == "drill" else told["label"]
    assert cluster.api.refused == []


def test_a_deleted_server_pod_shuts_down_cleanly(cluster: Cluster, store: Store):
    with connect(cluster, store) as conn:
        conn.execute("CREATE TABLE public.kept (i int); INSERT INTO public.kept SELECT generate_series(1, 100)")
    pod = cluster.pods.pop("postgres-0")
    assert pod.terminate() < 60
    log = pod.log("postgres")
    assert "database system is shut down" in log and "received fast shutdown request" in log
    pod.remove()
    cluster.start("StatefulSet", "postgres").ready()
    assert "automatic recovery in progress" not in cluster.pods["postgres-0"].log("postgres")
    with connect(cluster, store, pod="postgres-0", port=5432) as conn:
        assert conn.execute("SELECT count(*) FROM public.kept").fetchone() == (100,)
        conn.execute("DROP TABLE public.kept")


def test_a_deleted_pooler_waits_for_its_clients(cluster: Cluster, store: Store):
    """A client in the middle of a transaction, and one between two, go on until they leave; then the pooler ends at once."""
    pod = cluster.start("Deployment", "pgbouncer", 1)
    pod.ready()
    with connect(cluster, store, pod="pgbouncer-1") as idle, connect(cluster, store, pod="pgbouncer-1") as busy:
        busy.execute("BEGIN; SELECT 1")
        begun = time.monotonic()
        ending = threading.Thread(target=pod.terminate)
        ending.start()
        time.sleep(12)
        assert idle.execute("SELECT 1").fetchone() == (1,)
        assert busy.execute("SELECT 2").fetchone() == (2,)
        with pytest.raises(psycopg.OperationalError):
            connect(cluster, store, pod="pgbouncer-1")
        busy.execute("COMMIT")
    ending.join(60)
    assert not ending.is_alive() and time.monotonic() - begun < 60
