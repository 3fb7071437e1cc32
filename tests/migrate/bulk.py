"""Bulk data by an old release's own stores, for benchmarks; runs inside its image (`python -m`).

The stores open a connection and commit for every row. Here they are handed one connection that does its work at once and commits
now and then: their code and their SQL, hence the rows, are the same, a hundred times faster.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from tests.migrate.inside import call, get, is_bridge, program, repository

# What part of the bytes each kind of row gets; steps are most of what real installations keep.
SHARES = {"steps": 0.6, "messages": 0.15, "runs": 0.05, "checkpoints": 0.2}
COMMIT_EVERY = 2000
STEPS, MESSAGES, STATES, WORKFLOWS = 12, 20, 6, 10  # of an execution, of a thread, of a LangGraph thread, in all


class Cursor:
    """An aiosqlite cursor whose answers are there at once."""

    def __init__(self, raw: sqlite3.Cursor) -> None:
        self.raw = raw

    def __await__(self) -> Generator[None, None, Cursor]:
        yield from ()
        return self

    async def __aenter__(self) -> Cursor:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.raw.close()

    async def __aiter__(self) -> AsyncIterator[Any]:
        for row in self.raw:
            yield row

    @property
    def rowcount(self) -> int:
        return self.raw.rowcount

    async def execute(self, sql: str, parameters: Any = ()) -> Cursor:
        self.raw.execute(sql, parameters)
        return self

    async def executemany(self, sql: str, parameters: Any) -> Cursor:
        self.raw.executemany(sql, parameters)
        return self

    async def fetchone(self) -> Any:
        return self.raw.fetchone()

    async def fetchall(self) -> list[Any]:
        return self.raw.fetchall()


class Connection:
    """An aiosqlite connection for one thread, which commits every so often."""

    def __init__(self, setting: str, *, named_columns: bool = True) -> None:
        self.raw, self.commits = sqlite3.connect(os.environ[setting]), 0
        if named_columns:
            self.raw.row_factory = sqlite3.Row

    def __await__(self) -> Generator[None, None, Connection]:
        yield from ()
        return self

    def execute(self, sql: str, parameters: Any = ()) -> Cursor:
        return Cursor(self.raw.execute(sql, parameters))

    def executescript(self, sql: str) -> Cursor:
        return Cursor(self.raw.executescript(sql))

    def cursor(self) -> Cursor:
        return Cursor(self.raw.cursor())

    def is_alive(self) -> bool:
        return True

    async def commit(self) -> None:
        self.commits += 1
        if self.commits % COMMIT_EVERY == 0:
            self.raw.commit()

    def end(self) -> None:
        self.raw.commit()
        self.raw.close()

    def opener(self) -> Callable[..., AbstractAsyncContextManager[Connection]]:
        """What a store calls for a connection of its own."""

        @asynccontextmanager
        async def opened(*_: Any) -> AsyncIterator[Connection]:
            yield self
            await self.commit()

        return opened


class Filler:
    """Rows of all kinds until each has its share of the bytes."""

    def __init__(self, megabytes: int) -> None:
        # A fifth of a file is its pages' and indexes' own.
        self.bytes = {kind: int(share * megabytes * 800_000) for kind, share in SHARES.items()}
        self.count = dict.fromkeys(("executions", "steps", "threads", "messages", "runs", "checkpoints", "writes"), 0)
        self.random = random.Random(7)  # the same texts every time
        words = ["".join(self.random.choices("aeioulnrst", k=self.random.randint(2, 11))) for _ in range(4000)]
        self.text = " ".join(self.random.choices(words, k=200_000))
        self.workspace: str | None = None
        self.scoped: dict[str, Any] = {}

    def words(self, least: int, most: int) -> str:
        """Some text of so many characters."""
        start = self.random.randrange(len(self.text) - most)
        return self.text[start : start + self.random.randint(least, most)]

    async def all(self) -> dict[str, Any]:
        """Everything; how many rows of each kind there are now."""
        get("orcheo_backend", "app")  # its settings and stores refer to each other; this import puts them in order
        started = time.monotonic()
        flows = repository()
        history = call("orcheo_backend.app.dependencies", "get_history_store")
        await flows._ensure_initialized()
        await history._ensure_initialized()
        if is_bridge():
            workspaces = call("orcheo_backend.app.workspace", "get_workspace_repository")
            self.workspace = str(call("orcheo.workspace", "ensure_default_workspace", workspaces).id)
            self.scoped = {"workspace_id": self.workspace}
            governance = call("orcheo_backend.app.workspace_governance", "get_workspace_governance")
            governance._redis = None  # there is none; it would be asked for every run
        versions = [await self.version(number) for number in range(WORKFLOWS)]
        connection = Connection("ORCHEO_REPOSITORY_SQLITE_PATH")
        flows._connection = connection.opener()
        get("sys", "modules")["orcheo_backend.app.history.sqlite_store"].connect_sqlite = connection.opener()
        await self.executions(history, versions)
        await self.runs(versions)
        connection.end()
        await self.chats(versions)
        await self.langgraph()
        return {**self.count, "workspace": self.workspace, "seconds": round(time.monotonic() - started, 1)}

    async def version(self, number: int) -> Any:
        """A workflow with one version."""
        named: dict[str, Any] = {
            "name": f"Bulk {number}",
            "slug": None,
            "description": None,
            "tags": [],
            "actor": "bulk",
        }
        if is_bridge():
            access = get("orcheo.models.workflow", "WorkflowDraftAccess").PERSONAL
            named |= {"handle": f"bulk-{number}-{uuid.uuid4().hex[:6]}", "draft_access": access, **self.scoped}
        workflow = await repository().create_workflow(**named)
        return await repository().create_version(
            workflow.id, graph={"nodes": []}, metadata={}, notes=None, created_by="bulk"
        )

    async def executions(self, history: Any, versions: list[Any]) -> None:
        left = self.bytes["steps"]
        while left > 0:
            name = str(uuid.uuid4())
            workflow = str(self.random.choice(versions).workflow_id)
            await history.start_run(
                workflow_id=workflow, execution_id=name, inputs={"q": self.words(20, 200)}, **self.scoped
            )
            for step in range(STEPS):
                said = {"type": "ai", "content": self.words(700, 7500), "id": str(uuid.uuid4()), "tool_calls": []}
                results = {
                    "score": self.random.random(),
                    "tokens": self.random.randrange(4000),
                    "ok": True,
                    "note": None,
                }
                payload = {f"node_{step}": {"messages": [said], "results": {f"node_{step}": results}}}
                await history.append_step(name, payload)
                left -= len(said["content"]) + 250
            await history.mark_completed(name)
            self.count["executions"] += 1
            self.count["steps"] += STEPS

    async def runs(self, versions: list[Any]) -> None:
        left = self.bytes["runs"]
        while left > 0:
            version = self.random.choice(versions)
            inputs, output = {"message": self.words(500, 4000)}, {"reply": self.words(500, 4000)}
            run = await repository().create_run(
                version.workflow_id,
                workflow_version_id=version.id,
                triggered_by="bulk",
                input_payload=inputs,
                **self.scoped,
            )
            if self.workspace:
                call("orcheo_backend.app.workspace_governance", "get_workspace_governance").release_run_slot(
                    self.workspace
                )
            await repository().mark_run_started(run.id, actor="bulk")
            await repository().mark_run_succeeded(run.id, actor="bulk", output=output)
            left -= len(json.dumps([inputs, output])) + 900
            self.count["runs"] += 1

    async def chats(self, versions: list[Any]) -> None:
        store, types = call("orcheo_backend.app.chatkit_runtime", "get_chatkit_server").store, "chatkit.types"
        await store._ensure_initialized()
        connection = Connection("ORCHEO_CHATKIT_SQLITE_PATH")
        store._connection = connection.opener()
        text, item = get(types, "AssistantMessageContent"), get(types, "AssistantMessageItem")
        left = self.bytes["messages"]
        while left > 0:
            own, now = str(self.random.choice(versions).workflow_id), datetime.now(UTC)
            context = {"workflow_id": own, **self.scoped}
            name = f"thr_{uuid.uuid4().hex[:8]}{self.count['threads']}"
            thread = call(types, "ThreadMetadata", id=name, title="Bulk", created_at=now, metadata={"workflow_id": own})
            await store.save_thread(thread, context)
            for number in range(MESSAGES):
                content = self.words(200, 3000)
                message = item(id=f"{name}_{number}", thread_id=name, created_at=now, content=[text(text=content)])
                await store.add_thread_item(name, message, context)
                left -= len(content) + 350
            self.count["threads"] += 1
            self.count["messages"] += MESSAGES
        connection.end()

    async def langgraph(self) -> None:
        """Threads whose state grows by a message a step, as a chat's does."""
        connection = Connection("ORCHEO_SQLITE_PATH", named_columns=False)
        saver = call("langgraph.checkpoint.sqlite.aio", "AsyncSqliteSaver", connection)
        empty, message = (
            get("langgraph.checkpoint.base", "empty_checkpoint"),
            get("langchain_core.messages", "AIMessage"),
        )
        left = self.bytes["checkpoints"]
        while left > 0:
            config: Any = {"configurable": {"thread_id": str(uuid.uuid4()), "checkpoint_ns": ""}}
            messages: list[Any] = []
            versions: dict[str, str] = {}
            for step in range(STATES):
                messages.append(message(content=self.words(300, 3000), id=str(uuid.uuid4())))
                versions = {name: saver.get_next_version(versions.get(name), None) for name in ("messages", "results")}
                values = {"messages": messages, "results": {"step": step}}
                checkpoint = empty() | {"channel_values": values, "channel_versions": versions}
                config = await saver.aput(config, checkpoint, {"source": "loop", "step": step, "parents": {}}, versions)
                await saver.aput_writes(
                    config, [("messages", messages[-1:]), ("results", {"step": step})], str(uuid.uuid4())
                )
                left -= sum(len(each.content) + 250 for each in (*messages, messages[-1])) + 600
            self.count["checkpoints"] += STATES
            self.count["writes"] += 2 * STATES
        connection.end()


def fill(given: dict[str, Any]) -> dict[str, Any]:
    return asyncio.new_event_loop().run_until_complete(Filler(given["megabytes"]).all())


if __name__ == "__main__":
    program(fill)
