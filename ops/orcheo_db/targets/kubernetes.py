"""The tier in a Kubernetes cluster, as `kubectl apply -k k8s/` made it (k8s/README.md)."""

from __future__ import annotations

import copy
import json
import re
import secrets
import subprocess
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orcheo_db import handed
from orcheo_db.cluster.secrets import INSTALLATION, installation_of, take
from orcheo_db.console import step
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.render.kubernetes import SECOND_PORT, shared
from orcheo_db.secrets import Store
from orcheo_db.spec import Size, Spec
from orcheo_db.targets.base import Endpoint, Facts, Result, ServiceState, Target
from orcheo_db.targets.image_facts import SECRETS, image_facts
from orcheo_db.targets.kubectl import Kubectl, without_end

WORKLOADS = "statefulsets,deployments,jobs,cronjobs,pods"
PART = "app.kubernetes.io/part-of=orcheo-db"
NAME = "app.kubernetes.io/name"
SIZE = "orcheo-db/size"  # annotation of Deployment pgbouncer: which size's component the overlay took
READY_SECONDS = 300  # for a pod that is made anew: PostgreSQL may have a crash to recover from
STOP_SECONDS = 330  # the longest grace period of a pod here is PgBouncer's, 300
ONE_OFF_SECONDS = 3600  # a pod that this process could not remove ends by itself
POLL = 0.5  # seconds between two looks
LOCAL = "127.0.0.1"
CLAIM = "data-postgres-0"  # StatefulSet postgres' volumeClaimTemplate


@dataclass(frozen=True)
class Service:
    """A service of the tier: the workload that runs it, and the container in its pods."""

    name: str
    kind: str
    workload: str
    container: str

    @property
    def is_job(self) -> bool:
        return self.kind == "Job"


SERVICES = (
    Service("secrets", "Job", "secrets", "secrets"),
    Service("postgres", "StatefulSet", "postgres", "postgres"),
    Service("pgbackrest", "StatefulSet", "postgres", "pgbackrest"),
    Service("init", "Job", "init", "init"),
    Service("pgbouncer", "Deployment", "pgbouncer", "pgbouncer"),
    Service("archive", "StatefulSet", "backup", "archive"),
    Service("backup", "StatefulSet", "backup", "backup"),
    Service("second", "StatefulSet", "second", "second"),
    Service("redis", "StatefulSet", "redis", "redis"),
    Service("backend", "StatefulSet", "backend", "backend"),
    Service("worker", "Deployment", "worker", "worker"),
    Service("beat", "Deployment", "beat", "beat"),
)
BY_NAME = {service.name: service for service in SERVICES}
APP = ("backend", "worker", "beat")


