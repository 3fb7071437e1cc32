"""The commands `orcheo-db backup …`, `restore` and `drill`."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import click
from rich.table import Table

from orcheo_db import job_kubernetes, restore, restore_host, restore_kubernetes
from orcheo_db.backup_lifecycle import ask, stream
from orcheo_db.command import Command, Context, Group, pass_context
from orcheo_db.console import out, say
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.targets.host import HostTarget
from orcheo_db.targets.kubernetes import KubernetesTarget

TYPES = ("full", "differential", "incremental", "logical")
on_repository = click.option(
    "--repository",
    type=click.Choice(("first", "second")),
    default="first",
    show_default=True,
    help="second: the bucket of [backup.second].",
)


@click.group("backup", cls=Group)
def backup_group() -> None:
    """Backups: make one, list what can be restored, check that all of it works."""


@backup_group.command("run")
@click.option("--type", "kind", type=click.Choice(TYPES), default="incremental", show_default=True)
@on_repository
@pass_context
def backup_run(context: Context, /, kind: str, repository: str) -> None:
    """Make a backup now."""
    if kind == "logical" and repository == "second":
        raise UserError("logical copies lie in the first repository: the second one has physical backups")
    target = context.target()
    if kind == "logical" and isinstance(target, KubernetesTarget):
        made = job_kubernetes.run(target, "backup-logical")
    else:
        made = stream(target, ["run", "--type", kind], repository)
    if kind == "logical":
        text = f"Logical copy {made['label']}: {made['rows']} rows, {_size(made['stored_bytes'])} stored, {made['seconds']} s; restored and compared in {made['restored_seconds']} s."
        context.print(made, text)
        return
    context.print(
        made, f"Backup {made['label']}: {_size(made['size'])}, {_size(made['stored'])} stored, {made['seconds']} s."
    )


@backup_group.command("list")
@on_repository
@pass_context
def backup_list(context: Context, /, repository: str) -> None:
    """What can be restored, from when to when, the sizes, the last drill."""
    found = ask(context.target(), "list", repository=repository)
    context.print(found, None)
    if context.as_json:
        return
    table = Table(box=None, pad_edge=False)
    for title in ("backup", "type", "complete (UTC)", "cluster", "stored"):
        table.add_column(title, justify="right" if title in ("cluster", "stored") else "left")
    for backup in found["backups"]:
        stop = backup["stop"][:19].replace("T", " ")
        table.add_row(backup["label"], backup["type"], stop, _size(backup["size"]), _size(backup["stored"]))
    out.print(table)
    out.print(_summary(found), markup=False)


def _summary(found: dict[str, Any]) -> str:
    span, drill = found["restorable"], found["last_drill"]
    lines = [
        f"Any moment can be restored from {span['from'][:19]} to {(span['to'] or 'the last backup')[:19]} UTC."
        if span
        else "Nothing can be restored yet."
    ]
    lines += [f"Restore point {point['name']}: {point['at'][:19]} UTC, LSN {point['lsn']}" for point in found["points"]]
    if found["logical"]:
        last = found["logical"][-1]
        lines.append(
            f"{len(found['logical'])} logical copies, the last {last['label']} ({last['rows']} rows, {_size(last['stored_bytes'])}), each restored and compared."
        )
    if found["repository_bytes"] is not None:  # a bucket doesn't say
        lines.append(f"The repository takes {_size(found['repository_bytes'])}, {_size(found['free_bytes'])} are free.")
    if drill is None:
        lines.append("No drill yet: the schedule runs them, `make drill` one now.")
    else:
        words = (
            f"RTO {drill['rto_seconds']} s, RPO {drill['rpo_seconds'] if drill['rpo_seconds'] is not None else '-'} s"
            if drill["result"] == "pass"
            else drill["failure"]
        )
        lines.append(f"Last drill: {drill['result']} at {drill['finished_at'][:19]} UTC ({words}).")
    return "\n".join(lines)


@backup_group.command("check")
@click.option("--deep", is_flag=True, help="Read every file of the repository and compare its checksum.")
@pass_context
def backup_check(context: Context, /, deep: bool) -> None:
    """Whether WAL arrives, backups are recent, the repository is whole and has room, the last drill passed."""
    target, options = context.target(), ["check", *(["--deep"] if deep else [])]
    found = stream(target, options)
    if target.with_second:
        found = _with_second(found, target, options)
    context.print(found, None)
    failed = [check for check in found["checks"] if not check["ok"]]
    if not context.as_json:
        table = Table(box=None, pad_edge=False)
        for title in ("", "check", "what was found"):
            table.add_column(title, overflow="fold")
        for check in found["checks"]:
            table.add_row(
                "ok" if check["ok"] else "NO",
                check["name"],
                check["found"] + (f" -> {check['remedy']}" if check["remedy"] else ""),
            )
        out.print(table)
    if failed:
        raise CheckFailed(
            f"{len(failed)} of {len(found['checks'])} checks failed ({', '.join(check['name'] for check in failed)}): {failed[0]['found']}"
        )


def _with_second(found: dict[str, Any], target: Any, options: list[str]) -> dict[str, Any]:
    """The answer with the second repository's checks; one that gives none is a check that failed."""
    try:
        checks = stream(target, options, "second")["checks"]
    except (UserError, CheckFailed) as error:
        checks = [{"name": "answers", "ok": False, "found": str(error), "remedy": "run `make up`"}]
    named = [{**check, "name": f"second repository: {check['name']}"} for check in checks]
    return {"ok": found["ok"] and all(check["ok"] for check in checks), "checks": [*found["checks"], *named]}


