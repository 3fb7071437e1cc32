"""`restore` on a Compose target: into a new volume beside the running one; putting it in place is a step of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker

from orcheo_db import lifecycle
from orcheo_db.backup_lifecycle import PROGRAM, ask, follow
from orcheo_db.console import say, step
from orcheo_db.errors import CheckFailed, UserError, refused
from orcheo_db.secrets import write_private
from orcheo_db.targets.compose import IN_PLACE, ComposeTarget


def restore(
    target: ComposeTarget,
    options: Sequence[str],
    *,
    swap: bool = False,
    table: str | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Restore into a new volume; production is only read, and only with `swap` replaced.

    Args:
        options: the recovery target, in the words of `python -m orcheo_db.backup restore`.
        table: copy its rows out into `out` (CSV); the volume is removed again.

    Raises:
        UserError: no backups, a target outside of the archive, `out` exists. CheckFailed: the restore failed.
    """
    if table is not None and (out is None or out.exists()):
        raise UserError(
            "--table needs --out FILE, a file that does not exist yet"
            if out is None
            else f"{out} exists: name another file"
        )
    ask(target, "restore", "--check", *(word for word in options if not word.startswith(("--table", "--where"))))
    with lifecycle.exclusive(target.store):
        volume = _new_volume(target)
        try:
            answer = _run(target, volume, options, out)
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


def _new_volume(target: ComposeTarget) -> str:
    name = f"{target.project}_pgdata-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    labels = {"com.docker.compose.project": target.project, "com.docker.compose.volume": "pgdata"}
    docker.from_env().volumes.create(name, labels=labels)
    return name


def _run(target: ComposeTarget, volume: str, options: Sequence[str], out: Path | None) -> dict[str, Any]:
    """The restore itself, in a container without a network that can write to the new volume alone."""
    mounts = target.store.path / "mounts" / "backup"
    argv = [
        "docker", "run", "--rm", f"--name={target.project}-restore", "--network=none", "--read-only", "--cap-drop=ALL", "--user=999:999",
        "--security-opt=no-new-privileges:true", f"--memory={target.spec.backup.memory}", "--shm-size=256m", "--tmpfs=/tmp:mode=1777,size=256m",
        f"--label=com.docker.compose.project={target.project}", "--stop-timeout=60", f"--volume={volume}:/var/lib/postgresql",
        f"--volume={target.project}_backup:/var/lib/orcheo-backup:ro", f"--volume={target.project}_archive:/var/lib/orcheo-backup/archive:ro",
        f"--volume={mounts}/conf:/etc/orcheo-db:ro", f"--volume={mounts}/secrets:/run/orcheo-db/secrets:ro",
        target.tags["backup"], *PROGRAM, "restore", *options,
    ]  # fmt: skip
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


def _check_timeline(target: ComposeTarget, volume: str) -> None:
    """Take the timeline that a restored volume goes on as, unless another restore has taken that number since.

    Raises:
        UserError: it is taken.
    """
    argv = ["docker", "run", "--rm", "--network=none", "--user=999:999", "--read-only", f"--volume={volume}:/v:ro", "--entrypoint=sh",
            target.tags["postgres"], "-c", "test ! -e /v/.restoring || exit 3; cat /v/.restored.json 2>/dev/null || echo null"]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(
            f"the restore into volume {volume} was cut off: restore again, and remove it (docker volume rm {volume})"
        )
    made = json.loads(done.stdout)
    if made is None:  # not from a restore: the first boot's
        return
    ask(target, "claim", str(made["timeline"]), made["id"])


def put_in_place(target: ComposeTarget, volume: str) -> dict[str, Any]:
    """Let PostgreSQL run on `volume`; the one before stays, under its name.

    Raises:
        UserError: there is no such volume, or it is another installation's. CheckFailed: the server does not start on it.
    """
    former = target.volume
    if volume == former:
        raise UserError(f"volume {volume} is in place already")
    if volume not in target.restored_volumes():
        names = ", ".join(target.restored_volumes()) or "none"
        raise UserError(f"no volume {volume} of this installation to put in place; there are: {names}")
    if target.volume_owner(volume) != target.store.installation_id():
        raise UserError(
            f"volume {volume} holds no finished cluster of this installation: restore again; {former} stays in place"
        )
    _check_timeline(target, volume)
    write_private(target.store.path / IN_PLACE, f"{volume}\n".encode())
    say(f"Putting {volume} in place of {former}, which is kept")
    try:
        lifecycle.up(target, install_docker=False)
        with lifecycle.exclusive(target.store):
            lifecycle.init(target, force=True)  # the restored moment may be older than the releases that run now
        ask(target, "run", "--type", "incremental")  # a new timeline begins: from here on it is covered
    except (UserError, CheckFailed) as error:
        raise CheckFailed(
            f"{error} [volume {volume} is in place; back to the former one: orcheo-db restore --use {former} --confirm {target.project}]"
        ) from None
    return {"in_place": volume, "kept": former}