class KubernetesTarget(Target):
    """Pods of one namespace, driven by kubectl; the namespace's Secret is copied into the state directory."""

    name = "kubernetes"
    up_command = "kubectl apply -k k8s/"

    def __init__(self, spec: Spec, size: Size, store: Store, kubectl: Kubectl) -> None:
        super().__init__(spec, size, store)
        self.kubectl = kubectl
        self.project = kubectl.namespace
        self._seen: list[dict[str, Any]] | None = None

    # --- what is there ----------------------------------------------------------------------------------------------------

    def objects(self, kind: str, *, fresh: bool = False) -> list[dict[str, Any]]:
        """The tier's objects of a kind ("Pod"), as they were at the first question, or as they are now."""
        if self._seen is None or fresh:
            self._seen = self.kubectl.get(WORKLOADS, selector=PART)
        return [each for each in self._seen if each["kind"] == kind]

    def workload(self, service: Service, *, fresh: bool = False) -> dict[str, Any] | None:
        """What runs a service; None where there is no such thing. An init job's name has a digest: the newest one counts."""
        found = self._of(service, service.kind, fresh=fresh)
        return max(found, key=lambda each: str(each["metadata"]["creationTimestamp"]), default=None)

    def pods(self, service: Service, *, fresh: bool = False) -> list[dict[str, Any]]:
        """A service's pods, those that can be used first."""
        found = self._of(service, "Pod", fresh=fresh)
        return sorted(found, key=lambda pod: (not _ready(pod, service.container), pod["metadata"]["name"]))

    def _of(self, service: Service, kind: str, *, fresh: bool) -> list[dict[str, Any]]:
        """A service's objects of a kind: those of its workload's name."""
        return [
            each for each in self.objects(kind, fresh=fresh) if each["metadata"]["labels"].get(NAME) == service.workload
        ]

    def cron_job(self, name: str) -> dict[str, Any] | None:
        """A CronJob as it is now."""
        every = self.objects("CronJob", fresh=True)
        return next((each for each in every if each["metadata"]["name"] == name), None)

    @property
    def managed_server(self) -> bool:  # type: ignore[override]  # here it is found out
        """Whether PostgreSQL runs in the cluster, too (not with component external-database)."""
        return self.workload(BY_NAME["postgres"]) is not None

    @property
    def with_app(self) -> bool:
        return self.workload(BY_NAME["backend"]) is not None

    @property
    def with_backup(self) -> bool:
        return self.workload(BY_NAME["backup"]) is not None

    @property
    def with_second(self) -> bool:
        return self.workload(BY_NAME["second"]) is not None

    @property
    def pooler_spec(self) -> Spec:
        return shared(self.spec, self.size)

    @property
    def volume(self) -> str:
        return CLAIM

    @property
    def service_names(self) -> tuple[str, ...]:
        return tuple(service.name for service in SERVICES if self.workload(service) is not None)

    def services(self) -> list[ServiceState]:
        self.objects("Pod", fresh=True)
        found = [self._state(service) for service in SERVICES if self.workload(service) is not None]
        return found or [ServiceState("pgbouncer", "missing", "none", detail=f"nothing in {self.kubectl.place()}")]

    def _state(self, service: Service) -> ServiceState:
        workload, pods = self.workload(service), self.pods(service)
        assert workload is not None
        image = next((each["image"] for each in _containers(workload) if each["name"] == service.container), "")
        since = (pods[0] if pods else workload)["metadata"]["creationTimestamp"].rstrip("Z").replace("T", " ")
        waiting = next((reason for pod in pods if (reason := waits_for(pod, service.container))), "")
        if service.is_job:
            return _job_state(service.name, workload, image, since, waiting)
        wanted = int(workload["spec"].get("replicas", 1))
        ready = sum(_ready(pod, service.container) for pod in pods)
        detail = f"{ready} of {wanted} ready" + (f": {waiting}" if waiting and ready < wanted else "")
        if not wanted:
            return ServiceState(service.name, "scaled to 0", "unhealthy", image, since, detail)
        runs = any(running(pod, service.container) for pod in pods)
        health = "healthy" if ready >= wanted else ("starting" if pods else "unhealthy")
        return ServiceState(service.name, "running" if runs else (waiting or "pending"), health, image, since, detail)

    def pod(self, service: str) -> str:
        """The name of a pod of the service, one that is ready if there is one.

        Raises:
            UserError: the service has no running pod.
        """
        known = BY_NAME[service]
        for fresh in (False, True):
            pods = [pod for pod in self.pods(known, fresh=fresh) if running(pod, known.container)]
            if pods and (fresh or self._is_there(pods[0])):
                return str(pods[0]["metadata"]["name"])
        raise UserError(
            f"service {service} has no running pod in {self.kubectl.place()}: see `orcheo-db --target kubernetes status`, `{self.up_command}`"
        )

    def _is_there(self, pod: dict[str, Any]) -> bool:
        """Whether a pod that was seen earlier is still the same."""
        now = self.kubectl.get("pod", pod["metadata"]["name"])
        return (
            bool(now)
            and now[0]["metadata"]["uid"] == pod["metadata"]["uid"]
            and "deletionTimestamp" not in now[0]["metadata"]
        )

    # --- commands ---------------------------------------------------------------------------------------------------------

    def inside(self, service: str, *, interactive: bool = False, tty: bool = False) -> list[str]:
        words = [*(["--stdin"] if interactive else []), *(["--tty"] if tty else [])]
        return self.kubectl.argv("exec", *words, self.pod(service), f"--container={BY_NAME[service].container}", "--")

    def run(self, service: str, argv: Sequence[str], *, input: str | None = None) -> Result:
        done = super().run(service, argv, input=input)
        return Result(done.code, done.stdout, without_end(done.stderr))

    def one_off(self, argv: Sequence[str], told: str) -> Result:
        return self._once("one-off", argv, told, {}, {"orcheo-db/client": "true"}, secrets_too=False)

    def as_init(self, argv: Sequence[str], told: str, environment: Mapping[str, str]) -> Result:
        """Run a command as the init job runs: its image, secrets and environment (and this one), to PostgreSQL itself."""
        return self._once("init", argv, told, environment, {}, secrets_too=True)

    def _once(
        self,
        kind: str,
        argv: Sequence[str],
        told: str,
        environment: Mapping[str, str],
        labels: Mapping[str, str],
        *,
        secrets_too: bool,
    ) -> Result:
        """Run a command in a pod of the init job's image and limits that is there for it alone."""
        init = self.workload(BY_NAME["init"])
        if init is None:
            raise UserError(f"job init is not in {self.kubectl.place()}: run `{self.up_command}`")
        pod = copy.deepcopy(init["spec"]["template"]["spec"])
        (container,) = pod["containers"]
        given = [{"name": key, "value": value} for key, value in environment.items()]
        container |= {"command": ["sleep", str(ONE_OFF_SECONDS)], "env": [*container["env"], *given]}
        if not secrets_too:
            container["env"] = given
            container["volumeMounts"] = [each for each in container["volumeMounts"] if each["name"] == "tmp"]
            pod["volumes"] = [each for each in pod["volumes"] if each["name"] == "tmp"]
        pod |= {"restartPolicy": "Never", "activeDeadlineSeconds": ONE_OFF_SECONDS, "terminationGracePeriodSeconds": 1}
        name = f"{kind}-{secrets.token_hex(3)}"
        own = {**labels_of(init["spec"]["template"]), NAME: kind, **labels}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": own}, "spec": pod}
        self.kubectl.text("create", "--filename=-", input=json.dumps(body))
        try:
            self.kubectl.text("wait", "--for=condition=Ready", f"--timeout={READY_SECONDS}s", f"pod/{name}")
            words = self.kubectl.argv("exec", "--stdin", name, f"--container={container['name']}", "--", *argv)
            done = subprocess.run(words, input=told, capture_output=True, text=True)
        finally:
            self.kubectl.run("delete", "pod", name, "--wait=false")
        return Result(done.returncode, done.stdout, without_end(done.stderr))

    def restart(self, service: str) -> None:
        self._replace(service, "--wait=true")

    def kill(self, service: str) -> None:
        self._replace(service, "--grace-period=0", "--force")

    def _replace(self, service: str, *how: str) -> None:
        pod = self.pod(service)
        known = BY_NAME[service]
        gone = {each["metadata"]["uid"] for each in self.pods(known) if each["metadata"]["name"] == pod}
        self.kubectl.close(f"svc/{known.workload}")
        self.kubectl.text("delete", "pod", pod, *how)
        self.ready(service, without=gone)

    def replicas(self, service: str) -> int:
        """How many pods of a service are wanted; 0 also where there is no such workload."""
        workload = self.workload(BY_NAME[service], fresh=True)
        return int(workload["spec"].get("replicas", 1)) if workload else 0

    def scale(self, service: str, replicas: int, *, grace: int | None = None, wait: bool = True) -> None:
        """Have so many pods of a service, and wait until it is so.

        Args:
            grace: seconds for pods that go, instead of their own.

        Raises:
            CheckFailed: it does not come to be so.
        """
        known = BY_NAME[service]
        self.kubectl.close(f"svc/{known.workload}")
        with step(f"Scaling {service} to {replicas}"):
            names = [pod["metadata"]["name"] for pod in self.pods(known, fresh=True)]
            self.kubectl.text("scale", f"{known.kind.lower()}/{known.workload}", f"--replicas={replicas}")
            if replicas:
                if wait:
                    self.ready(service)
                return
            for name in names:
                if grace is not None:
                    self.kubectl.run(
                        "delete", "pod", name, f"--grace-period={grace}", "--wait=false", "--ignore-not-found"
                    )
            for name in names:
                gone = self.kubectl.run("wait", "--for=delete", f"pod/{name}", f"--timeout={STOP_SECONDS}s")
                if gone.code != 0 and "NotFound" not in gone.stderr:
                    raise CheckFailed(f"pod {name} does not end: {gone.stderr.strip()}")

    def rolled(self, service: str) -> None:
        """Have every pod of a workload replaced, in its own order, and wait for it.

        Raises:
            CheckFailed: it does not come to be so.
        """
        known = BY_NAME[service]
        self.kubectl.close(f"svc/{known.workload}")
        self.kubectl.text("rollout", "restart", f"{known.kind.lower()}/{known.workload}")
        self.ready(service)

    def ready(self, service: str, seconds: int = READY_SECONDS, *, without: Container[str] = ()) -> None:
        """Wait until a workload has the pods that it wants, of its present template, and all are ready.

        Args:
            without: uids of pods that don't count: they are about to go.

        Raises:
            CheckFailed: it has not, with what `kubectl rollout status` says or the pod waits for.
        """
        known, deadline = BY_NAME[service], time.monotonic() + seconds
        self.kubectl.text("rollout", "status", f"{known.kind.lower()}/{known.workload}", f"--timeout={seconds}s")
        while True:  # a workload's own state lags behind its pods'
            wanted = self.replicas(service)
            pods = [pod for pod in self.pods(known) if pod["metadata"]["uid"] not in without]
            if sum(_ready(pod, known.container) for pod in pods) >= wanted:
                return
            if time.monotonic() > deadline:
                why = next((reason for pod in pods if (reason := waits_for(pod, known.container))), "its probe says no")
                raise CheckFailed(f"{service} is not ready in {self.kubectl.place()} after {seconds} s: {why}")
            time.sleep(POLL)

    # --- endpoints --------------------------------------------------------------------------------------------------------

    def pooler(self) -> Endpoint:
        return Endpoint("pgbouncer", self.kubectl.forward("svc/pgbouncer", 6432), LOCAL)

    def server(self) -> Endpoint:
        if not self.managed_server:
            raise UserError("PostgreSQL is somewhere else (component external-database): use its own address")
        return Endpoint("postgres", self.kubectl.forward("svc/postgres", 5432), LOCAL)

    def app_url(self) -> str:
        return f"http://{LOCAL}:{self.kubectl.forward('svc/backend', 8000)}"

    def app_told(self) -> tuple[str, str]:
        port = self.spec.app.port
        return f"http://{LOCAL}:{port}", " ".join(
            self.kubectl.argv("port-forward", "svc/backend", f"{port}:8000")
        ) + " & "

    def client_dsn(self, role: str | None = None, *, direct: bool = False) -> str:
        """The DSN for a pod of the cluster that has label orcheo-db/client, with Secret orcheo-db-app's ca.crt at the place named."""
        self.store.installation_id()
        role = role or self.app_login()
        host = f"postgres.{self.project}.svc:5432" if direct else f"pgbouncer.{self.project}.svc:6432"
        options = f"sslmode=verify-full&sslrootcert={SECRETS}/ca.crt"
        return f"postgresql://{role}:{self.store.password(role)}@{host}/{self.spec.database.name}?{options}"

    # --- verification -----------------------------------------------------------------------------------------------------

    def facts(self) -> Facts:
        def host(role: str) -> str:
            context = f"&context={self.kubectl.context}" if self.kubectl.context else ""
            return f"kubectl://{self.pod(role)}?namespace={self.project}&container={BY_NAME[role].container}{context}"

        roles = ["postgres", "pgbouncer"] if self.managed_server else ["pgbouncer"]
        return image_facts(self, {role: host(role) for role in roles}, {"postgres": self._beside()})

    def _beside(self) -> tuple[str, ...]:
        """What the other containers of PostgreSQL's pod listen on."""
        ports = {"pgbackrest": 8432, **({"pgbackrest-second": SECOND_PORT} if self.with_second else {})}
        return tuple(f"tcp://{port}" for port in ports.values())

    def psql(self, role: str, *, direct: bool, interactive: bool, arguments: Sequence[str]) -> int:
        """psql in the pod that it is about, with the password in a file of that container's memory for as long as it runs; its exit code."""
        service = "postgres" if direct else "pgbouncer"
        port, file = 5432 if direct else 6432, f"/tmp/pgpass-{secrets.token_hex(4)}"  # noqa: S108 - the container's own
        pod = [self.pod(service), f"--container={BY_NAME[service].container}", "--"]
        told = handed.pgpass(role, self.store.password(role)).decode()
        self.kubectl.text("exec", "--stdin", *pod, "sh", "-c", f"umask 077; cat > {file}", input=told)
        where = (
            f"host=localhost hostaddr=127.0.0.1 port={port} user={role} dbname={self.spec.database.name} sslmode=verify-full"
            f" sslrootcert={SECRETS}/ca.crt passfile={file}"
        )
        words = [
            "--stdin",
            *(["--tty"] if interactive else []),
            *pod,
            "env",
            "PSQL_HISTORY=/dev/null",
            "psql",
            where,
            *arguments,
        ]
        try:
            return subprocess.run(self.kubectl.argv("exec", *words)).returncode
        finally:
            self.kubectl.run("exec", *pod, "rm", "-f", file)


