"""The verify suite knows hosts, facts and DSNs, never how a target works: every target runs these same files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
import testinfra

from orcheo_db.targets.base import Facts, Target

Connect = Callable[..., psycopg.Connection[Any]]


@pytest.fixture
def facts(target: Target) -> Facts:
    return target.facts()


@pytest.fixture
def host(facts: Facts) -> Callable[[str], Any]:
    """A testinfra host by role."""
    return lambda role: testinfra.get_host(facts.hosts[role])


@pytest.fixture
def connect(target: Target) -> Iterator[Connect]:
    """Connections by role, closed at the end: `connect("orcheo_ro", direct=True, sslmode="disable")`."""
    opened: list[psycopg.Connection[Any]] = []

    def open_(
        role: str | None = None, *, direct: bool = False, database: str | None = None, **options: Any
    ) -> psycopg.Connection[Any]:
        connection = psycopg.connect(
            target.dsn(role, direct=direct, database=database), connect_timeout=10, autocommit=True, **options
        )
        opened.append(connection)
        return connection

    yield open_
    for connection in opened:
        with closing(connection):
            pass


@pytest.fixture
def superuser(target: Target) -> Callable[[str], str]:
    """SQL as the superuser by the local socket on the server's own host: the only way there is."""

    def execute(sql: str) -> str:
        result = target.run(
            "postgres", ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", target.spec.database.name, "-c", sql]
        )
        assert result.code == 0, result.stderr
        return result.stdout.strip()

    return execute
