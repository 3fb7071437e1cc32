"""From the bridge release on PostgreSQL, with real rows in all of its stores, to the default pair, and back: `orcheo-db upgrade-app`.

The tests build on each other, in this order: what is refused, what is interrupted, the upgrade, the way back.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orcheo_db import app_secrets
from tests.conftest import PROGRAM, ROOT, Installation
from tests.e2e import bridge_rows
from tests.e2e.api import Api, wait_until
from tests.e2e.conftest import BRIDGE, bridge_release, caller

pytestmark = pytest.mark.disruptive
LABELS = {
    "alpha": "inmemory",
    "beta": "inmemory",
    "home": "postgres",
}  # what is seeded -> the bridge's workspace backend
PROCESSES = ("backend", "worker", "beat")
STRAY = 6  # workflows: two each of alpha and beta, one of no workspace, the bridge's own


@pytest.fixture(scope="module")
def old(docker_ready: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with bridge_release("orcheo-db-test-upgrade", tmp_path_factory.mktemp("upgrade")) as own:
        yield own


@pytest.fixture(scope="module")
def seeded(old: Installation) -> dict[str, dict[str, Any]]:
    """Rows of two dead workspaces, of none, and of the living one; label -> ids. From here on the spec's own pair is wanted."""
    found = {}
    for label, backend in LABELS.items():
        script = bridge_rows.program(label, backend, unscoped=label == "beta")
        result = old.target().run("backend", ["timeout", "-s", "KILL", "90", "python", "-"], input=script)
        assert result.code == 0, result.stderr[-3000:]
        found[label] = json.loads(result.stdout.strip().splitlines()[-1])
    assert len({ids["workspace"] for ids in found.values()}) == 3
    for variable in BRIDGE:
        del old.extra[variable]
    return found


def query(own: Installation, text: str, *parameters: Any) -> list[Any]:
    with psycopg.connect(own.target().dsn("orcheo_ro", direct=True)) as connection:
        return connection.execute(text.encode(), parameters).fetchall()


def superuser(own: Installation, text: str) -> str:
    result = own.target().run("postgres", ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "orcheo", "-c", text])
    assert result.code == 0, result.stderr
    return result.stdout.strip()


def contents(own: Installation) -> dict[str, Any]:
    """Every table of the app: number of rows and a sum of their hashes (of listeners the number: a backend renews their leases)."""
    names = [name for (name,) in query(own, "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")]
    found = {}
    for name in names:
        total = "0" if name.startswith("listener_") else "sum(hashtextextended(t::text, 0))"
        found[name] = query(own, f"SELECT count(*), {total} FROM {name} t")[0]
    return found


def running(own: Installation) -> dict[str, str]:
    found = {name: own.target().container(name) for name in PROCESSES}
    return {name: f"{c.id} {c.attrs['State']['StartedAt']}" for name, c in found.items() if c and c.status == "running"}


def wait_ready(own: Installation) -> None:
    def ready() -> bool:
        health = {state.name: state.health for state in own.target().services()}
        return all(health.get(name) == "healthy" for name in PROCESSES)

    wait_until(ready, "the app to be healthy", 90)


def stray(own: Installation) -> int:
    text = "SELECT count(*) FROM workflows WHERE workspace_id IS NULL OR workspace_id NOT IN (SELECT id::text FROM workspaces)"
    return int(query(own, text)[0][0])


@pytest.mark.parametrize(
    ("arguments", "key", "words"),
    [
        (("--workspace", "nowhere"), None, "there is no workspace 'nowhere' (there are: default)"),
        ((), "not-the-vault-key", "the vault key given in the environment does not open 6 of 6 credentials"),
        (("--back", "/nonexistent.dump"), None, "/nonexistent.dump does not exist"),
        (("--back", str(ROOT / "README.md")), None, "is no whole dump"),
    ],
)
def test_wrong_input_is_one_line_and_changes_nothing(old, seeded, arguments, key, words):
    before, containers = contents(old), running(old)
    if key:
        old.extra["ORCHEO_VAULT_ENCRYPTION_KEY"] = key
    try:
        ran = old.run("upgrade-app", *arguments)
    finally:
        old.extra.pop("ORCHEO_VAULT_ENCRYPTION_KEY", None)
    assert ran.code == 2 and words in ran.message, ran.stderr
    assert "Traceback" not in ran.stderr
    assert (contents(old), running(old)) == (before, containers) and len(containers) == 3


