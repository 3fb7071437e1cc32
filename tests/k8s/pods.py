"""Pods of rendered manifests as containers of the local Docker daemon: what kubelet makes of them, without a cluster.

It proves what a pod is given (users, groups, modes, read-only root, volumes, secrets, names, probes, order) and what an account may do (the
manifests' own roles, checked at each call). It proves nothing about scheduling, storage classes, network policies or a real API server:
tests/k8s/test_live.py is for those.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker

from orcheo_db.secrets import Authority

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
MEMORY = Path("/dev/shm")
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity."""
    return int(text[:-2]) * UNITS[text[-2:]] if text[-2:] in UNITS else int(text)


class ApiServer(ThreadingHTTPServer):
    """Secrets and ConfigMaps of one namespace over HTTPS; who may do what is the manifests' roles."""

    daemon_threads = True

    def __init__(self, cluster: Cluster, address: str) -> None:
        super().__init__((address, 0), _Handler)
        self.cluster = cluster
        self.refused: list[str] = []
        self.lock = threading.Lock()
        key, certificate = cluster.authority.issue("api", (address,))
        pem = cluster.base / "api.pem"
        pem.write_bytes(key + certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def may(self, account: str, verb: str, kind: str, name: str) -> bool:
        roles = {
            each["roleRef"]["name"]
            for each in self.cluster.of("RoleBinding")
            if any(subject["name"] == account for subject in each["subjects"])
        }
        rules = [
            rule for role in self.cluster.of("Role") if role["metadata"]["name"] in roles for rule in role["rules"]
        ]
        return any(
            kind in rule["resources"]
            and verb in rule["verbs"]
            and (not rule.get("resourceNames") or name in rule["resourceNames"])
            for rule in rules
        )


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def _answer(self) -> None:
        account = self.headers["Authorization"].removeprefix("Bearer token-of-")
        kind, _, name = self.path.partition(f"/namespaces/{self.server.cluster.namespace}/")[2].partition("/")
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null")
        verb = {"GET": "get", "POST": "create", "PATCH": "patch"}[self.command]
        with self.server.lock:
            if self.server.may(account, verb, kind, name):
                code, found = self._do(kind, name, body)
            else:
                self.server.refused.append(f"{account} {verb} {kind}/{name}")
                code, found = 403, {"message": f"{account} cannot {verb} {kind}"}
        text = json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _do(self, kind: str, name: str, body: Any) -> tuple[int, Any]:
        objects = self.server.cluster.objects[kind]
        if self.command == "POST":
            if body["metadata"]["name"] in objects:
                return 409, {"message": "exists"}
            objects[body["metadata"]["name"]] = body
            return 201, body
        if name not in objects:
            return 404, {"message": "not found"}
        if self.command == "PATCH":
            objects[name].setdefault("data", {}).update(body["data"])
        return 200, objects[name]

    do_GET = do_POST = do_PATCH = _answer

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Cluster:
    """The objects of one apply, and their pods."""

    documents: list[dict[str, Any]]
    base: Path
    name: str = field(default_factory=lambda: f"orcheo-db-test-pods-{os.getpid()}")
    namespace: str = "orcheo"
    objects: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {"secrets": {}, "configmaps": {}})
    pods: dict[str, Pod] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.authority = Authority.create()
        self.memory = MEMORY / self.name
        self.memory.mkdir()
        self.network = docker.from_env().networks.create(self.name)
        self.network.reload()
        self.gateway = self.network.attrs["IPAM"]["Config"][0]["Gateway"]
        for each in self.of("ConfigMap"):
            self.objects["configmaps"][each["metadata"]["name"]] = each
        self.api = ApiServer(self, self.gateway)
        threading.Thread(target=self.api.serve_forever, daemon=True).start()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in self.documents if each["kind"] == kind]

    def one(self, kind: str, name: str) -> dict[str, Any]:
        (found,) = [each for each in self.of(kind) if each["metadata"]["name"] == name]
        return found

    def services(self, labels: dict[str, str]) -> list[str]:
        """The names that a pod of these labels is reached by."""
        return [
            each["metadata"]["name"]
            for each in self.of("Service")
            if each["spec"]["selector"].items() <= labels.items()
        ]

    def pod(self, kind: str, name: str, number: int = 0) -> Pod:
        """A pod of a workload, not started yet."""
        workload = self.one(kind, name)
        spec = workload["spec"]["jobTemplate"]["spec"] if kind == "CronJob" else workload["spec"]
        template = spec["template"]
        claims = {
            each["metadata"]["name"]: f"{each['metadata']['name']}-{name}-{number}"
            for each in spec.get("volumeClaimTemplates", ())
        }
        return Pod(self, f"{name}-{number}", template["metadata"]["labels"], template["spec"], claims)

    def start(self, kind: str, name: str, number: int = 0) -> Pod:
        pod = self.pod(kind, name, number)
        pod.start()
        self.pods[pod.name] = pod
        return pod

    def job(self, kind: str, name: str, seconds: float = 300.0) -> Pod:
        """Run a job's pod to its end, again where it fails, as `restartPolicy: OnFailure` does; a CronJob's once.

        Raises:
            AssertionError: it did not succeed, with its log.
        """
        deadline = time.monotonic() + seconds
        for number in range(100):
            pod = self.start(kind, name, number)
            code = pod.wait(deadline - time.monotonic())
            if code == 0:
                return pod
            last = deadline - time.monotonic() < 10  # seconds: no time for another try
            assert kind == "Job" and not last, f"{name}: exit code {code}\n{pod.log()}"
            pod.remove()
            time.sleep(3)
        raise AssertionError(name)

    def close(self) -> None:
        for pod in list(self.pods.values()):  # the workloads' threads may still start some
            pod.remove()
        self.api.shutdown()
        self.api.server_close()
        self.network.remove()
        shutil.rmtree(self.memory)


