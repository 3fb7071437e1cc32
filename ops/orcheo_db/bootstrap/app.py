"""The app's own schema bootstraps, called as the app calls them, as the app's role, one after another.

The names are private to Orcheo; that is deliberate. There is no single entry point (starting the web app
makes 37 of the 59 tables), and a copy of its DDL would go stale with its next release. A store that a release
doesn't have is reported, not guessed. Nothing of the app is imported before `run` does it.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from typing import Any, LiteralString

import psycopg
from psycopg import errors, sql

from orcheo_db import database
from orcheo_db.bootstrap.job import APP_LOGINS, OWNER, SESSION_OPTIONS
from orcheo_db.bootstrap.session import Session, statement
from orcheo_db.errors import CheckFailed, UserError

Bootstrap = Callable[[str], Awaitable[None]]


@dataclass(frozen=True)
class Store:
    """One of the app's stores and how its schema is made, given a DSN."""

    name: str
    bootstrap: Bootstrap


class MissingStore(Exception):
    """This release of the app has no such store."""


def _load(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # the app lacks one of its own dependencies: a broken image, not another release
        raise MissingStore(f"no module {module}") from None
    except AttributeError:
        raise MissingStore(f"no {name} in {module}") from None


def _asynchronous(module: str, name: str) -> Bootstrap:
    async def bootstrap(dsn: str) -> None:
        store = _load(module, name)(dsn)
        # First the pool, then the schema: PostgresAgentensorCheckpointStore takes one lock for both and would
        # wait for itself.
        await store._get_pool()
        await store._ensure_initialized()

    return bootstrap


def _constructor(module: str, name: str) -> Bootstrap:
    async def bootstrap(dsn: str) -> None:
        _load(module, name)(dsn)

    return bootstrap


async def _vault(dsn: str) -> None:
    # Without a cipher the vault makes a random key for itself; none is used here.
    _load("orcheo.vault.postgres", "PostgresCredentialVault")(dsn)._ensure_initialized()


def _langgraph(name: str) -> Bootstrap:
    async def bootstrap(dsn: str) -> None:
        del dsn  # these two read the app's settings, that is ORCHEO_POSTGRES_DSN
        settings = _load("orcheo.config", "get_settings")(refresh=True)
        async with _load("orcheo.persistence", name)(settings):
            pass

    return bootstrap


_BACKEND = "orcheo_backend.app"
STORES: tuple[Store, ...] = (
    Store("repository", _asynchronous(f"{_BACKEND}.repository_postgres", "PostgresWorkflowRepository")),
    Store("history", _asynchronous(f"{_BACKEND}.history.postgres_store", "PostgresRunHistoryStore")),
    Store(
        "agentensor",
        _asynchronous(f"{_BACKEND}.agentensor.checkpoint_store", "PostgresAgentensorCheckpointStore"),
    ),
    Store("plugins", _asynchronous(f"{_BACKEND}.plugin_installation_store", "PostgresPluginInstallationStore")),
    Store(
        "service_tokens",
        _asynchronous(f"{_BACKEND}.service_token_repository.postgres_repository", "PostgresServiceTokenRepository"),
    ),
    Store("chatkit", _asynchronous(f"{_BACKEND}.chatkit_store_postgres", "PostgresChatKitStore")),
    Store("vault", _vault),
    Store("workspaces", _constructor("orcheo.workspace.postgres_store", "PostgresWorkspaceRepository")),
    Store("identity", _constructor("orcheo.identity.postgres_store", "PostgresIdentityRepository")),
    Store("hosted_apps", _constructor("orcheo.hosted_apps.postgres_store", "PostgresHostedAppsRepository")),
    Store("checkpointer", _langgraph("create_checkpointer")),
    Store("graph_store", _langgraph("create_graph_store")),
)


MODULES = ("orcheo.config", "orcheo.persistence", "orcheo_backend.app.repository_postgres")


def preload() -> None:
    """Import the app (most of a second run's time), so that the stores' own times say what their DDL
    takes.
    """
    for module in MODULES:
        with suppress(ModuleNotFoundError):
            importlib.import_module(module)
    gc.freeze()  # what is loaded by now holds no pool: `_close_pools` need not look at its million objects


def versions() -> tuple[str, str]:
    """Installed releases of orcheo and orcheo-backend.

    Raises:
        UserError: they aren't installed here.
    """
    try:
        return metadata.version("orcheo"), metadata.version("orcheo-backend")
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"package {error.name} isn't installed here: run the bootstrap inside the orcheo image"
        ) from None


def check_login(session: Session) -> None:
    """The app's login acts as the owner; otherwise its tables would belong to the login.

    Raises:
        CheckFailed: it doesn't.
    """
    with database.connect(session.job.login(APP_LOGINS[0]), timeout=15) as conn:
        row = conn.execute("SELECT current_user::text").fetchone()
    if not row or row[0] != OWNER:
        raise CheckFailed(f"role {APP_LOGINS[0]} logs in but doesn't act as {OWNER}: check ALTER ROLE ... SET role")


