"""Writers through PgBouncer while a playbook works: no transaction fails, and nothing acknowledged is missing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from tests.conftest import Installation
from tests.k8s.load import Load

LONGEST = 3600.0  # ended by the block's end
CONNECT_SECONDS = 60  # as query_wait_timeout: a client that comes while the pooler holds them waits too


@contextlib.contextmanager
def under_load(host: Installation, connect_seconds: int = CONNECT_SECONDS) -> Iterator[dict[str, Any]]:
    """The block's length under load; what came of it is in the dictionary afterwards."""
    load, found = Load(host.ok("dsn").stdout.strip(), connect_seconds), dict[str, Any]()
    load.start(LONGEST)
    try:
        time.sleep(2)
        yield found
        time.sleep(2)
    finally:
        load.until = 0.0
        found |= load.finish()
        if not found["lost"]:  # what was is no longer needed
            with psycopg.connect(host.ok("dsn").stdout.strip()) as connection:
                connection.execute("DROP TABLE public.load_test")


def assert_nobody_noticed(found: dict[str, Any]) -> None:
    """But for a wait."""
    assert found["acknowledged"] > 100 and found["lost"] == [] and found["failures"] == [], found
