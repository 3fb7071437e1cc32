"""`restore` on a Compose target: into a new volume beside the running one; putting it in place is a step of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError

from orcheo_db import backup_secrets, lifecycle
from orcheo_db.backup_lifecycle import PROGRAM, SAYS, ask, follow, service_of
from orcheo_db.console import say, step
from orcheo_db.errors import CheckFailed, UserError, refused
from orcheo_db.lifecycle_steps import last_line
from orcheo_db.secrets import write_private
from orcheo_db.targets import app
from orcheo_db.targets.compose import IN_PLACE, ComposeTarget

WAIT_SECONDS = 3600  # a full backup of a big cluster may be under way


def restore(
    target: ComposeTarget,
    options: Sequence[str],
    *,
    swap: bool = False,
    table: str | None = None,
    out: Path | None = None,
    repository: str = "first",
) -> dict[str, Any]:
    """Restore into a new volume; production is only read, and only with `swap` replaced.

    Args:
        options: the recovery target, in the words of `python -m orcheo_db.backup restore`.
        table: copy its rows out into `out` (CSV); the volume is removed again.
        repository: where from. The second one needs nothing of this machine but the spec and the secrets.

    Raises:
        UserError: no backups, a target outside of the archive, `out` exists. CheckFailed: the restore failed.
    """
    check_out(table, out)
    asked = without_extract(options)
    if repository == "first":
        ask(target, "restore", "--check", *asked)
    else:
        _prepare_second(target)
        _check_second(target, asked)
    with lifecycle.exclusive(target.store):
        volume = _new_volume(target)
        try:
            answer = _run(target, repository, volume, options, out)
        except BaseException:
            # Made a moment ago by this very call, and nothing of use in them.
            if out is not None:
                out.unlink(missing_ok=True)
            docker.from_env().volumes.get(volume).remove()
            raise
        if table is not None:
            docker.from_env().volumes.get(volume).remove()
            return {**answer, "volume": None, "out": str(out)}
    answer["volume"] = volume
    if swap:
        answer |= put_in_place(target, volume)
    return answer


def check_out(table: str | None, out: Path | None) -> None:
    """Whether the rows of `table` have a place to go to.

    Raises:
        UserError: they have none, or it is taken.
    """
    if table is not None and (out is None or out.exists()):
        raise UserError(
            "--table needs --out FILE, a file that does not exist yet"
            if out is None
            else f"{out} exists: name another file"
        )


def without_extract(options: Sequence[str]) -> list[str]:
    """The recovery target's options alone."""
    return [word for word in options if not word.startswith(("--table", "--where"))]


def _new_volume(target: ComposeTarget) -> str:
    name = f"{target.project}_pgdata-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    labels = {"com.docker.compose.project": target.project, "com.docker.compose.volume": "pgdata"}
    docker.from_env().volumes.create(name, labels=labels)
    return name


def _prepare_second(target: ComposeTarget) -> None:
    """Have what a restore from the bucket takes: images, and the service's files. On a machine that has nothing yet it is all made here.

    Raises:
        UserError: there is no second repository, or the installation's secrets aren't here.
    """
    service_of(target, "second")
    if not (target.store.exists() and backup_secrets.exists(target.store)):
        raise UserError(
            f"the installation's secrets are not in {target.store.path}, and without them its backups can't be read: copy the state directory there"
            " (ops/runbooks/lost-host.md)"
        )
    if target.container("second") is None:
        lifecycle.make_ready(target)


def _check_second(target: ComposeTarget, options: Sequence[str]) -> None:
    """Whether the bucket has what is asked for.

    Raises:
        UserError: a target outside of its archive. CheckFailed: it can't be read.
    """
    with step("Looking into the second repository"):
        done = subprocess.run(
            [*_container(target, "second"), *PROGRAM, "restore", "--check", *options], capture_output=True, text=True
        )
    if done.returncode != 0:
        raise refused(done.returncode, last_line(done.stderr).removeprefix(SAYS))


def _container(target: ComposeTarget, repository: str, volume: str | None = None) -> list[str]:
    """`docker run` of the backup image that can write to `volume` alone, and reach the bucket alone or nothing."""
    service = target.store.path / "mounts" / service_of(target, repository)
    argv = [
        "docker", "run", "--rm", f"--name={target.project}-restore", "--read-only", "--cap-drop=ALL", "--user=999:999",
        "--security-opt=no-new-privileges:true", f"--memory={target.spec.backup.memory}", "--shm-size=256m", "--tmpfs=/tmp:mode=1777,size=256m",
        f"--label=com.docker.compose.project={target.project}", "--stop-timeout=60",
        f"--volume={service}/conf:/etc/orcheo-db:ro", f"--volume={service}/secrets:/run/orcheo-db/secrets:ro",
    ]  # fmt: skip
    argv += [f"--volume={volume}:/var/lib/postgresql"] if volume else []
    if repository == "first":
        parts = {"backup": "", "archive": "/archive"}
        argv += [
            "--network=none",
            *(f"--volume={target.project}_{name}:/var/lib/orcheo-backup{at}:ro" for name, at in parts.items()),
        ]
    else:
        argv += ["--network=bridge"]  # the stack's own networks may not be there
    return [*argv, target.tags["backup"]]


