"""The Kubernetes manifests' part that comes from the spec: a Kustomize component a size, k8s/components/size-<name>/.

A component brings the configuration (ConfigMaps with hashes in their names, so that a change rolls the pods), the limits, the schedules and
the init job, whose name carries a digest of what it runs for: a Job can't be changed, so another version is another Job.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import yaml

from orcheo_db.handed import CONFIG, RELAY
from orcheo_db.render.app import app_environment, redis_lines
from orcheo_db.render.backup import FIRST, PARTIES, REPOSITORY, render_ident, render_pgbackrest, second, service
from orcheo_db.render.compose import HEADER, render_pg_hba, render_pgbouncer, render_postgresql
from orcheo_db.spec import Size, Spec
from orcheo_db.tuning import container_limits, pool_arithmetic
from orcheo_db.tuning.fixed import SECRETS

POOLERS = 2  # replicas of PgBouncer: one serves while the other is replaced
LOGIN = "orcheo_app_a"
# Part of the limit that a pod asks for at the least: a cluster of one node with two CPUs takes size small. PostgreSQL is not squeezed
# out by others, because its memory is asked for in full from medium on (`_requests`).
SMALL_CPU = {"postgres": "250m", "pgbouncer": "50m", "backup": "50m", "init": "100m", "job": "100m"}
SCRATCH = "20Gi"  # a restored cluster: as much as PostgreSQL's own volume
COMPONENT = {"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component"}
SECOND_NAMES = {"full": "second-full", "differential": "second-differential", "drill": "drill-second"}
# Into one directory, as on Compose: each file its user's own; the first repository's key apart, for the relay alone.
SECOND_COPY = f"""\
umask 0377
cp -Lf /given/* /bucket/credentials.conf {SECRETS}/
for file in /bucket/second-*; do
  if [ -e "$file" ]; then cp -Lf "$file" {SECRETS}/; fi
done
umask 0077
mkdir {SECRETS}/relay
mv {SECRETS}/{RELAY} {SECRETS}/relay/{CONFIG}
"""
SECOND_PORT = 8433  # of the pgBackRest server beside the first one's 8432: one pod has one address
JOBS = ("full", "differential", "incremental", "logical", "drill")


def shared(spec: Spec, size: Size) -> Spec:
    """The spec with PgBouncer's server connections shared out among its replicas."""
    budget = pool_arithmetic(spec, size)
    own = {
        "default_pool_size": str(max(1, budget.app_pool // POOLERS)),
        "max_db_connections": str(max(1, budget.max_db_connections // POOLERS)),
    }
    return spec.model_copy(update={"pgbouncer": {**spec.pgbouncer, **own}})


def render(spec: Spec) -> dict[str, str]:
    """The files: path relative to the repository -> text. The manifests always have backups, whatever [backup] enabled says."""
    spec = spec.model_copy(update={"backup": spec.backup.model_copy(update={"enabled": True})})
    files = {"k8s/components/images/kustomization.yaml": text(images(spec))}
    for size in spec.sizes.values():
        place = f"k8s/components/size-{size.name}"
        files |= {f"{place}/{name}": content for name, content in component(spec, size).items()}
    return files | {"k8s/components/s3-backup/jobs.yaml": second_jobs(spec)}


def second_jobs(spec: Spec) -> str:
    """The CronJobs of component s3-backup: the second repository's schedule; what it has no kind for, it does not have."""
    jobs = [name for name in JOBS if name in type(spec.backup.second.schedule).model_fields]
    return HEADER + "---\n".join(text(cron_job(spec, job, bucket=True), "") for job in jobs)


def component(spec: Spec, size: Size) -> dict[str, str]:
    """One size's files by name."""
    name = spec.database.name
    told = service(spec, "")
    del told["installation_id"]  # every installation's own: from its Secret
    databases = {each: f"host=postgres port=5432 dbname={each}" for each in (name, "postgres")}
    files = {
        "postgresql.conf": render_postgresql(spec, size),
        "pg_hba.conf": render_pg_hba(spec),
        "pg_ident.conf": render_ident(),
        **{f"pgbackrest-{party}.conf": render_pgbackrest(spec, party) for party in PARTIES},
        "pgbouncer.ini": render_pgbouncer(shared(spec, size), size, databases=databases, auth_query=True),
        "backup.json": json.dumps(told, indent=2) + "\n",
        "app.json": json.dumps(app(spec), indent=2) + "\n",
        "redis.conf": HEADER + "".join(f"{line}\n" for line in redis_lines()),
        "init.yaml": text(init_job(spec, size)),
        "jobs.yaml": HEADER + "---\n".join(text(cron_job(spec, job), "") for job in JOBS),
    }
    files["kustomization.yaml"] = text(_kustomization(spec, size))
    return files


def app(spec: Spec) -> dict[str, Any]:
    """app.json, what `orcheo_db.runtime` reads."""
    options = f"sslmode=verify-full&sslrootcert={SECRETS}/ca.crt&connect_timeout=10"
    return {
        "dsn": f"postgresql://{LOGIN}@pgbouncer:6432/{spec.database.name}?{options}",
        "login": LOGIN,
        "redis": "redis:6379",
        "backend_processes": spec.app.backend_processes,
        "worker_processes": spec.app.worker_processes,
        "prepared_statements": spec.app.prepared_statements,
        "environment": app_environment(spec),
    }


class _Dumper(yaml.SafeDumper):
    """YAML as a person would write it: a text of several lines as a block, lists indented."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        del indentless
        super().increase_indent(flow, False)


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _string)


def text(document: Any, head: str = HEADER) -> str:
    """A document as YAML, under a head."""
    return head + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=140)


def images(spec: Spec) -> dict[str, Any]:
    """The one place for images: a component after all that have some."""
    tags = {name: tag.rpartition(":")[::2] for name, tag in spec.image_tags().items()}
    return COMPONENT | {
        "images": [{"name": f"orcheo-db/{name}", "newName": at, "newTag": tag} for name, (at, tag) in tags.items()]
    }


def _kustomization(spec: Spec, size: Size) -> dict[str, Any]:
    database = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf", "pgbackrest.conf=pgbackrest-database.conf"]
    backup = ["pgbackrest.conf=pgbackrest-backup.conf", "pgbackrest-restore.conf", "backup.json", "postgresql.conf"]
    generators = {
        "postgres": database,
        "pgbackrest": ["pgbackrest.conf=pgbackrest-database.conf"],
        "pgbouncer": ["pgbouncer.ini"],
        "archive": ["pgbackrest.conf=pgbackrest-archive.conf"],
        "backup": backup,
        "app": ["app.json"],
        "redis": ["redis.conf"],
    }
    return COMPONENT | {
        "resources": ["init.yaml", "jobs.yaml"],
        "configMapGenerator": [
            {"name": f"orcheo-db-conf-{name}", "files": files} for name, files in generators.items()
        ],
        "patches": [*_limits(spec, size), *_cluster(spec)],
    }


def _patch(kind: str, name: str, operations: list[dict[str, Any]], *, group: str = "apps") -> dict[str, Any]:
    target = {"group": group, "version": "v1", "kind": kind, "name": name}
    return {"target": target, "patch": text(operations, "")}


def _set(path: str, value: Any) -> dict[str, Any]:
    return {"op": "replace", "path": path, "value": value}


def mebibytes(count: int) -> str:
    """Bytes as a Kubernetes quantity."""
    return f"{count // 2**20}Mi"


def _requests(spec: Spec, size: Size) -> tuple[str, str]:
    """PostgreSQL's requests: half the memory and a quarter of a CPU for the smallest size, from the next one on what it may use."""
    small = size.name == next(iter(spec.sizes))
    return (SMALL_CPU["postgres"], mebibytes(size.memory // 4)) if small else (str(size.cpus), mebibytes(size.memory))


def _limits(spec: Spec, size: Size) -> list[dict[str, Any]]:
    limits = container_limits(size, spec)
    cpu, memory = _requests(spec, size)
    at = "/spec/template/spec/containers/0/resources"
    postgres = _resources(cpu, memory, mebibytes(limits.postgres), str(size.cpus))
    pooler = _resources(SMALL_CPU["pgbouncer"], "64Mi", mebibytes(limits.pgbouncer))
    backup = _resources(SMALL_CPU["backup"], "128Mi", mebibytes(spec.backup.memory))
    # For `orcheo-db --target kubernetes`, which measures the running tier by it.
    told = {"op": "add", "path": "/metadata/annotations", "value": {"orcheo-db/size": size.name}}
    shm = {"medium": "Memory", "sizeLimit": mebibytes(limits.shm)}
    return [
        _patch("StatefulSet", "postgres", [_set(at, postgres), _set("/spec/template/spec/volumes/0/emptyDir", shm)]),
        _patch("Deployment", "pgbouncer", [_set(at, pooler), _set("/spec/replicas", POOLERS), told]),
        _patch("StatefulSet", "backup", [_set(at, backup)]),
    ]


def _cluster(spec: Spec) -> list[dict[str, Any]]:
    at = "/spec/template/spec/containers/0/env"
    environment = [
        {"name": "ORCHEO_DB_INITDB_LOCALE_PROVIDER", "value": spec.cluster.locale_provider},
        {"name": "ORCHEO_DB_INITDB_LOCALE", "value": spec.cluster.locale},
        {"name": "PGBACKREST_CONFIG", "value": "/etc/orcheo-db/pgbackrest.conf"},
    ]
    query = f"dbname={spec.database.name}"
    probe = [
        "psql", "-XAtqc", "SELECT tables FROM orcheo_db.installation",
        f"host=localhost hostaddr=127.0.0.1 port=6432 {query} user=orcheo_monitor passfile={SECRETS}/orcheo_monitor.pgpass"
        f" sslmode=verify-full sslrootcert={SECRETS}/ca.crt connect_timeout=4",
    ]  # fmt: skip
    return [
        _patch("StatefulSet", "postgres", [_set(at, environment)]),
        _patch(
            "Deployment", "pgbouncer", [_set("/spec/template/spec/containers/0/readinessProbe/exec/command", probe)]
        ),
    ]


HARDENED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def _user(uid: int) -> dict[str, Any]:
    """A pod's security context: what Pod Security's `restricted` asks for."""
    return {
        "runAsNonRoot": True,
        "runAsUser": uid,
        "runAsGroup": uid,
        "fsGroup": uid,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _environment(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _resources(cpu: str, memory: str, most: str, cpus: str = "1") -> dict[str, Any]:
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpus, "memory": most}}


def _mount(name: str, path: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "mountPath": path, **more}


def _empty(name: str, size: str, *, memory: bool = False) -> dict[str, Any]:
    return {"name": name, "emptyDir": {**({"medium": "Memory"} if memory else {}), "sizeLimit": size}}


def _secret(name: str, secret: str) -> dict[str, Any]:
    return {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}}


def cron_job(spec: Spec, job: str, *, bucket: bool = False) -> dict[str, Any]:
    """A CronJob of the schedule: a pod beside the repository's, on whose volume it works.

    Args:
        bucket: of the second repository, a bucket, whose service's volume has its state and its evidence.
    """
    name = ("drill" if job == "drill" else f"backup-{job}") if not bucket else SECOND_NAMES[job]
    labels = {"app.kubernetes.io/name": "second-jobs" if bucket else "jobs", "app.kubernetes.io/component": "backup"}
    scratch = _empty("scratch", "64Mi")
    if job in ("drill", "logical"):  # a volume of its own for each run, gone with its pod
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": SCRATCH}}}
        scratch = {
            "name": "scratch",
            "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": labels}, "spec": claim}},
        }
    copy = f"umask 0377; cp -Lf /given/* {SECRETS}/"
    if bucket:
        copy = SECOND_COPY
    given = {
        "name": "secrets",
        "image": "orcheo-db/backup",
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-ec", copy],
        "resources": _resources("10m", "16Mi", "64Mi", "500m"),
        "securityContext": HARDENED,
        "volumeMounts": [
            _mount("given", "/given", readOnly=True),
            *([_mount("bucket", "/bucket", readOnly=True)] if bucket else []),
            _mount("secrets", SECRETS),
        ],
    }
    container = {
        "name": "job",
        "image": "orcheo-db/backup",
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-m", "orcheo_db.cluster", *(["drill"] if job == "drill" else ["backup", job])],
        "env": _environment(
            {"PGBACKREST_CONFIG": "/etc/orcheo-db/pgbackrest.conf", "PGBACKREST_CONFIG_INCLUDE_PATH": SECRETS}
        ),
        "resources": _resources(SMALL_CPU["job"], "128Mi", mebibytes(spec.backup.memory)),
        "securityContext": HARDENED,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            _mount("repository", REPOSITORY),
            *([_mount("first", FIRST, readOnly=True)] if bucket else []),
            _mount("scratch", "/var/lib/orcheo-scratch"),
            _mount("conf", "/etc/orcheo-db", readOnly=True),
            _mount("secrets", SECRETS, readOnly=True),
            _mount("run", "/run/postgresql"),
            _mount("shm", "/dev/shm"),  # noqa: S108 - the container's own
            _mount("tmp", "/tmp"),  # noqa: S108
        ],
    }
    # A volume that one node can mount is where the repository's pod is.
    beside = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "second" if bucket else "backup"}},
    }
    pod = {
        "restartPolicy": "Never",  # a failed run is a pod of its own, whose log stays
        "serviceAccountName": "orcheo-db-jobs",
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 60,
        "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [beside]}},
        "securityContext": _user(999),
        "initContainers": [given],
        "containers": [container],
        "volumes": [
            {
                "name": "repository",
                "persistentVolumeClaim": {"claimName": "state-second-0" if bucket else "repository-backup-0"},
            },
            scratch,
            *(_second_volumes() if bucket else [{"name": "conf", "configMap": {"name": "orcheo-db-conf-backup"}}]),
            _secret("given", "orcheo-db-second" if bucket else "orcheo-db-backup"),
            _empty("secrets", "1Mi", memory=True),
            _empty("run", "1Mi", memory=True),
            _empty("shm", "256Mi", memory=True),
            _empty("tmp", "256Mi"),
        ],
    }
    run = {
        "backoffLimit": 2,
        "activeDeadlineSeconds": 43200,  # half a day: one that hangs must not keep the next ones away for ever
        "template": {
            "metadata": {
                "labels": {**labels, "orcheo-db/api": "true", **({"orcheo-db/bucket": "true"} if bucket else {})}
            },
            "spec": pod,
        },  # the labels: for the network policies
    }
    schedule = spec.backup.second.schedule if bucket else spec.backup.schedule
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "schedule": schedule.model_dump()[job],
            "timeZone": "Etc/UTC",
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 3600,  # a run that was missed is made up for within the hour
            "successfulJobsHistoryLimit": 2,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {"metadata": {"labels": labels}, "spec": run},
        },
    }


def _second_volumes() -> list[dict[str, Any]]:
    """Of the second repository's parties (component s3-backup's second.yaml has the same)."""
    files = ["pgbackrest.conf", "pgbackrest-restore.conf", "pgbackrest-relay.conf", "backup.json"]
    bucket = {"name": "orcheo-db-bucket", "items": [{"key": name, "path": name} for name in files]}
    settings = {"name": "orcheo-db-conf-backup", "items": [{"key": "postgresql.conf", "path": "postgresql.conf"}]}
    return [
        {"name": "conf", "projected": {"defaultMode": 0o440, "sources": [{"secret": bucket}, {"configMap": settings}]}},
        _secret("bucket", "orcheo-db-bucket"),
        {"name": "first", "persistentVolumeClaim": {"claimName": "repository-backup-0", "readOnly": True}},
    ]


def bucket_secret(spec: Spec, files: dict[str, bytes], account: str) -> dict[str, Any]:
    """Secret orcheo-db-bucket, component s3-backup's: where the bucket is, and its credentials.

    Args:
        files: what else it holds: credentials as a part of pgBackRest's configuration, a key file, an authority.
        account: the storage account, where it is Azure's.
    """
    told = service(spec, "", second=True, account=account)
    del told["installation_id"]
    settings = {**second(spec, SECOND_PORT), "backup.json": json.dumps(told, indent=2) + "\n"}
    every = {name: content.encode() for name, content in settings.items()} | files
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": "orcheo-db-bucket", "labels": {"app.kubernetes.io/part-of": "orcheo-db"}},
        "data": {name: base64.b64encode(content).decode() for name, content in every.items()},
    }


def init_job(spec: Spec, size: Size) -> dict[str, Any]:
    """The Job that makes roles, extensions and the app's schema; another spec, another name."""
    environment = {
        "ORCHEO_DB_ADMIN_DSN": f"postgresql://orcheo_admin@postgres:5432/postgres?sslmode=verify-full&sslrootcert={SECRETS}/ca.crt",
        "ORCHEO_DB_DATABASE": spec.database.name,
        "ORCHEO_DB_EXTENSIONS": ",".join(spec.database.extensions),
        "ORCHEO_DB_SECRETS": SECRETS,
        "ORCHEO_DB_MANAGED": "1",
    }
    digest = hashlib.sha256(repr([spec.image_tags()["orcheo"], sorted(environment.items())]).encode()).hexdigest()[:8]
    limits = container_limits(size, spec)
    labels = {"app.kubernetes.io/name": "init", "app.kubernetes.io/component": "bootstrap"}
    container = {
        "name": "init",
        "image": "orcheo-db/orcheo",
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-m", "orcheo_db.bootstrap", "--json"],
        "env": _environment(environment),
        "resources": _resources(SMALL_CPU["init"], "256Mi", mebibytes(limits.init)),
        "securityContext": HARDENED,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [_mount("secrets", SECRETS, readOnly=True), _mount("tmp", "/tmp")],  # noqa: S108 - the container's own
    }
    pod = {
        "restartPolicy": "OnFailure",  # until PostgreSQL is there, which has its first boot before it
        "serviceAccountName": "orcheo-db",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _user(10001),
        "containers": [container],
        "volumes": [_secret("secrets", "orcheo-db-init"), _empty("tmp", "256Mi")],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"init-{digest}", "labels": labels},
        # Some hours of tries, minutes apart: storage may come late, and only `kubectl delete` and `apply` would begin anew.
        "spec": {"backoffLimit": 40, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }
