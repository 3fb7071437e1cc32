"""`up`: the order in which a Compose installation comes, and what each step waits for."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from orcheo_db import app_lifecycle, app_secrets, backup_lifecycle, backup_secrets
from orcheo_db.console import step
from orcheo_db.database import connect
from orcheo_db.errors import CheckFailed, UserError, refused
from orcheo_db.host import compose_command, ensure_docker
from orcheo_db.images import LABEL, ensure_images
from orcheo_db.lifecycle_steps import HEALTHY_SECONDS, last_line, start
from orcheo_db.preflight import check_arithmetic, check_memory, check_ports, check_second, check_secrets, check_storage
from orcheo_db.secrets import Store, write_private
from orcheo_db.targets import mounts
from orcheo_db.targets.base import Target
from orcheo_db.targets.compose import ComposeTarget

INIT_SECONDS = 900  # importing the app and 59 tables take under a minute; the job limits its own waits to less
PENDING_ADOPTION = "adopting"  # noted in the state directory while a volume of lost secrets is being taken over


@dataclass
class Outcome:
    """What `up` did."""

    changed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    init: dict[str, Any] | None = None


@contextmanager
def exclusive(store: Store) -> Iterator[None]:
    """One changing command at a time for an installation (flock: released however the process ends)."""
    store.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (store.path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another orcheo-db command is changing this installation ({store.path}): wait for it to end"
            ) from None
        yield


@contextmanager
def _timed(outcome: Outcome, name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    outcome.seconds[name] = round(time.monotonic() - started, 1)


def up(
    target: ComposeTarget,
    *,
    install_docker: bool = True,
    new_secrets: bool = False,
    choices: dict[str, str] | None = None,
    force_init: bool = False,
) -> Outcome:
    """Bring the installation up; does nothing where everything is as wanted.

    Args:
        force_init: run the init job whatever it did before: the data may be older than that.
        choices: what was chosen against the spec, to be remembered as soon as nothing speaks against it any more: also a start
            that fails later, or is killed, is gone on with by a plain `up`.

    Raises:
        UserError: a prerequisite or a value is wrong; nothing has been changed by then, except that Docker, the base image or
            images may have been made.
        CheckFailed: a service did not become healthy or the init job's answer is no.
    """
    outcome = Outcome()
    target.check()
    check_arithmetic(target)
    check_storage(target)
    check_second(target)
    check_memory(target)
    with _timed(outcome, "host"):
        outcome.changed += ensure_docker(install=install_docker)
        compose_command()
        check_ports(target)
    with exclusive(target.store):
        with _timed(outcome, "images"):
            outcome.changed += ensure_images(target.spec, target.root, target.store.path / "logs", target.image_names)
        before = snapshot(target)
        check_secrets(target, new_secrets=new_secrets)
        adopt = prepare(target, outcome, new_secrets=new_secrets)
        if choices is not None:
            target.store.choose(choices)
        if target.managed_server:
            with _timed(outcome, "postgres"):
                start(target, "postgres", HEALTHY_SECONDS)
                backup_lifecycle.launch(target)
        with _timed(outcome, "init"):
            outcome.init = init(target, force=adopt or force_init)
        if adopt:  # the permission to adopt was for this start alone: the next one is an ordinary one again
            (target.store.path / PENDING_ADOPTION).unlink(missing_ok=True)
            write_environment(target)
            if target.managed_server:
                start(target, "postgres", HEALTHY_SECONDS)
        if outcome.init and outcome.init["changed"]:
            renew_server_connections(target)
        if target.after_init(outcome.init):
            install_files(target)
            write_environment(target)
        with _timed(outcome, "pgbouncer"):
            start(target, "pgbouncer", HEALTHY_SECONDS)
        with _timed(outcome, "app"):
            if target.with_app:
                accepted = (choices or {}).get(app_lifecycle.ACCEPT_VARIABLE, "")
                outcome.changed += app_lifecycle.start_app(target, int(accepted) if accepted.isdigit() else None)
            else:
                outcome.changed += app_lifecycle.stop_app(target)
        with _timed(outcome, "backup"):  # last: what is wrong with the backups keeps nobody from working
            outcome.changed += backup_lifecycle.settle(target, new_secrets=adopt)
        outcome.changed += difference(before, snapshot(target))
    return outcome


def make_ready(target: ComposeTarget) -> None:
    """Docker, images and the services' files, so that a container of theirs can run; nothing is started.

    Raises:
        UserError: a prerequisite is missing.
    """
    target.check()
    ensure_docker(install=True)
    with exclusive(target.store):
        ensure_images(target.spec, target.root, target.store.path / "logs", target.image_names)
        # In a copy of another machine's state directory the services' files have lost their owners: they are made anew.
        (target.store.path / "mounts.json").unlink(missing_ok=True)
        prepare(target, Outcome(), new_secrets=False)


def prepare(target: ComposeTarget, outcome: Outcome, *, new_secrets: bool) -> bool:
    """Secrets, certificates, the services' files and compose.env; returns whether a volume of lost secrets is to be adopted."""
    fresh = not target.store.exists()
    target.store.create()
    if fresh:
        outcome.changed.append(f"secrets generated in {target.store.path}")
    if target.with_app:
        outcome.changed += app_secrets.create(target.store)
    if target.managed_server:
        outcome.changed += backup_secrets.create(target.store)
    renewed = target.store.renew()
    outcome.changed += [f"certificate of {name} renewed" for name in renewed]
    target.prepare_store()
    if install_files(target):
        outcome.changed.append("configuration and secrets of the services put in place")
    adopt = adoption(target, new_secrets=new_secrets)
    write_environment(
        target, ORCHEO_DB_ADOPT=target.store.installation_id() if adopt else "", INIT_ADOPT=str(int(adopt))
    )
    return adopt