@backup_group.command("point")
@click.argument("name")
@pass_context
def backup_point(context: Context, /, name: str) -> None:
    """Set a restore point of that name, to go back to with `restore --to-name` (before a risky change, for example)."""
    made = ask(context.target(), "point", name)
    context.print(made, f"Restore point {name} is set at LSN {made['lsn']}, and its WAL is archived.")


@backup_group.command("new-repository")
@click.option("--confirm", metavar="PROJECT", help="The project's name.")
@pass_context
def backup_new_repository(context: Context, /, confirm: str | None) -> None:
    """Begin a new repository where the present one can't be read or is another cluster's; that one is kept aside."""
    target = context.target()
    if confirm not in ("yes", target.project):
        raise UserError(
            f"nothing could be restored from the present repository any more by this toolkit: confirm with --confirm {target.project}"
        )
    done = stream(target, ["prepare", "--set-aside"])
    context.print(done, "\n".join(done["done"]) or "Nothing changed: the repository can be read and is this cluster's.")


@click.command("restore", cls=Command)
@click.option("--to", "time", metavar="TIME", help='A moment, with its time zone: "2026-11-23 10:15:00+00".')
@click.option("--to-lsn", metavar="LSN", help="A position in the WAL.")
@click.option("--to-name", metavar="NAME", help="A restore point (orcheo-db backup point).")
@click.option(
    "--timeline",
    type=click.IntRange(min=1),
    help="What was left behind when an earlier restore was put in place. Default: the newest.",
)
@click.option("--swap", is_flag=True, help="Then let PostgreSQL run on it; the former volume is kept.")
@click.option("--confirm", metavar="PROJECT", help="The project's name, to confirm --swap and --use.")
@click.option(
    "--remove",
    "unwanted",
    metavar="VOLUME",
    help="Restore nothing: remove this volume of an earlier restore; --confirm names it again.",
)
@click.option("--use", metavar="VOLUME", help="Restore nothing: put this volume in place (to go back, for example).")
@on_repository
@click.option("--table", metavar="NAME", help="Copy this table's rows out into --out (CSV); nothing else stays.")
@click.option("--where", metavar="CONDITION", help="Only these rows of --table.")
@click.option("--out", "file", type=click.Path(path_type=Path), help="The file for --table.")
@pass_context
def restore_command(  # noqa: PLR0913, PLR0917 - click passes each option by its name
    context: Context, /, time: str | None, to_lsn: str | None, to_name: str | None, timeline: int | None, swap: bool, confirm: str | None, use: str | None,
    table: str | None, where: str | None, file: Path | None, repository: str, unwanted: str | None,
) -> None:  # fmt: skip
    """Restore the newest state, or an earlier one, into a new volume beside the running one."""
    target = context.target()
    # Each has the same three functions.
    ways: dict[type, ModuleType] = {KubernetesTarget: restore_kubernetes, HostTarget: restore_host}
    how = ways.get(type(target), restore)
    if unwanted is not None:
        if confirm != unwanted:
            raise UserError(
                f"volume {unwanted} and the cluster in it would be removed for ever: confirm with --confirm {unwanted}"
            )
        done = how.remove(target, unwanted)
        context.print(done, f"{unwanted} is removed.")
        return
    if (swap or use) and confirm not in ("yes", target.project):
        what = use or "the restored one"
        raise UserError(
            f"PostgreSQL would be restarted on another volume ({what}; {target.volume} is kept): confirm with --confirm {target.project}"
        )
    if use is not None:
        done = how.put_in_place(target, use)
        context.print(
            done, f"PostgreSQL runs on {done['in_place']}" + (f"; {done['kept']} is kept." if done["kept"] else ".")
        )
        return
    if swap and table:
        raise UserError(
            "--swap and --table are two things: one puts a cluster in place, the other copies rows out of one"
        )
    given = {
        "--to": time,
        "--to-lsn": to_lsn,
        "--to-name": to_name,
        "--timeline": timeline,
        "--table": table,
        "--where": where,
    }
    options = [f"{name}={value}" for name, value in given.items() if value is not None]
    done = how.restore(target, options, swap=swap, table=table, out=file, repository=repository)
    context.print(done, None)
    if context.as_json:
        return
    say(
        f"Restored {done['target']} from backup {done['backup']}: {_size(done['bytes'])}, {done['tables']} tables, RTO {done['rto_seconds']} s."
    )
    kind, program = ("volume", "orcheo-db") if how is restore else ("directory", f"orcheo-db --target {target.name}")
    if done["recovered_to"]:
        say(f"Its last transaction is of {done['recovered_to']}.")
    if table:
        say(f"{done['rows_extracted']} rows of {table} are in {done['out']}.")
    elif swap:
        kept = done["kept"]
        back = (
            f"; {kept} is kept (to go back: {program} restore --use {kept} --confirm {target.project})" if kept else ""
        )
        say(f"PostgreSQL runs on {done['in_place']}{back}.")
    else:
        say(
            f"It is in {kind} {done['volume']}, beside the running one. To put it in place: {program} restore --use {done['volume']} --confirm {target.project}"
        )


def _size(count: int) -> str:
    """Bytes, for people."""
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.1f} MB"
