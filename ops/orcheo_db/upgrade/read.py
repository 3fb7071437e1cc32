"""Reading everything through the installed release's own stores, workspace by workspace, as its API does.

What each store gives is counted against what PostgreSQL has; credentials are decrypted, LangGraph's states decoded.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg

from orcheo_db.bootstrap.job import APP_LOGINS, SESSION_OPTIONS, Job
from orcheo_db.runtime import workarounds
from orcheo_db.upgrade.inspect import vault_key
from orcheo_db.upgrade.workspaces import Workspace

PAGE = 1000  # chat messages and threads read at a time
DECODED = (
    1000  # LangGraph threads and store items decoded, the newest first: their formats don't differ from row to row
)


@dataclass
class Seen:
    """What the stores gave: kind of row to number. `problems`: what they did not give."""

    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, count: int, expected: int, where: str) -> None:
        """Note what was seen of a kind and compare it with what is there."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        if count != expected:
            self.problems.append(f"the app shows {count} of {expected} {kind} of {where}")


class Reader:
    """One pass over all stores. `sql`: the truth; what it counts is compared with what a store gives."""

    def __init__(self, sql: psycopg.Connection[Any], seen: Seen, *, decrypt: bool) -> None:
        self.sql, self.seen, self.decrypt = sql, seen, decrypt

    def count(self, table: str, where: str, *parameters: Any) -> int:
        row = self.sql.execute(f"SELECT count(*) FROM public.{table} WHERE {where}".encode(), parameters).fetchone()  # noqa: S608
        return int(row[0]) if row else 0

    def values(self, query: str, *parameters: Any) -> list[Any]:
        return self.sql.execute(query.encode(), parameters).fetchall()

    async def workspace(self, workspace: Workspace) -> None:
        own, where = workspace.id, f"workspace {workspace.slug}"
        repository = _call("orcheo_backend.app.dependencies", "get_repository")
        workflows = await repository.list_workflows(include_archived=True, workspace_id=own)
        self.seen.add("workflows", len(workflows), self.count("workflows", "workspace_id = %s", own), where)
        for workflow in workflows:
            await self._workflow(repository, str(workflow.id), own)
        self._vault(own, where)
        await self._tokens(own, where)
        await self._chats(own, where)
        plugins = await _call("orcheo_backend.app.dependencies", "get_plugin_installation_store").list_plugin_states(
            workspace_id=own
        )
        self.seen.add(
            "plugin states", len(plugins), self.count("plugin_installations", "workspace_id = %s", own), where
        )

    async def _workflow(self, repository: Any, workflow: str, own: str) -> None:
        where = f"workflow {workflow}"
        of_workflow, of_both = "workflow_id = %s", "workflow_id = %s AND workspace_id = %s"
        versions = await repository.list_versions(UUID(workflow))
        self.seen.add("versions", len(versions), self.count("workflow_versions", of_workflow, workflow), where)
        runs = await repository.list_runs_for_workflow(UUID(workflow), workspace_id=own)
        self.seen.add("runs", len(runs), self.count("workflow_runs", of_workflow, workflow), where)
        for run in runs[:1]:
            await repository.get_run(run.id, workspace_id=own)
        listeners = await repository.list_listener_subscriptions(workflow_id=UUID(workflow))
        self.seen.add("listeners", len(listeners), self.count("listener_subscriptions", of_workflow, workflow), where)
        history = _call("orcheo_backend.app.dependencies", "get_history_store")
        records = await history.list_histories(workflow, workspace_id=own)
        self.seen.add("executions", len(records), self.count("execution_history", of_workflow, workflow), where)
        steps = "execution_id IN (SELECT execution_id FROM execution_history WHERE workflow_id = %s)"
        self.seen.add(
            "steps", sum(len(r.steps) for r in records), self.count("execution_history_steps", steps, workflow), where
        )
        agentensor = _call("orcheo_backend.app.dependencies", "get_checkpoint_store")
        found = await agentensor.list_checkpoints(workflow, workspace_id=own)
        self.seen.add(
            "agentensor checkpoints", len(found), self.count("agentensor_checkpoints", of_both, workflow, own), where
        )

    def _vault(self, own: str, where: str) -> None:
        vault = _call("orcheo_backend.app.dependencies", "get_vault")
        context_of = _get("orcheo.models", "CredentialAccessContext")
        found = vault.list_all_credentials(workspace_id=own)
        self.seen.add("credentials", len(found), self.count("credentials", "workspace_id = %s", own), where)
        opened = 0
        for credential in found if self.decrypt else ():
            scope = credential.scope
            context = context_of(
                workspace_id=UUID(own),
                workflow_id=scope.workflow_ids[0] if scope.workflow_ids else None,
                roles=list(scope.roles),
            )
            # An empty secret is one.
            opened += vault.reveal_secret(credential_id=credential.id, context=context) is not None
        if self.decrypt:
            self.seen.add("credentials decrypted", opened, len(found), where)
        # Without a context the stores give every scope; what they filter is the workspace.
        templates = list(vault._iter_templates(workspace_id=own))
        alerts = list(vault._iter_alerts(workspace_id=own))
        self.seen.add(
            "credential templates", len(templates), self.count("credential_templates", "workspace_id = %s", own), where
        )
        self.seen.add("alerts", len(alerts), self.count("governance_alerts", "workspace_id = %s", own), where)
        for item in (*templates, *alerts):
            if item.workspace_id not in (None, own):
                self.seen.problems.append(
                    f"{type(item).__name__} {item.id} of {where} names another workspace in its payload"
                )

    async def _tokens(self, own: str, where: str) -> None:
        tokens = _get(
            "orcheo_backend.app.service_token_repository.postgres_repository", "PostgresServiceTokenRepository"
        )
        repository = tokens(os.environ["ORCHEO_POSTGRES_DSN"])
        active = "workspace_id = %s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"
        found = await repository.list_for_workspace(own)
        self.seen.add("service tokens", len(found), self.count("service_tokens", active, own), where)
        for token in found:
            log = await repository.get_audit_log(token.identifier, limit=100000)
            self.seen.add(
                "token events",
                len(log),
                self.count("service_token_audit_log", "token_id = %s", token.identifier),
                where,
            )
        await repository.close()

    async def _chats(self, own: str, where: str) -> None:
        store = _call("orcheo_backend.app.chatkit_runtime", "get_chatkit_server").store
        seen, messages, after = 0, 0, None
        context: Any = {"workspace_id": own}
        while True:
            page = await store.load_threads(PAGE, after, "asc", context)
            for thread in page.data:
                messages += await self._messages(store, thread.id, context)
            seen += len(page.data)
            after = page.after
            if not page.has_more:
                break
        self.seen.add("chat threads", seen, self.count("chat_threads", "workspace_id = %s", own), where)
        wanted = self.count("chat_messages", "thread_id IN (SELECT id FROM chat_threads WHERE workspace_id = %s)", own)
        self.seen.add("chat messages", messages, wanted, where)

    async def _messages(self, store: Any, thread: str, context: Any) -> int:
        count, after = 0, None
        while True:
            page = await store.load_thread_items(thread, after, PAGE, "asc", context)
            count, after = count + len(page.data), page.after
            if not page.has_more:
                return count

    async def langgraph(self) -> None:
        settings = _get("orcheo.config", "get_settings")(refresh=True)
        threads = self.values("SELECT DISTINCT thread_id, checkpoint_ns FROM public.checkpoints LIMIT %s", DECODED)
        async with _get("orcheo.persistence", "create_checkpointer")(settings) as saver:
            got = [await saver.aget_tuple({"configurable": {"thread_id": t, "checkpoint_ns": ns}}) for t, ns in threads]
        self.seen.add("LangGraph threads", sum(found is not None for found in got), len(threads), "the database")
        items = self.values("SELECT prefix, key FROM public.store LIMIT %s", DECODED)
        async with _get("orcheo.persistence", "create_graph_store")(settings) as store:
            got = [await store.aget(tuple(prefix.split(".")), key) for prefix, key in items]
        self.seen.add("graph store items", sum(found is not None for found in got), len(items), "the database")


