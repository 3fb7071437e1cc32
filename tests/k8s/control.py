"""What a cluster's controllers and API server do, as far as target kubernetes asks for it, over the containers of pods.py.

Made from the documented behaviour of kubectl 1.33; where a real one answers otherwise, this is wrong, and tests/k8s/test_live.py finds it.
"""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tests.k8s.pods import Cluster, Pod

SCRIPT = Path(__file__).with_name("fake_kubectl.py")
KINDS = {"pod": "Pod", "job": "Job", "cronjob": "CronJob", "statefulset": "StatefulSet", "deployment": "Deployment", "secret": "Secret", "configmap": "ConfigMap", "event": "Event"}  # fmt: skip
LABEL = "app.kubernetes.io/name"
PERIOD = 5.0  # seconds between two readiness probes


def moment() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


@dataclass
class Answer:
    """What kubectl gives."""

    stdout: str = ""
    stderr: str = ""
    code: int = 0
    more: dict[str, Any] = field(default_factory=dict)


class Control:
    """One namespace, changed by kubectl's commands."""

    def __init__(self, cluster: Cluster, base: Path) -> None:
        self.cluster = cluster
        self.facts: dict[str, dict[str, Any]] = {}  # by pod: uid, creationTimestamp, deletionTimestamp
        self.jobs: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.calls: list[list[str]] = []
        self.readiness: dict[str, tuple[float, bool]] = {}  # by container
        self.unready: dict[str, int] = {}  # of those that are ready: looks in a row that failed
        self.probed: set[str] = set()  # containers that are being asked
        self.unscheduled: set[str] = set()  # names of pods that no node takes
        self.lock = threading.RLock()
        self.address = base / "control"
        self.bin = base / "bin"
        self.bin.mkdir()
        program = self.bin / "kubectl"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {SCRIPT} "$@"\n')
        program.chmod(0o755)
        control = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                asked = json.loads(self.rfile.readline())
                answer = control.answer(asked["argv"], asked["input"])
                document = {"code": answer.code, "stdout": answer.stdout, "stderr": answer.stderr, **answer.more}
                self.wfile.write(json.dumps(document).encode())

        self.server = socketserver.ThreadingUnixStreamServer(str(self.address), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self) -> dict[str, str]:
        """For a program that is to speak to this cluster."""
        return {"PATH": f"{self.bin}:{os.environ['PATH']}", "ORCHEO_DB_TEST_CLUSTER": str(self.address)}

    # --- objects --------------------------------------------------------------------------------------------------------

    def objects(self, kind: str) -> list[dict[str, Any]]:
        if kind in ("Secret", "ConfigMap"):
            return list(self.cluster.objects[f"{kind.lower()}s"].values())
        if kind == "Event":
            return self.events
        if kind == "Pod":
            with ThreadPoolExecutor(8) as many:
                return list(many.map(self.pod_object, list(self.cluster.pods.values())))
        own = [{"metadata": {}, **each} for each in self.cluster.of(kind)]
        if kind == "Job":
            own += self.jobs.values()
        for each in own:
            each["metadata"].setdefault("creationTimestamp", "2026-11-26T10:00:00Z")
            if kind == "Job" and "status" not in each:
                done = any(name.startswith(each["metadata"]["name"]) for name in self.cluster.pods)
                each["status"] = {"succeeded": 1} if done else {}
        return own

    def pod_object(self, pod: Pod) -> dict[str, Any]:
        own = self.facts.setdefault(pod.name, {"uid": str(uuid.uuid4()), "creationTimestamp": moment()})
        metadata = {"name": pod.name, "namespace": self.cluster.namespace, "labels": pod.labels, **own}
        if pod.name in self.unscheduled:
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/1 nodes are available",
            }
            return {
                "kind": "Pod",
                "metadata": metadata,
                "spec": pod.spec,
                "status": {"phase": "Pending", "conditions": [condition]},
            }
        statuses = []
        for each in pod.spec["containers"]:
            state = self.state(pod, each["name"])
            ready = "running" in state and self.ready(pod, each)
            statuses.append({"name": each["name"], "image": each["image"], "ready": ready, "state": state})
        ended = [each["state"]["terminated"]["exitCode"] for each in statuses if "terminated" in each["state"]]
        phase = "Running" if len(ended) < len(statuses) else ("Failed" if any(ended) else "Succeeded")
        return {
            "kind": "Pod",
            "metadata": metadata,
            "spec": pod.spec,
            "status": {"phase": phase, "containerStatuses": statuses},
        }

    def ready(self, pod: Pod, container: dict[str, Any]) -> bool:
        """What the readiness probe last said; looked at again after some seconds, and in the background where it said no, as kubelet does.
        One that was ready is it until failureThreshold looks in a row have failed.
        """
        if not container.get("readinessProbe"):
            return True
        key = pod.containers.get(container["name"], "")
        at, said = self.readiness.get(key, (0.0, True))
        if said and (not at or time.monotonic() - at > PERIOD):
            return self.probe(pod, container["name"], key)
        if not said and key not in self.probed:
            self.probed.add(key)
            self.later(partial(self.probe, pod, container["name"], key))
        return said

    def probe(self, pod: Pod, name: str, key: str) -> bool:
        try:
            said = pod.probe(name, "readinessProbe")
            (spec,) = [each for each in pod.spec["containers"] if each["name"] == name]
            failed = 0 if said else self.unready.get(key, 0) + 1
            if not said and key in self.unready and failed < int(spec["readinessProbe"].get("failureThreshold", 3)):
                said = True
            if said:
                self.unready[key] = failed
            else:
                self.unready.pop(key, None)  # from here on it has to succeed once
            self.readiness[key] = (time.monotonic(), said)
        finally:
            self.probed.discard(key)
        return said

    @staticmethod
    def state(pod: Pod, container: str) -> dict[str, Any]:
        identity = pod.containers.get(container)
        if identity is None:
            return {"waiting": {"reason": "PodInitializing"}}
        words = ["docker", "inspect", "--format={{.State.Status}} {{.State.ExitCode}}", identity]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            return {"waiting": {"reason": "ContainerCreating"}}
        status, code = done.stdout.split()
        return {"running": {}} if status == "running" else {"terminated": {"exitCode": int(code)}}

    def wanted(self, workload: dict[str, Any]) -> int:
        return int(workload["spec"].get("replicas", 1))

    def pods_of(self, workload: dict[str, Any]) -> list[Pod]:
        name = workload["metadata"]["name"]
        return [
            pod
            for pod in self.cluster.pods.values()
            if pod.labels.get(LABEL) == name and pod.name.rpartition("-")[0] == name
        ]

    # --- kubelet and controllers ------------------------------------------------------------------------------------------

    def reconcile(self, kind: str, name: str) -> None:
        """Make the pods that a workload wants and has not."""
        with self.lock:
            workload = self.cluster.one(kind, name)
            have = {pod.name for pod in self.pods_of(workload)}
            for number in range(100):
                if len(have) >= self.wanted(workload):
                    return
                if f"{name}-{number}" not in have:
                    self.cluster.start(kind, name, number)
                    have.add(f"{name}-{number}")

    def collect(self) -> None:
        """Take away the workloads' pods that have ended; reconcile makes others."""
        for kind in ("StatefulSet", "Deployment"):
            for workload in self.cluster.of(kind):
                for pod in self.pods_of(workload):
                    if any("running" not in self.state(pod, each["name"]) for each in pod.spec["containers"]):
                        pod.remove()
                        self.cluster.pods.pop(pod.name)

    def end(self, pod: Pod, *, grace: int | None = None) -> None:
        """Terminate a pod, take it away, and let its controller make another."""
        self.facts.setdefault(pod.name, {"uid": str(uuid.uuid4()), "creationTimestamp": moment()})[
            "deletionTimestamp"
        ] = moment()
        if grace == 0:
            pod.kill()
        else:
            pod.spec = pod.spec | ({"terminationGracePeriodSeconds": grace} if grace is not None else {})
            pod.terminate()
        pod.remove()
        with self.lock:
            self.cluster.pods.pop(pod.name, None)
            self.facts.pop(pod.name, None)
        for kind in ("StatefulSet", "Deployment"):
            for workload in self.cluster.of(kind):
                if workload["metadata"]["name"] == pod.name.rpartition("-")[0]:
                    self.reconcile(kind, workload["metadata"]["name"])

    def made(self, body: dict[str, Any]) -> None:
        """A bare pod begins."""
        pod = Pod(self.cluster, body["metadata"]["name"], body["metadata"]["labels"], body["spec"], {})
        if pod.name in self.unscheduled:
            self.cluster.pods[pod.name] = pod
            return
        pod.start()
        self.cluster.pods[pod.name] = pod

    def work(self, body: dict[str, Any]) -> None:
        """A job's pod, to its end."""
        template, name = body["spec"]["template"], body["metadata"]["name"]
        for number in range(body["spec"].get("backoffLimit", 6) + 1):
            labels = {**template["metadata"]["labels"], "job-name": name}
            pod = Pod(self.cluster, f"{name}-{number}", labels, template["spec"], {})
            pod.start()
            self.cluster.pods[pod.name] = pod
            if pod.wait(900) == 0:
                body["status"] = {"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}
                return
        body["status"] = {"failed": 1, "conditions": [{"type": "Failed", "status": "True"}]}

    # --- commands ---------------------------------------------------------------------------------------------------------

    def answer(self, argv: list[str], told: str) -> Answer:
        self.calls.append(argv)
        argv = self.long(argv)
        words = [word for word in argv if not word.startswith(("--namespace=", "--context=", "--request-timeout="))]
        verb = next((word for word in words if not word.startswith("--")), "")
        words = [verb, *(word for number, word in enumerate(words) if number != words.index(verb))] if verb else words
        if words[:2] == ["config", "current-context"]:
            return Answer("test\n")
        if f"--namespace={self.cluster.namespace}" not in argv:
            return Answer(
                stderr="Error from server (NotFound): namespaces not found\n",
                code=0 if "--ignore-not-found" in words else 1,
            )
        command = getattr(self, f"do_{words[0].replace('-', '_')}")
        try:
            found: Answer = command(
                [word for word in words[1:] if not word.startswith("--")], self.options(words[1:]), words, told
            )
        except KeyError as error:
            return Answer(stderr=f"Error from server (NotFound): {error} not found\n", code=1)
        return found

    @staticmethod
    def long(argv: list[str]) -> list[str]:
        """kubectl's short options as long ones, up to a command that is run in a pod."""
        until = argv.index("--") if "--" in argv else len(argv)
        made, rest = [], iter(argv[:until])
        for word in rest:
            name = {"-n": "--namespace", "-c": "--container"}.get(word)
            made.append(f"{name}={next(rest)}" if name else word)
        return [*made, *argv[until:]]

    @staticmethod
    def options(words: list[str]) -> dict[str, str]:
        until = words.index("--") if "--" in words else len(words)
        pairs = (word[2:].partition("=") for word in words[:until] if word.startswith("--"))
        return {name: value if sign else "true" for name, sign, value in pairs}

    def do_get(self, names: list[str], options: dict[str, str], _words: list[str], _told: str) -> Answer:
        found = [
            each | {"kind": KINDS[kind.removesuffix("s")]}
            for kind in names[0].split(",")
            for each in self.objects(KINDS[kind.removesuffix("s")])
        ]
        if len(names) > 1:
            found = [each for each in found if each["metadata"]["name"] == names[1]]
            return Answer(json.dumps(found[0]) if found else "")
        selector = dict(each.split("=") for each in options.get("selector", "").split(",") if each)
        found = [each for each in found if selector.items() <= each.get("metadata", {}).get("labels", {}).items()]
        return Answer(json.dumps({"kind": "List", "items": found}))

    def do_exec(self, names: list[str], options: dict[str, str], words: list[str], _told: str) -> Answer:
        pod = self.cluster.pods[names[0]]
        container = options.get("container", pod.spec["containers"][0]["name"])
        flags = [*(["--interactive"] if "stdin" in options else []), *(["--tty"] if "tty" in options else [])]
        command = words[words.index("--") + 1 :]
        return Answer(more={"run": ["docker", "exec", *flags, pod.containers[container], *command]})

    def do_logs(self, names: list[str], options: dict[str, str], _words: list[str], _told: str) -> Answer:
        pod = self.cluster.pods[names[0].removeprefix("pod/")]
        follow = "--follow" if "follow" in options else ""
        identity = pod.containers[options["container"]]
        return Answer(more={"run": ["sh", "-c", f"exec docker logs {follow} {identity} 2>&1"]})

    def do_port_forward(self, names: list[str], _options: dict[str, str], _words: list[str], _told: str) -> Answer:
        service, port = names[0].removeprefix("svc/"), int(names[1].removeprefix(":"))
        for pod in self.cluster.pods.values():
            if service in self.cluster.services(pod.labels) and "running" in self.state(
                pod, pod.spec["containers"][0]["name"]
            ):
                return Answer(more={"forward": [pod.address(), port]})
        return Answer(stderr="error: unable to forward port because pod is not running\n", code=1)

    def do_scale(self, names: list[str], options: dict[str, str], _words: list[str], _told: str) -> Answer:
        kind, _, name = names[0].partition("/")
        workload, count = self.cluster.one(KINDS[kind], name), int(options["replicas"])
        workload["spec"]["replicas"] = count
        for pod in sorted(self.pods_of(workload), key=lambda each: each.name)[count:]:
            self.later(partial(self.end, pod))
        self.later(lambda: self.reconcile(KINDS[kind], name))
        return Answer(f"{names[0]} scaled\n")

    def do_delete(self, names: list[str], options: dict[str, str], _words: list[str], _told: str) -> Answer:
        pod = self.cluster.pods.get(names[1])
        if pod is None or pod.name not in self.cluster.pods:
            return (
                Answer()
                if "ignore-not-found" in options
                else Answer(stderr="Error from server (NotFound): pods not found\n", code=1)
            )
        if "deletionTimestamp" in self.facts.get(pod.name, {}):  # a second delete shortens the grace period
            if "grace-period" in options:
                self.hurry(pod, int(options["grace-period"]))
            return Answer()
        thread = self.later(
            lambda: self.end(pod, grace=int(options["grace-period"]) if "grace-period" in options else None)
        )
        if options.get("wait", "true") == "true":
            thread.join(300)
        return Answer(f'pod "{pod.name}" deleted\n')

    @staticmethod
    def hurry(pod: Pod, grace: int) -> None:
        for container in list(pod.containers.values()):
            subprocess.Popen(
                ["docker", "stop", f"--time={grace}", container], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )

    def do_create(self, _names: list[str], _options: dict[str, str], _words: list[str], told: str) -> Answer:
        body = json.loads(told)
        body["metadata"].setdefault("creationTimestamp", moment())
        name = body["metadata"]["name"]
        if body["kind"] == "Pod":
            if name in self.cluster.pods:
                return Answer(stderr=f'Error from server (AlreadyExists): pods "{name}" already exists\n', code=1)
            self.later(lambda: self.made(body))
            for _ in range(100):
                if name in self.cluster.pods:
                    break
                time.sleep(0.1)
        else:
            body["status"] = {}
            self.jobs[name] = body
            self.later(lambda: self.work(body))
        return Answer(f"{body['kind']}/{name} created\n")

    def do_wait(self, names: list[str], options: dict[str, str], _words: list[str], _told: str) -> Answer:
        deadline, name = time.monotonic() + float(options["timeout"].removesuffix("s")), names[0].partition("/")[2]
        while time.monotonic() < deadline:
            if options["for"] == "delete":
                if name not in self.cluster.pods:
                    return Answer()
            elif options["for"] == "condition=complete":
                if self.jobs[name]["status"].get("succeeded"):
                    return Answer()
            elif name in self.cluster.pods:
                statuses = self.pod_object(self.cluster.pods[name])["status"].get("containerStatuses", ())
                if statuses and all(each["ready"] for each in statuses):
                    return Answer()
            time.sleep(0.3)
            if name in self.unscheduled:
                break
        return Answer(stderr=f"error: timed out waiting for the condition on {names[0]}\n", code=1)

    def do_rollout(self, names: list[str], options: dict[str, str], _words: list[str], _told: str) -> Answer:
        kind, _, name = names[1].partition("/")
        workload = self.cluster.one(KINDS[kind], name)
        if names[0] == "restart":
            for pod in self.pods_of(workload):
                self.end(pod)
            return Answer()
        deadline = time.monotonic() + float(options["timeout"].removesuffix("s"))
        while time.monotonic() < deadline:
            pods = [self.pod_object(pod) for pod in self.pods_of(workload)]
            ready = [pod for pod in pods if all(each["ready"] for each in pod["status"]["containerStatuses"])]
            if len(ready) >= self.wanted(workload):
                return Answer(f"{name} rolled out\n")
            time.sleep(0.3)
        return Answer(stderr="error: timed out waiting for the condition\n", code=1)

    def do_patch(self, names: list[str], _options: dict[str, str], _words: list[str], told: str) -> Answer:
        self.cluster.objects[f"{names[0]}s"][names[1]]["data"] |= json.loads(told)["data"]
        return Answer(f"{names[0]}/{names[1]} patched\n")

    @staticmethod
    def later(work: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread
