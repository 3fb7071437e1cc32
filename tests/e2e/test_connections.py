"""The pool arithmetic against the real app: which pools it opens, how many connections they become."""

from __future__ import annotations

import json

import pytest

from orcheo_db.targets.compose import ComposeTarget
from orcheo_db.tuning import pool_arithmetic
from orcheo_db.tuning.pools import FIXED_POOL_SIZE, FIXED_STORES, TUNABLE_STORES, WORKER_STORES
from tests.e2e.api import wait_until

# Which module of the app makes the pool of which store.
MODULES = {
    "orcheo_backend.app.repository_postgres._base": "workflow repository",
    "orcheo_backend.app.history.postgres_store": "run history",
    "orcheo_backend.app.agentensor.checkpoint_store": "agentensor checkpoints",
    "orcheo_backend.app.plugin_installation_store": "plugins",
    "orcheo_backend.app.chatkit_store_postgres.base": "chatkit",
    "orcheo.vault.postgres": "vault",
    "orcheo_backend.app.service_token_repository.postgres_repository": "service tokens",
    "orcheo.workspace.postgres_store": "workspaces and identities",
    "orcheo.hosted_apps.postgres_store": "hosted apps: store",
    "orcheo.hosted_apps.postgres_runtime": "hosted apps: runtime",
    "orcheo.hosted_apps.postgres_auth": "hosted apps: auth",
    "orcheo.hosted_apps.bundle_store": "hosted apps: bundles",
}
LANGGRAPH = ["langgraph checkpointer", "langgraph store"]  # both made by one module, in this order


def opened(target: ComposeTarget, *arguments: str) -> dict[str, int]:
    """Store -> largest number of connections, as a process of the real app opens its pools."""
    result = target.run("backend", ["timeout", "120", "python", "-m", "orcheo_db.runtime", "pools", *arguments])
    assert result.code == 0, result.stderr[-2000:]
    pools = json.loads(result.stdout[result.stdout.index("[") :])
    langgraph = iter(LANGGRAPH)
    named = [
        (next(langgraph) if pool["module"] == "orcheo.persistence" else MODULES[pool["module"]], pool["max_size"])
        for pool in pools
    ]
    found = dict(named)
    assert len(found) == len(named), "a store with two pools"
    return found


def test_the_backends_pools_are_those_of_the_arithmetic(target: ComposeTarget):
    found, size = opened(target), target.spec.app.pool_max_size
    assert found == dict.fromkeys(TUNABLE_STORES, size) | dict.fromkeys(FIXED_STORES, FIXED_POOL_SIZE)
    budget = pool_arithmetic(target.spec, target.size)
    assert sum(found.values()) == budget.clients_per_backend
    assert budget.problems == []


def test_a_workers_pools_are_those_of_the_arithmetic(api, target: ComposeTarget):
    """A run executed, and a cron trigger dispatched, by the worker's own code in a fresh process, while the real worker stands still."""
    made = api.workflow("counted")
    config = {"expression": "* * * * *", "timezone": "UTC", "allow_overlapping": True}
    api.call("PUT", f"/api/workflows/{made['id']}/triggers/cron/config", config)
    worker = target.container("worker")
    assert worker is not None
    worker.pause()
    try:
        run = api.dispatch(made["id"])
        found = opened(target, run, made["workspace_id"])
    finally:
        worker.unpause()
    fixed = dict.fromkeys(set(WORKER_STORES) & set(FIXED_STORES), FIXED_POOL_SIZE)
    assert found == dict.fromkeys(WORKER_STORES, target.spec.app.pool_max_size) | fixed
    api.call("DELETE", f"/api/workflows/{made['id']}/triggers/cron/config")
    assert api.finished(run)["status"] == "succeeded"


# Remote ports of a process's established TCP connections, from the kernel's own tables.
REMOTE_PORTS = """
import os
own = {os.readlink("/proc/1/fd/" + fd) for fd in os.listdir("/proc/1/fd")}
lines = [line.split() for line in open("/proc/1/net/tcp").read().splitlines()[1:]]
print(sorted(int(line[2].split(":")[1], 16) for line in lines if line[3] == "01" and f"socket:[{line[9]}]" in own))
"""


@pytest.mark.parametrize("service", ["worker", "beat"])
def test_celerys_parent_and_beat_open_none(target: ComposeTarget, service):
    """They live as long as the stack; a connection of theirs would be missing in the arithmetic."""
    result = target.run(service, ["python", "-c", REMOTE_PORTS])
    assert result.code == 0, result.stderr
    ports = set(json.loads(result.stdout))
    assert service == "beat" or 6379 in ports  # the worker's parent holds its broker: the method sees connections
    assert not ports & {6432, 5432}, ports


def test_doctor_checks_the_app(app):
    # The worker that stood still for a test is healthy again after a check or two.
    wait_until(lambda: app.run("status").code == 0, "every service to be healthy", 90, pause=3)
    ran = app.ok("doctor", "--json")
    found = {check["name"]: check for check in ran.json["checks"]}
    assert found["app answers from the database"]["ok"] and found["vault key"]["ok"]
    assert "may open" in found["app's connections"]["found"]


def test_doctor_says_when_a_configuration_cannot_work(app, tmp_path):
    """Fifty workers through one pooler that takes 700 clients: the numbers, before anybody waits for a connection in vain."""
    from tests.e2e.conftest import with_spec  # noqa: PLC0415

    kept = dict(app.extra)
    try:
        with_spec(
            app,
            tmp_path,
            {
                "worker_processes = 2 ": "worker_processes = 50 ",
                "\n[pgbouncer]\n": "\n[pgbouncer]\nmax_client_conn = 700\n",
            },
        )
        ran = app.run("doctor", "--json")
        check = next(check for check in ran.json["checks"] if check["name"] == "pool arithmetic")
        assert ran.code == 1 and not check["ok"]
        assert "takes 700 clients" in check["found"] and "50 worker processes (110 each)" in check["found"]
        assert app.run("up").code == 2
    finally:
        app.extra = kept
