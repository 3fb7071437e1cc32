"""`restore` on hosts that Ansible runs: on the repository host, where drills restore too, then as a directory beside the running cluster.

The database's host never sees the repository: it is given a cluster that was recovered and shut down. Where it is another host than the
repository's, the files come through this machine, by SSH both ways. Putting one in place is a step of its own.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orcheo_db import lifecycle
from orcheo_db.backup.scratch import RESERVE
from orcheo_db.backup_lifecycle import ask, follow
from orcheo_db.cluster.volume import stamp
from orcheo_db.console import say, step
from orcheo_db.errors import CheckFailed, UserError, refused
from orcheo_db.restore import WAIT_SECONDS, check_out, without_extract
from orcheo_db.targets.host import HostTarget, last_line

ROOM = "/var/lib/orcheo-restore"  # on the repository host, where that isn't the database's: roles/pgbackrest makes it
VOLUME = "/var/lib/postgresql"
CLUSTER = "/opt/orcheo-db/bin/orcheo-db-cluster"
TAR = ("tar", "--create", "--file=-", "--sparse")
SAYS = "orcheo-db: "


def restore(
    target: HostTarget,
    options: Sequence[str],
    *,
    swap: bool = False,
    table: str | None = None,
    out: Path | None = None,
    repository: str = "first",
) -> dict[str, Any]:
    """Restore into a new directory of the database's host; production is only read, and only with `swap` replaced. Arguments as
    `restore.restore`.

    Raises:
        UserError: a target outside of the archive, `out` exists, no room. CheckFailed: it failed.
    """
    check_out(table, out)
    if repository != "first":
        raise UserError("target host has one repository: leave --repository out")
    found = ask(target, "restore", "--check", *without_extract(options))
    with lifecycle.exclusive(target.store):
        name = f"restored-{stamp()}"
        one = target.hosts["postgres"]["name"] == target.hosts["repository"]["name"]
        if not one and table is None:
            _check_room(target, int(found["backup"]["size"]))
        made = f"{VOLUME if one and table is None else ROOM}/{name}"
        try:
            answer = _run(target, made, options, out)
            if not one and table is None:
                _move(target, made, f"{VOLUME}/{name}")
        except BaseException:
            # Made a moment ago by this very call, and nothing of use in them.
            if out is not None:
                out.unlink(missing_ok=True)
            target.run("backup", ["rm", "-rf", "--", made])
            if not one and table is None:
                target.run("postgres", ["rm", "-rf", "--", f"{VOLUME}/{name}"])
            raise
        if made.startswith(ROOM):
            target.run("backup", ["rm", "-rf", "--", made])
        if table is not None:
            return {**answer, "volume": None, "out": str(out)}
    answer["volume"] = name
    if swap:
        answer |= put_in_place(target, name)
    return answer


def put_in_place(target: HostTarget, name: str) -> dict[str, Any]:
    """Let PostgreSQL run on what `name` holds; what it ran on stays, under a name. Nobody writes until the init job has been through.

    Raises:
        UserError: there is no such restore, or it is another installation's. CheckFailed: the server does not start on it.
    """
    with lifecycle.exclusive(target.store):
        claim = _check(target, name)
        if claim:
            ask(target, "claim", str(claim["timeline"]), claim["id"])
        say(f"Putting {name} in place of the cluster in use, which is kept")
        try:
            for service in ("pgbouncer", "postgres"):
                target.stop(service)
            done = _cluster(target, "place", name)
        except (UserError, CheckFailed) as error:
            again = f"orcheo-db --target host restore --use {name} --confirm {target.project}"
            raise CheckFailed(
                f"{error} [PgBouncer and PostgreSQL may be stopped: go on with `{again}`, or leave it and start them by `{target.up_command}`]"
            ) from None
        back = (
            f"; back to the former one: orcheo-db --target host restore --use {done['kept']} --confirm {target.project}"
        )
        try:
            target.start("postgres")
            _initialize(target)  # the restored moment may be older than the releases that run now
            target.start("pgbouncer")
            # A new timeline begins: from here on it is covered. A job that runs meanwhile is waited for.
            ask(target, "run", "--type", "incremental", f"--wait={WAIT_SECONDS}")
        except (UserError, CheckFailed) as error:
            raise CheckFailed(
                f"{error} [{name} is in place; PgBouncer is started by `{target.up_command}`{back}]"
            ) from None
    return done


def remove(target: HostTarget, name: str) -> dict[str, Any]:
    """Remove what a restore made or set aside; the caller has a confirmation that names it.

    Raises:
        UserError: there is no such thing.
    """
    with lifecycle.exclusive(target.store):
        return _cluster(target, "remove", name)


def _check(target: HostTarget, name: str) -> dict[str, Any] | None:
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


def _check_room(target: HostTarget, size: int) -> None:
    """Whether the database's host can take a second cluster.

    Raises:
        UserError: it can't.
    """
    done = target.run("postgres", ["df", "--block-size=1", "--output=avail", VOLUME])
    if done.code != 0:
        raise CheckFailed(f"the database's host does not say how much room it has: {last_line(done.stderr)}")
    free = int(done.stdout.split()[-1])
    if free < size + RESERVE:
        raise UserError(
            f"{VOLUME} of {target.hosts['postgres']['name']} has {free / 2**30:.1f} GB free and this needs {(size + RESERVE) / 2**30:.1f} GB"
            " (2 GB of it stay free): free space there; nothing was changed"
        )


def _run(target: HostTarget, into: str, options: Sequence[str], out: Path | None) -> dict[str, Any]:
    """The restore itself, on the repository host."""
    argv = target.command("backup", [*target.backup_program, "restore", f"--into={into}", *options])
    with step("Restoring") as bar:
        rows = out.open("xb") if out else None
        try:
            with subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=rows or subprocess.PIPE, stderr=subprocess.PIPE
            ) as process:
                words = follow(process, bar)
                answer = words if rows else (process.stdout.read().decode() if process.stdout else "")
        finally:
            if rows:
                rows.close()
    if process.returncode != 0:
        raise refused(process.returncode, f"{words} (production was not touched)")
    found: dict[str, Any] = json.loads(answer)
    return found


def _move(target: HostTarget, source: str, to: str) -> None:
    """A finished cluster from the repository host to the database's, checked by what tar has written there.

    Raises:
        CheckFailed: it did not arrive whole.
    """
    there = "mkdir -m 0700 -- {0} && tar --extract --preserve-permissions --file=- --directory={0} && sync --file-system {0}"
    sending = target.command("backup", [*TAR, f"--directory={source}", "."])
    taking = target.command("postgres", ["sh", "-ec", there.format(shlex.quote(to))], interactive=True)
    with step(f"Moving it to {target.hosts['postgres']['name']}"):
        with (
            subprocess.Popen(
                sending, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as sender,
            subprocess.Popen(taking, stdin=sender.stdout, stderr=subprocess.PIPE) as taker,
        ):
            assert sender.stdout is not None and sender.stderr is not None and taker.stderr is not None
            sender.stdout.close()  # the taker's end alone: if it goes, the sender ends
            said = taker.stderr.read().decode(errors="replace")
            told = sender.stderr.read().decode(errors="replace")
        if sender.returncode != 0 or taker.returncode != 0:
            why = last_line(told if sender.returncode else said) or "the connection broke off"
            raise CheckFailed(f"the restored cluster did not arrive whole: {why} (production was not touched)")


def _cluster(target: HostTarget, *words: str) -> dict[str, Any]:
    """A command of `orcheo_db.cluster` on the database's host.

    Raises:
        UserError, CheckFailed: as the command does.
    """
    done = target.run("postgres", [CLUSTER, *words])
    if done.code != 0:
        raise refused(done.code, last_line(done.stderr).removeprefix(SAYS))
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _initialize(target: HostTarget) -> None:
    """The init job again.

    Raises:
        CheckFailed: it failed, in its own words.
    """
    with step("Bringing the schema up to date"):
        done = target.initialize()
    if done.code != 0:
        raise CheckFailed(f"the init job failed: {last_line(done.stderr)}")


__all__ = ["put_in_place", "remove", "restore"]
