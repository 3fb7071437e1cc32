"""Steps that every start is made of: create services, wait until they are healthy."""

from __future__ import annotations

import time
from typing import Any

from docker.models.containers import Container

from orcheo_db.console import step
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.targets.compose import ComposeTarget

HEALTHY_SECONDS = 180  # a first boot on a slow disk takes some 20 s, crash recovery after 4 GB of WAL up to two minutes
RECOVERING_SECONDS = 3600  # redo of 16 GB of WAL (size large) on a slow disk; while it lasts the server says so
PAUSE_SECONDS = 0.5  # between two looks at a service that starts: a check is a process in its container
CONFIG_EXIT = 78  # sysexits.h EX_CONFIG: the postgres image refuses the volume


def start(target: ComposeTarget, service: str, seconds: float) -> None:
    """Create or start one service and wait until it is healthy.

    Raises:
        UserError: the image refuses its volume (its own line says what and what to do).
        CheckFailed: it ended or did not become healthy in time, with the last line of its log.
    """
    existed = target.container(service)
    launch(target, service)
    wait_until_healthy(target, service, seconds, existed)


def launch(target: ComposeTarget, *services: str) -> None:
    """Create or start services without waiting for them.

    Raises:
        CheckFailed: Compose could not.
    """
    result = target.compose("up", "--detach", "--no-deps", *services)
    if result.code != 0:
        raise CheckFailed(f"service {', '.join(services)} could not be started: {last_line(result.stderr)}")


def wait_until_healthy(target: ComposeTarget, service: str, seconds: float, existed: Container | None) -> None:
    """Wait until a service passes its health check; `existed`: its container before the start, for the words shown.

    Raises:
        UserError: the image refuses its volume. CheckFailed: it ended or did not become healthy in time.
    """
    container = target.container(service)
    if container is None:
        raise CheckFailed(f"service {service} was started but is not there: see `docker compose ls` and its log")
    title = f"Waiting for {service}" if existed is None or existed.id != container.id else f"Checking {service}"
    deadline, limit = time.monotonic() + seconds, time.monotonic() + RECOVERING_SECONDS
    before = int(container.attrs.get("RestartCount", 0))
    with step(title):
        while True:
            container.reload()
            state = container.attrs["State"]
            again = container.attrs.get("RestartCount", 0) > before + 2
            if again and state["Status"] == "running":
                ended = _between_two_ends(container)  # only then its exit code is to be seen
                again, state = ended is not None, ended or state
            if not again and (state.get("Health", {}).get("Status") == "healthy" or target.answers(container)):
                return
            # It may have been restarting for a while because of what has just been mended: three more ends count, not those.
            refuses = state["Status"] == "restarting" and state["ExitCode"] == CONFIG_EXIT
            if state["Status"] in ("exited", "dead") or refuses or again:
                words = last_line(container.logs(tail=20).decode(errors="replace"))
                if state["ExitCode"] == CONFIG_EXIT:
                    container.stop()
                    raise UserError(f"{words} [volume {target.volume}]")
                raise CheckFailed(f"service {service} ended with code {state['ExitCode']}: {words}")
            if time.monotonic() > deadline and not (time.monotonic() < limit and is_recovering(target, service)):
                words = last_line(container.logs(tail=20).decode(errors="replace"))
                raise CheckFailed(
                    f"service {service} was not healthy after {seconds:.0f} s: {words} (docker logs {container.name})"
                )
            time.sleep(PAUSE_SECONDS)


def _between_two_ends(container: Container) -> dict[str, Any] | None:
    """The state of a container that ends again and again, in a moment in which it does not run; None if it runs on for five seconds."""
    for _ in range(100):
        container.reload()
        state: dict[str, Any] = container.attrs["State"]
        if state["Status"] != "running":
            return state
        time.sleep(0.05)
    return None


def is_recovering(target: ComposeTarget, service: str) -> bool:
    """Whether the server is alive and says "not yet" (pg_isready's exit code 1): crash recovery, which may take its time."""
    return service == "postgres" and target.run(service, ["pg_isready", "-q", "-h", "127.0.0.1"]).code == 1


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
