"""Orcheo itself on the session's stack: through PgBouncer and straight to PostgreSQL, driven by its own API."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orcheo_db import app_secrets
from orcheo_db.spec import DEFAULT_PATH
from orcheo_db.targets.compose import ComposeTarget
from tests.conftest import Installation, free_port, remove_leftovers
from tests.e2e.api import Api, first_party_token

# Past the pooler the app's own pools are all that bounds its connections: 1 backend of 8 x 4 + 60 and 2 workers of 5 x 4 + 10 are
# 152 of the 200 that PostgreSQL has in size medium.
DIRECT = {'via = "pgbouncer"': 'via = "postgres"', "pool_max_size = 20": "pool_max_size = 4"}


def with_spec(own: Installation, directory: Any, changes: dict[str, str]) -> None:
    """Give an installation a spec of its own: the committed one with some lines changed."""
    text = DEFAULT_PATH.read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (directory / "spec.toml").write_text(text)
    own.extra["ORCHEO_DB_SPEC"] = str(directory / "spec.toml")


@pytest.fixture(scope="session")
def app_port() -> int:
    return free_port()


def bring_up(own: Installation, *arguments: str) -> Installation:
    own.ok("up", "--with", "app", *arguments)
    return own


@pytest.fixture(scope="session", params=["pgbouncer", "postgres"])
def app(
    request: pytest.FixtureRequest, installation: Installation, app_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """The session's installation with the app, whose way to the database is the parameter's."""
    if request.config.getoption("--existing"):
        if request.param != "pgbouncer" or not installation.target().with_app:
            pytest.skip("--existing: the running stack has no app, or not this way to its database")
        yield installation
        return
    kept = dict(installation.extra)
    installation.extra["ORCHEO_DB_APP_PORT"] = str(app_port)
    if request.param == "postgres":
        with_spec(installation, tmp_path_factory.mktemp("direct"), DIRECT)
        bring_up(installation, "--size", "medium")
    else:
        bring_up(installation, "--size", "small")
    yield installation
    installation.extra = kept


@pytest.fixture
def target(app: Installation) -> ComposeTarget:
    return app.target()


@pytest.fixture
def owner(app: Installation) -> Api:
    """The owner of the bootstrap token, in no workspace yet."""
    return caller(app)


@pytest.fixture
def person(app: Installation, owner: Api) -> Callable[[str], Api]:
    """People who logged in, each in a new workspace of their own (the app gives each at most three)."""
    secret = app_secrets.read(app.target().store, "jwt.secret")

    def make(name: str) -> Api:
        unique = f"{name}-{uuid.uuid4().hex[:8]}"
        api = Api(owner.url, first_party_token(secret, unique))
        api.enter(unique)
        return api

    return make


@pytest.fixture
def api(person: Callable[[str], Api]) -> Api:
    """One person in a workspace of their own."""
    return person("e2e")


@pytest.fixture
def rows(app: Installation) -> Callable[..., list[Any]]:
    """What PostgreSQL itself has: a query as the read-only role, straight to the server."""
    target = app.target()

    def query(sql: str, *parameters: Any) -> list[Any]:
        with psycopg.connect(target.dsn("orcheo_ro", direct=True)) as connection:
            return connection.execute(sql.encode(), parameters).fetchall()

    return query


# `finish` instead of asyncio.run: at its end that cancels the tasks of the app's open pools and waits for them, which now and
# then never ends (psycopg_pool takes the cancellation of a connection attempt for its failure, and tries again).
INSIDE = """
import asyncio, json, os, sys
from orcheo_db.runtime import processes
processes.prepare()
GIVEN = json.loads(GIVEN)
def finish(work):
    asyncio.new_event_loop().run_until_complete(work)
    sys.stdout.flush()
    os._exit(0)
"""


@pytest.fixture
def inside(app: Installation) -> Callable[..., Any]:
    """Run Python in the backend's container with the app's environment and the workarounds; what it prints last, as JSON."""
    target = app.target()

    def run(script: str, **values: Any) -> Any:
        given = f"GIVEN = {json.dumps(values)!r}\n"
        result = target.run("backend", ["timeout", "120", "python", "-"], input=f"{given}{INSIDE}{script}")
        assert result.code == 0, result.stderr[-3000:]
        return json.loads(result.stdout.strip().splitlines()[-1])

    return run


BRIDGE = {"ORCHEO_VERSION": "0.34.0", "ORCHEO_BACKEND_VERSION": "0.30.0"}  # the last pair with both kinds of stores


@contextmanager
def bridge_release(name: str, directory: Path) -> Iterator[Installation]:
    """An installation of its own that runs the bridge release, its app among it; removed at the end."""
    own = Installation(name, free_port(), directory / name)
    own.extra = {**BRIDGE, "ORCHEO_DB_APP_PORT": str(free_port())}
    remove_leftovers(own)
    own.ok("up", "--with", "app")
    yield own
    remove_leftovers(own)


@pytest.fixture
def bridge(
    docker_ready: None, installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    with bridge_release("orcheo-db-test-bridge", tmp_path_factory.mktemp("bridge")) as own:
        yield own


def caller(own: Installation) -> Api:
    """The owner of an installation's bootstrap token."""
    target = own.target()
    return Api(f"http://127.0.0.1:{target.spec.app.port}", app_secrets.read(target.store, app_secrets.BOOTSTRAP_TOKEN))
