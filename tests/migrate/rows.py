"""Rows in every store of an old release, made by its own API and store classes; runs inside its image (`python -m`)."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.migrate.inside import TOKEN, call, get, is_bridge, program, repository
from tests.migrate.store_rows import bridge_rows, store_rows
from tests.migrate.strange_rows import strange_rows

SCRIPT = """
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, StateGraph
from orcheo.graph.state import State


def greet(state):
    inputs = state.get("inputs") or {}
    if inputs.get("fail"):
        raise ValueError("told to fail: " + str(inputs["fail"]))
    said = [] if inputs.get("quiet") else [AIMessage(content="hello from old times")]
    return {"messages": said, "results": {"greet": {"reply": "hello", "heard": inputs}}}


def count(state):
    return {"results": {"count": {"number": len(state["messages"]), "ratio": 0.1}}}


def orcheo_workflow():
    graph = StateGraph(State)
    graph.add_node("greet", greet)
    graph.add_node("count", count)
    graph.add_edge(START, "greet")
    graph.add_edge("greet", "count")
    graph.add_edge("count", END)
    return graph
"""


class Maker:
    """One pass over all stores. `made`: the ids and secrets of what it made."""

    def __init__(self, client: Any, given: dict[str, Any]) -> None:
        self.client, self.label, self.copies = client, given["label"], given["copies"]
        self.made: dict[str, Any] = {"label": self.label}
        self.workspace: str | None = None

    def api(self, method: str, path: str, body: Any = None, *, token: str = TOKEN, **more: Any) -> Any:
        """A call of the API that must succeed; its JSON."""
        answer = self.client.request(method, path, json=body, headers={"Authorization": f"Bearer {token}"}, **more)
        assert answer.status_code < 400, (method, path, answer.status_code, answer.text)
        is_json = answer.content and "json" in answer.headers.get("content-type", "")
        return answer.json() if is_json else answer.text

    def wait(self, function: Any, *arguments: Any) -> Any:
        """The result of an async function, in the app's own event loop."""
        return self.client.portal.call(function, *arguments)

    def everything(self) -> dict[str, Any]:
        """Rows in all stores, the ordinary ones."""
        if is_bridge():
            self.workspace = self.api("GET", "/api/workspaces/active")["workspace_id"]
        self.made["workspace"] = self.workspace
        self.workflows()
        self.runs()
        self.vault()
        self.tokens()
        self.chats()
        self.wait(store_rows, self.made, self.copies)
        if is_bridge():
            self.wait(bridge_rows, self.made, self.copies)
            self.workspaces()
        return self.made

    def workflows(self) -> None:
        """Three workflows, one of them archived, with versions and triggers."""
        made: dict[str, str] = {}
        for kind in ("archived", "main", "second"):
            body = {
                "name": f"The {kind} of {self.label}",
                "actor": "seed",
                "description": "as people write",
                "tags": ["A", "b"],
            }
            if is_bridge():  # a workflow may have the handle of one that was archived before
                body["handle"] = f"{self.label}-{'second' if kind == 'second' else 'main'}"
            made[kind] = self.api("POST", "/api/workflows", body)["id"]
            for notes in ("first", "second") if kind == "main" else ("only",):
                self._ingest(made[kind], notes)
            if kind == "archived":
                self.api("DELETE", f"/api/workflows/{made[kind]}?actor=seed")
        self.made["workflows"] = made
        path = f"/api/workflows/{made['main']}/triggers"
        webhook = {
            "allowed_methods": ["POST"],
            "rate_limit": {"limit": 60, "interval_seconds": 60},
            "shared_secret": "s",
        }
        self.api("PUT", f"{path}/webhook/config", {**webhook, "secret_header": "x-secret"})
        # No start_at or end_at: with one the release can't read its own row again, and does not start.
        self.api("PUT", f"{path}/cron/config", {"expression": "0 5 * * *", "timezone": "Europe/Berlin"})
        self.api("PUT", f"/api/workflows/{made['second']}/triggers/cron/config", {"expression": "*/5 * * * *"})
        self.wait(self._retry, made["main"])

    def _ingest(self, workflow: str, notes: str) -> None:
        config = {"tags": ["t1"], "metadata": {"of": self.label}, "run_name": "named", "configurable": {"limit": 3}}
        body = {
            "script": SCRIPT,
            "metadata": {"by": self.label, "list": [1, 2.5, None]},
            "notes": notes,
            "created_by": "seed",
        }
        self.api(
            "POST",
            f"/api/workflows/{workflow}/versions/ingest",
            {**body, "entrypoint": "orcheo_workflow", "runnable_config": config if notes == "second" else None},
        )

    async def _retry(self, workflow: str) -> None:
        policy = call("orcheo.triggers.retry", "RetryPolicyConfig", max_attempts=5, backoff_factor=1.5)
        await repository().configure_retry_policy(uuid.UUID(workflow), policy)

    def execute(self, run: str) -> str:
        """What a worker does with a dispatched run."""
        worker = get("orcheo_backend.worker.tasks", "_execute_run_async")
        return str(self.wait(worker, run, *([self.workspace] if is_bridge() else []))["status"])

    def runs(self) -> None:
        """Runs of every state and trigger; those that ended have LangGraph's state, the streamed ones a history."""
        main = self.made["workflows"]["main"]
        runs: dict[str, list[str]] = {}
        inputs: list[dict[str, Any]] = [{"n": number} for number in range(self.copies)]
        for number in range(0, len(inputs), 20):  # the bridge lets 25 run at a time
            some = [{"input_payload": each} for each in inputs[number : number + 20]]
            for run in self.api(
                "POST", "/api/triggers/manual/dispatch", {"workflow_id": main, "actor": "a", "runs": some}
            ):
                runs.setdefault("succeeded", []).append(run["id"])
                assert self.execute(run["id"]) == "succeeded", run
        body = {
            "workflow_id": main,
            "actor": "a",
            "runs": [{"input_payload": {"fail": "on purpose"}}, {"input_payload": {}}],
        }
        failed, pending = self.api("POST", "/api/triggers/manual/dispatch", body)
        assert self.execute(failed["id"]) == "failed"
        runs["failed"], runs["pending"] = [failed["id"]], [pending["id"]]
        latest = self.api("GET", f"/api/workflows/{main}/versions")[-1]
        for state in ("start", "cancel", "succeed"):
            new = {"workflow_version_id": latest["id"], "triggered_by": "api", "input_payload": {"to": state}}
            run = self.api("POST", f"/api/workflows/{main}/runs", new)["id"]
            if state == "succeed":
                self.api("POST", f"/api/runs/{run}/start", {"actor": "a"})
            more: dict[str, dict[str, Any]] = {"cancel": {"reason": "no more"}, "succeed": {"output": {"done": True}}}
            self.api("POST", f"/api/runs/{run}/{state}", {"actor": "a", **more.get(state, {})})
            runs[state] = [run]
        answer = self.client.post(
            f"/api/workflows/{main}/triggers/webhook?q=1",
            json={"hook": self.label},
            headers={"x-secret": "s", "Authorization": f"Bearer {TOKEN}"},
        )
        assert answer.status_code < 400, answer.text
        runs["webhook"] = [answer.json()["id"]]
        runs["cron"] = [str(run.id) for run in self.wait(self._cron)]
        for run in (*runs["webhook"], *runs["cron"]):
            assert self.execute(run) == "succeeded"
        self.made["runs"] = runs
        self.made["executions"] = [
            self._streamed(main, latest["graph"], number) for number in range(max(2, self.copies))
        ]

    async def _cron(self) -> list[Any]:
        now = datetime.now(UTC)
        # The first look sets the time from which it counts; where that is a moment of the schedule itself, it dispatches.
        first = list(await repository().dispatch_due_cron_runs(now=now))
        return first + list(await repository().dispatch_due_cron_runs(now=now + timedelta(minutes=6)))

    def _streamed(self, workflow: str, graph: Any, number: int) -> str:
        """A run over the websocket: in 0.15.0 the only way to a history. The first one fails."""
        execution = f"exec-{self.label}-{number}"
        # A message in the state would fail it: the websocket can't send one.
        inputs = {"number": number, **({"fail": "streamed"} if number == 0 else {"quiet": True})}
        message = {"type": "run_workflow", "graph_config": graph, "inputs": inputs, "execution_id": execution}
        with self.client.websocket_connect(
            f"/ws/workflow/{workflow}", headers={"Authorization": f"Bearer {TOKEN}"}
        ) as socket:
            socket.send_json(message)
            while socket.receive().get("type") != "websocket.close":
                pass
        return execution

    def vault(self) -> None:
        """Credentials whose secrets are known, templates, alerts."""
        main, label = self.made["workflows"]["main"], self.label
        secrets: dict[str, str] = {}
        scoped = "scoped" if is_bridge() else "private"
        public = "shared" if is_bridge() else "public"
        for name, access in (("mail", "shared"), ("own", scoped), ("public", public)):
            body = {
                "name": f"{label}-{name}",
                "provider": "smtp",
                "secret": f"open-sesame-{label}-{name}",
                "actor": "seed",
            }
            more = {"scopes": ["send"], "access": access, "workflow_id": main if access == scoped else None}
            secrets[self.api("POST", "/api/credentials", body | more)["id"]] = body["secret"]
        # Only for one workflow: an OAuth credential without a provider to ask is unhealthy, and the app then refuses every run.
        second = self.made["workflows"]["second"]
        template: dict[str, Any] = {
            "name": f"{label}-template",
            "provider": "idp",
            "scopes": ["read"],
            "description": "d",
            "kind": "oauth",
        }
        template |= {"scope": {"workflow_ids": [second]}}
        template |= {"issuance_policy": {"rotation_period_days": 30, "require_refresh_token": True}, "actor": "seed"}
        template_id = self.api("POST", "/api/credentials/templates", template)["id"]
        tokens = {
            "access_token": f"at-{label}",
            "refresh_token": f"rt-{label}",
            "expires_at": "2027-01-01T00:00:00+05:45",
        }
        issue: dict[str, Any] = {
            "template_id": template_id,
            "secret": f"issued-{label}",
            "actor": "seed",
            "oauth_tokens": tokens,
            "workflow_id": second,
        }
        issued = self.api("POST", f"/api/credentials/templates/{template_id}/issue", issue)["credential_id"]
        secrets[issued] = issue["secret"]
        self.made |= {"credentials": secrets, "oauth": {issued: tokens}, "templates": [template_id], "alerts": []}
        kinds, severities = (
            get("orcheo.models", "GovernanceAlertKind"),
            get("orcheo.models", "SecretGovernanceAlertSeverity"),
        )
        context = call("orcheo.models", "CredentialAccessContext", workflow_id=second, workspace_id=self.workspace)
        for kind, severity in (
            (kinds.TOKEN_EXPIRING, severities.WARNING),
            (kinds.ROTATION_OVERDUE, severities.CRITICAL),
        ):
            alert = call("orcheo_backend.app.dependencies", "get_vault").record_alert(
                kind=kind,
                severity=severity,
                message="soon",
                actor="seed",
                credential_id=uuid.UUID(issued),
                context=context,
            )
            self.made["alerts"].append(str(alert.id))
        path = f"/api/credentials/governance-alerts/{self.made['alerts'][0]}/acknowledge?workflow_id={second}"
        self.api("POST", path, {"actor": "me"})

    def tokens(self) -> None:
        """Service tokens: one used, one rotated, one revoked, one that expires."""
        made: dict[str, str | None] = {}
        for kind in ("used", "rotated", "revoked", "short"):
            body: dict[str, Any] = {
                "identifier": f"{self.label}-{kind}",
                "scopes": ["workflows:read"],
                "workspace_ids": [],
            }
            more = {"expires_in_seconds": 3600} if kind == "short" else {}
            made[body["identifier"]] = self.api("POST", "/api/admin/service-tokens", body | more)["secret"]
        self.api("GET", "/api/workflows", token=str(made[f"{self.label}-used"]))
        path = f"/api/admin/service-tokens/{self.label}"
        new = self.api("POST", f"{path}-rotated/rotate", {"overlap_seconds": 600})
        made[new["identifier"]] = new["secret"]
        self.api("DELETE", f"{path}-revoked", {"reason": "lost"})
        self.made["tokens"] = made

    def chats(self) -> None:
        """A thread by the ChatKit protocol, with a reply by the workflow; attachments by upload."""
        main = self.made["workflows"]["main"]
        self.api("POST", f"/api/workflows/{main}/publish", {"require_login": False, "actor": "seed"})
        self.made |= {"attachments": {}, "attachment_files": {}}
        for number in range(2):
            content = f"attachment {number} of {self.label}: \u00e9\r\n".encode()
            found = self.client.post(
                "/api/chatkit/upload", files={"file": (f"note {number}.txt", content, "text/plain")}
            )
            assert found.status_code == 200, found.text
            self.made["attachments"][found.json()["id"]] = hashlib.sha256(content).hexdigest()
            self.made["attachment_files"][found.json()["id"]] = Path(found.json()["storage_path"]).name
        said = [{"type": "input_text", "text": "Good morning \U0001f600"}]
        message = {"content": said, "attachments": list(self.made["attachments"])[:1], "inference_options": {}}
        body = {
            "type": "threads.create",
            "params": {"input": message},
            "workflow_id": main,
            "metadata": {"workflow_id": main},
        }
        answer = self.client.post("/api/chatkit", json=body)  # a visitor's: without a token
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
        self.made["threads"] = [next(each["thread"]["id"] for each in events if each["type"] == "thread.created")]
        assert any(each.get("item", {}).get("type") == "assistant_message" for each in events), events

    def workspaces(self) -> None:
        """A second workspace, with a member, beside the default one."""
        other = {"slug": f"{self.label}-team", "name": "Team", "owner_user_id": "owner@example.org"}
        self.made["workspaces"] = [self.workspace, self.api("POST", "/api/admin/workspaces", other)["id"]]


def make(given: dict[str, Any]) -> dict[str, Any]:
    """All rows; with `strange`, those that a migration may stumble over too."""
    # Dispatched runs go nowhere, as there is no Redis; `execute` does what a worker does.
    get("orcheo_backend.worker.celery_app", "celery_app").conf.broker_url = "memory://"
    with call("fastapi.testclient", "TestClient", get("orcheo_backend.app", "app")) as client:
        maker = Maker(client, given)
        made = maker.everything()
        if given["strange"]:
            made["strange"] = maker.wait(strange_rows, made)
    key = Path(os.environ["ORCHEO_VAULT_LOCAL_PATH"]).with_suffix(".key")
    made["vault_key"] = os.environ.get("ORCHEO_VAULT_ENCRYPTION_KEY") or key.read_text()
    return made


if __name__ == "__main__":
    program(make)