def run_store(session: Session, store: Store, changes: list[str]) -> bool:
    """Run one store's bootstrap and note what it made; False if this release has no such store."""
    before = _relations(session)
    dsn = session.job.login(
        APP_LOGINS[0], options=SESSION_OPTIONS, application_name=f"orcheo-db bootstrap {store.name}"
    )
    try:
        with _app_environment(dsn):
            asyncio.run(_run(store, dsn))
    except MissingStore as missing:
        session.leave_out(f"bootstrap {store.name}", f"this release of Orcheo doesn't have it: {missing}")
        return False
    except (psycopg.Error, UserError):
        raise
    except Exception as error:
        # The app reads its own rows while it starts; what it can't digest is the user's to know, in the app's
        # words.
        reason = " ".join(str(error).split())[:300].replace(session.job.passwords[APP_LOGINS[0]], "***")
        raise CheckFailed(
            f"the app's own bootstrap of {store.name} failed: {type(error).__name__}: {reason}"
        ) from error
    finally:
        after = _relations(session)
        made = {name.removeprefix("table ") for name in after - before if name.startswith("table ")}
        changes.extend(sorted((n for n in after - before if not _column_of(n, made)), key=_tables_first))
    return True


def _tables_first(name: str) -> tuple[bool, str]:
    return not name.startswith("table "), name


def _column_of(name: str, tables: set[str]) -> bool:
    return name.startswith("column ") and name.removeprefix("column ").split(".")[0] in tables


async def _run(store: Store, dsn: str) -> None:
    try:
        await store.bootstrap(dsn)
    finally:
        await _close_pools()


async def _close_pools() -> None:
    """Close every pool that the store opened. The app keeps them in private places that differ by release,
    so all are looked up.
    """
    psycopg_pool = importlib.import_module("psycopg_pool")
    # type() and not isinstance(): some objects of the app (lazy settings) load themselves when asked for
    # their __class__.
    for candidate in gc.get_objects():
        if issubclass(type(candidate), psycopg_pool.AsyncConnectionPool) and not candidate.closed:
            await candidate.close()
        elif issubclass(type(candidate), psycopg_pool.ConnectionPool) and not candidate.closed:
            candidate.close()


@contextmanager
def _app_environment(dsn: str) -> Iterator[None]:
    """The app's own environment, only for this call. Small pools: one after another needs no more."""
    wanted = {
        "ORCHEO_POSTGRES_DSN": dsn,
        # Bridge releases have SQLite stores too, and those are their default.
        **{
            f"ORCHEO_{name}_BACKEND": "postgres"
            for name in ("CHECKPOINT", "GRAPH_STORE", "REPOSITORY", "CHATKIT", "VAULT")
        },
        "ORCHEO_POSTGRES_POOL_MIN_SIZE": "1",
        "ORCHEO_POSTGRES_POOL_MAX_SIZE": "2",
        "ORCHEO_POSTGRES_POOL_TIMEOUT": "30",
        # The settings refuse to load without a key. The vault's DDL encrypts nothing, so a throwaway one will
        # do.
        "ORCHEO_VAULT_ENCRYPTION_KEY": os.environ.get("ORCHEO_VAULT_ENCRYPTION_KEY") or secrets.token_hex(32),
    }
    kept = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _relations(session: Session) -> set[str]:
    """What the owner has in schema public: `table t`, `column t.c`, `index i`, `sequence s`."""
    rows = session.app.execute(statement("app_relations", owner=sql.Literal(OWNER)))
    return {str(row[0]) for row in rows}


def invalid_indexes(session: Session) -> list[str]:
    """Indexes that an interrupted CREATE INDEX CONCURRENTLY left behind: no query may use them."""
    rows = session.app.execute(statement("invalid_indexes", owner=sql.Literal(OWNER)))
    return [str(row[0]) for row in rows]


def repair_indexes(session: Session, changes: list[str]) -> None:
    """Rebuild invalid indexes. The app never does: it says IF NOT EXISTS, which an invalid index
    satisfies.
    """
    for name in invalid_indexes(session):
        # What an interrupted REINDEX CONCURRENTLY leaves is a second copy of a good index.
        leftover = re.search(r"_cc(new|old)\d*$", name)
        query: LiteralString = "DROP INDEX CONCURRENTLY {}" if leftover else "REINDEX INDEX CONCURRENTLY {}"
        try:
            session.as_owner(sql.SQL(query).format(sql.Identifier("public", name)))
        except errors.UndefinedTable:
            continue  # the statement that was still building it has ended and taken it away
        changes.append(f"index {name} {'dropped' if leftover else 'rebuilt'}")


def timed(session: Session, store: Store, changes: list[str]) -> dict[str, Any]:
    """`run_store` with its time: {"name", "present", "created": {"tables", "indexes"}, "tables",
    "seconds"}.
    """
    start = time.monotonic()
    present = run_store(session, store, changes)
    created = {
        label: sum(c.startswith(kind) for c in changes) for label, kind in (("tables", "table "), ("indexes", "index "))
    }
    tables = [change.removeprefix("table ") for change in changes if change.startswith("table ")]
    return {
        "name": store.name,
        "present": present,
        "created": created,
        "tables": tables,
        "seconds": round(time.monotonic() - start, 3),
    }
