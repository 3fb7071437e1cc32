"""`upgrade-app`: another release of Orcheo on the data that is there. The order of things, and what to do when one of them fails.

    preflight, stop the app, backup point, apply (one transaction), init job, verify, start the app

Up to and including `apply` a failure changes nothing and the app is started again as it was. After it, the line that ends the
command says what state things are in and how to go on or back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orcheo_db import app_lifecycle, app_secrets, dump, lifecycle
from orcheo_db.console import say, step
from orcheo_db.errors import CheckFailed, UserError, refused
from orcheo_db.images import ensure_images
from orcheo_db.lifecycle_steps import HEALTHY_SECONDS, last_line, start
from orcheo_db.secrets import write_private
from orcheo_db.spec import Spec
from orcheo_db.targets import mounts
from orcheo_db.targets.base import Result
from orcheo_db.targets.compose import ComposeTarget
from orcheo_db.targets.host import HostTarget
from orcheo_db.targets.kubernetes import KubernetesTarget

COMMAND = "orcheo-db upgrade-app"
SAYS = "upgrade: "  # how the job's own lines begin
APP_KEY = "/run/orcheo-db/app"  # where the job finds the app's secrets


def job(target: ComposeTarget, command: str, slug: str | None = None, *, key: str | None = None) -> dict[str, Any]:
    """Run one command of `orcheo_db.upgrade` in a container of the init job's service; returns its document.

    Args:
        key: a vault key for it ("": none); default: the one of the app that runs here.

    Raises:
        UserError: exit code 2 of the job; CheckFailed: any other failure. Both with the job's own last line.
    """
    options = [f"--env={name}={value}" for name, value in environment(target.spec).items()]
    secrets = target.store.path / "mounts" / "app" / "secrets"
    if target.with_app and key is None:
        options += [
            f"--env=ORCHEO_DB_VAULT_KEY_FILE={APP_KEY}/{app_secrets.VAULT_KEY}",
            f"--volume={secrets}:{APP_KEY}:ro",
        ]
        if f"{target.project}_apphome" in target.volumes():
            # attachments of chats that a bridge release kept in files; by its full name, which Compose takes as it is
            options.append(f"--volume={target.project}_apphome:/home/orcheo:ro")
    words = ["python", "-m", "orcheo_db.upgrade", command, "--json", *(["--workspace", slug] if slug else [])]
    words += ["--key-from-stdin"] if key else []
    with step(f"Upgrade: {command}" if key is None else "Asking the app's own stores"):
        result = target.compose(
            "run", "--rm", "--no-deps", "-T", *options, "init", *words, input=f"{key}\n" if key else None
        )
    return answer(result)


def ask_stores(target: KubernetesTarget | HostTarget, key: str | None) -> dict[str, Any]:
    """Have the real app's stores read everything and decrypt every credential, where and as the init job runs; returns its document.

    Args:
        key: the vault key; None: there is none.

    Raises:
        UserError: exit code 2 of the job. CheckFailed: any other failure. Both with the job's own last line.
    """
    words = ["python", "-m", "orcheo_db.upgrade", "verify", "--json", *(["--key-from-stdin"] if key else [])]
    with step("Asking the app's own stores"):
        done = target.as_init(words, f"{key}\n" if key else "", environment(target.spec))
    return answer(done)


def environment(spec: Spec) -> dict[str, str]:
    """What the job is told beside the init job's own variables."""
    return {
        "ORCHEO_CHATKIT_RETENTION_DAYS": str(spec.app.chatkit_retention_days),
        "ORCHEO_TRACE_RETENTION_DAYS": str(spec.app.trace_retention_days),
    }


def answer(result: Result) -> dict[str, Any]:
    """The job's document.

    Raises:
        UserError: exit code 2 of the job; CheckFailed: any other failure. Both with the job's own last line.
    """
    if result.code != 0:
        own = (line for line in reversed(result.stderr.splitlines()) if line.startswith(SAYS))
        raise refused(result.code, next(own, last_line(result.stderr)).removeprefix(SAYS))
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def preflight(target: ComposeTarget, slug: str | None) -> dict[str, Any]:
    """What the upgrade would meet; nothing is changed but images and configuration files.

    Raises:
        UserError: there is no installation, no such workspace, or the vault key does not open the credentials.
        CheckFailed: the database doesn't fit.
    """
    target.store.installation_id()  # says so where there is none
    ensure_images(target.spec, target.root, target.store.path / "logs", target.image_names)
    lifecycle.prepare(target, lifecycle.Outcome(), new_secrets=False)
    if target.managed_server:
        start(target, "postgres", HEALTHY_SECONDS)
    if target.with_app:
        mounts.install(target.app_mounts(), target.store.path / "mounts", target.helper_image)
    found = job(target, "inspect", slug)
    given = app_secrets.given_key()
    vault = app_lifecycle.count_credentials(target, given) if given and target.with_app else found["vault"]
    if vault and vault["unreadable"]:
        key = "given in the environment" if given else str(app_secrets.path(target.store, app_secrets.VAULT_KEY))
        raise UserError(
            f"the vault key {key} does not open {vault['unreadable']} of {vault['credentials']} credentials: give the key that they were made"
            f" with in {app_secrets.KEY_VARIABLE}. Nothing was changed."
        )
    return found


