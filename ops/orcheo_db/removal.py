"""`down` and `destroy`: what goes away, by name, and what never does."""

from __future__ import annotations

import shutil
from contextlib import suppress

import docker
from docker.errors import NotFound

from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.lifecycle import exclusive
from orcheo_db.lifecycle_steps import last_line
from orcheo_db.targets import backup, mounts
from orcheo_db.targets.compose import ComposeTarget


def down(target: ComposeTarget) -> list[str]:
    """Stop and remove the containers and networks; volumes, secrets and images stay. Returns what was stopped."""
    stopped = [name for name in target.all_services if target.container(name) is not None]
    if stopped:
        with exclusive(target.store):
            _remove_containers(target)
    return stopped


def _remove_containers(target: ComposeTarget) -> None:
    # By the project's name alone: it works also where compose.env or the whole state directory is gone. PostgreSQL goes when nobody
    # uses it any more and its archive still answers: it archives its last segment while it shuts down, and would try that for a minute.
    there = [name for name in target.all_services if target.container(name) is not None]
    users = [name for name in there if name not in ("postgres", *backup.ARCHIVING)]
    for names in (users, [name for name in there if name == "postgres"]):
        if names and (result := target.compose_by_name("stop", *names)).code != 0:
            raise CheckFailed(f"{', '.join(names)} could not be stopped: {last_line(result.stderr)}")
    result = target.compose_by_name("down", "--remove-orphans")
    if result.code != 0:
        raise CheckFailed(f"the stack could not be stopped: {last_line(result.stderr)}")


def doomed(target: ComposeTarget) -> list[str]:
    """Everything that `destroy` would remove for ever, by name."""
    found = [target.container(name) for name in target.all_services]
    names = [f"container {container.name}" for container in found if container is not None]
    said = {
        target.volume: "all data",
        f"{target.project}_apphome": "the app's files",
        f"{target.project}_redis": "waiting tasks",
        **{f"{target.project}_{name}": text for name, text in backup.SAID.items()},
        **dict.fromkeys(target.restored_volumes(), "a cluster that a restore made or set aside"),
    }
    names += [f"volume {name} ({said[name]})" for name in target.volumes()]
    if target.store.exists():
        points = len(list((target.store.path / "backups").glob("*.dump")))
        also = f", and {points} backup points in it" if points else ""
        drills = len(list((target.store.path / "evidence").glob("*-drill-*.json")))
        also += f", and the evidence of {drills} drills" if drills else ""
        names.append(f"directory {target.store.path} (all secrets and certificates{also})")
    return names


def check_confirmation(target: ComposeTarget, confirm: str | None) -> None:
    """`yes` is enough where volume and secrets belong together; a volume of another installation wants its full name.

    Raises:
        UserError: not confirmed; the line names everything that would go and what to say.
    """
    named = "; ".join(doomed(target))
    if target.managed_server and target.volume_exists() and not _is_ours(target):
        if confirm != target.volume:
            raise UserError(
                f"volume {target.volume} does not belong to the secrets in {target.store.path} (another clone's?); this would remove"
                f" for ever: {named}: confirm with `make destroy CONFIRM={target.volume}`"
            )
    elif confirm not in ("yes", target.project, target.volume):
        raise UserError(f"this would remove for ever: {named}: confirm with `make destroy CONFIRM=yes`")


def _is_ours(target: ComposeTarget) -> bool:
    """Whether the volume's marker names this installation; an empty volume is anybody's."""
    if target.inspect_volume()["state"] == "empty":
        return True
    return target.store.exists() and target.volume_owner() == target.store.installation_id()


def destroy(target: ComposeTarget) -> list[str]:
    """Remove the installation: containers, networks, the data volume, secrets. Returns the names of what went.

    The caller has a confirmation (`check_confirmation`).
    """
    names = doomed(target)
    with exclusive(target.store):
        _remove_containers(target)
        for name in target.volumes():
            with suppress(NotFound):
                docker.from_env().volumes.get(name).remove()
        directory = target.store.path / "mounts"
        if directory.is_dir():
            mounts.clear(directory, target.helper_image)
        # Only what this toolkit wrote: a directory of the user's that holds more keeps the rest.
        for name in target.store.entries:
            entry = target.store.path / name
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
    with suppress(OSError):  # not empty: somebody else's files stay
        target.store.path.rmdir()
    return names