def state_name(project: str, context: str, namespace: str) -> str:
    """The name of the state directory: contexts may have any character in their names, a directory that Compose can mount not."""
    return f"{project}-kubernetes-{re.sub(r'[^A-Za-z0-9._-]+', '-', context)}-{namespace}"


def take_secrets(kubectl: Kubectl, store: Store) -> list[str]:
    """Copy the installation's Secret into the state directory; returns what was done that a person should know.

    Another installation's copy that is there (the namespace was made anew) is set aside, never written over: it may be the only one.

    Raises:
        UserError: there is no installation in the namespace. CheckFailed: the cluster does not answer, or refuses.
    """
    found = kubectl.get("secret", INSTALLATION)
    if not found:
        raise UserError(
            f"there is no Secret {INSTALLATION} in {kubectl.place()}: run `kubectl apply -k k8s/` (k8s/README.md), or name --namespace, --context"
        )
    lines = []
    if store.exists() and (kept := store.installation_id()) != (identity := installation_of(found[0])):
        aside = Path(f"{store.path}-{kept[:8]}")
        if aside.exists():
            raise CheckFailed(
                f"{store.path} has the secrets of installation {kept}, the cluster those of {identity}, and {aside} is there already: move one away"
            )
        store.path.rename(aside)
        lines.append(f"the secrets of the former installation {kept} are set aside in {aside}")
    take(store, found[0])
    return lines


