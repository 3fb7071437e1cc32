"""`restore` in a cluster: into a directory of PostgreSQL's own volume, beside the running cluster; putting it in place is a step of its own.

One pod, `restore`, has both volumes for as long as it takes. Its name is the lock: a second restore can't make it.
"""

from __future__ import annotations

import copy
import json
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orcheo_db import lifecycle
from orcheo_db.backup_lifecycle import PROGRAM, ask, follow
from orcheo_db.cluster.volume import VOLUME, stamp
from orcheo_db.console import say, step
from orcheo_db.errors import CheckFailed, UserError, refused
from orcheo_db.lifecycle_steps import last_line
from orcheo_db.restore import WAIT_SECONDS, check_out, without_extract
from orcheo_db.targets.kubectl import without_end
from orcheo_db.targets.kubernetes import BY_NAME, CLAIM, NAME, KubernetesTarget, labels_of

POD = "restore"
OTHERS = ("scratch", "repository", "first")  # the drill's volumes that a restore has no use for, or another one
POD_SECONDS = 24 * 3600  # a restore that hangs, or whose operator has gone, ends
START_SECONDS = 300  # for a volume that has to come over from another node
INIT_SECONDS = 900
CLUSTER = ("python", "-m", "orcheo_db.cluster")


def restore(
    target: KubernetesTarget,
    options: Sequence[str],
    *,
    swap: bool = False,
    table: str | None = None,
    out: Path | None = None,
    repository: str = "first",
) -> dict[str, Any]:
    """Restore into a new directory of the volume; production is only read, and only with `swap` replaced. Arguments as `restore.restore`.

    Raises:
        UserError: no backups, a target outside of the archive, `out` exists, the two volumes are on different nodes. CheckFailed: it failed.
    """
    check_out(table, out)
    ask(target, "restore", "--check", *without_extract(options), repository=repository)
    with lifecycle.exclusive(target.store):
        name = f"restored-{stamp()}"
        with _pod(target, name, repository):
            try:
                answer = _run(target, options, out)
            except BaseException:
                if out is not None:
                    out.unlink(missing_ok=True)
                # Made a moment ago by this very call, and nothing of use in it.
                target.kubectl.run("exec", POD, f"--container={POD}", "--", *CLUSTER, "remove", name)
                raise
            if table is not None:
                _cluster(target, "remove", name)
                return {**answer, "volume": None, "out": str(out)}
    answer["volume"] = name
    if swap:
        answer |= put_in_place(target, name)
    return answer


def put_in_place(target: KubernetesTarget, name: str) -> dict[str, Any]:
    """Let PostgreSQL run on what `name` holds; what it ran on stays, under a name. Nobody writes until the init job has been through.

    Raises:
        UserError: there is no such restore, or it is another installation's. CheckFailed: the server does not start on it.
    """
    replicas = target.replicas("pgbouncer") or 2
    with lifecycle.exclusive(target.store):
        with _pod(target, None):
            claim = _check(target, name)
            if claim:
                ask(target, "claim", str(claim["timeline"]), claim["id"])
            say(f"Putting {name} in place of the cluster in use, which is kept")
            try:
                target.scale("pgbouncer", 0, grace=10)
                target.scale("postgres", 0)
                done = _cluster(target, "place", name)
            except (UserError, CheckFailed) as error:
                again = f"orcheo-db --target kubernetes restore --use {name} --confirm {target.project}"
                raise CheckFailed(
                    f"{error} [PostgreSQL and PgBouncer may be scaled to 0: go on with `{again}`, or leave it and scale them by `{target.up_command}`]"
                ) from None
        back = f"; back to the former one: orcheo-db --target kubernetes restore --use {done['kept']} --confirm {target.project}"
        try:
            target.scale("postgres", 1)
            _initialize(target)  # the restored moment may be older than the releases that run now
            target.scale("pgbouncer", replicas)
            # A new timeline begins: from here on it is covered. A job that runs meanwhile is waited for.
            ask(target, "run", "--type", "incremental", f"--wait={WAIT_SECONDS}")
            # PostgreSQL's pod has other containers, which may come later than the server.
            target.ready("pgbackrest")
        except (UserError, CheckFailed) as error:
            raise CheckFailed(
                f"{error} [{name} is in place; PgBouncer is scaled by `{target.up_command}`{back}]"
            ) from None
    return done


