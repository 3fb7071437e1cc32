"""The plan's configuration rollback (section 9.1), with the real bridge release: to SQLite by configuration, and back."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.conftest import Installation
from tests.e2e.api import Api
from tests.e2e.conftest import caller

FILES = {"workflows", "checkpoints", "chatkit", "vault", "graph_store", "service_tokens", "workspaces"}
COUNTED = ("workflows", "workflow_versions", "workflow_runs", "execution_history_steps", "credentials", "checkpoints")


def write(api: Api, handle: str) -> dict[str, str]:
    """A workflow, a run that succeeds, a credential; their ids. (The bridge knows one workspace unless told otherwise.)"""
    workflow = api.workflow(handle)["id"]
    run = api.finished(api.dispatch(workflow, on=handle))
    assert run["status"] == "succeeded", run["error"]
    body = {
        "name": handle,
        "provider": "p",
        "secret": f"secret of {handle}",
        "actor": "e2e",
        "scopes": [],
        "access": "shared",
    }
    return {"workflow": workflow, "run": run["id"], "credential": api.call("POST", "/api/credentials", body)["id"]}


def listed(api: Api) -> set[str]:
    """Ids of all workflows; the bridge makes one of its own for each workspace."""
    return {each["id"] for each in api.call("GET", "/api/workflows")}


def assert_there(api: Api, ids: dict[str, str], handle: str) -> None:
    assert ids["workflow"] in listed(api)
    assert api.call("GET", f"/api/executions/{ids['run']}/history")["inputs"] == {"on": handle}
    assert api.call("GET", f"/api/credentials/{ids['credential']}/secret")["secret"] == f"secret of {handle}"


def counts(own: Installation) -> dict[str, Any]:
    with psycopg.connect(own.target().dsn("orcheo_ro", direct=True)) as connection:
        found = {}
        for table in COUNTED:
            query = f"SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) FROM {table} t"
            found[table] = connection.execute(query.encode()).fetchone()
    return found


def switch(own: Installation, storage: str) -> list[str]:
    own.extra["ORCHEO_DB_APP_STORAGE"] = storage
    changed: list[str] = own.ok("up", "--json").json["changed"]
    del own.extra["ORCHEO_DB_APP_STORAGE"]  # it is remembered
    return changed


@pytest.mark.disruptive
def test_to_sqlite_by_configuration_and_back(bridge: Installation):
    api = caller(bridge)
    on_postgres = write(api, "postgres")
    assert_there(api, on_postgres, "postgres")
    # The bridge's two stores that wait for themselves answer by the workarounds.
    assert api.call("GET", f"/api/workflows/{on_postgres['workflow']}/agentensor/checkpoints") == []
    assert "plugins" in api.call("GET", "/api/system/plugins")
    before = counts(bridge)
    assert all(number > 0 for number, _ in before.values()), before

    assert sorted(switch(bridge, "sqlite")) == ["backend restarted", "beat restarted", "worker restarted"]
    assert on_postgres["workflow"] not in listed(api)
    on_sqlite = write(api, "sqlite")
    assert_there(api, on_sqlite, "sqlite")
    files = bridge.target().run("backend", ["ls", "/home/orcheo/.orcheo"]).stdout.split()
    assert {f"{name}.sqlite" for name in FILES} <= set(files)
    assert counts(bridge) == before  # PostgreSQL was not written to
    assert "Nothing changed." in bridge.ok("up").stderr  # the choice holds

    switch(bridge, "postgres")
    assert_there(api, on_postgres, "postgres")
    assert on_sqlite["workflow"] not in listed(api)

    switch(bridge, "sqlite")
    assert_there(api, on_sqlite, "sqlite")
