"""Upstream's defects, worked around at import time: the one place for them, to be emptied as upstream mends its code.

Nothing of the installed packages is edited; classes are patched in the process that `orcheo_db.runtime` starts. Each entry names
the releases that are known to have the defect and is not applied to any other. `tests/e2e/test_workarounds.py` shows, without
the workaround, that the defect is still there, and so fails when upstream has mended it: then the entry goes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any


@dataclass(frozen=True)
class Workaround:
    """One defect. `first` and `last`: the releases of `package` known to have it (both included); `mended`: later ones don't."""

    name: str
    package: str
    first: str
    last: str
    defect: str
    apply: Callable[[], None]
    mended: bool = False

    def concerns(self, release: str) -> bool:
        """Whether this release is one of those."""
        return numbers(self.first) <= numbers(release) <= numbers(self.last)


def numbers(release: str) -> tuple[int, ...]:
    """A release as a tuple that sorts: "0.39.0" -> (0, 39, 0); what follows the numbers is left out."""
    parts = []
    for part in release.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)


def _agentensor_deadlock() -> None:
    _pool_first("orcheo_backend.app.agentensor.checkpoint_store", "PostgresAgentensorCheckpointStore")


def _plugins_deadlock() -> None:
    _pool_first("orcheo_backend.app.plugin_installation_store", "PostgresPluginInstallationStore")


def _pool_first(module: str, name: str) -> None:
    store: Any = getattr(importlib.import_module(module), name)
    initialize = store._ensure_initialized

    async def _ensure_initialized(self: Any) -> None:
        await self._get_pool()  # takes and gives back the lock that `initialize` then holds while it asks for the pool
        await initialize(self)

    store._ensure_initialized = _ensure_initialized


def _no_prepared_statements() -> None:
    pools = importlib.import_module("psycopg_pool")
    for pool in (pools.AsyncConnectionPool, pools.ConnectionPool):
        _unprepared(pool)


def _unprepared(pool: Any) -> None:
    construct = pool.__init__

    def __init__(self: Any, *args: Any, kwargs: dict[str, Any] | None = None, **rest: Any) -> None:
        construct(self, *args, kwargs={**(kwargs or {}), "prepare_threshold": None}, **rest)

    pool.__init__ = __init__


def _checked_pools() -> None:
    pools = importlib.import_module("psycopg_pool")
    for pool in (pools.AsyncConnectionPool, pools.ConnectionPool):
        _checked(pool)


def _checked(pool: Any) -> None:
    construct = pool.__init__

    def __init__(self: Any, *args: Any, check: Any = None, **rest: Any) -> None:
        construct(self, *args, check=check or pool.check_connection, **rest)

    pool.__init__ = __init__


def _drain_at_the_first_broken() -> None:
    pools = importlib.import_module("psycopg_pool")
    checks, later = pools.ConnectionPool._check_connection, pools.AsyncConnectionPool._check_connection

    # Those made after the last drain only: others that are broken too were thrown away with the first.
    def _check_connection(self: Any, conn: Any) -> None:
        try:
            checks(self, conn)
        except Exception:
            if conn.closed and conn._created_at > self._drained_at:
                self.drain()
            raise

    async def _check_connection_later(self: Any, conn: Any) -> None:
        try:
            await later(self, conn)
        except Exception:
            if conn.closed and conn._created_at > self._drained_at:
                await self.drain()
            raise

    pools.ConnectionPool._check_connection = _check_connection
    pools.AsyncConnectionPool._check_connection = _check_connection_later


AGENTENSOR = Workaround(
    name="agentensor-deadlock",
    package="orcheo-backend",
    first="0.16.0",
    last="0.39.0",
    defect="PostgresAgentensorCheckpointStore waits for itself at its first use: _ensure_initialized holds _init_lock and"
    " _get_pool takes it again, so GET /api/workflows/ID/agentensor/checkpoints never answers",
    apply=_agentensor_deadlock,
)
PLUGINS = Workaround(
    name="plugins-deadlock",
    package="orcheo-backend",
    first="0.16.0",
    last="0.30.0",  # the bridge releases; the default pair's takes its lock once
    defect="PostgresPluginInstallationStore waits for itself at its first use, in the same way",
    apply=_plugins_deadlock,
    mended=True,
)
PREPARED = Workaround(
    name="prepared-statements",
    package="orcheo-backend",
    first="0.16.0",
    last="0.39.0",
    defect="six stores set prepare_threshold=0, which prepares every statement: behind a transaction pooler that doesn't track"
    " prepared statements every request ends in DuplicatePreparedStatement or InvalidSqlStatementName",
    apply=_no_prepared_statements,
)
CHECKS = Workaround(
    name="unchecked-pools",
    package="orcheo-backend",
    first="0.16.0",
    last="0.39.0",
    defect="the pools of six stores (repository, history, agentensor, plugins, ChatKit, service tokens) hand out connections that are broken:"
    " after a restart of PgBouncer or PostgreSQL each of them (up to 20 a store) costs some later request a 500, however long after",
    apply=_checked_pools,
)
POOLS = Workaround(
    name="pools-backoff",
    package="psycopg-pool",
    first="3.3.0",  # before it there is no drain(); the defect is of 3.2.1
    last="3.3.3",
    defect="a checked pool whose connections are all broken (PgBouncer or PostgreSQL was restarted) throws them away one by one, with 0, 1, 2, 4,"
    " 8, 16 s of sleep in between although the server has long been back: with six of them a caller waits its whole 30 s and gets an error, and"
    " two of Orcheo's stores call their pool on the event loop, so that the whole API waits with them (measured: 4 to 10 s after a restart of 0.7 s)",
    apply=_drain_at_the_first_broken,
)


def apply(*, prepared_statements: bool) -> list[str]:
    """Apply what this installation needs; returns one line for the log about each.

    Args:
        prepared_statements: whether the pooler takes them; then the app may go on using them, for they are faster.
    """
    lines = []
    for workaround in (AGENTENSOR, PLUGINS, CHECKS, POOLS, *(() if prepared_statements else (PREPARED,))):
        release = metadata.version(workaround.package)
        if workaround.concerns(release):
            workaround.apply()
            lines.append(f"workaround {workaround.name} applied ({workaround.package} {release})")
        elif not workaround.mended:
            known = f"{workaround.first} to {workaround.last}"
            lines.append(
                f"workaround {workaround.name} not applied: {workaround.package} {release} is not one of {known}"
            )
    return lines
