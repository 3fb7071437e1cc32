"""Rows with strange values in every store that takes them; runs inside an old release's image, after the ordinary rows."""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.migrate.inside import call, get, is_bridge, repository
from tests.migrate.strange import NUL, TIMES, VALUES, Notes


class Strange:
    """One pass; `notes` says which place kept which value under which id."""

    def __init__(self, made: dict[str, Any]) -> None:
        self.made, self.notes, self.label = made, Notes(), made["label"]
        # The bridge counts all runs of a workspace before it makes a workflow, and answers 500 when it can't read one.
        self.workspace = made["workspaces"][1] if is_bridge() else None
        self.scoped: dict[str, Any] = {"workspace_id": self.workspace} if is_bridge() else {}
        self.repository = repository()

    async def everything(self) -> dict[str, Any]:
        """All places."""
        await self.workflow_rows()
        await self.executions()
        await self.chats()
        await self.tokens()
        await self.vault()
        await self.langgraph()
        if is_bridge():
            await self.bridge()
        return {"kept": self.notes.kept, "refused": self.notes.refused}

    async def workflow_rows(self) -> None:
        """Versions and runs: what they hold goes through Pydantic on its way to JSON."""
        # A workflow of their own: the API shows no list with one row that it can't read or send.
        latest = (await self.repository.list_versions(uuid.UUID(self.made["workflows"]["main"])))[-1]
        new: dict[str, Any] = {
            "name": f"Strange {self.label}",
            "slug": None,
            "description": NUL,
            "tags": [NUL],
            "actor": NUL,
        }
        if is_bridge():
            access = get("orcheo.models.workflow", "WorkflowDraftAccess").PERSONAL
            new |= {"handle": None, "draft_access": access, **self.scoped}
        other = (await self.repository.create_workflow(**new)).id
        self.workflow = self.made["workflows"]["strange"] = str(other)
        fine = await self.repository.create_version(other, graph=latest.graph, metadata={}, notes=None, created_by=NUL)

        async def version(kind: str, value: Any) -> Any:
            metadata = {"value": value, "kind": kind}
            return (
                await self.repository.create_version(other, graph={}, metadata=metadata, notes=kind, created_by="s")
            ).id

        async def run(kind: str, value: Any) -> Any:
            payload = {"value": value, "kind": kind}
            made = await self.repository.create_run(
                other, workflow_version_id=fine.id, triggered_by="strange", input_payload=payload, **self.scoped
            )
            if is_bridge():  # at most 25 may be under way
                call("orcheo_backend.app.workspace_governance", "get_workspace_governance").release_run_slot(
                    self.workspace
                )
            return made.id

        async def text(trigger: str) -> Any:
            made = await self.repository.create_run(
                other, workflow_version_id=fine.id, triggered_by=trigger, input_payload={}, **self.scoped
            )
            await self.repository.mark_run_started(made.id, actor=trigger)
            await self.repository.mark_run_failed(made.id, actor=trigger, error=trigger)
            return made.id

        await self.notes.each("versions", VALUES, version)
        await self.notes.each("runs", VALUES, run)
        await self.notes.one("run text", "nul", text, NUL)
        await self.notes.one("run text", "empty", text, "")

    async def executions(self) -> None:
        """Histories with steps, and agentensor's checkpoints: plain JSON text."""
        history = call("orcheo_backend.app.dependencies", "get_history_store")
        agentensor = call("orcheo_backend.app.dependencies", "get_checkpoint_store")

        async def execution(kind: str, value: Any) -> str:
            name = f"strange-{self.label}-{kind}"
            await history.start_run(
                workflow_id=self.workflow,
                execution_id=name,
                inputs={"value": value},
                metadata={"value": value},
                **self.scoped,
            )
            await history.append_step(name, {"value": value})
            await history.mark_completed(name)
            return name

        async def timed(kind: str, value: datetime) -> str:
            name = f"strange-{self.label}-{kind}"
            await history.start_run(
                workflow_id=self.workflow, execution_id=name, trace_id="", trace_started_at=value, **self.scoped
            )
            return name

        async def text(value: str) -> str:
            name = f"strange-{self.label}-text-{value}"
            await history.start_run(
                workflow_id=f"none-{value}",
                execution_id=name,
                run_name=value,
                tags=[value],
                trace_id=value,
                **self.scoped,
            )
            await history.mark_failed(name, value)
            return name

        async def checkpoint(kind: str, value: Any) -> Any:
            made = await agentensor.record_checkpoint(
                workflow_id=self.workflow,
                runnable_config={"value": value},
                metrics={"value": value},
                metadata={"kind": kind},
                artifact_url=NUL if kind == "nul" else None,
                **self.scoped,
            )
            return made.id

        await self.notes.each("executions", VALUES, execution)
        await self.notes.each("execution times", TIMES, timed)
        await self.notes.one("execution text", "nul", text, NUL)
        await self.notes.one("execution text", "empty", text, "")
        await self.notes.each("agentensor", VALUES, checkpoint)

    async def chats(self) -> None:
        """Threads, items and attachments: JSON with characters as they are, so no lone surrogate."""
        store, types = call("orcheo_backend.app.chatkit_runtime", "get_chatkit_server").store, "chatkit.types"
        context, now = {"workflow_id": self.workflow, **self.scoped}, datetime.now(UTC)

        def thread(kind: str, **values: Any) -> Any:
            named = {"id": f"thr_strange_{self.label}_{kind}", "title": kind, "created_at": now}
            return call(types, "ThreadMetadata", **named | values)

        async def metadata(kind: str, value: Any) -> Any:
            made = thread(kind, metadata={"value": value, "workflow_id": self.workflow})
            await store.save_thread(made, context)
            item = {"id": f"msg_strange_{self.label}_{kind}", "thread_id": made.id, "created_at": now}
            await store.add_thread_item(
                made.id, call(types, "HiddenContextItem", **item, content={"value": value}), context
            )
            return made.id

        async def timed(kind: str, value: datetime) -> Any:
            made = thread(kind, created_at=value)
            await store.save_thread(made, context)
            item = {"id": f"msg_strange_{self.label}_{kind}", "thread_id": made.id, "created_at": value}
            await store.add_thread_item(made.id, call(types, "HiddenContextItem", **item, content=kind), context)
            return made.id

        async def title(kind: str, value: Any) -> Any:
            made = thread(kind, title=value)
            await store.save_thread(made, context)
            return made.id

        async def attachment(kind: str, name: str) -> Any:
            made = call(types, "FileAttachment", id=f"atc_strange_{self.label}_{kind}", name=name, mime_type="")
            folder = Path(os.environ["ORCHEO_CHATKIT_STORAGE_PATH"])
            path = folder / (f"{made.id}_{name}" if "\0" not in name else f"{made.id}_without")
            path.write_bytes(bytes(range(256)) * 1200)
            await store.save_attachment(made, context, storage_path=str(path))
            return made.id

        await self.notes.each("threads", VALUES, metadata)
        await self.notes.each("thread times", TIMES, timed)
        await self.notes.each("thread titles", {"title nul": NUL, "title empty": "", "title none": None}, title)
        await self.notes.each("attachments", {"bytes": "\u00e9 name.bin", "nul": NUL, "empty": ""}, attachment)

    async def tokens(self) -> None:
        """Service tokens and their log: times as text, details as JSON."""
        path = os.environ["ORCHEO_AUTH_SERVICE_TOKEN_DB_PATH"]
        store = call("orcheo_backend.app.service_token_repository", "SqliteServiceTokenRepository", path)
        record = get("orcheo_backend.app.authentication", "ServiceTokenRecord")

        async def timed(kind: str, value: datetime) -> str:
            name = f"strange-{self.label}-{kind}"
            times = {"issued_at": value, "expires_at": value, "rotation_expires_at": value, "revoked_at": value}
            await store.create(record(identifier=name, secret_hash=name, revocation_reason="", **times, **self.scoped))
            return name

        async def text(value: str) -> str:
            name = f"strange-{self.label}-{value}"
            await store.create(
                record(
                    identifier=name,
                    secret_hash=name,
                    scopes=frozenset([value, "b"]),
                    revocation_reason=value,
                    **self.scoped,
                )
            )
            await store.record_audit_event(name, value, actor=value, ip=value, details={value: value})
            return name

        async def detail(kind: str, value: Any) -> str:
            await store.record_audit_event(f"{self.label}-used", kind, actor="strange", details={"value": value})
            return kind

        await self.notes.each("token times", TIMES, timed)
        await self.notes.one("token text", "nul", text, NUL)
        await self.notes.one("token text", "empty", text, "")
        await self.notes.each("token log", VALUES, detail)

    async def vault(self) -> None:
        """Credentials, templates and alerts."""
        vault = call("orcheo_backend.app.dependencies", "get_vault")
        kinds, severities = (
            get("orcheo.models", "GovernanceAlertKind"),
            get("orcheo.models", "SecretGovernanceAlertSeverity"),
        )
        oauth = get("orcheo.models", "OAuthTokenSecrets")

        async def text(kind: str, value: str) -> Any:
            short = value[:40]
            names = {"name": f"{self.label} {kind} {short}", "provider": short, "scopes": [short], "actor": short}
            made = vault.create_credential(**names, secret=value, **self.scoped)
            vault.create_template(**names, description=value, **self.scoped)
            alert = {"kind": kinds.VALIDATION_FAILED, "severity": severities.INFO, "message": value, "actor": value}
            vault.record_alert(**alert, credential_id=made.id, **self.scoped)
            return made.id

        async def timed(kind: str, value: datetime) -> Any:
            tokens = oauth(access_token=kind, expires_at=value)
            names = {"name": f"{self.label} time {kind}", "provider": "p", "scopes": [], "actor": "s", "kind": "oauth"}
            scope = get("orcheo.models", "CredentialScope").for_workflows(
                uuid.UUID(int=5)
            )  # see rows.py: it is unhealthy
            return vault.create_credential(**names, secret=kind, oauth_tokens=tokens, scope=scope, **self.scoped).id

        texts = {kind: value for kind, value in VALUES.items() if isinstance(value, str)}
        await self.notes.each("credentials", {**texts, "long": "\u00e9" * 150_000}, text)
        await self.notes.each("credential times", TIMES, timed)

    async def langgraph(self) -> None:
        """Checkpoints and writes by the saver, as a run makes them."""
        settings = call("orcheo.config", "get_settings")
        async with call("orcheo.persistence", "create_checkpointer", settings) as saver:

            async def state(kind: str, value: Any) -> str:
                thread = NUL if kind == "nul" else f"strange-{self.label}-{kind}"
                config = {"configurable": {"thread_id": thread, "checkpoint_ns": "inner" if kind == "empty" else ""}}
                version = saver.get_next_version(None, None)
                checkpoint = call("langgraph.checkpoint.base", "empty_checkpoint")
                checkpoint |= {"channel_values": {"value": value}, "channel_versions": {"value": version}}
                put = await saver.aput(
                    config, checkpoint, {"source": "loop", "step": 1, "kind": kind}, {"value": version}
                )
                await saver.aput_writes(put, [("value", value)], str(uuid.uuid4()))
                return thread

            pairs = {
                "pair": (1, b"\x00\xff"),
                "set": {1, 2},
                "uuid": uuid.UUID(int=7),
                "time": TIMES["kathmandu"],
                "naive": TIMES["naive"],
            }
            await self.notes.each("checkpoints", {**VALUES, **pairs}, state)

    async def bridge(self) -> None:
        """Plugins, listeners' cursors, LangGraph's store, workspaces."""
        plugins = call("orcheo_backend.app.dependencies", "get_plugin_installation_store")
        settings, workspaces = (
            call("orcheo.config", "get_settings"),
            call("orcheo_backend.app.workspace", "get_workspace_repository"),
        )
        listener = (await self.repository.list_listener_subscriptions())[0].id

        async def plugin(value: str) -> str:
            await plugins.set_plugin_enabled(value, workspace_id=self.workspace, enabled=True)
            return value

        async def cursor(kind: str, value: Any) -> Any:  # of a subscription that is not there: the store does not ask
            own = uuid.uuid5(listener, kind)
            await self.repository.save_listener_cursor(
                call("orcheo.listeners", "ListenerCursor", subscription_id=own, metadata={"value": value})
            )
            return own

        async def event(kind: str, value: Any) -> Any:
            record = get("orcheo.workspace", "WorkspaceAuditEvent")
            made = record(workspace_id=uuid.UUID(self.workspace), action=kind, actor=NUL, details={"value": value})
            return workspaces.record_audit_event(made).id

        await self.notes.one("plugins", "nul", plugin, NUL)
        await self.notes.one("plugins", "empty", plugin, "")
        await self.notes.each("cursors", VALUES, cursor)
        if os.environ["ORCHEO_WORKSPACE_BACKEND"] == "sqlite":
            await self.notes.each("workspace events", VALUES, event)
        async with call("orcheo.persistence", "create_graph_store", settings) as store:

            async def item(kind: str, value: Any) -> str:
                key = NUL if kind == "nul" else kind
                await store.aput(("strange", self.label), key, {"value": value})
                return key

            await self.notes.each("store", VALUES, item)


async def strange_rows(made: dict[str, Any]) -> dict[str, Any]:
    """Write them all; which place kept which value under which id, and what was refused."""
    return await Strange(made).everything()