def upgrade(target: ComposeTarget, slug: str | None, *, check: bool = False) -> dict[str, Any]:
    """Bring the database and the app to the spec's releases; returns the report.

    Args:
        slug: the workspace for rows whose workspace does not exist.
        check: the preflight alone.

    Raises:
        UserError, CheckFailed: in one line what failed, what state things are in and what to do.
    """
    target.check()
    with lifecycle.exclusive(target.store):
        found = preflight(target, slug)
        for line in found["hazards"]:
            say(f"  - {line}")
        if check:
            return {"done": False, "preflight": found}
        if not found["needed"] and found["from"] == found["to"]:
            return {"done": False, "preflight": found}
        report = _upgrade(target, slug, found)
        name = f"upgrade-{report['to']['orcheo']}-{dump.stamp()}.json"
        file = target.store.path / dump.DIRECTORY / name
        write_private(file, (json.dumps(report, indent=2, default=str) + "\n").encode())
        return report | {"report": str(file)}


def _upgrade(target: ComposeTarget, slug: str | None, found: dict[str, Any]) -> dict[str, Any]:
    with stopped_app(target):
        backup = dump.make(target, f"before-{target.spec.versions.orcheo}")
        applied = job(target, "apply", slug)
    try:
        init = lifecycle.init(target, force=True)
        attachments = job(target, "attachments")
        verified = job(target, "verify")
        if target.after_init(init):
            lifecycle.install_files(target)
            lifecycle.write_environment(target)
        pooler = target.container("pgbouncer")
        if pooler is not None and pooler.status == "running":
            pooler.restart(timeout=30)  # its connections carry statements that were prepared for the old tables
        start(target, "pgbouncer", HEALTHY_SECONDS)
        app = app_lifecycle.start_app(target) if target.with_app else []
    except (UserError, CheckFailed) as error:
        raise type(error)(f"{error} {_state(target, backup)}") from error
    return {
        "done": True,
        "from": found["from"],
        "to": found["to"],
        "backup": str(backup),
        "back": f"{COMMAND} --back {backup}",
        "hazards": found["hazards"],
        "applied": {key: value for key, value in applied.items() if key not in ("ok", "before")},
        "attachments": attachments,
        "verified": verified,
        "app": app,
    }


def _state(target: ComposeTarget, backup: Path) -> str:
    return (
        f"[State: database {target.spec.database.name} is upgraded, no row was lost; the app is stopped. To go on: mend that and run"
        f" `{COMMAND}` again. To go back: `{COMMAND} --back {backup}`, then set [versions] back and run `{target.up_command} WITH=app`]"
    )


@contextmanager
def stopped_app(target: ComposeTarget) -> Iterator[None]:
    """Stop the app's processes; started again as they were where the body fails (then nothing was changed)."""
    were = []
    for name in app_lifecycle.PROCESSES:
        container = target.container(name)
        if container is not None and container.status == "running":
            with step(f"Stopping {name}"):
                container.stop(timeout=app_lifecycle.STOP_SECONDS)
            were.append(container)
    try:
        yield
    except (UserError, CheckFailed) as error:  # an interrupted one stays stopped: its job may still be at work
        for container in were:
            container.start()
        raise unchanged(error, "the app runs again as before" if were else "no app was running") from error


def unchanged(error: UserError | CheckFailed, app: str) -> UserError | CheckFailed:
    """The same error, which says that nothing was changed and how it is with the app."""
    text = str(error).removesuffix("Nothing was changed.").rstrip()
    return type(error)(f"{text} Nothing was changed; {app}.")


def back(target: ComposeTarget, file: Path) -> dict[str, Any]:
    """Restore a backup point as the app's database; the one that is there is kept under another name.

    Raises:
        UserError: no such file or no dump of Orcheo. CheckFailed: it could not be restored; the database in use is as it was.
    """
    target.store.installation_id()
    tables = dump.contents(target, file)
    name, moment = target.spec.database.name, dump.stamp()
    restored, aside = f"{name}_back_{moment}", f"{name}_failed_{moment}"
    with lifecycle.exclusive(target.store):
        with stopped_app(target):
            dump.restore_beside(target, file, restored)
            pooler = target.container("pgbouncer")
            if pooler is not None:
                pooler.stop(timeout=30)  # it would connect again in the moment between
            try:
                dump.swap(target, restored, aside)
            except CheckFailed:
                if pooler is not None:
                    pooler.start()
                dump.sql(target, f'DROP DATABASE IF EXISTS "{restored}"')
                raise
        init = target.container("init")
        if init is not None:
            init.remove(force=True)  # it ran for the database that was put aside: the next `up` runs it for this one
    return {
        "restored": str(file),
        "tables": len(tables),
        "kept_aside": aside,
        "next": f"set [versions] in ops/spec.toml back to the release that made it, then `{target.up_command}{' WITH=app' if target.with_app else ''}`",
    }
