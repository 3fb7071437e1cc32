"""The backups' part of `up`: their services, and what makes them work: stanza, check, the first backup."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from orcheo_db.console import Step, step
from orcheo_db.errors import CheckFailed, UserError, refused
from orcheo_db.lifecycle_steps import HEALTHY_SECONDS, last_line, wait_until_healthy
from orcheo_db.lifecycle_steps import launch as launch_services
from orcheo_db.targets import backup
from orcheo_db.targets.base import Target
from orcheo_db.targets.compose import ComposeTarget
from orcheo_db.targets.kubectl import without_end

STOP_SECONDS = 30  # as compose/backup.yaml: what runs is repeated at the next start
PROGRAM = ("python", "-m", "orcheo_db.backup")  # in the backup image
SAYS = "orcheo-db backup: "  # how its lines begin


def launch(target: ComposeTarget) -> None:
    """Start the services, once PostgreSQL serves: where it refuses its volume, nothing else shall have been started. WAL that it pushes
    before the archive answers is pushed again a second later.

    Raises:
        CheckFailed: a service could not be started.
    """
    if target.with_backup:
        launch_services(target, *backup.SERVICES)
    if target.with_second:  # after the others, which give their volumes the right owner
        launch_services(target, *backup.SECOND_SERVICES)


def settle(target: ComposeTarget, *, new_secrets: bool = False) -> list[str]:
    """Have the backups run on a server that serves, with a first backup at the end; returns what was done.

    Args:
        new_secrets: the former ones are lost: a repository that the present key does not open is set aside, and a new one begun.

    Raises:
        CheckFailed: a service did not become healthy, or the first backup failed.
    """
    stopped = stop_unwanted(target)
    if not target.with_backup:
        return stopped
    for name in target.backup_services:
        wait_until_healthy(target, name, HEALTHY_SECONDS, target.container(name))
    with step("Checking the backups"):
        done: list[str] = ask(target, "prepare", *(["--set-aside"] if new_secrets else []))["done"]
    return stopped + done


def stop_unwanted(target: ComposeTarget) -> list[str]:
    """Stop and remove the backups' containers that are not wanted; the repository stays."""
    done = []
    every = reversed((*backup.SERVICES, *backup.SECOND_SERVICES)) if target.managed_server else ()
    for name in (name for name in every if name not in target.backup_services):
        container = target.container(name)
        if container is not None:
            with step(f"Stopping {name}"):
                container.stop(timeout=STOP_SECONDS)
            container.remove()
            done.append(f"{name} stopped and removed (the repository stays)")
    return done


def service_of(target: Target, repository: str) -> str:
    """The service that has a repository: "first" or "second".

    Raises:
        UserError: there is no such repository.
    """
    if not target.with_backup:
        raise UserError(no_backups(target))
    if repository == "first":
        return "backup"
    if not target.with_second:
        raise UserError("there is no second repository: fill in [backup.second] in ops/spec.toml and run `make up`")
    return backup.SECOND


def ask(target: Target, *arguments: str, repository: str = "first") -> Any:
    """Run an operation in the service that has the repository and return its answer.

    Raises:
        UserError: wrong input or a missing prerequisite, in the service's own words. CheckFailed: the answer is no.
    """
    result = target.run(service_of(target, repository), [*target.backup_program, *arguments])
    if result.code != 0:
        raise refused(result.code, last_line(result.stderr).removeprefix(SAYS))
    return json.loads(result.stdout)


def no_backups(target: Target) -> str:
    """Why there are none."""
    if not target.managed_server:
        return f"target {target.name} has no backups of this toolkit: whoever runs that server backs it up (RDS, Cloud SQL: automated backups)"
    return "backups are off ([backup] enabled = false in ops/spec.toml): set it to true and run `make render up`"


def stream(target: Target, arguments: Sequence[str], repository: str = "first") -> Any:
    """As `ask`, with the service's progress lines shown while it works."""
    argv = target.command(service_of(target, repository), [*target.backup_program, *arguments])
    with step("Working") as bar, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        words = follow(process, bar)
        assert process.stdout is not None
        answer = process.stdout.read()
    if process.returncode != 0:
        raise refused(process.returncode, words or "it said nothing")
    return json.loads(answer)


def follow(process: subprocess.Popen[bytes], bar: Step) -> str:
    """Show a program's progress lines until it closes stderr; returns the last one."""
    assert process.stderr is not None
    words = ""
    for line in process.stderr:
        if text := without_end(line.decode(errors="replace")).strip():
            words = text.removeprefix(SAYS)
            bar.update(0, 0, words)
    return words


def summary(target: Target) -> dict[str, Any]:
    """One line about the backups for `status`, and what it is made of; never an error: status is asked when things are broken."""
    if not target.with_backup:
        return {"ok": None, "said": "off" if target.managed_server else "not this toolkit's"}
    try:
        found = ask(target, "list", "--archiver")
    except (UserError, CheckFailed) as error:
        return {"ok": False, "said": f"not known ({error})"}
    newest = found["backups"][-1]["stop"][:16].replace("T", " ") if found["backups"] else "none"
    drill, waiting = found["last_drill"], found["archiver"]
    proven = "no drill yet" if drill is None else f"last drill {drill['result']}"
    stuck = waiting["stuck"]
    said = f"newest {newest} UTC, {proven}" + (f"; WAL does not reach the archive: {waiting['said']}" if stuck else "")
    return {
        "ok": bool(found["backups"]) and not stuck and (drill is None or drill["result"] == "pass"),
        "said": said,
        "archiver": waiting,
    }