def test_the_preflight_alone_names_every_hazard(old, seeded):
    before, containers = contents(old), running(old)
    found = old.ok("upgrade-app", "--check", "--json").json["preflight"]
    assert found["missing_columns"] == ["workflows.team_id"]
    assert [index["name"] for index in found["stale_indexes"]] == ["idx_workflows_active_handle"]
    assert set(found["groups"]) == {"", seeded["alpha"]["workspace"], seeded["beta"]["workspace"]}
    assert {new["old"] for new in found["renames"]} == {"mail"} and len(found["renames"]) == 2
    assert found["vault"] == {"credentials": 6, "unreadable": 0}
    assert found["attachment_files"] == 3 and found["former_tables"] == ["workflow_run_remediations"]
    text = "\n".join(found["hazards"])
    for words in (
        "workflows.team_id",
        "idx_workflows_active_handle",
        "becomes 'mail-2'",
        "nobody is a member of 'default'",
    ):
        assert words in text
    assert (contents(old), running(old)) == (before, containers)


def test_a_trigger_that_changes_rows_undoes_all_and_the_app_goes_on(old, seeded):
    """The upgrade proves before its commit that nothing else has changed."""
    superuser(
        old,
        "CREATE FUNCTION public.meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.provider := 'x'; RETURN NEW; END $$;"
        "CREATE TRIGGER meddle BEFORE UPDATE ON credentials FOR EACH ROW EXECUTE FUNCTION public.meddle()",
    )
    before = contents(old)
    ran = old.run("upgrade-app")
    superuser(old, "DROP FUNCTION public.meddle() CASCADE")
    assert ran.code == 1 and "table credentials: the contents" in ran.message, ran.stderr
    assert "Nothing was changed; the app runs again as before" in ran.message
    wait_ready(old)
    assert contents(old) == before
    backups = list((old.state / "backups").glob("*.dump"))
    assert len(backups) == 1 and backups[0].stat().st_mode & 0o777 == 0o600