def remove(target: KubernetesTarget, name: str) -> dict[str, Any]:
    """Remove what a restore made or set aside; the caller has a confirmation that names it.

    Raises:
        UserError: there is no such thing.
    """
    with lifecycle.exclusive(target.store), _pod(target, None):
        return _cluster(target, "remove", name)


def _check(target: KubernetesTarget, name: str) -> dict[str, Any] | None:
    """Whether a restore can be put in place; the timeline that it goes on as, if it is one.

    Raises:
        UserError: it can't.
    """
    found = _cluster(target, "volume")
    aside = found["aside"]
    if found["placing"] and found["placing"]["name"] == name:  # that was cut off: it is gone on with
        return None
    if name not in aside:
        raise UserError(f"there is no {name} to put in place; there are: {', '.join(aside) or 'none'}")
    if aside[name]["cut_off"]:
        raise UserError(f"the restore into {name} was cut off: restore again, and remove it (restore --remove {name})")
    if aside[name]["installation_id"] != target.store.installation_id():
        raise UserError(f"{name} holds no finished cluster of this installation: restore again; nothing was changed")
    claim: dict[str, Any] | None = aside[name]["claim"]
    return claim


@contextmanager
def _pod(target: KubernetesTarget, name: str | None, repository: str = "first") -> Iterator[None]:
    """The pod `restore`, while something is to be done: with the repository and the new directory `name`, or (None) with the whole volume.

    Raises:
        UserError: another restore has it. CheckFailed: it does not come to run.
    """
    body = _body(target, name, repository)
    if target.kubectl.get("pod", POD):
        raise UserError(
            f"pod {POD} is there: another restore is at work; if none is, remove it (kubectl --namespace {target.project} delete pod {POD})"
        )
    target.kubectl.text("create", "--filename=-", input=json.dumps(body))
    try:
        with step("Waiting for a pod with the volumes"):
            waited = target.kubectl.run("wait", "--for=condition=Ready", f"--timeout={START_SECONDS}s", f"pod/{POD}")
        if waited.code != 0:
            raise CheckFailed(f"pod {POD} does not come to run: {_why(target)}; nothing was changed")
        yield
    finally:
        target.kubectl.run("delete", "pod", POD, "--wait=true", "--timeout=120s")


def _why(target: KubernetesTarget) -> str:
    """What the scheduler or kubelet last said about the pod."""
    found = target.kubectl.get("events")
    said = [each for each in found if each["involvedObject"].get("name") == POD]
    latest = max(said, key=lambda each: str(each.get("lastTimestamp") or each.get("eventTime") or ""), default=None)
    return str(latest["message"]) if latest else "no event says why"