def size_of(kubectl: Kubectl) -> str | None:
    """The size whose component the overlay took; None where the tier is not there, or of an older release of this toolkit."""
    found = kubectl.get("deployment", "pgbouncer")
    return found[0]["metadata"].get("annotations", {}).get(SIZE) if found else None


def labels_of(template: dict[str, Any]) -> dict[str, str]:
    """A pod template's labels, without those by which a Job finds its own pods."""
    found: dict[str, str] = template["metadata"]["labels"]
    return {key: value for key, value in found.items() if "controller-uid" not in key and "job-name" not in key}


def _containers(workload: dict[str, Any]) -> list[dict[str, Any]]:
    return list(workload["spec"]["template"]["spec"]["containers"])


def _status(pod: dict[str, Any], container: str) -> dict[str, Any]:
    every = pod.get("status", {}).get("containerStatuses", ())
    return next((each for each in every if each["name"] == container), {})


def running(pod: dict[str, Any], container: str) -> bool:
    """Whether a pod's container runs, and is not about to go."""
    return "running" in _status(pod, container).get("state", {}) and "deletionTimestamp" not in pod["metadata"]


def _ready(pod: dict[str, Any], container: str) -> bool:
    return bool(_status(pod, container).get("ready")) and "deletionTimestamp" not in pod["metadata"]


def waits_for(pod: dict[str, Any], container: str) -> str:
    """Why a pod's container does not run: kubelet's or the scheduler's reason."""
    status = pod.get("status", {})
    for each in (*status.get("initContainerStatuses", ()), _status(pod, container)):
        if reason := each.get("state", {}).get("waiting", {}).get("reason"):
            return str(reason)
    unscheduled = (
        each for each in status.get("conditions", ()) if each["type"] == "PodScheduled" and each["status"] == "False"
    )
    return next((str(each.get("message") or each.get("reason", "")) for each in unscheduled), "")


def _job_state(name: str, job: dict[str, Any], image: str, since: str, waiting: str) -> ServiceState:
    status = job.get("status", {})
    if status.get("succeeded"):
        return ServiceState(name, "exited", "done", image, since)
    if any(each["type"] == "Failed" and each["status"] == "True" for each in status.get("conditions", ())):
        return ServiceState(name, "exited", "failed", image, since, f"see kubectl logs job/{job['metadata']['name']}")
    return ServiceState(name, waiting or "running", "starting", image, since, f"{status.get('failed', 0)} failed tries")


__all__ = ["KubernetesTarget", "labels_of", "running", "size_of", "state_name", "take_secrets", "waits_for"]
