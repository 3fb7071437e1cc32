"""Real rows in every store of the bridge release (orcheo 0.34.0, orcheo-backend 0.30.0), made through its own API and stores.

`populate` speaks to the API by a function `call(method, path, body)`, so it serves a backend that runs (from the host) and one
inside a process of the image (`program`).
Standard library only, because the image has no requests.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable
from typing import Any

Call = Callable[..., Any]
SCRIPT = """
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, StateGraph
from orcheo.graph.state import State


def greet(state):
    return {"messages": [AIMessage(content="hello from the bridge")], "results": {"greet": {"reply": "hello"}}}


def orcheo_workflow():
    graph = StateGraph(State)
    graph.add_node("greet", greet)
    graph.add_edge(START, "greet")
    graph.add_edge("greet", END)
    return graph
"""
SECRET = "open-sesame-{label}"


def populate(call: Call, label: str) -> dict[str, Any]:
    """Two workflows with all that the API can give them, the second archived; returns the ids."""
    made = call("POST", "/api/workflows", {"name": f"The {label}", "handle": f"{label}-invoices", "actor": "seed"})
    workflow = made["id"]
    for notes in ("first", "second"):
        body = {
            "script": SCRIPT,
            "metadata": {"by": label},
            "notes": notes,
            "created_by": "seed",
            "entrypoint": "orcheo_workflow",
        }
        call("POST", f"/api/workflows/{workflow}/versions/ingest", body)
    call("PUT", f"/api/workflows/{workflow}/triggers/webhook/config", {"allowed_methods": ["POST"]})
    call("PUT", f"/api/workflows/{workflow}/triggers/cron/config", {"expression": "0 5 * * *", "timezone": "UTC"})
    run = call(
        "POST",
        "/api/triggers/manual/dispatch",
        {"workflow_id": workflow, "actor": "seed", "runs": [{"input_payload": {"n": 1}}]},
    )[0]["id"]
    deadline = time.monotonic() + 60
    while (state := call("GET", f"/api/runs/{run}")["status"]) in (
        "pending",
        "running",
    ) and time.monotonic() < deadline:
        time.sleep(0.2)
    # The same name in every workspace: that is allowed, and collides when they become one.
    mail = call("POST", "/api/credentials", _credential("mail", label, access="shared"))
    own = call("POST", "/api/credentials", _credential(f"{label}-own", label, access="scoped", workflow_id=workflow))
    template = call(
        "POST",
        "/api/credentials/templates",
        {"name": f"{label}-template", "provider": "smtp", "scopes": [], "actor": "seed"},
    )
    token = call("POST", "/api/admin/service-tokens", {"identifier": f"{label}-token", "scopes": ["workflows:read"]})
    old = call("POST", "/api/workflows", {"name": "Old", "handle": "shared-handle", "actor": "seed"})
    call("DELETE", f"/api/workflows/{old['id']}?actor=seed", None)
    return {
        "workflow": workflow,
        "archived": old["id"],
        "run": run,
        "run_state": state,
        "credentials": [mail["id"], own["id"]],
        "template": template["id"],
        "token": token["identifier"],
        "secret": token["secret"],
    }


def program(label: str, backend: str, *, unscoped: bool = False) -> str:
    """The program for `python -` in the bridge image's backend container; it prints the ids as JSON."""
    given = {"label": label, "backend": backend, "unscoped": unscoped}
    shared = [f"SCRIPT, SECRET = {SCRIPT!r}, {SECRET!r}", inspect.getsource(populate), inspect.getsource(_credential)]
    head = "from __future__ import annotations\nimport json\nimport time"
    return "\n".join([head, *shared, f"GIVEN = json.loads({json.dumps(json.dumps(given))})", INSIDE])


def _credential(name: str, label: str, **rest: Any) -> dict[str, Any]:
    return {
        "name": name,
        "provider": "smtp",
        "secret": SECRET.format(label=label),
        "actor": "seed",
        "scopes": [],
        **rest,
    }


