"""The whole way on a real cluster (`make test-k8s`): the current kubeconfig context, a namespace of its own, removed at the end. Written for one node
with two CPUs, images loaded before, nothing pulled; the tests are stages of one way and run in their order.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.host import ensure_docker
from orcheo_db.images import ensure_images
from orcheo_db.spec import load_spec
from orcheo_db.targets.kubernetes import KubernetesTarget
from tests.conftest import ROOT, only_run_on_this_machine
from tests.k8s.live import Live
from tests.k8s.pods import Cluster
from tests.k8s.rehearsal import Rehearsal

pytestmark = [pytest.mark.live, pytest.mark.disruptive]


@pytest.fixture(scope="module")
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    base = tmp_path_factory.mktemp("live")
    if request.config.getoption("--live") == "pods":
        yield from rehearsed(base, tmp_path_factory)
        return
    try:
        made = Live(base, {})
        answers = made.run("get", "--raw=/readyz", "--request-timeout=10s")
        why = answers.stderr.strip() or answers.stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no cluster: kubectl: {error}")
    if answers.returncode != 0 or "ok" not in answers.stdout:
        pytest.skip(
            f"no cluster answers at the current kubeconfig context {made.context!r}: {why.splitlines()[-1] if why else 'no answer'}"
        )
    text = (ROOT / "k8s" / "namespace.yaml").read_text().replace("name: orcheo", f"name: {made.namespace}")
    assert made.run("apply", "--filename=-", input=text).returncode == 0
    yield made
    assert made.run("delete", "namespace", made.namespace, "--timeout=300s", timeout=320).returncode == 0


def rehearsed(base: Path, factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The same on containers."""
    ensure_docker(install=True)
    ensure_images(load_spec(env={}), ROOT, factory.mktemp("logs"))
    with only_run_on_this_machine(), pytest.MonkeyPatch.context() as patch:
        cluster = Cluster([], factory.mktemp("cluster"), namespace="rehearsal")
        control = Rehearsal(cluster, factory.mktemp("control"))
        for name, value in control.environment().items():
            patch.setenv(name, value)
        yield Live(base, {"KUBECTL": str(control.bin / "kubectl"), **control.environment()}, "rehearsal")
        control.close()
        cluster.close()


def sql(live: Live, text: str) -> str:
    done = live.own.place().run("postgres", ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "orcheo", "-c", text])
    assert done.code == 0, done.stderr
    return done.stdout.strip()