def _get(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _call(module: str, name: str) -> Any:
    return _get(module, name)()


def environment(dsn: str) -> dict[str, str]:
    """The app's environment for reading from `dsn`: small pools, the app's own key if there is one."""
    backends = ("CHECKPOINT", "GRAPH_STORE", "REPOSITORY", "WORKSPACE", "CHATKIT", "VAULT", "AUTH_SERVICE_TOKEN")
    return {
        **{f"ORCHEO_{name}_BACKEND": "postgres" for name in backends},
        "ORCHEO_POSTGRES_DSN": dsn,
        "ORCHEO_POSTGRES_POOL_MIN_SIZE": "1",
        "ORCHEO_POSTGRES_POOL_MAX_SIZE": "2",
        # Settings refuse to load without one; nothing is decrypted with a throw-away key.
        "ORCHEO_VAULT_ENCRYPTION_KEY": vault_key() or secrets.token_hex(32),
    }


def everything(job: Job, active: Sequence[Workspace]) -> Seen:
    """Read all rows of the active workspaces, then what belongs to none (LangGraph's)."""
    seen = Seen()
    decrypt = vault_key() is not None  # before the throw-away key stands in the environment
    # Straight to the server.
    os.environ.update(
        environment(job.login(APP_LOGINS[0], options=SESSION_OPTIONS, application_name="orcheo-db upgrade"))
    )
    workarounds.apply(prepared_statements=True)
    if not decrypt:
        seen.notes.append("no vault key was given, so no credential was decrypted")
    with psycopg.connect(job.login(APP_LOGINS[0], options=SESSION_OPTIONS), autocommit=True) as connection:
        # Not asyncio.run: at its end it cancels the tasks of the app's open pools and waits for them, which now and then never
        # ends. The process goes away by os._exit (`__main__`), and the pools with it.
        loop = asyncio.new_event_loop()
        loop.run_until_complete(read_all(Reader(connection, seen, decrypt=decrypt), active))
    return seen


async def read_all(reader: Reader, active: Sequence[Workspace]) -> None:
    _call("orcheo_backend.app.dependencies", "get_repository")  # makes the stores that the others are asked for
    for workspace in [*active, None]:
        where = f"workspace {workspace.slug}" if workspace else "LangGraph's tables"
        try:
            await (reader.workspace(workspace) if workspace else reader.langgraph())
        except Exception as error:  # whatever a release raises on a row that it can't digest
            reason = " ".join(str(error).split())[:200]
            reader.seen.problems.append(f"the app can't read {where}: {type(error).__name__}: {reason}")
