"""A hundred people at once, each in a workspace of their own and under the app's rate limit, who note what was acknowledged."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field

import requests

from tests.e2e.api import SCRIPT, Api

CLIENTS = 100
# The app allows 120 calls a minute and workspace: a call each 0.55 s is 109.
PACE = 0.55  # seconds
WEIGHTS = {"create": 25, "read": 45, "list": 15, "credential": 10, "dispatch": 5}


@dataclass
class Failure:
    """An answer that should not be, or none at all. `at` is when the call began: it may have waited for the app's pool since (30 s)."""

    at: float
    what: str


@dataclass
class Load:
    """The running load. `acknowledged`: table -> ids whose write the API has confirmed, with the time of the call."""

    people: list[Api]
    acknowledged: dict[str, dict[str, float]] = field(
        default_factory=lambda: {"workflows": {}, "workflow_runs": {}, "credentials": {}}
    )
    failures: list[Failure] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)
    stop: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)
    _own: threading.local = field(default_factory=threading.local)

    def start(self) -> None:
        self.threads = [
            threading.Thread(target=self._client, args=(api, number)) for number, api in enumerate(self.people)
        ]
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def failures_between(self, start: float, end: float) -> list[Failure]:
        return [failure for failure in list(self.failures) if start <= failure.at < end]

    def _client(self, api: Api, seed: int) -> None:
        dice = random.Random(seed)
        mine: list[str] = []
        self.stop.wait(dice.uniform(0, PACE))
        while not self.stop.is_set():
            self._own.began = began = time.monotonic()
            (kind,) = dice.choices([*WEIGHTS], [*WEIGHTS.values()])
            try:
                self._step(api, kind, mine, dice)
            except requests.RequestException as error:
                self.failures.append(Failure(began, f"{kind}: {type(error).__name__}"))
                api.session.close()
                api.session = requests.Session()
            self.stop.wait(max(0.0, PACE - (time.monotonic() - began)))

    def _step(self, api: Api, kind: str, mine: list[str], dice: random.Random) -> None:
        if not mine or (kind == "create" and len(mine) < 90):  # the app's quota is 100 workflows a workspace
            answer = api.send(
                "POST", "/api/workflows", {"name": "load", "handle": f"h-{uuid.uuid4().hex[:12]}", "actor": "load"}
            )
            if self._note(kind, answer):
                mine.append(answer.json()["id"])
                self.acknowledged["workflows"][mine[-1]] = time.monotonic()
                if len(mine) == 1:
                    self._note("ingest", api.send("POST", f"/api/workflows/{mine[0]}/versions/ingest", INGEST))
        elif kind == "credential":
            body = {
                "name": uuid.uuid4().hex,
                "provider": "load",
                "secret": "s",
                "actor": "load",
                "scopes": [],
                "access": "shared",
            }
            answer = api.send("POST", "/api/credentials", body)
            if self._note(kind, answer):
                self.acknowledged["credentials"][answer.json()["id"]] = time.monotonic()
        elif kind == "dispatch":
            runs = {"workflow_id": mine[0], "actor": "load", "runs": [{"input_payload": {"n": dice.random()}}]}
            began, answer = time.monotonic(), api.send("POST", "/api/triggers/manual/dispatch", runs)
            if self._note(kind, answer):
                self.acknowledged["workflow_runs"][answer.json()[0]["id"]] = began
        elif kind == "list":
            self._note(kind, api.send("GET", "/api/workspaces/me"))
        else:
            self._note("read", api.send("GET", f"/api/workflows/{dice.choice(mine)}"))

    def _note(self, kind: str, answer: requests.Response) -> bool:
        self.answers[answer.status_code] += 1
        if answer.status_code >= 500:
            self.failures.append(Failure(self._own.began, f"{kind}: {answer.status_code}"))
        return answer.ok


INGEST: dict[str, object] = {
    "script": SCRIPT,
    "metadata": {},
    "notes": "",
    "created_by": "load",
    "entrypoint": "orcheo_workflow",
}
