"""All that an old release's own stores give back from a data directory; runs inside its image (`python -m`), on a copy.

Ids come from the files, values from the stores: each is asked for each, and an error in place of a value is a value too, because
the stores accept what they can't read again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sqlite3
import uuid
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.migrate.inside import FILES, call, exact, get, is_bridge, program, repository

PAGE = 500


def ids(setting: str, query: str) -> list[Any]:
    """What a query finds in one of the files; nothing where there is no such file or table."""
    path = os.environ[setting]
    if not Path(path).is_file():
        return []
    with closing(sqlite3.connect(path)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if query.split(" FROM ")[1] not in tables:
            return []
        rows = connection.execute(query).fetchall()
    return [row[0] if len(row) == 1 else row for row in rows]


async def tried(work: Callable[..., Awaitable[Any]], *arguments: Any, **named: Any) -> Any:
    """What a store gives, exactly; or how it fails."""
    try:
        return exact(await work(*arguments, **named))
    except Exception as error:
        return {"$error": type(error).__name__}


def workflows_file(query: str) -> list[Any]:
    return ids("ORCHEO_REPOSITORY_SQLITE_PATH", query)


async def workflows() -> dict[str, Any]:
    """Workflows, versions, triggers and runs."""
    flows = repository()
    found: dict[str, Any] = {"workflows": {}, "versions": {}, "triggers": {}, "runs": {}}
    for workflow in workflows_file("SELECT id FROM workflows"):
        own = uuid.UUID(workflow)
        found["workflows"][workflow] = await tried(flows.get_workflow, own)
        found["triggers"][workflow] = {
            "webhook": await tried(flows.get_webhook_trigger_config, own),
            "cron": await tried(flows.get_cron_trigger_config, own),
            "retry": await tried(flows.get_retry_policy_config, own),
        }
        if is_bridge():
            last = flows._trigger_layer.get_cron_last_dispatched_at(own)
            found["triggers"][workflow]["cron last dispatched"] = exact(last)
            found["workflows"][workflow]["workspace of the row"] = await flows.get_workflow_workspace_id(own)
    for version in workflows_file("SELECT id FROM workflow_versions"):
        found["versions"][version] = await tried(flows.get_version, uuid.UUID(version))
    for run in workflows_file("SELECT id FROM workflow_runs"):
        found["runs"][run] = await tried(flows.get_run, uuid.UUID(run))
    return found


async def executions() -> dict[str, Any]:
    """Histories with their steps, and agentensor's checkpoints."""
    history = call("orcheo_backend.app.dependencies", "get_history_store")
    agentensor = call("orcheo_backend.app.dependencies", "get_checkpoint_store")
    return {
        "executions": {
            each: await tried(history.get_history, each)
            for each in workflows_file("SELECT execution_id FROM execution_history")
        },
        "agentensor": {
            each: await tried(agentensor.get_checkpoint, each)
            for each in workflows_file("SELECT id FROM agentensor_checkpoints")
        },
    }


async def bridge() -> dict[str, Any]:
    """Listeners, cursors, plugins, remediations, workspaces. No store gives `listener_dedupe` back: its columns are here."""
    flows = repository()
    found: dict[str, Any] = {"listeners": {}, "listener cursors": {}, "remediations": {}, "workspaces": {}}
    for each in workflows_file("SELECT id FROM listener_subscriptions"):
        found["listeners"][each] = await tried(flows.get_listener_subscription, uuid.UUID(each))
    for each in workflows_file("SELECT subscription_id FROM listener_cursors"):
        found["listener cursors"][each] = await tried(flows.get_listener_cursor, uuid.UUID(each))
    dedupe = workflows_file("SELECT subscription_id, dedupe_key, expires_at FROM listener_dedupe")
    found["listener dedupe"] = sorted(map(exact, dedupe))
    for each in workflows_file("SELECT id FROM workflow_run_remediations"):
        found["remediations"][each] = await tried(flows.get_remediation_candidate, uuid.UUID(each))
    plugins = await call("orcheo_backend.app.dependencies", "get_plugin_installation_store").list_plugin_states()
    found["plugins"] = sorted(map(exact, plugins), key=lambda each: (each["workspace_id"], each["plugin_name"]))
    workspaces = call("orcheo_backend.app.workspace", "get_workspace_repository")
    for each in ids("ORCHEO_WORKSPACE_SQLITE_PATH", "SELECT id FROM workspaces"):
        own = uuid.UUID(each)
        found["workspaces"][each] = exact(workspaces.get_workspace(own)) | {
            "memberships": _sorted(workspaces.list_memberships_for_workspace(own)),
            "audit events": _sorted(workspaces.list_audit_events(own, limit=10**6)),
        }
    return found


def _sorted(models: Any, key: str = "id") -> list[Any]:
    return sorted(map(exact, models), key=lambda each: str(each[key]))