def test_killed_in_the_middle_nothing_has_changed(old, seeded):
    """kill -9 of the command and of its job, while rows are being moved: the server undoes it all."""
    superuser(
        old,
        "CREATE FUNCTION public.dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$;"
        "CREATE TRIGGER dawdle BEFORE UPDATE ON service_tokens FOR EACH ROW EXECUTE FUNCTION public.dawdle()",
    )
    before = contents(old)
    command = subprocess.Popen([str(PROGRAM), "upgrade-app"], env=old.env, cwd=ROOT, stderr=subprocess.DEVNULL)
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    wait_until(lambda: superuser(old, asleep) == "1", "rows to be moved", 120)
    command.kill()
    command.wait()
    label = f"label=com.docker.compose.project={old.project}"
    listed = subprocess.run(
        ["docker", "ps", "--quiet", "--filter", label, "--filter", "label=com.docker.compose.oneoff=True"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    subprocess.run(["docker", "kill", "--signal=KILL", *listed.stdout.split()], check=True, capture_output=True)
    wait_until(lambda: superuser(old, asleep) == "0", "the server to notice", 30)
    superuser(old, "DROP FUNCTION public.dawdle() CASCADE")
    assert contents(old) == before and stray(old) == STRAY
    assert running(old) == {}


@pytest.fixture(scope="module")
def upgraded(old: Installation, seeded: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The upgrade, run again after it was killed."""
    before = contents(old)
    report: dict[str, Any] = old.ok("upgrade-app", "--json").json
    return report | {"contents_before": before}


def test_the_report_says_what_was_done(old, upgraded):
    applied = upgraded["applied"]
    assert upgraded["done"] and applied["columns_added"] == ["workflows.team_id text"]
    assert applied["rows_moved"]["workflows"] == STRAY and stray(old) == 0
    assert sorted((new["old"], new["new"]) for new in applied["renames"]) == [("mail", "mail-2"), ("mail", "mail-3")]
    assert applied["archived"] == {"orcheo_archive.plugin_installations": 2}
    assert upgraded["attachments"]["copied"] == 3 and upgraded["attachments"]["missing_files"] == []
    assert upgraded["verified"]["ok"] and upgraded["verified"]["tables_compared"] > 25
    assert Path(upgraded["backup"]).stat().st_mode & 0o777 == 0o600
    assert query(old, "SELECT count(*) FROM orcheo_db.upgrades WHERE verified_at IS NULL") == [(0,)]
    counts = {name: entry[0] for name, entry in contents(old).items()}
    growing = {"workspace_memberships", "plugin_installations", "checkpoint_migrations", "store_migrations"}
    lost = {n: e[0] for n, e in upgraded["contents_before"].items() if n not in growing and counts.get(n) != e[0]}
    assert lost == {}


@pytest.fixture
def api(old: Installation, upgraded: dict[str, Any]) -> Api:
    caller_ = caller(old)
    caller_.workspace = "default"
    return caller_


@pytest.mark.parametrize("label", LABELS)
def test_every_row_is_seen_through_the_api_of_the_default_pair(old, seeded, api, label):
    ids = seeded[label]
    workflow = ids["workflow"]
    assert api.call("GET", f"/api/workflows/{workflow}")["handle"] == f"{label}-invoices"
    assert workflow in {each["id"] for each in api.call("GET", "/api/workflows")}
    assert ids["archived"] in {each["id"] for each in api.call("GET", "/api/workflows?include_archived=true")}
    assert sorted(v["version"] for v in api.call("GET", f"/api/workflows/{workflow}/versions")) == [1, 2]
    assert api.call("GET", f"/api/workflows/{workflow}/triggers/webhook/config")["allowed_methods"] == ["POST"]
    assert api.call("GET", f"/api/workflows/{workflow}/triggers/cron/config")["expression"] == "0 5 * * *"
    assert [run["id"] for run in api.call("GET", f"/api/workflows/{workflow}/runs")] == [ids["run"]]
    assert api.call("GET", f"/api/runs/{ids['run']}")["status"] == "succeeded"
    history = api.call("GET", f"/api/executions/{ids['run']}/history")
    assert history["inputs"] == {"n": 1} and history["steps"]
    assert api.call("GET", f"/api/executions/{ids['run']}/trace")["execution"]["status"] == "completed"
    assert len(api.call("GET", f"/api/workflows/{workflow}/agentensor/checkpoints")) == 2
    assert len(api.call("GET", f"/api/workflows/{workflow}/listeners")) == 1
    names = {each["id"]: each["name"] for each in api.call("GET", f"/api/credentials?workflow_id={workflow}")}
    assert set(ids["credentials"]) <= set(names)
    secret = api.call("GET", f"/api/credentials/{ids['credentials'][0]}/secret")["secret"]
    assert secret == bridge_rows.SECRET.format(label=label)
    assert ids["template"] in {each["id"] for each in api.call("GET", "/api/credentials/templates")}
    assert ids["token"] in str(api.call("GET", "/api/admin/service-tokens"))
    # The token itself still opens its workspace.
    holder = Api(api.url, ids["secret"])
    assert workflow in {each["id"] for each in holder.call("GET", "/api/workflows")}
    text = "SELECT convert_from(content, 'UTF8') FROM chat_attachment_blobs WHERE attachment_id = %s"
    assert query(old, text, f"atc_{label}") == [(f"attachment of {label}",)]
    assert query(old, "SELECT count(*) FROM chat_messages WHERE thread_id = %s", ids["thread"]) == [(3,)]
    # Items of the app's own storage nodes are in the workspace's namespace.
    text = "SELECT prefix FROM store WHERE prefix LIKE '%%.agent_chat_history.' || %s"
    home = api.call("GET", f"/api/workflows/{workflow}")["workspace_id"]
    assert query(old, text, label) == [(f"{home}.agent_chat_history.{label}",)]


def test_alerts_and_the_workflow_of_no_workspace_are_seen(seeded, api):
    assert len(api.call("GET", "/api/credentials/governance-alerts")) == 3
    assert seeded["beta"]["unscoped"] in {each["id"] for each in api.call("GET", "/api/workflows")}


def test_an_old_workflow_runs_and_a_handle_is_free_in_another_workspace(seeded, api):
    run = api.finished(api.dispatch(seeded["alpha"]["workflow"], n=2))
    assert run["status"] == "succeeded", run
    other = Api(api.url, api.token)
    other.enter("second")
    assert other.workflow("alpha-invoices")["handle"] == "alpha-invoices"


def test_run_again_it_changes_nothing(old, upgraded):
    before, containers = contents(old), running(old)
    assert old.ok("upgrade-app", "--json").json["done"] is False
    assert running(old) == containers
    after = contents(old)
    assert {
        n for n in before if n not in ("listener_subscriptions", "listener_cursors") and after[n] != before[n]
    } == set()


def test_the_way_back(old, seeded, upgraded):
    ran = old.ok("upgrade-app", "--back", upgraded["backup"], "--json").json
    assert superuser(old, f"SELECT count(*) FROM pg_database WHERE datname = '{ran['kept_aside']}'") == "1"
    refused = old.run("up")  # still the new pair: it does not go on the old data
    assert refused.code == 1 and "bridge release" in refused.message, refused.stderr
    old.extra |= BRIDGE
    old.ok("up")
    wait_ready(old)
    before = upgraded["contents_before"]
    after = contents(old)
    assert {name for name in before if after[name][0] < before[name][0]} == set()
    found = {each["id"] for each in caller(old).call("GET", "/api/workflows")}
    assert seeded["home"]["workflow"] in found
    assert app_secrets.exists(old.target().store)