def test_apply_on_an_empty_namespace_ends_with_everything_ready(live: Live):
    live.apply()
    live.settle()
    bad = {
        pod["metadata"]["name"]
        for pod in live.get("pods")["items"]
        if pod["status"]["phase"] not in ("Running", "Succeeded")
    }
    # Tries of a job that came too early are what "everything tries again" means.
    assert not {name for name in bad if not name.startswith(("init-", "secrets-"))}
    found = live.own.ok("status", "--json").json
    assert all(each["health"] in ("healthy", "done") for each in found["services"]), found["services"]
    assert sql(live, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == "59"


def test_apply_again_changes_nothing(live: Live):
    lines = live.apply().strip().splitlines()
    assert lines and all(line.endswith("unchanged") for line in lines), [
        x for x in lines if not x.endswith("unchanged")
    ]
    done = live.run(f"--namespace={live.namespace}", "diff", "-k", str(live.directory))
    assert done.returncode == 0, done.stdout
    live.ok("apply", "--server-side", "--dry-run=server", "-k", str(live.directory))


def test_the_verify_suite(live: Live):
    live.own.verify()


def test_doctor_finds_nothing_wrong(live: Live):
    ran = live.own.run("doctor", "--json")
    assert ran.code == 0, ran.stdout


def reach(live: Live, name: str, labels: dict[str, str]) -> dict[str, bool]:
    """Which of the tier's ports a pod of these labels can connect to."""
    script = (
        "import json, socket\n"
        "def can(host, port):\n"
        "    try:\n"
        "        socket.create_connection((host, port), 5).close(); return True\n"
        "    except OSError:\n"
        "        return False\n"
        "print(json.dumps({'pgbouncer': can('pgbouncer', 6432), 'postgres': can('postgres', 5432), 'archive': can('archive', 8432)}))\n"
    )
    live.pod(name, labels, ["python", "-c", script], secret=False)
    phase, log = live.ended(name, 120)
    assert phase == "Succeeded", log
    found: dict[str, bool] = json.loads(log)
    return found


def test_only_the_label_opens_pgbouncer_and_nothing_postgresql(live: Live):
    with live.load(1):  # its Secret is mounted by every pod of the test's
        pass
    client = reach(live, "client", {"orcheo-db/client": "true"})
    stranger = reach(live, "stranger", {"app": "stranger"})
    assert client["pgbouncer"]
    if stranger["pgbouncer"] or stranger["postgres"]:
        pytest.skip("this cluster does not enforce NetworkPolicy: a pod without the label reaches PgBouncer")
    assert client == {"pgbouncer": True, "postgres": False, "archive": False}
    assert stranger == {"pgbouncer": False, "postgres": False, "archive": False}


def test_a_deleted_postgresql_loses_no_acknowledged_write(live: Live):
    target = live.own.place()
    with live.load(45) as found:
        target.kill("postgres")
    assert found["lost"] == [] and found["acknowledged"] > 100, found


def test_a_rolled_pgbouncer_fails_no_transaction(live: Live):
    with live.load(60) as found:
        live.ok("rollout", "restart", "deployment/pgbouncer")
        live.ok("rollout", "status", "deployment/pgbouncer", "--timeout=300s")
    assert found["lost"] == [] and found["failed"] == 0 and found["acknowledged"] > 100, found


def answer(live: Live, query: str) -> str | None:
    """As `sql`; None while there is no pod to ask."""
    try:
        return sql(live, query)
    except (UserError, CheckFailed, AssertionError):
        return None


def test_a_changed_setting_rolls_the_pods_that_read_it(live: Live):
    before = sql(live, "SHOW log_min_duration_statement")
    (name,) = [
        each["metadata"]["name"]
        for each in live.get("configmaps")["items"]
        if each["metadata"]["name"].startswith("orcheo-db-conf-postgres-")
    ]
    text = live.get("configmap", name)["data"]["postgresql.conf"] + "\nlog_min_duration_statement = 12345\n"
    (live.directory / "postgresql.conf").write_text(text)
    kustomization = (live.directory / "kustomization.yaml").read_text()
    more = "configMapGenerator:\n  - {name: orcheo-db-conf-postgres, behavior: merge, files: [postgresql.conf]}\n"
    (live.directory / "kustomization.yaml").write_text(kustomization + more)
    uid = live.get("pod", "postgres-0")["metadata"]["uid"]
    try:
        live.apply()
        live.wait(
            lambda: (
                live.run(
                    f"--namespace={live.namespace}", "get", "pod", "postgres-0", "-o=jsonpath={.metadata.uid}"
                ).stdout
                not in ("", uid)
            ),
            "the pod is replaced",
        )
        live.settle()
        assert sql(live, "SHOW log_min_duration_statement") == "12345ms" != before
    finally:
        (live.directory / "kustomization.yaml").write_text(kustomization)
        live.apply()
        live.settle()
    live.wait(lambda: answer(live, "SHOW log_min_duration_statement") == before, "the setting is as before")


def test_the_drills_cron_job_by_hand(live: Live):
    live.ok("create", "job", "--from=cronjob/drill", "drill-by-hand")
    live.ok("wait", "--for=condition=complete", "job/drill-by-hand", "--timeout=900s")
    told = live.get("configmap", "orcheo-db-results")["data"]
    assert told["drill"].startswith("ok at ") and json.loads(told["drill.json"])["result"] == "pass"
    live.ok("delete", "job", "drill-by-hand")
    record: Any = live.own.ok("drill", "--switch", "--json").json
    assert record["result"] == "pass"


def test_restore_to_a_point_in_place_and_back(live: Live):
    sql(live, "CREATE TABLE public.moment (i int); INSERT INTO public.moment VALUES (1)")
    live.own.ok("backup", "point", "before")
    sql(live, "INSERT INTO public.moment VALUES (2)")
    done = live.own.ok("restore", "--to-name", "before", "--swap", "--confirm", live.namespace, "--json").json
    assert sql(live, "SELECT count(*) FROM public.moment") == "1"
    live.own.ok("restore", "--use", done["kept"], "--confirm", live.namespace)
    assert sql(live, "SELECT count(*) FROM public.moment") == "2"
    sql(live, "DROP TABLE public.moment")
    assert isinstance(live.own.place(), KubernetesTarget)


def test_after_all_that_apply_finds_no_difference(live: Live):
    done = live.run(f"--namespace={live.namespace}", "diff", "-k", str(live.directory))
    assert done.returncode == 0, done.stdout


def test_delete_keeps_the_data_and_the_secrets(live: Live):
    sql(
        live,
        "CREATE TABLE public.kept (i int); INSERT INTO public.kept VALUES (7); ALTER TABLE public.kept OWNER TO orcheo",
    )
    live.ok("delete", "-k", str(live.directory), "--timeout=400s")
    claims = {each["metadata"]["name"] for each in live.get("persistentvolumeclaims")["items"]}
    assert {"data-postgres-0", "repository-backup-0"} <= claims
    live.get("secret", "orcheo-db-installation")
    live.apply()
    live.settle()
    assert sql(live, "SELECT i FROM public.kept") == "7"