async def chats() -> dict[str, Any]:
    """Threads with their items, and attachments with their files as the app finds them: by id and name in its storage folder."""
    store = call("orcheo_backend.app.chatkit_runtime", "get_chatkit_server").store
    found: dict[str, Any] = {"threads": {}, "attachments": {}}
    for thread in ids("ORCHEO_CHATKIT_SQLITE_PATH", "SELECT id FROM chat_threads"):
        items: list[Any] = []
        after, more = None, True
        while more:
            page = await store.load_thread_items(thread, after, PAGE, "asc", {})
            items, after, more = [*items, *map(exact, page.data)], page.after, page.has_more
        found["threads"][thread] = await tried(store.load_thread, thread, {}) | {"items": items}
    for each in ids("ORCHEO_CHATKIT_SQLITE_PATH", "SELECT id FROM chat_attachments"):
        attachment = await store.load_attachment(each, {})
        file = Path(os.environ["ORCHEO_CHATKIT_STORAGE_PATH"]) / f"{attachment.id}_{attachment.name}"
        content = hashlib.sha256(file.read_bytes()).hexdigest() if "\0" not in str(file) and file.is_file() else None
        found["attachments"][each] = exact(attachment) | {"sha256": content}
    return found


async def tokens() -> dict[str, Any]:
    """Service tokens and the log of each."""
    path = os.environ["ORCHEO_AUTH_SERVICE_TOKEN_DB_PATH"]
    if not Path(path).is_file():
        return {"tokens": {}, "token log": {}}
    store = call("orcheo_backend.app.service_token_repository", "SqliteServiceTokenRepository", path)
    found = {each.identifier: exact(each) for each in await store.list_all()}
    log = {}
    for each in ids("ORCHEO_AUTH_SERVICE_TOKEN_DB_PATH", "SELECT DISTINCT token_id FROM service_token_audit_log"):
        log[each] = sorted(map(exact, await store.get_audit_log(each, limit=10**6)), key=lambda event: event["id"])
    return {"tokens": found, "token log": log}


def vault() -> dict[str, Any]:
    """Credentials with their secrets, templates and alerts."""
    store = call("orcheo_backend.app.dependencies", "get_vault")
    found: dict[str, Any] = {"credentials": {}}
    for each in store._iter_metadata():  # the listing of every scope, which the API's is made of
        oauth = each.reveal_oauth_tokens(cipher=store._cipher)
        secrets = {"secret": exact(each.reveal(cipher=store._cipher)), "oauth": exact(oauth)}
        found["credentials"][str(each.id)] = exact(each) | {"revealed": secrets}
    found["templates"] = {str(each.id): exact(each) for each in store._iter_templates()}
    found["alerts"] = {str(each.id): exact(each) for each in store._iter_alerts()}
    return found


async def langgraph() -> dict[str, Any]:
    """Every checkpoint of every thread with its writes, oldest first; and the items of the store."""
    settings = call("orcheo.config", "get_settings")
    found: dict[str, Any] = {"checkpoints": {}}
    threads = ids("ORCHEO_SQLITE_PATH", "SELECT DISTINCT thread_id, checkpoint_ns FROM checkpoints")
    async with call("orcheo.persistence", "create_checkpointer", settings) as saver:
        for thread, space in threads:
            config = {"configurable": {"thread_id": thread, "checkpoint_ns": space}}
            states = [exact(each._asdict()) async for each in saver.alist(config)]
            latest = await saver.aget_tuple(config)
            assert exact(latest.checkpoint) == states[0]["checkpoint"], thread
            found["checkpoints"].setdefault(thread, {})[space] = states[::-1]
    if is_bridge():
        found["store"] = {}
        async with call("orcheo.persistence", "create_graph_store", settings) as store:
            for prefix, key in ids("ORCHEO_GRAPH_STORE_SQLITE_PATH", "SELECT prefix, key FROM store"):
                item = await tried(store.aget, tuple(prefix.split(".")), key)
                found["store"].setdefault(prefix, {})[key] = item
    return found


async def everything() -> dict[str, Any]:
    flows = repository()
    await flows._ensure_initialized()
    found = {"release": "bridge" if is_bridge() else "0.15.0"}
    parts = [workflows(), executions(), chats(), tokens(), langgraph(), *([bridge()] if is_bridge() else [])]
    for part in parts:
        found |= await part
    return found | vault()


def read(given: dict[str, Any]) -> dict[str, Any]:
    """All of it, from a copy, because the stores write when they open their files."""
    folder = Path(os.environ["ORCHEO_REPOSITORY_SQLITE_PATH"]).parent
    shutil.copytree(given["source"], folder)
    assert {Path(os.environ[name]).name for name in FILES} == set(FILES.values())
    get("orcheo_backend", "app")  # its settings and stores refer to each other; this import puts them in order
    return asyncio.new_event_loop().run_until_complete(everything())


if __name__ == "__main__":
    program(read)