# What the API can't make, by the app's own stores; then the bridge release's default workspace backend, which keeps workspaces in
# memory: each process of it has a `default` workspace with an id of its own that no table knows.
INSIDE = '''
import asyncio, json, os, sys, uuid
os.environ["ORCHEO_WORKSPACE_BACKEND"] = GIVEN["backend"]
os.environ["ORCHEO_INPROCESS_EXECUTION"] = "true"
from orcheo_db.runtime import processes
processes.prepare()
os.environ["ORCHEO_WORKSPACE_BACKEND"] = GIVEN["backend"]
os.environ["ORCHEO_INPROCESS_EXECUTION"] = "true"
from fastapi.testclient import TestClient
from orcheo_backend.app import app
from orcheo_backend.app import dependencies
from orcheo_backend.app.workspace import get_workspace_repository, get_workspace_service

label, token = GIVEN["label"], os.environ["ORCHEO_AUTH_BOOTSTRAP_SERVICE_TOKEN"]


async def stores(workflow, run, workspace):
    """Rows for the stores that have no API to write them."""
    from chatkit.types import FileAttachment, ThreadMetadata, UserMessageItem, UserMessageTextContent, InferenceOptions
    from datetime import UTC, datetime
    from orcheo.config import get_settings
    from orcheo.models import CredentialScope
    from orcheo.persistence import create_checkpointer, create_graph_store
    from orcheo_backend.app.chatkit_runtime import get_chatkit_server
    repository = dependencies.get_repository()
    versions = await repository.list_versions(uuid.UUID(workflow))
    listeners = {"index": {"listeners": [{"node_name": "bot", "platform": "telegram", "token": "t-" + label,
                                          "bot_identity_key": "telegram:" + label}]}}
    await repository.sync_listener_subscriptions_for_version(uuid.UUID(workflow), versions[-1].id, listeners, actor="seed")
    agentensor = dependencies.get_checkpoint_store()
    for score in (0.5, 0.9):
        await agentensor.record_checkpoint(workflow_id=workflow, workspace_id=workspace, runnable_config={"t": score},
                                           metrics={"score": score}, is_best=score > 0.6)
    plugins = dependencies.get_plugin_installation_store()
    await plugins._get_pool()  # like the agentensor store, it would wait for itself at its first use
    await plugins.set_plugin_enabled("orcheo-plugin-x", workspace_id=str(workspace), enabled=True)
    vault = dependencies.get_vault()
    from orcheo.models import GovernanceAlertKind, SecretGovernanceAlertSeverity
    vault.record_alert(kind=GovernanceAlertKind.TOKEN_EXPIRING, severity=SecretGovernanceAlertSeverity.WARNING,
                       message="soon", actor="seed", credential_id=uuid.UUID(GIVEN["credential"]) if GIVEN.get("credential") else None,
                       workspace_id=workspace)
    chat = get_chatkit_server().store
    context = {"workflow_id": workflow, "workspace_id": workspace}
    thread = ThreadMetadata(id="thr_" + label, title="About " + label, created_at=datetime.now(UTC), metadata={"workflow_id": workflow})
    await chat.save_thread(thread, context)
    for number in range(3):
        item = UserMessageItem(id=f"msg_{label}_{number}", thread_id=thread.id, created_at=datetime.now(UTC),
                               content=[UserMessageTextContent(text=f"message {number}")], attachments=[], inference_options=InferenceOptions())
        await chat.add_thread_item(thread.id, item, context)
    path = os.path.expanduser("~/.orcheo/chatkit/" + label + ".txt")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write("attachment of " + label)
    attachment = FileAttachment(id="atc_" + label, name="note.txt", mime_type="text/plain")
    await chat.save_attachment(attachment, context, storage_path=path)
    async with create_graph_store(get_settings()) as store:
        await store.aput(("memories", label), "fact", {"text": "of " + label})
        if workspace:  # as the app's own storage nodes keep theirs
            await store.aput((str(workspace), "agent_chat_history", label), "fact", {"text": "of " + label})
    return thread.id


async def limited(*arguments):
    return await asyncio.wait_for(stores(*arguments), 20)


def main():
    with TestClient(app, headers={"Authorization": "Bearer " + token}) as client:
        def call(method, path, body=None):
            answer = client.request(method, path, json=body)
            assert answer.status_code < 400, (method, path, answer.status_code, answer.text)
            return answer.json() if answer.content else None

        found = populate(call, label)
        workspace = call("GET", "/api/workspaces/active")["workspace_id"]
        GIVEN["credential"] = found["credentials"][0]
        found["workspace"] = workspace
        found["thread"] = client.portal.call(limited, found["workflow"], found["run"], workspace)
        if GIVEN.get("unscoped"):
            found["unscoped"] = client.portal.call(unscoped)
        print(json.dumps(found), flush=True)
    os._exit(0)


async def unscoped():
    """A workflow of nobody's workspace, as code that calls the repository without one makes it."""
    made = await dependencies.get_repository().create_workflow(name="Unscoped", handle="unscoped-" + label, slug=None, description=None,
                                                               tags=None, draft_access="workspace", actor="seed")
    return str(made.id)


main()
'''