@dataclass
class Pod:
    """One pod: a container that holds the network, and its own."""

    cluster: Cluster
    name: str
    labels: dict[str, str]
    spec: dict[str, Any]
    claims: dict[str, str]
    volumes: dict[str, Path] = field(default_factory=dict)
    containers: dict[str, str] = field(default_factory=dict)
    holder: str = ""

    # --- volumes --------------------------------------------------------------------------------------------------------

    def _volume(self, volume: dict[str, Any]) -> Path:
        """A volume's directory on this machine, as kubelet would mount it for the pod's fsGroup."""
        group = self.spec["securityContext"]["fsGroup"]
        own: Path = self.cluster.base / "pods" / self.name / volume["name"]
        if "emptyDir" in volume:
            place: Path = (
                self.cluster.memory / self.name / volume["name"]
                if volume["emptyDir"].get("medium") == "Memory"
                else own
            )
            assert volume["emptyDir"].get("sizeLimit"), f"{volume['name']} has no limit"
            place.mkdir(parents=True)
            os.chown(place, 0, group)
            place.chmod(0o2777)
            return place
        if "persistentVolumeClaim" in volume or "ephemeral" in volume:
            claim = (
                volume["persistentVolumeClaim"]["claimName"]
                if "persistentVolumeClaim" in volume
                else f"{self.name}-{volume['name']}"
            )
            place = self.cluster.base / "claims" / claim
            if not place.exists():
                place.mkdir(parents=True)
                os.chown(place, 0, group)
                place.chmod(0o2775)
                (place / "lost+found").mkdir(mode=0o700)
            return place
        own.mkdir(parents=True)
        files: dict[str, bytes] = {}
        mode = 0o644
        for source in volume.get("projected", {}).get("sources", [volume]):
            if "secret" in source:
                named = source["secret"]
                found = self.cluster.objects["secrets"][named.get("secretName", named.get("name"))]["data"]
                data = {key: base64.b64decode(value) for key, value in found.items()}
                mode = volume.get("projected", named)["defaultMode"]
            else:
                named = source["configMap"]
                found = self.cluster.objects["configmaps"][named["name"]]["data"]
                data = {key: value.encode() for key, value in found.items()}
            files |= {each["path"]: data[each["key"]] for each in named["items"]} if "items" in named else data
        for key, content in files.items():
            file = own / key
            file.write_bytes(content)
            os.chown(file, 0, group)
            file.chmod(mode)
        return own

    def missing(self) -> list[str]:
        """Secrets that the pod waits for."""
        wanted = [each["secret"]["secretName"] for each in self.spec["volumes"] if "secret" in each]
        wanted += [
            source["secret"]["name"]
            for each in self.spec["volumes"]
            for source in each.get("projected", {}).get("sources", ())
            if "secret" in source
        ]
        return [name for name in wanted if name not in self.cluster.objects["secrets"]]

    # --- containers -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Volumes, init containers one after the other, then the containers.

        Raises:
            AssertionError: an init container failed.
        """
        assert not self.missing(), f"{self.name} waits for {self.missing()}"
        own = [{"name": name, "persistentVolumeClaim": {"claimName": claim}} for name, claim in self.claims.items()]
        self.volumes = {each["name"]: self._volume(each) for each in [*self.spec["volumes"], *own]}
        image = self.spec["containers"][0]["image"]
        names = [
            word
            for name in self.cluster.services(self.labels)
            for word in ("--network-alias", name, "--network-alias", f"{name}.{self.cluster.namespace}.svc")
        ]
        self.holder = self._docker(
            "run", "--detach", f"--name={self.cluster.name}-{self.name}", f"--hostname={self.name}", f"--network={self.cluster.name}", *names,
            "--entrypoint=sleep", image, "infinity",
        )  # fmt: skip
        for each in self.spec.get("initContainers", ()):
            done = subprocess.run([*self._argv(each), "--rm", *self._command(each)], capture_output=True, text=True)
            assert done.returncode == 0, f"{self.name}/{each['name']}: {done.stderr}"
        for each in self.spec["containers"]:
            self.containers[each["name"]] = self._docker(*self._argv(each)[1:], "--detach", *self._command(each))

    def _argv(self, container: dict[str, Any]) -> list[str]:
        context, pod = container["securityContext"], self.spec["securityContext"]
        assert (
            context["readOnlyRootFilesystem"]
            and not context["allowPrivilegeEscalation"]
            and context["capabilities"] == {"drop": ["ALL"]}
        )
        assert pod["runAsNonRoot"] and pod["seccompProfile"] == {"type": "RuntimeDefault"}
        argv = [
            "docker", "run", f"--network=container:{self.holder}", f"--user={pod['runAsUser']}:{pod['runAsGroup']}", f"--group-add={pod['fsGroup']}",
            "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true", f"--memory={quantity(container['resources']['limits']['memory'])}",
        ]  # fmt: skip
        for each in container["volumeMounts"]:
            source = self.volumes[each["name"]] / each.get("subPath", "")
            argv.append(f"--volume={source}:{each['mountPath']}{':ro' if each.get('readOnly') else ''}")
        environment = {each["name"]: each["value"] for each in container.get("env", ())}
        if self.spec.get("automountServiceAccountToken"):
            account = self.cluster.base / "accounts" / self.spec["serviceAccountName"]
            account.mkdir(parents=True, exist_ok=True)
            (account / "token").write_text(f"token-of-{self.spec['serviceAccountName']}")
            (account / "namespace").write_text(self.cluster.namespace)
            (account / "ca.crt").write_bytes(self.cluster.authority.certificate_pem())
            argv.append(f"--volume={account}:{ACCOUNT}:ro")
            host, port = self.cluster.api.server_address[:2]
            environment |= {"KUBERNETES_SERVICE_HOST": str(host), "KUBERNETES_SERVICE_PORT": str(port)}
        return [*argv, *(f"--env={name}={value}" for name, value in environment.items())]

    @staticmethod
    def _command(container: dict[str, Any]) -> list[str]:
        command = container.get("command")
        return [f"--entrypoint={command[0]}", container["image"], *command[1:]] if command else [container["image"]]

    @staticmethod
    def _docker(*argv: str) -> str:
        done = subprocess.run(["docker", *argv], capture_output=True, text=True)
        assert done.returncode == 0, f"docker {' '.join(argv)}: {done.stderr}"
        return done.stdout.strip()

    def run(self, container: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """A command in a running container (kubectl exec)."""
        return subprocess.run(["docker", "exec", self.containers[container], *argv], capture_output=True, text=True)

    def log(self, container: str = "") -> str:
        name = container or next(iter(self.containers))
        done = subprocess.run(["docker", "logs", self.containers[name]], capture_output=True, text=True)
        return done.stdout + done.stderr

    def wait(self, seconds: float) -> int:
        """The exit code of a job's container."""
        deadline = time.monotonic() + seconds
        (container,) = self.containers.values()
        while time.monotonic() < deadline:
            state = docker.from_env().containers.get(container).attrs["State"]
            if state["Status"] == "exited":
                return int(state["ExitCode"])
            time.sleep(0.5)
        raise AssertionError(f"{self.name} still runs\n{self.log()}")

    def address(self) -> str:
        found = docker.from_env().containers.get(self.holder).attrs["NetworkSettings"]["Networks"]
        return str(found[self.cluster.name]["IPAddress"])

    # --- probes ---------------------------------------------------------------------------------------------------------

    def probe(self, container: str, kind: str) -> bool:
        """One look of a probe: startupProbe, livenessProbe, readinessProbe."""
        (spec,) = [each for each in self.spec["containers"] if each["name"] == container]
        probe = spec[kind]
        if "exec" in probe:
            return self.run(container, *probe["exec"]["command"]).returncode == 0
        ports = {each["name"]: each["containerPort"] for each in spec["ports"]}
        if "tcpSocket" in probe:
            try:
                with socket.create_connection((self.address(), ports[probe["tcpSocket"]["port"]]), timeout=5):
                    return True
            except OSError:
                return False
        place = f"http://{self.address()}:{ports[probe['httpGet']['port']]}{probe['httpGet']['path']}"
        try:
            with urllib.request.urlopen(place, timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ready(self, seconds: float = 180.0) -> None:
        """Wait until every container's probes say yes, within what the startup probe allows.

        Raises:
            AssertionError: they don't.
        """
        deadline = time.monotonic() + seconds
        for name in self.containers:
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                while not self.probe(name, kind):
                    assert time.monotonic() < deadline, f"{self.name}/{name}: {kind} says no\n{self.log(name)[-3000:]}"
                    time.sleep(1)

    # --- ends -----------------------------------------------------------------------------------------------------------

    def terminate(self) -> float:
        """As a deleted pod ends: preStop, the stop signal, SIGKILL after the grace period; returns the seconds that it took."""
        begun = time.monotonic()
        grace = self.spec.get("terminationGracePeriodSeconds", 30)  # Kubernetes' own
        for each in self.spec["containers"]:
            hook = each.get("lifecycle", {}).get("preStop")
            if hook:
                subprocess.run(
                    ["docker", "exec", self.containers[each["name"]], *hook["exec"]["command"]],
                    capture_output=True,
                    timeout=grace,
                )
        for container in self.containers.values():
            left = max(1, int(grace - (time.monotonic() - begun)))
            subprocess.run(["docker", "stop", f"--time={left}", container], capture_output=True, check=True)
        return time.monotonic() - begun

    def kill(self) -> None:
        """As when its node loses power."""
        for container in self.containers.values():
            subprocess.run(["docker", "kill", container], capture_output=True, check=True)

    def remove(self) -> None:
        """Containers and what was the pod's alone; claims stay."""
        for container in (*self.containers.values(), self.holder):
            if container:
                subprocess.run(["docker", "rm", "--force", "--volumes", container], capture_output=True, check=True)
        shutil.rmtree(self.cluster.base / "pods" / self.name, ignore_errors=True)
        shutil.rmtree(self.cluster.memory / self.name, ignore_errors=True)
        self.containers, self.holder = {}, ""
