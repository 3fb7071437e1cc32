"""Which connection pools the app's stores open, as JSON, in the image beside a database:

    python -m orcheo_db.runtime pools                   every store that the web app can open
    python -m orcheo_db.runtime pools RUN WORKSPACE     what a worker opens to execute this pending run and to dispatch cron triggers

The pool arithmetic of the toolkit (`tuning.pools`) rests on this list; a test compares the two. Every store of the web app is
asked for its pool the way that the app's own dependencies do it; pools are noted as they are made, with the module that made
them, so none can be overlooked.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from orcheo_db.runtime import processes

_APP = ("orcheo.", "orcheo_backend.")
_SHARED = "orcheo.postgres_pools"  # makes pools on behalf of its caller


def _maker() -> str:
    """The app's module that asked for the pool: the first frame that is neither psycopg's nor the sharing helper's."""
    frame = sys._getframe(2)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.startswith(_APP) and name != _SHARED:
            return name
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


def record() -> list[dict[str, Any]]:
    """Note every pool that is made from now on: module, kind, min_size, max_size, prepare_threshold."""
    found: list[dict[str, Any]] = []
    module = importlib.import_module("psycopg_pool")
    for kind in ("AsyncConnectionPool", "ConnectionPool"):
        _record(getattr(module, kind), kind, found)
    return found


def _record(pool: Any, kind: str, found: list[dict[str, Any]]) -> None:
    construct: Callable[..., None] = pool.__init__

    def __init__(self: Any, *args: Any, **rest: Any) -> None:
        construct(self, *args, **rest)
        threshold = (rest.get("kwargs") or {}).get("prepare_threshold", 5)  # psycopg's own default
        found.append(
            {
                "module": _maker(),
                "kind": kind,
                "min_size": self.min_size,
                "max_size": self.max_size,
                "prepare_threshold": threshold,
            }
        )

    pool.__init__ = __init__


def _get(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _open_blocking() -> None:
    """The stores that open their pool in their constructor; not inside the event loop, whose pools they would keep waiting."""
    dsn = str(_get("orcheo.config", "get_settings")(refresh=True).postgres_dsn)
    _get("orcheo_backend.app.workspace", "get_workspace_service")()
    _get("orcheo.identity.postgres_store", "PostgresIdentityRepository")(dsn)
    _get("orcheo.hosted_apps.postgres_store", "PostgresHostedAppsRepository")(dsn)
    _get("orcheo.hosted_apps.postgres_runtime", "PostgresAppRuntimeService")(dsn)
    _get("orcheo.hosted_apps.postgres_auth", "PostgresAppAuthService")(dsn)
    _get("orcheo.hosted_apps.bundle_store", "PostgresBundleStore")(dsn)


async def _open_all() -> None:
    """The other stores of the web app."""
    app = "orcheo_backend.app"
    settings = _get("orcheo.config", "get_settings")(refresh=True)
    stores = [
        _get(f"{app}.dependencies", "get_repository")(),
        _get(f"{app}.dependencies", "get_history_store")(),
        _get(f"{app}.dependencies", "get_checkpoint_store")(),
        _get(f"{app}.dependencies", "get_plugin_installation_store")(),
        _get(f"{app}.chatkit_runtime", "get_chatkit_server")().store,
    ]
    for store in stores:
        await store._get_pool()
    tokens = _get(f"{app}.service_token_repository.postgres_repository", "PostgresServiceTokenRepository")
    await tokens(str(settings.postgres_dsn))._get_pool()  # as authentication.dependencies makes it: with its defaults
    for name in ("create_checkpointer", "create_graph_store"):
        async with _get("orcheo.persistence", name)(settings):
            pass


def main(words: list[str]) -> None:
    """Print the list. `words`: a pending run's id and its workspace's, or nothing."""
    processes.prepare()
    found = record()
    if not words:
        _open_blocking()

    async def listed() -> None:
        if words:
            await _get("orcheo_backend.worker.tasks", "execute_run_async")(*words)
            await _get("orcheo_backend.worker.tasks", "_dispatch_cron_triggers_async")()
        else:
            await _open_all()
        print(json.dumps(found, indent=2), flush=True)
        os._exit(0)  # the open pools have threads and tasks that would only be waited for

    asyncio.run(listed())
