"""Backups and drills in a cluster that want a volume of their own: jobs of the CronJobs' kind, made now and watched.

They are jobs and no `kubectl exec`, so that one goes on when the connection to the cluster does not.
"""

from __future__ import annotations

import copy
import json
import secrets
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from orcheo_db.console import Step, say, step
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.targets.kubernetes import KubernetesTarget, running, waits_for

START_SECONDS = 600  # for a volume that is made for the job, and a node that has room for it
KEPT_SECONDS = 7 * 86400  # a finished job, with its log: as long as somebody may come back from holiday to a question
SAYS = "orcheo-db: "  # how the job's progress lines begin; the answer, a line of JSON, has no such beginning
POLL = 1.0
ENDED_SECONDS = 30  # between a container's end and the Job's own state


def run(target: KubernetesTarget, cron_job: str, options: Sequence[str] = ()) -> Any:
    """Run what a CronJob runs, now; returns its answer.

    Raises:
        UserError: there is no such CronJob. CheckFailed: it does not come to run, or failed.
    """
    found = target.cron_job(cron_job)
    if found is None:
        raise UserError(f"there is no CronJob {cron_job} in {target.kubectl.place()}: run `{target.up_command}`")
    name = f"{cron_job}-{secrets.token_hex(3)}"
    target.kubectl.text("create", "--filename=-", input=json.dumps(_body(name, found, options)))
    say(f"Job {name} is made: it goes on if this command ends (kubectl --namespace {target.project} logs job/{name})")
    with step("Waiting for a pod with a volume"):
        pod = _started(target, name)
    with step("Working") as bar:
        answer, words = _followed(target, pod, bar)
    _finish(target, name, words)
    if answer is None:
        raise CheckFailed(f"job {name} gave no answer: {words or 'it said nothing'}")
    return json.loads(answer)


def _body(name: str, cron_job: dict[str, Any], options: Sequence[str]) -> dict[str, Any]:
    template = cron_job["spec"]["jobTemplate"]
    spec = copy.deepcopy(template["spec"]) | {"backoffLimit": 0, "ttlSecondsAfterFinished": KEPT_SECONDS}
    (container,) = spec["template"]["spec"]["containers"]
    container["command"] = [*container["command"], "--json", *options]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        # As `kubectl create job --from` marks them.
        "metadata": {
            "name": name,
            "labels": template["metadata"]["labels"],
            "annotations": {"cronjob.kubernetes.io/instantiate": "manual"},
        },
        "spec": spec,
    }


def _started(target: KubernetesTarget, name: str) -> str:
    """The job's pod, once its container runs or has ended.

    Raises:
        CheckFailed: it doesn't come to that.
    """
    deadline, why = time.monotonic() + START_SECONDS, ""
    while time.monotonic() < deadline:
        for pod in target.kubectl.get("pods", selector=f"job-name={name}"):
            if running(pod, "job") or pod["status"].get("phase") in ("Succeeded", "Failed"):
                return str(pod["metadata"]["name"])
            why = waits_for(pod, "job") or why
        time.sleep(POLL)
    raise CheckFailed(f"job {name} does not come to run within {START_SECONDS} s: {why or 'it has no pod'}")


def _followed(target: KubernetesTarget, pod: str, bar: Step) -> tuple[str | None, str]:
    """The answer in a pod's log, and its last word, shown as it comes; a log that breaks off is taken up again."""
    answer, words = None, ""
    while True:
        argv = target.kubectl.argv("logs", "--follow", f"pod/{pod}", "--container=job")
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    answer = line
                elif line.strip():
                    words = line.strip().removeprefix(SAYS)
                    bar.update(0, 0, words)
        found = target.kubectl.get("pod", pod)
        if not found or not running(found[0], "job"):
            return answer, words
        time.sleep(POLL)


def _finish(target: KubernetesTarget, name: str, words: str) -> None:
    """Wait for the job's own state.

    Raises:
        CheckFailed: it failed, with its last words.
    """
    deadline = time.monotonic() + ENDED_SECONDS
    while time.monotonic() < deadline:
        found = target.kubectl.get("job", name)
        state = {
            each["type"]
            for each in (found[0].get("status", {}) if found else {}).get("conditions", ())
            if each["status"] == "True"
        }
        if "Complete" in state:
            return
        if "Failed" in state or not found:
            break
        time.sleep(POLL)
    raise CheckFailed(words or f"job {name} failed and said nothing")


__all__ = ["run"]
