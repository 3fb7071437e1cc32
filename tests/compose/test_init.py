"""The init job in its container: idempotent, safe when run by many at once or killed, and clear about what it can't do."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from pathlib import Path

import psycopg
import pytest

from orcheo_db import lifecycle
from orcheo_db.lifecycle import Outcome
from orcheo_db.lifecycle_steps import start
from orcheo_db.targets.base import Result
from orcheo_db.targets.compose import ComposeTarget
from tests.conftest import Installation


@pytest.fixture
def empty(second: Installation) -> ComposeTarget:
    """A fresh, healthy server on which no init job has run."""
    target = second.target()
    with lifecycle.exclusive(target.store):
        lifecycle.prepare(target, Outcome(), new_secrets=False)
        start(target, "postgres", 120)
    return target


def job(target: ComposeTarget, *environment: str) -> Result:
    """One init container of the Compose file, with more environment."""
    extra = [word for item in environment for word in ("--env", item)]
    return target.compose(
        "run", "--rm", "--no-deps", "-T", *extra, "init", "python", "-m", "orcheo_db.bootstrap", "--json"
    )


def superuser(target: ComposeTarget, sql: str, database: str = "orcheo") -> str:
    result = target.run("postgres", ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql])
    assert result.code == 0, result.stderr
    return result.stdout.strip()


def tables(target: ComposeTarget) -> int:
    return int(superuser(target, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"))


@pytest.mark.disruptive
def test_four_at_once_on_an_empty_server(empty: ComposeTarget):
    results: list[Result] = []
    threads = [threading.Thread(target=lambda: results.append(job(empty))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.code for result in results] == [0, 0, 0, 0], [result.stderr[-400:] for result in results]
    assert tables(empty) == 59
    assert superuser(empty, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == "0"
    assert sum('"changed": true' in result.stdout for result in results) == 1, "one does the work, three find it done"


@pytest.mark.disruptive
def test_killed_at_random_moments_and_run_again(empty: ComposeTarget):
    moments = random.Random(17)
    for _ in range(5):
        empty.compose("up", "--detach", "--no-deps", "--force-recreate", "init")
        time.sleep(moments.uniform(0.5, 12))
        container = empty.container("init")
        assert container is not None
        subprocess.run(["docker", "kill", "--signal=KILL", str(container.id)], capture_output=True)
    result = job(empty)
    assert result.code == 0, result.stderr
    assert tables(empty) == 59
    assert superuser(empty, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == "0"
    again = job(empty)
    assert again.code == 0 and '"changed": false' in again.stdout


@pytest.mark.disruptive
def test_an_unreachable_server_is_waited_for_and_then_one_line(empty: ComposeTarget):
    container = empty.container("postgres")
    assert container is not None
    container.kill()  # a stop would wait for an archive that isn't there
    started = time.monotonic()
    result = job(empty, "ORCHEO_DB_WAIT=5")
    assert result.code == 2 and time.monotonic() - started > 5
    last = result.stderr.strip().splitlines()[-1]
    assert "postgres:5432" in last and "Traceback" not in result.stderr
    # A server that comes while it waits is used.
    threading.Timer(6, container.start).start()
    assert job(empty, "ORCHEO_DB_WAIT=90").code == 0
    assert tables(empty) == 59


@pytest.mark.disruptive
def test_a_bridge_releases_database_is_named_before_anything_changes(empty: ComposeTarget):
    """Orcheo 0.34's `workflows` has no team_id, and the newest release does not add it (ORCHEO.md): nothing may be touched."""
    superuser(empty, "CREATE ROLE orcheo NOLOGIN", "postgres")
    superuser(empty, "CREATE DATABASE orcheo OWNER orcheo", "postgres")
    schema = (Path(__file__).with_name("bridge-0.34.0.sql")).read_text()
    superuser(
        empty,
        f"SET ROLE orcheo;\n{schema}\nINSERT INTO workflows VALUES ('w', 'h', false, '{{}}', now(), now(), 'ws')",
    )
    before = superuser(empty, "SELECT string_agg(rolname, ',' ORDER BY 1) FROM pg_roles"), tables(empty)
    result = job(empty)
    assert result.code == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "bridge release" in last and "workflows.team_id" in last, last
    assert (
        superuser(empty, "SELECT string_agg(rolname, ',' ORDER BY 1) FROM pg_roles"),
        tables(empty),
    ) == before


def test_bootstrap_again_changes_nothing(installation: Installation):
    with psycopg.connect(installation.target().dsn("orcheo_ro")) as connection:
        before = connection.execute("SELECT * FROM orcheo_db.installation").fetchall()
    ran = installation.ok("bootstrap", "--json")
    assert ran.json["changed"] is False and ran.json["tables"]["present"] == 59
    with psycopg.connect(installation.target().dsn("orcheo_ro")) as connection:
        assert connection.execute("SELECT * FROM orcheo_db.installation").fetchall() == before