def _run(
    target: ComposeTarget, repository: str, volume: str, options: Sequence[str], out: Path | None
) -> dict[str, Any]:
    """The restore itself."""
    argv = [*_container(target, repository, volume), *PROGRAM, "restore", *options]
    rows = out.open("xb") if out else None
    try:
        with step(f"Restoring into volume {volume}") as bar:
            process = subprocess.Popen(argv, stdout=rows or subprocess.PIPE, stderr=subprocess.PIPE)
            words = follow(process, bar)
            answer = words if rows else (process.stdout.read().decode() if process.stdout else "")
            code = process.wait()
    except KeyboardInterrupt:
        subprocess.run(["docker", "rm", "--force", f"{target.project}-restore"], capture_output=True)
        process.wait()
        raise
    finally:
        if rows:
            rows.close()
    if code != 0:
        raise refused(code, f"{words} (production was not touched)")
    found: dict[str, Any] = json.loads(answer)
    return found


def _timeline(target: ComposeTarget, volume: str) -> list[str]:
    """The timeline that a restored volume goes on as, in the words of `claim`; nothing for a first boot's.

    Raises:
        UserError: the restore into it was cut off.
    """
    argv = ["docker", "run", "--rm", "--network=none", "--user=999:999", "--read-only", f"--volume={volume}:/v:ro", "--entrypoint=sh",
            target.tags["postgres"], "-c", "test ! -e /v/.restoring || exit 3; cat /v/.restored.json 2>/dev/null || echo null"]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(
            f"the restore into volume {volume} was cut off: restore again, and remove it (docker volume rm {volume})"
        )
    made = json.loads(done.stdout)
    return [str(made["timeline"]), made["id"]] if made else []


def put_in_place(target: ComposeTarget, volume: str) -> dict[str, Any]:
    """Let PostgreSQL run on `volume`; the one before stays, under its name. Nobody writes until the init job has been through.

    Raises:
        UserError: there is no such volume, or it is another installation's. CheckFailed: the server does not start on it.
    """
    former = target.volume
    with lifecycle.exclusive(target.store):
        kept = target.volume_exists()
        _check_volume(target, volume, former)
        claim = _timeline(target, volume)
        if claim and f"{target.project}_backup" in target.volumes():  # on a new machine nobody else could have taken it
            ask(target, "claim", *claim)
        write_private(target.store.path / IN_PLACE, f"{volume}\n".encode())
        say(f"Putting {volume} in place" + (f" of {former}, which is kept" if kept else ""))
        for name in ("pgbouncer", *app.SERVICES):
            if (container := target.container(name)) is not None:
                container.stop(timeout=60)
    try:
        lifecycle.up(
            target, install_docker=False, force_init=True
        )  # the restored moment may be older than the releases that run now
        # A new timeline begins: from here on it is covered. A job that runs meanwhile is waited for.
        ask(target, "run", "--type", "incremental", f"--wait={WAIT_SECONDS}")
    except (UserError, CheckFailed) as error:
        back = f"; back to the former one: orcheo-db restore --use {former} --confirm {target.project}" if kept else ""
        raise CheckFailed(f"{error} [volume {volume} is in place{back}]") from None
    return {"in_place": volume, "kept": former if kept else None}


def remove(target: ComposeTarget, volume: str) -> dict[str, Any]:
    """Remove a volume that a restore made, or set aside when it was put in place; the caller has a confirmation that names it.

    Raises:
        UserError: there is no such volume, or it is the one in use.
    """
    with lifecycle.exclusive(target.store):
        if volume not in target.restored_volumes():
            names = ", ".join(target.restored_volumes()) or "none"
            raise UserError(
                f"no volume {volume} that a restore made or set aside; there are: {names} ({target.volume} is in use)"
            )
        try:
            docker.from_env().volumes.get(volume).remove()
        except APIError as error:
            raise UserError(f"volume {volume} can't be removed: {error.explanation}") from None
    return {"removed": volume}


def _check_volume(target: ComposeTarget, volume: str, former: str) -> None:
    """Whether a volume can be put in place.

    Raises:
        UserError: it can't.
    """
    if volume == former:
        raise UserError(f"volume {volume} is in place already")
    if volume not in target.restored_volumes():
        names = ", ".join(target.restored_volumes()) or "none"
        raise UserError(f"no volume {volume} of this installation to put in place; there are: {names}")
    if target.volume_owner(volume) != target.store.installation_id():
        raise UserError(
            f"volume {volume} holds no finished cluster of this installation: restore again; {former} stays in place"
        )
