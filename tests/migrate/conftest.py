"""One installation for all migrations; each test begins with an empty database."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import Installation, free_port, only_run_on_this_machine, remove_leftovers

PROJECT = "orcheo-db-test-migrate"
# What a fresh installation's tables hold that is no data of the app's.
KEPT = ("checkpoint_migrations", "store_migrations", "hosted_app_runtime_state")


@pytest.fixture(scope="session")
def stack(
    request: pytest.FixtureRequest, docker_ready: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """An installation of this folder's own, without the app."""
    if request.config.getoption("--existing"):
        pytest.skip("--existing: migrations want an empty database of their own")
    state = tmp_path_factory.mktemp("migrate") / PROJECT
    own = Installation(PROJECT, free_port(), state, extra={"ORCHEO_DB_APP_PORT": str(free_port())})
    with only_run_on_this_machine():
        remove_leftovers(own)
        own.ok("up", "--with", "none")
        try:
            yield own
        finally:
            own.destroy()


def superuser(own: Installation, *statements: str) -> str:
    """SQL by the server's socket; the last statement's rows."""
    words = [word for statement in statements for word in ("-c", statement)]
    result = own.target().run("postgres", ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "orcheo", *words])
    assert result.code == 0, result.stderr
    return result.stdout.strip()


def empty(own: Installation) -> None:
    """Have the database as after the first `up`."""
    names = superuser(
        own,
        f"SELECT string_agg(quote_ident(tablename), ', ') FROM pg_tables WHERE schemaname = 'public' AND tablename <> ALL ('{{{','.join(KEPT)}}}')",
    )
    superuser(
        own,
        "SET client_min_messages = error; DROP SCHEMA IF EXISTS orcheo_archive CASCADE",
        f"SET client_min_messages = error; TRUNCATE {names} CASCADE",
    )
    shutil.rmtree(own.state / "migrate", ignore_errors=True)


@pytest.fixture
def own(stack: Installation) -> Iterator[Installation]:
    """The installation with an empty database, afterwards again."""
    empty(stack)
    yield stack
    empty(stack)


def query(own: Installation, text: str, *parameters: Any) -> list[Any]:
    """What PostgreSQL itself has, as the read-only role."""
    with psycopg.connect(own.target().dsn("orcheo_ro", direct=True)) as connection:
        return connection.execute(text.encode(), parameters).fetchall()


def fingerprint(directory: Path) -> dict[str, str]:
    """Every file of a directory and its checksum."""
    return {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def untouched() -> Iterator[Callable[[Path], None]]:
    """Directories that must be at the end as they were when they were named."""
    before: dict[Path, dict[str, str]] = {}

    def watch(directory: Path) -> None:
        before[directory] = fingerprint(directory)

    yield watch
    for directory, files in before.items():
        assert fingerprint(directory) == files, directory
