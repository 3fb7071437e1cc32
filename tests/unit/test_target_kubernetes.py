"""`--target kubernetes` where there is no cluster, or not the tier in it: one line each, and nothing made. What works is tests/k8s/test_target.py's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from orcheo_db import restore_kubernetes
from orcheo_db.errors import CheckFailed
from orcheo_db.secrets import Store
from orcheo_db.targets import kubectl as kubectl_module
from orcheo_db.targets.kubectl import Kubectl, without_end
from orcheo_db.targets.kubernetes import running, state_name, waits_for

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).with_name("orcheo-db")

FAKE = """#!/bin/sh
case "$*" in
  *current-context*) {context} ;;
  *) {answer} ;;
esac
"""


@pytest.fixture
def run(tmp_path: Path):
    """The command line with a kubectl that does as told; the state directory stays empty."""
    state = tmp_path / "state"

    def call(*arguments: str, context: str = "echo here", answer: str = "true") -> subprocess.CompletedProcess[str]:
        program = tmp_path / "bin" / "kubectl"
        program.parent.mkdir(exist_ok=True)
        program.write_text(FAKE.format(context=context, answer=answer))
        program.chmod(0o755)
        env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "ORCHEO_DB_STATE_DIR": str(state)}
        argv = [str(PROGRAM), "--target", "kubernetes", *arguments]
        done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    yield call
    assert not list(state.glob("*")), "a refused command made something"


@pytest.mark.parametrize("command", ["up", "down", "destroy", "bootstrap", "images", "upgrade-app"])
def test_what_is_for_a_stack_of_this_machine_names_the_clusters_way(run, command: str):
    done = run(command)
    assert done.returncode == 2 and f"`{command}` is not for target kubernetes" in done.stderr
    assert "kubectl" in done.stderr or "k8s" in done.stderr


def test_no_current_context(run):
    done = run("status", context="echo 'error: current-context is not set' >&2; exit 1")
    assert done.returncode == 2 and "no current context" in done.stderr and "--context" in done.stderr


def test_no_installation_in_the_namespace(run):
    done = run("--namespace", "elsewhere", "status")
    assert done.returncode == 2
    assert "no Secret orcheo-db-installation in namespace elsewhere of context here" in " ".join(done.stderr.split())
    assert "kubectl apply -k k8s/" in done.stderr


def test_a_cluster_that_does_not_answer_or_refuses(run):
    away = run(
        "dsn", answer="echo 'Unable to connect to the server: dial tcp 127.0.0.1:6443: connection refused' >&2; exit 1"
    )
    assert away.returncode == 1 and "connection refused" in away.stderr and len(away.stderr.strip().splitlines()) <= 3
    no = 'echo \'Error from server (Forbidden): secrets "x" is forbidden: User "me" cannot get resource\' >&2; exit 1'
    forbidden = run("--context", "there", "doctor", answer=no)
    assert forbidden.returncode == 1 and "Forbidden" in forbidden.stderr and "context there" in forbidden.stderr


def test_no_kubectl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(Exception, match="kubectl is not on this machine's PATH"):
        kubectl_module.program()


def test_a_port_that_can_not_be_forwarded_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program = tmp_path / "kubectl"
    program.write_text(
        "#!/bin/sh\necho 'error: unable to forward port because pod is not running. Current status=Pending' >&2; exit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(kubectl_module, "program", lambda: str(program))
    with pytest.raises(
        CheckFailed, match="svc/pgbouncer in namespace orcheo of context c: unable to forward port .*Pending"
    ):
        Kubectl("orcheo", "c").forward("svc/pgbouncer", 6432)


def test_kubectls_own_word_about_an_exit_code_is_no_programs_last_line():
    assert without_end("psql: refused\ncommand terminated with exit code 2\n") == "psql: refused\n"
    assert without_end("command terminated with exit code 137") == ""


def test_any_context_gives_a_directory_that_compose_can_mount():
    assert (
        state_name("orcheo-db", "arn:aws:eks:eu-1:1:cluster/x", "orcheo")
        == "orcheo-db-kubernetes-arn-aws-eks-eu-1-1-cluster-x-orcheo"
    )


def pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {}, "status": status}


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (
            pod(containerStatuses=[{"name": "a", "state": {"waiting": {"reason": "ErrImageNeverPull"}}}]),
            "ErrImageNeverPull",
        ),
        (
            pod(initContainerStatuses=[{"name": "i", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]),
            "ImagePullBackOff",
        ),
        (
            pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]),
            "0/1 nodes are available",
        ),
        (pod(), ""),
    ],
)
def test_why_a_pod_does_not_run(found: dict[str, Any], why: str):
    assert waits_for(found, "a") == why and not running(found, "a")


def test_a_pod_that_is_about_to_go_does_not_count():
    found = pod(containerStatuses=[{"name": "a", "ready": True, "state": {"running": {}}}])
    assert running(found, "a")
    found["metadata"]["deletionTimestamp"] = "2026-11-26T10:00:00Z"
    assert not running(found, "a")


def test_a_cut_restore_in_place_says_what_stands_still_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The volume is still held when PostgreSQL should have gone."""
    asked: list[tuple[str, int]] = []

    class Target:
        store = Store(tmp_path / "state", "orcheo")
        project = "orcheo"
        up_command = "kubectl apply -k k8s/"
        replicas = staticmethod(lambda _name: 2)

        def scale(self, name: str, count: int, **_: object) -> None:
            asked.append((name, count))

    def refuse(_target: object, command: str, *_: str) -> dict[str, object]:
        raise CheckFailed("a server runs on the volume")

    monkeypatch.setattr(restore_kubernetes, "_pod", lambda *_: nullcontext())
    monkeypatch.setattr(restore_kubernetes, "_check", lambda *_: None)
    monkeypatch.setattr(restore_kubernetes, "_cluster", refuse)
    with pytest.raises(
        CheckFailed, match="a server runs on the volume .*scaled to 0.*--use restored-1 --confirm orcheo.*kubectl apply"
    ):
        restore_kubernetes.put_in_place(Target(), "restored-1")  # type: ignore[arg-type]
    assert asked == [("pgbouncer", 0), ("postgres", 0)]
