"""Each of upstream's defects is still there without its workaround, and gone with it.

When one of these fails because the defect is gone, upstream has mended it: take the workaround out of
`orcheo_db.runtime.workarounds`, or end its range of releases.
"""

from __future__ import annotations

import pytest

from orcheo_db.runtime import workarounds
from orcheo_db.targets.compose import ComposeTarget
from tests.conftest import Installation
from tests.e2e.api import Api
from tests.e2e.conftest import with_spec

pytestmark = pytest.mark.parametrize("app", ["pgbouncer"], indirect=True)  # the packages are the same past it
BARE = "from orcheo_db.runtime import settings\nsettings.apply(settings.read_config())\nimport asyncio, json, os\n"
AGENTENSOR = """
from orcheo_backend.app.agentensor.checkpoint_store import PostgresAgentensorCheckpointStore
async def main():
    store = PostgresAgentensorCheckpointStore(os.environ["ORCHEO_POSTGRES_DSN"])
    try:
        await asyncio.wait_for(store.list_checkpoints("none"), 5)
        print("answers", flush=True)
    except TimeoutError:
        print("hangs", flush=True)
    os._exit(0)
asyncio.run(main())
"""
# What each of the six stores asks of psycopg, and what a pool then does.
STORES = """
from orcheo_backend.app.dependencies import (
    get_checkpoint_store, get_history_store, get_plugin_installation_store, get_repository)
from orcheo_backend.app.chatkit_runtime import get_chatkit_server
from orcheo_backend.app.service_token_repository.postgres_repository import PostgresServiceTokenRepository
async def main():
    stores = [get_repository(), get_history_store(), get_checkpoint_store(), get_plugin_installation_store(),
              get_chatkit_server().store, PostgresServiceTokenRepository(os.environ["ORCHEO_POSTGRES_DSN"])]
    print([what(await store._get_pool()) for store in stores], flush=True)
    os._exit(0)  # the pools' tasks would only be waited for
asyncio.run(main())
"""
THRESHOLDS = "what = lambda pool: pool.kwargs['prepare_threshold']\n" + STORES
CHECKED = "what = lambda pool: pool._check is not None\n" + STORES
# A pool whose four connections are cut off at once, as by a restart of the server; what its next caller sleeps.
POOL = """
import socket
import psycopg_pool
from psycopg_pool import pool as pools
slept, sleep = [], pools.sleep
pools.sleep = lambda seconds: (slept.append(round(seconds)), sleep(seconds / 100))
with psycopg_pool.ConnectionPool(
        os.environ["ORCHEO_POSTGRES_DSN"], min_size=4, check=psycopg_pool.ConnectionPool.check_connection) as pool:
    pool.wait()
    for conn in list(pool._pool):
        with socket.socket(fileno=os.dup(conn.pgconn.socket)) as way:
            way.shutdown(socket.SHUT_RDWR)
    with pool.connection() as conn:
        conn.execute("SELECT 1")
    print(slept, flush=True)
"""


def python(target: ComposeTarget, script: str) -> str:
    result = target.run("backend", ["timeout", "60", "python", "-"], input=BARE + script)
    assert result.code == 0, result.stderr[-2000:]
    return result.stdout.strip().splitlines()[-1]


def test_agentensors_store_still_waits_for_itself(target: ComposeTarget):
    assert python(target, AGENTENSOR) == "hangs"


def test_agentensors_store_answers_with_the_workaround(target: ComposeTarget):
    applied = "from orcheo_db.runtime import workarounds\nprint(workarounds.apply(prepared_statements=True))\n"
    assert python(target, applied + AGENTENSOR) == "answers"


def test_six_stores_still_prepare_every_statement(target: ComposeTarget):
    assert python(target, THRESHOLDS) == "[0, 0, 0, 0, 0, 0]"


def test_none_prepares_with_the_workaround(target: ComposeTarget):
    applied = "from orcheo_db.runtime import workarounds\nworkarounds.apply(prepared_statements=False)\n"
    assert python(target, applied + THRESHOLDS) == "[None, None, None, None, None, None]"


def test_six_stores_still_take_connections_unchecked(target: ComposeTarget):
    assert python(target, CHECKED) == "[False, False, False, False, False, False]"


def test_all_are_checked_with_the_workaround(target: ComposeTarget):
    applied = "from orcheo_db.runtime import workarounds\nworkarounds.apply(prepared_statements=True)\n"
    assert python(target, applied + CHECKED) == "[True, True, True, True, True, True]"


def test_a_pool_still_sleeps_between_broken_connections(target: ComposeTarget):
    assert python(target, POOL) == "[0, 1, 2, 4]"


def test_a_pool_throws_broken_connections_away_at_once_with_the_workaround(target: ComposeTarget):
    applied = "from orcheo_db.runtime import workarounds\nworkarounds.apply(prepared_statements=True)\n"
    assert python(target, applied + POOL) == "[0]"


POOLER = {
    "\n[pgbouncer]\n": "\n[pgbouncer]\nmax_prepared_statements = 0\n",
    "prepared_statements = true ": "prepared_statements = false ",
}
# Many transactions of one store at once, so that they change hands between server connections.
CROWD = """
from orcheo_backend.app.dependencies import get_repository
async def main():
    repository = get_repository()
    async def one():
        for _ in range(10):
            await repository.list_workflows(workspace_id="none")
    found = await asyncio.gather(*(one() for _ in range(10)), return_exceptions=True)
    print(sorted({type(each).__name__ for each in found if each is not None}), flush=True)
    os._exit(0)
asyncio.run(main())
"""


@pytest.mark.disruptive
def test_behind_a_pooler_that_takes_no_prepared_statements(app: Installation, api: Api, tmp_path):
    """The whole app on a PgBouncer with max_prepared_statements = 0: without the workaround its stores fail, with it a run succeeds."""
    kept = dict(app.extra)
    try:
        with_spec(app, tmp_path, POOLER)
        app.ok("up")
        assert "PreparedStatement" in python(app.target(), CROWD) or "InvalidSqlStatementName" in python(
            app.target(), CROWD
        )
        assert api.finished(api.dispatch(api.workflow("unprepared")["id"]))["status"] == "succeeded"
        for _ in range(20):
            assert api.send("GET", "/api/workflows").status_code == 200
        log = app.target().container("backend")
        assert log is not None and b"workaround prepared-statements applied" in log.logs()
    finally:
        app.extra = kept
        app.ok("up")


@pytest.mark.parametrize(
    "workaround", [workarounds.AGENTENSOR, workarounds.CHECKS, workarounds.POOLS, workarounds.PREPARED]
)
def test_the_default_release_is_one_that_was_looked_at(target: ComposeTarget, workaround):
    """A new default pair is not silently left without its workarounds."""
    release = f"from importlib import metadata\nprint(metadata.version({workaround.package!r}))"
    assert workaround.concerns(python(target, release))
