"""A cluster under test: the current kubeconfig context, in a namespace of the test's own that is removed at the end."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT, Installation
from tests.k8s.conftest import kubectl

APPLY_SECONDS = 900.0  # slow volumes, a first boot of a minute, jobs that try again
LOAD = Path(__file__).with_name("load.py")
NAME = "app.kubernetes.io/name"


class Live:
    """The tier in a cluster, driven as its user would: kubectl and the command line."""

    def __init__(self, base: Path, environment: dict[str, str], namespace: str = "") -> None:
        self.namespace = namespace or f"orcheo-db-test-{secrets.token_hex(3)}"
        self.environment, self.directory = environment, base / "overlay"
        self.directory.mkdir()
        self.context = self.run("config", "current-context").stdout.strip()
        state = (
            base / "state" / "unused"
        )  # its parent is what counts: the directory's name is made of context and namespace
        more = {**environment, "ORCHEO_DB_NAMESPACE": self.namespace}
        self.own = Installation("orcheo-db", 5432, state, kind="kubernetes", extra=more)
        self.write_overlay()

    def write_overlay(self, *patches: dict[str, Any]) -> None:
        """The default overlay in the test's namespace."""
        up = Path(*[".."] * len(self.directory.parts[1:])) / ROOT.relative_to("/") / "k8s" / "overlays" / "default"
        document: dict[str, Any] = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": self.namespace,
            "resources": [str(up)],
            "patches": list(patches),
        }
        (self.directory / "kustomization.yaml").write_text(yaml.safe_dump(document))

    def run(self, *words: str, input: str | None = None, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
        """kubectl."""
        program = self.environment.get("KUBECTL", kubectl())
        env = {**os.environ, **self.environment}
        return subprocess.run([program, *words], env=env, input=input, capture_output=True, text=True, timeout=timeout)

    def ok(self, *words: str, input: str | None = None, timeout: float = 1200) -> str:
        done = self.run(f"--namespace={self.namespace}", *words, input=input, timeout=timeout)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def get(self, *words: str) -> Any:
        return json.loads(self.ok("get", *words, "--output=json"))

    def apply(self) -> str:
        return self.ok("apply", "-k", str(self.directory))

    def settle(self) -> None:
        """Wait until everything is as wanted.

        Raises:
            AssertionError: it does not come to be so, or an image can't be had; with what the pods wait for.
        """
        deadline = time.monotonic() + APPLY_SECONDS
        while True:
            reasons = self.reasons()
            missing = {
                pod: why
                for pod, why in reasons.items()
                if why in ("ErrImageNeverPull", "ImagePullBackOff", "ErrImagePull")
            }
            assert not missing, (
                f"{missing}: this cluster has not these images: `make k8s-load CLUSTER=…` or `make k8s-images REGISTRY=…`"
            )
            jobs = self.get("jobs")["items"]
            rolled = all(
                self.run(f"--namespace={self.namespace}", "rollout", "status", name, "--timeout=5s").returncode == 0
                for name in ("statefulset/postgres", "statefulset/backup", "deployment/pgbouncer")
            )
            if jobs and all(job.get("status", {}).get("succeeded") for job in jobs) and rolled:
                return
            assert time.monotonic() < deadline, (
                f"not Ready after {APPLY_SECONDS} s: {reasons}\n{self.ok('get', 'pods')}"
            )
            time.sleep(2)

    def reasons(self) -> dict[str, str]:
        """What containers wait for, by pod."""
        found = {}
        for pod in self.get("pods")["items"]:
            status = pod.get("status", {})
            for each in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
                if reason := each.get("state", {}).get("waiting", {}).get("reason"):
                    found[pod["metadata"]["name"]] = reason
        return found

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
            time.sleep(1)

    def pod(self, name: str, labels: dict[str, str], command: list[str], *, secret: bool = True) -> None:
        """A pod of the app's image, as an app of the user's would be: restricted, with the Secret for clients."""
        (init,) = [job for job in self.get("jobs")["items"] if job["metadata"]["labels"].get(NAME) == "init"]
        spec = json.loads(json.dumps(init["spec"]["template"]["spec"]))
        container = spec["containers"][0]
        container |= {
            "name": "app",
            "command": command,
            "env": [],
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        }
        spec["volumes"] = [
            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
            {"name": "script", "secret": {"secretName": "load", "defaultMode": 0o440}},
        ]
        container["volumeMounts"].append({"name": "script", "mountPath": "/script", "readOnly": True})
        if secret:
            spec["volumes"].append({"name": "given", "secret": {"secretName": "orcheo-db-app", "defaultMode": 0o440}})
            container["volumeMounts"].append({"name": "given", "mountPath": "/run/orcheo-db/secrets", "readOnly": True})
        spec |= {"restartPolicy": "Never"}
        spec.pop("serviceAccountName", None)
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}
        self.ok("create", "--filename=-", input=json.dumps(body))

    def ended(self, name: str, seconds: float) -> tuple[str, str]:
        """A pod's last state and its log, once it has ended; it is removed."""
        self.wait(
            lambda: self.get("pod", name)["status"].get("phase") in ("Succeeded", "Failed"), f"pod {name} ends", seconds
        )
        phase, log = self.get("pod", name)["status"]["phase"], self.ok("logs", f"pod/{name}", "--container=app")
        self.ok("delete", "pod", name)
        return phase, log

    def load_runs(self) -> bool:
        """Whether the load's pod has begun.

        Raises:
            AssertionError: it has ended instead.
        """
        log = self.run(f"--namespace={self.namespace}", "logs", "pod/load", "--container=app").stdout
        phase = self.get("pod", "load")["status"].get("phase")
        assert phase != "Failed", log
        return "started" in log

    @contextmanager
    def load(self, seconds: int) -> Iterator[dict[str, Any]]:
        """Load from inside the cluster while the body runs; its answer afterwards."""
        dsn = self.own.ok("dsn").stdout.strip()
        script = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "load"},
            "stringData": {"load.py": LOAD.read_text(), "dsn": dsn},
        }
        if self.run(f"--namespace={self.namespace}", "get", "secret", "load").returncode != 0:
            self.ok("create", "--filename=-", input=json.dumps(script))
        # The DSN has a password: it comes by a file, and is in no command line.
        command = ["sh", "-c", f'exec python /script/load.py "$(cat /script/dsn)" {seconds}']
        self.pod("load", {"orcheo-db/client": "true"}, command)
        self.wait(self.load_runs, "the load starts")
        answer: dict[str, Any] = {}
        try:
            yield answer
        finally:
            phase, log = self.ended("load", seconds + 180)
            assert phase == "Succeeded", log
            answer |= json.loads(log.strip().splitlines()[-1])
