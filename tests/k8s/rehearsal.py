"""The live tests' way without a cluster (`pytest --live=pods tests/k8s/test_live.py`): what they call of kubectl beside `Control`'s, so that their
own mistakes are found before somebody's cluster is there. What a real one does otherwise, it can't find.
"""

from __future__ import annotations

import base64
import copy
import json
import threading
import time
from pathlib import Path
from typing import Any

from tests.k8s.conftest import kustomize
from tests.k8s.control import Answer, Control, moment
from tests.k8s.pods import Cluster

LEFT = ("Secret", "ConfigMap")


class Rehearsal(Control):
    """A namespace that begins empty."""

    def __init__(self, cluster: Cluster, base: Path) -> None:
        super().__init__(cluster, base)
        self.started: set[str] = set()

    def answer(self, argv: list[str], told: str) -> Answer:
        if "--raw=/readyz" in argv:
            return Answer("ok")
        if argv[:1] == ["apply"] or argv[:2] == ["delete", "namespace"]:  # the namespace itself
            return Answer("namespace done\n")
        return super().answer(argv, told)

    def do_apply(self, _names: list[str], options: dict[str, str], words: list[str], _told: str) -> Answer:
        if "dry-run" in options:
            return Answer()
        lines = []
        for each in kustomize(Path(words[words.index("-k") + 1])):
            kind, name = each["kind"], each["metadata"]["name"]
            old = [
                known for known in self.cluster.documents if (known["kind"], known["metadata"]["name"]) == (kind, name)
            ]
            same = bool(old) and self.without(old[0]) == self.without(each)
            lines.append(f"{kind.lower()}/{name} {'unchanged' if same else 'configured' if old else 'created'}")
            if same:
                continue
            if old:
                self.cluster.documents.remove(old[0])
            self.cluster.documents.append(each)
            if kind == "ConfigMap":
                self.cluster.objects["configmaps"].setdefault(name, each)
            self.changed(each, old[0] if old else None)
        return Answer("\n".join(lines) + "\n")

    @staticmethod
    def without(document: dict[str, Any]) -> dict[str, Any]:
        """A document without what this pretends that controllers add."""
        made = copy.deepcopy(document)
        made.pop("status", None)
        made["metadata"].pop("creationTimestamp", None)
        return made

    def changed(self, each: dict[str, Any], old: dict[str, Any] | None) -> None:
        kind, name = each["kind"], each["metadata"]["name"]
        if kind == "Job" and name not in self.started:
            self.started.add(name)
            threading.Thread(target=self.soon, args=(lambda: self.cluster.job("Job", name),), daemon=True).start()
        elif kind in ("StatefulSet", "Deployment"):
            if old is not None:
                for pod in self.pods_of(each):
                    self.later(lambda pod=pod: self.end(pod))  # type: ignore[misc]
            threading.Thread(target=self.soon, args=(lambda: self.reconcile(kind, name),), daemon=True).start()

    def soon(self, work: Any) -> None:
        """Try until its Secrets are there, as kubelet does."""
        for _ in range(600):
            try:
                work()
                return
            except AssertionError as error:
                if "waits for" not in str(error):
                    raise
                time.sleep(0.5)

    def do_diff(self, _names: list[str], _options: dict[str, str], words: list[str], _told: str) -> Answer:
        wanted = {
            (x["kind"], x["metadata"]["name"]): self.without(x) for x in kustomize(Path(words[words.index("-k") + 1]))
        }
        have = {(x["kind"], x["metadata"]["name"]): self.without(x) for x in self.cluster.documents}
        # As apply's three-way merge: what others wrote into a field that the manifest never had is no difference.
        for key, document in have.items():
            if "data" not in wanted.get(key, {"data": None}):
                document.pop("data", None)
        other = [key for key, document in wanted.items() if have.get(key) != document]
        return Answer(f"{other}\n" if other else "", code=1 if other else 0)

    def do_delete(self, names: list[str], options: dict[str, str], words: list[str], told: str) -> Answer:
        if "-k" in words:
            documents, self.cluster.documents = self.cluster.documents, []
            for pod in list(self.cluster.pods.values()):
                pod.terminate()
                pod.remove()
            self.cluster.pods.clear()
            self.started.clear()
            self.jobs.clear()
            self.cluster.objects["configmaps"].clear()
            return Answer(f"{len(documents)} deleted\n")
        if names[0] == "job":
            self.jobs.pop(names[1])
            return Answer()
        return super().do_delete(names, options, words, told)

    def do_create(self, names: list[str], options: dict[str, str], words: list[str], told: str) -> Answer:
        if names[:1] == ["job"]:
            template = copy.deepcopy(
                self.cluster.one("CronJob", options["from"].partition("/")[2])["spec"]["jobTemplate"]
            )
            body = {"kind": "Job", "metadata": {"name": names[1], "labels": {}}, "spec": template["spec"]}
            return super().do_create([], {}, [], json.dumps(body))
        body = json.loads(told)
        if body["kind"] == "Secret":
            text = body.pop("stringData")
            body["data"] = {name: base64.b64encode(value.encode()).decode() for name, value in text.items()}
            self.cluster.objects["secrets"][body["metadata"]["name"]] = body
            return Answer()
        return super().do_create(names, options, words, told)

    def do_get(self, names: list[str], options: dict[str, str], words: list[str], told: str) -> Answer:
        if names[0] == "persistentvolumeclaims":
            items = [{"metadata": {"name": path.name}} for path in (self.cluster.base / "claims").iterdir()]
            return Answer(json.dumps({"kind": "List", "items": items}))
        found = super().do_get(names, options, words, told)
        if len(names) > 1 and not found.stdout and "ignore-not-found" not in options:
            return Answer(stderr="Error from server (NotFound)\n", code=1)
        if any("jsonpath" in word for word in words):
            return Answer(json.loads(found.stdout)["metadata"].get("uid", moment()))
        return found