def adoption(target: ComposeTarget, *, new_secrets: bool) -> bool:
    """Whether this start takes over a volume whose secrets are lost. Once begun it is noted until the init job is through, so
    that an interrupted one is finished by the next `up`.

    Raises:
        UserError: new secrets are asked for, and the volume belongs to the present ones.
    """
    pending = target.store.path / PENDING_ADOPTION
    if pending.is_file():
        return True
    if not new_secrets:
        return False
    if target.managed_server:
        lost = target.volume_owner() not in (None, target.store.installation_id())
    else:
        lost = not target.is_bootstrapped()
    if not lost:
        raise UserError(
            f"--new-secrets is for data whose secrets are lost, and nothing is lost here: the secrets in {target.store.path} are the right ones"
        )
    write_private(pending, b"")
    return True


def install_files(target: ComposeTarget) -> bool:
    """Put every service's own files in place; returns whether anything changed."""
    return mounts.install(target.mounts(), target.store.path / "mounts", target.helper_image)


def write_environment(target: ComposeTarget, **extra: str) -> None:
    lines = [f"{key}={value}" for key, value in sorted((target.environment() | extra).items())]
    text = "# Written by orcheo-db up from ops/spec.toml; holds no secret.\n" + "\n".join(lines) + "\n"
    write_private(target.store.path / "compose.env", text.encode())


def snapshot(target: ComposeTarget) -> dict[str, str]:
    """Which containers there are and since when they run; `init` counts by its finish."""
    states = {}
    for name in target.service_names:
        container = target.container(name)
        if container is not None:
            states[name] = f"{container.id}:{container.attrs['State']['StartedAt']}"
    return states


def difference(before: dict[str, str], after: dict[str, str]) -> list[str]:
    words = {"init": "init job run"}
    return [
        words.get(name, f"{name} {'restarted' if name in before else 'started'}")
        for name in after
        if before.get(name) != after[name]
    ]


def init(target: ComposeTarget, *, force: bool = False) -> dict[str, Any] | None:
    """Run the init job if what it made is not what is wanted now; returns its summary, or None when it need not run.

    Raises:
        UserError: exit code 2 of the job; CheckFailed: any other failure. Both with the job's own last line.
    """
    container = target.container("init")
    wanted = target.environment()["INIT_INPUTS"]
    if container is not None and not force:
        state = container.attrs["State"]
        finished = state["Status"] == "exited" and state["ExitCode"] == 0
        # The container says that the job ran for what is wanted now, the database that it was this very database.
        if finished and container.labels.get(LABEL) == wanted and target.is_bootstrapped():
            return None
    result = target.compose("up", "--detach", "--no-deps", "--force-recreate", "init")
    container = target.container("init")
    if result.code != 0 or container is None:
        raise CheckFailed(f"the init job could not be started: {last_line(result.stderr)}")
    with step("Running the init job: roles, extensions and the app's own schema") as bar:
        deadline = time.monotonic() + INIT_SECONDS
        while container.status in ("created", "running"):
            if time.monotonic() > deadline:
                container.kill()
                raise CheckFailed(
                    f"the init job did not end within {INIT_SECONDS} s and was stopped (docker logs {container.name})"
                )
            bar.update(0, 0, last_line(container.logs(stdout=False, tail=1).decode(errors="replace")))
            time.sleep(0.5)
            container.reload()
    code = container.attrs["State"]["ExitCode"]
    if code != 0:
        words = last_line(container.logs(stdout=False, tail=20).decode(errors="replace"))
        raise refused(code, words)
    summary: dict[str, Any] = json.loads(container.logs(stderr=False))
    return summary


def renew_server_connections(target: ComposeTarget) -> None:
    """Have a running PgBouncer take new connections to PostgreSQL, each when its transaction ends: the present ones carry
    statements that were prepared for tables as they were before the init job, and such a statement fails once ("cached plan must not
    change result type").

    Raises:
        CheckFailed: PgBouncer refuses it.
    """
    container = target.container("pgbouncer")
    if container is None or container.status != "running":
        return
    console = [
        "psql",
        "-XAtq",
        "-h",
        "/run/pgbouncer",
        "-p",
        "6432",
        "-U",
        "pgbouncer",
        "-d",
        "pgbouncer",
        "-c",
        "RECONNECT",
    ]
    result = target.run("pgbouncer", console)
    if result.code != 0:
        raise CheckFailed(f"PgBouncer does not take new server connections: {last_line(result.stderr)}")


def probe(target: Target) -> dict[str, Any]:
    """What an app sees: log in through PgBouncer with the DSN that `dsn` prints, verified TLS, and count the tables."""
    with connect(target.dsn(), timeout=10) as connection:
        row = connection.execute(
            "SELECT current_user, current_setting('server_version'), count(*) FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone()
        assert row is not None
    return {"acts_as": row[0], "server_version": row[1], "tables": row[2]}
