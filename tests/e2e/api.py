"""Orcheo's API as its user calls it: a bearer token, a workspace, JSON."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests

# A workflow with one node that answers; ingested as people upload theirs.
SCRIPT = """
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, StateGraph
from orcheo.graph.state import State


def greet(state):
    return {"messages": [AIMessage(content="hello from orcheo")], "node_results": {"greet": {"reply": "hello from orcheo"}}}


def orcheo_workflow():
    graph = StateGraph(State)
    graph.add_node("greet", greet)
    graph.add_edge(START, "greet")
    graph.add_edge("greet", END)
    return graph
"""
SCOPES = ["workflows:read", "workflows:write", "workflows:execute", "vault:read", "vault:write"]


def first_party_token(secret: str, subject: str) -> str:
    """A token as the app issues to a person who logged in (HS256, RFC 7519), for one hour."""

    def encoded(part: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()

    now = int(time.time())
    claims = {"sub": subject, "iat": now, "exp": now + 3600, "scopes": SCOPES}
    signed = f"{encoded({'alg': 'HS256', 'typ': 'JWT'})}.{encoded(claims)}"
    digest = hmac.digest(secret.encode(), signed.encode(), hashlib.sha256)
    return f"{signed}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


@dataclass
class Api:
    """One caller. `workspace`: the slug that its calls are for."""

    url: str
    token: str
    workspace: str = ""
    session: requests.Session = field(default_factory=requests.Session)

    def send(self, method: str, path: str, body: Any = None, *, timeout: float = 30) -> requests.Response:
        """A call; its answer whatever it is."""
        headers = {"Authorization": f"Bearer {self.token}"}
        if self.workspace:
            headers["X-Orcheo-Workspace"] = self.workspace
        return self.session.request(method, f"{self.url}{path}", json=body, headers=headers, timeout=timeout)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """A call that must succeed; its JSON."""
        answer = self.send(method, path, body)
        assert answer.ok, f"{method} {path} -> {answer.status_code}: {answer.text[:500]}"
        return answer.json() if answer.content else None

    def enter(self, slug: str) -> str:
        """Create a workspace of this caller's and go into it; returns its id."""
        self.workspace = ""
        created = self.call("POST", "/api/workspaces", {"slug": slug, "name": slug})
        self.workspace = slug
        return str(created["id"])

    def workflow(self, handle: str) -> dict[str, Any]:
        """A new workflow with one version."""
        made: dict[str, Any] = self.call(
            "POST", "/api/workflows", {"name": f"The {handle}", "handle": handle, "actor": "e2e"}
        )
        self.ingest(made["id"])
        return made

    def ingest(self, workflow: str, script: str = SCRIPT) -> dict[str, Any]:
        """A new version of a workflow."""
        body = {
            "script": script,
            "metadata": {"by": "e2e"},
            "notes": "first",
            "created_by": "e2e",
            "entrypoint": "orcheo_workflow",
        }
        version: dict[str, Any] = self.call("POST", f"/api/workflows/{workflow}/versions/ingest", body)
        return version

    def dispatch(self, workflow: str, **payload: Any) -> str:
        """Start a run; its id."""
        body = {"workflow_id": workflow, "actor": "e2e", "runs": [{"input_payload": payload}]}
        return str(self.call("POST", "/api/triggers/manual/dispatch", body)[0]["id"])

    def finished(self, run: str, seconds: float = 60) -> dict[str, Any]:
        """The run when it has ended."""
        found: dict[str, Any] = {}

        def ended() -> bool:
            nonlocal found
            found = self.call("GET", f"/api/runs/{run}")
            return found["status"] not in ("pending", "running")

        wait_until(ended, f"run {run} to end", seconds)
        return found

    def chat(self, secret: str, workflow: str, kind: str, **params: Any) -> requests.Response:
        """A call of the ChatKit protocol with a session's client secret."""
        body = {"type": kind, "params": params, "workflow_id": workflow}
        return self.session.post(
            f"{self.url}/api/chatkit", json=body, headers={"Authorization": f"Bearer {secret}"}, timeout=60
        )


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60, pause: float = 0.5) -> None:
    """Wait for something that comes by itself."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(pause)