def _body(target: KubernetesTarget, name: str | None, repository: str) -> dict[str, Any]:
    """The pod: the drill's, with another volume instead of its scratch one, and nothing to do.

    Raises:
        UserError: there is no CronJob drill.
    """
    cron_job = "drill" if repository == "first" else "drill-second"
    drill = target.cron_job(cron_job)
    if drill is None:
        raise UserError(
            f"there are no backups in {target.kubectl.place()} (CronJob {cron_job}): nothing can be restored"
        )
    template = copy.deepcopy(drill["spec"]["jobTemplate"]["spec"]["template"])
    pod: dict[str, Any] = template["spec"]
    (container,) = pod["containers"]
    whole = {"name": "data", "mountPath": str(VOLUME)}
    mounts = container["volumeMounts"]
    kept = [each for each in mounts if each["name"] not in OTHERS]
    container |= {"name": POD, "command": ["sleep", str(POD_SECONDS)]}
    volumes = [each for each in pod["volumes"] if each["name"] not in OTHERS]
    volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": CLAIM}})
    container["volumeMounts"] = [*kept, whole]
    if name is not None:
        # kubelet would make the directory as root's.
        room = {**pod["initContainers"][0], "name": "room", "volumeMounts": [whole]}
        room["command"] = ["mkdir", "--mode=0700", f"{VOLUME}/{name}"]
        new = {"name": "data", "mountPath": "/var/lib/postgresql", "subPath": name}
        pod["initContainers"] = [*pod["initContainers"], room]
        container["volumeMounts"].append(new)
    if name is not None and repository == "first":
        container["volumeMounts"] += [{**each, "readOnly": True} for each in mounts if each["name"] == "repository"]
        volumes += [each for each in pod["volumes"] if each["name"] == "repository"]
    else:  # nothing is restored, or out of a bucket, and perhaps nothing else is left: PostgreSQL's volume alone says where
        pod["affinity"] = _beside("postgres") if target.pods(BY_NAME["postgres"]) else {}
    pod["volumes"] = volumes
    pod |= {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": POD_SECONDS,
        "terminationGracePeriodSeconds": 5,
        "serviceAccountName": "orcheo-db",
        "automountServiceAccountToken": False,
    }
    # Of the drill's labels those that say whose it is, and the one that opens the way to a bucket; none opens PostgreSQL.
    labels = {key: value for key, value in labels_of(template).items() if key != "orcheo-db/api"} | {NAME: POD}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD, "labels": labels}, "spec": pod}


def _beside(name: str) -> dict[str, Any]:
    """Where a pod of that name is: a volume that one node can mount is there."""
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {NAME: name}}}
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def _cluster(target: KubernetesTarget, *words: str) -> dict[str, Any]:
    """A command of `orcheo_db.cluster` in the pod.

    Raises:
        UserError, CheckFailed: as the command does.
    """
    done = target.kubectl.run("exec", POD, f"--container={POD}", "--", *CLUSTER, *words)
    if done.code != 0:
        raise refused(done.code, last_line(without_end(done.stderr)).removeprefix("orcheo-db: "))
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _run(target: KubernetesTarget, options: Sequence[str], out: Path | None) -> dict[str, Any]:
    """The restore itself."""
    argv = target.kubectl.argv("exec", POD, f"--container={POD}", "--", *PROGRAM, "restore", *options)
    with step("Restoring") as bar:
        rows = out.open("xb") if out else None
        try:
            with subprocess.Popen(argv, stdout=rows or subprocess.PIPE, stderr=subprocess.PIPE) as process:
                words = follow(process, bar)
                answer = words if rows else (process.stdout.read().decode() if process.stdout else "")
        finally:
            if rows:
                rows.close()
    if process.returncode != 0:
        raise refused(process.returncode, f"{words} (production was not touched)")
    found: dict[str, Any] = json.loads(answer)
    return found


def _initialize(target: KubernetesTarget) -> None:
    """The init job again, as another Job of the same kind: the one that the manifests made stays as it is."""
    init = target.workload(BY_NAME["init"], fresh=True)
    if init is None:
        raise CheckFailed(f"job init is not in {target.kubectl.place()}")
    template = copy.deepcopy(init["spec"]["template"])
    labels = labels_of(template)
    template["metadata"] = {"labels": labels}
    name = f"init-restored-{secrets.token_hex(3)}"
    spec = {"backoffLimit": init["spec"]["backoffLimit"], "ttlSecondsAfterFinished": 86400, "template": template}
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "labels": labels}, "spec": spec}
    with step("Bringing the schema up to date"):
        target.kubectl.text("create", "--filename=-", input=json.dumps(body))
        target.kubectl.text("wait", "--for=condition=complete", f"job/{name}", f"--timeout={INIT_SECONDS}s")


__all__ = ["put_in_place", "remove", "restore"]
