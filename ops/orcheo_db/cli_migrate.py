"""The commands `orcheo-db migrate …`."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from orcheo_db import app_kubernetes, upgrade_app
from orcheo_db.command import Command, Context, pass_context
from orcheo_db.console import err, out, say, step
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.lifecycle import exclusive
from orcheo_db.migrate import operations, run, vault
from orcheo_db.migrate.convert import Options
from orcheo_db.migrate.operations import Place
from orcheo_db.migrate.plan import places
from orcheo_db.migrate.plan import plan as make_plan
from orcheo_db.migrate.source import unreadable
from orcheo_db.secrets import write_private
from orcheo_db.targets.base import Target
from orcheo_db.targets.compose import ComposeTarget
from orcheo_db.targets.host import HostTarget
from orcheo_db.targets.kubernetes import KubernetesTarget

DIRECTORY, ENVIRONMENT = "migrate", "orcheo.env"
LINE_SECONDS = 10.0  # between two lines of progress in a log


@dataclass(frozen=True)
class Given:
    """What `plan`, `run`, `verify`, `cutover` and `rollback` all take (`_options`)."""

    directory: Path
    work: Path | None
    source: str | None
    attachments: tuple[Path, ...]
    naive: str


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def command(
        *,
        directory: Path,
        work: Path | None,
        source: str | None,
        attachments: tuple[Path, ...],
        naive: str,
        **more: Any,
    ) -> Any:
        return function(given=Given(directory, work, source, attachments, naive), **more)

    for option in (
        click.option("--naive-timestamps", "naive", default="UTC", show_default=True, metavar="ZONE", help="The zone of timestamps that name none."),
        click.option("--attachments", "attachments", multiple=True, type=click.Path(path_type=Path), help="Where chat attachments' files are, beside their noted places."),
        click.option("--work", type=click.Path(path_type=Path), help="Where snapshots are kept. Default: in the state directory."),
        click.option("--source", metavar="NAME", help="How the target names the source, where that was moved or its machine renamed since."),
        click.argument("directory", metavar="SQLITE_DIR", type=click.Path(path_type=Path)),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group("migrate")
def migrate_group() -> None:
    """SQLite files of an older Orcheo to PostgreSQL and back: plan, run, verify, cutover, rollback, export, import."""


@migrate_group.command("plan", cls=Command)
@_options
@click.option("--workspace", metavar="SLUG", help="Where rows go that no workspace owns. Default: default.")
@pass_context
def plan_(context: Context, given: Given, workspace: str | None) -> None:
    """What is in SQLITE_DIR and what a migration would meet. Reads only. Exit code 1: something wants a decision."""
    options = _chosen(given)
    days = context.spec().app.chatkit_retention_days
    with _bar("Reading") as shown, _readable():
        found = make_plan(
            given.directory.expanduser(),
            options,
            workspace,
            days,
            lambda done, total: shown(done.bytes, total, done.rows, ""),
        )
    if not context.as_json:
        _show_plan(found)
    context.print(found)
    if found["decisions"]:
        raise CheckFailed(
            f"{found['decisions']} of the points above want a decision; each has a default: `orcheo-db migrate run {given.directory}` goes on with them"
        )


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise unreadable(error) from None


def _show_plan(found: dict[str, Any]) -> None:
    kind = "0.15 or older" if found["release"] == "0.15" else "a bridge release, 0.16 to 0.34"
    out.print(f"{found['source']}: {found['bytes'] / 2**20:.1f} MB, {found['rows']} rows, made by {kind}", markup=False)
    table = Table(box=None, pad_edge=False)
    for title in ("table", "file", "rows", "MB", "becomes"):
        table.add_column(title, justify="right" if title in ("rows", "MB") else "left")
    for row in found["tables"]:
        table.add_row(row["table"], row["file"], str(row["rows"]), f"{row['bytes'] / 2**20:.2f}", row["into"])
    out.print(table)
    out.print(
        f"Estimated time of the copy: {found['estimated_seconds']} s (the old app may go on meanwhile).", markup=False
    )
    for hazard in found["hazards"]:
        decide = f" [{hazard['option']}]" if hazard["option"] else ""
        out.print(f"  {'?' if decide else '-'} {hazard['text']}{decide}", markup=False)
    if not found["hazards"]:
        out.print("  - nothing out of the ordinary", markup=False)


@migrate_group.command("run", cls=Command)
@_options
@click.option("--workspace", metavar="SLUG", help="Where rows go that no workspace owns. Default: default.")
@click.option("--strict", is_flag=True, help="Stop at the first value that PostgreSQL can't hold as it is.")
@pass_context
def run_(context: Context, given: Given, workspace: str | None, strict: bool) -> None:
    """Copy all of SQLITE_DIR into the (empty) database, while the old app goes on. Run again it goes on, or brings what has changed."""
    target, place = _place(context, given)
    with exclusive(target.store), _bar("Copying") as shown:
        found = operations.migrate(
            place, given.directory.expanduser(), _chosen(given, strict=strict), workspace, _shown(shown)
        )
    found.pop("tasks", None)
    context.print(found, _run_text(found, given.directory))


def _run_text(found: dict[str, Any], directory: Path) -> str:
    lines = [f"{found['rows']} rows ({found['bytes'] / 2**20:.1f} MB) in {found['seconds']} s."]
    if not found["changed"]:
        lines = ["Nothing has changed since the last copy."]
    where = found["home"]
    if where["workspace"]:
        lines.append(
            f"  rows without a workspace are in {where['workspace']!r}{' (made for them)' if where['new'] else ''}"
        )
    lines += [f"  renamed: {new['table']} {new['id']} -> {new['new']!r}" for new in where["renamed"]]
    lines += _kept(found)
    lines.append(f"Next: `orcheo-db migrate verify {directory}`")
    return "\n".join(lines)


def _kept(found: dict[str, Any]) -> list[str]:
    """What the quarantine holds, one line a reason."""
    reasons: dict[str, dict[str, int]] = {}
    for one in found["quarantine"]:
        name = f"{one['table']}.{one['column']}" if one["column"] else f"whole rows of {one['table']}"
        reasons.setdefault(one["reason"], {})[name] = one["count"]
    return [
        f"  originals in orcheo_archive.quarantine: {sum(where.values())} x {reason} ({places(where)})"
        for reason, where in sorted(reasons.items())
    ]


@migrate_group.command("verify", cls=Command)
@_options
@pass_context
def verify_(context: Context, given: Given) -> None:
    """Compare every row in the database with what was copied, and ask the real app's stores for theirs. Exit code 1: something differs."""
    target, place = _place(context, given)
    with exclusive(target.store):
        with _bar("Comparing") as shown:
            found = operations.verify(place, given.directory.expanduser(), _chosen(given), _shown(shown))
        key = found.pop("key")  # never printed
        found["app"] = _ask_app(target, key) if found["ok"] else None
    if not context.as_json:
        _show_tables(found["tables"])
        if found["app"]:
            out.print(
                f"The app's own stores give: {', '.join(f'{n} {kind}' for kind, n in found['app']['seen'].items())}",
                markup=False,
            )
    context.print(found)
    if not found["ok"]:
        bad = next(table for table in found["tables"] if not table["ok"])
        raise CheckFailed(
            f"table {bad['table']} differs: {bad['wrong'][0]['key'] or 'a row'} {bad['wrong'][0]['what']}."
            f" `orcheo-db migrate run {given.directory}` brings what differs again"
        )


def _show_tables(tables: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("", "table", "rows", "digest"):
        table.add_column(title, justify="right" if title == "rows" else "left")
    for row in tables:
        table.add_row("ok" if row["ok"] else "NO", row["table"], str(row["rows"]), row["digest_source"])
        for wrong in row["wrong"]:
            table.add_row("", f"  {wrong['key']} {wrong['what']}", "", "")
    out.print(table)


def _ask_app(target: Target, key: str | None) -> dict[str, Any]:
    """Have the real app's stores read everything and decrypt every credential (the job of `upgrade-app`)."""
    if isinstance(target, (KubernetesTarget, HostTarget)):
        return upgrade_app.ask_stores(target, key)
    return upgrade_app.job(_stack(target), "verify", key=key or "")


def _stack(target: Target) -> ComposeTarget:
    assert isinstance(target, ComposeTarget)
    return target


@migrate_group.command("cutover", cls=Command)
@_options
@click.option("--force", is_flag=True, help="Go on although a process has a file open (you know that it only reads).")
@pass_context
def cutover_(context: Context, given: Given, force: bool) -> None:
    """With the old app stopped: bring what changed since the copy, verify it, write the new app's environment. Says the seconds that took."""
    target, place = _place(context, given)

    def finish(environment: dict[str, str]) -> Path:
        return _environment(target, environment)

    with exclusive(target.store), _bar("Last pass") as shown:
        found = operations.cutover(
            place, given.directory.expanduser(), _chosen(given), _shown(shown), finish, force=force
        )
    lines = [f"Cut over. Write downtime: {found['downtime_seconds']} s."]
    lines += [
        f"  brought by the last pass: {count} rows in the changed parts of {table}"
        for table, count in found["changed"].items()
    ]
    lines += _kept(found)
    lines.append(f"The new app's environment: {found['environment']}. {_start(target)}")
    lines.append(f"To go back, with all that is written from now on: `orcheo-db migrate rollback {given.directory}`.")
    context.print(found, "\n".join(lines))


def _start(target: Target) -> str:
    """What starts the new app with it."""
    if isinstance(target, HostTarget):
        return "Start Orcheo with it, where you have it run."
    command = f"{target.up_command} (component app)" if target.name == "kubernetes" else "make up WITH=app"
    return f"To start it here: `{command}`."


def _environment(target: Target, given: dict[str, str]) -> Path:
    """The new app's environment as a file, mode 0600; the stack's own app gets the vault key too."""
    pools = {"MIN_SIZE": "1", "MAX_SIZE": "10", "TIMEOUT": "30", "MAX_IDLE": "300"}  # the app's own defaults
    days = target.spec.app.chatkit_retention_days
    values = {
        "ORCHEO_POSTGRES_DSN": target.client_dsn(),
        **{f"ORCHEO_POSTGRES_POOL_{name}": value for name, value in pools.items()},
        "ORCHEO_CHATKIT_RETENTION_DAYS": str(days),
        **given,
    }
    file = target.store.path / DIRECTORY / ENVIRONMENT
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(file, "".join(f"{key}={value}\n" for key, value in values.items()).encode())
    if "ORCHEO_VAULT_ENCRYPTION_KEY" in given:
        vault.remember(target.store, given["ORCHEO_VAULT_ENCRYPTION_KEY"])
        if isinstance(target, KubernetesTarget):
            app_kubernetes.use_vault_key(target)
    return file


@migrate_group.command("rollback", cls=Command)
@_options
@click.option(
    "--to", "to", type=click.Path(path_type=Path), help="A directory that is made. Default: SQLITE_DIR-rollback-MOMENT."
)
@pass_context
def rollback_(context: Context, given: Given, to: Path | None) -> None:
    """Write PostgreSQL's present rows into SQLite files of the release that they came from. SQLITE_DIR itself is only read."""
    target, place = _place(context, given)
    directory = given.directory.expanduser()
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    to = (to or directory.resolve().with_name(f"{directory.resolve().name}-rollback-{stamp}")).expanduser().absolute()
    with exclusive(target.store), _stopped(target), _bar("Comparing") as shown:
        found = operations.rollback(place, directory, to, _chosen(given), _shown(shown))
    lines = [
        f"{sum(found['rows'].values())} rows are in {to} and equal to PostgreSQL's ({found['seconds']} s)."
        + (
            " The app here is stopped."
            if target.with_app
            else " What an app writes to PostgreSQL from now on is not in them."
        )
    ]
    lines += [
        f"  the old release has no place for {count} x {name} (in {to}/left-behind.jsonl, and in PostgreSQL)"
        for name, count in found["left_behind"].items()
    ]
    lines.append(f"Start the old release with these files in place of {directory} (which was not changed).")
    context.print(found, "\n".join(lines))


@contextmanager
def _stopped(target: Target) -> Iterator[None]:
    if not target.with_app:
        yield
        return
    with (
        app_kubernetes.stopped(target)
        if isinstance(target, KubernetesTarget)
        else upgrade_app.stopped_app(_stack(target))
    ):
        yield


def _place(context: Context, given: Given) -> tuple[Target, Place]:
    target = context.target()
    target.store.installation_id()  # says so where there is none
    return target, Place(
        target.dsn("orcheo_admin", direct=True),
        (given.work or target.store.path / DIRECTORY).expanduser().absolute(),
        given.source,
    )


def _chosen(given: Given, *, strict: bool = False) -> Options:
    for place in given.attachments:
        if not place.expanduser().is_dir():
            raise UserError(f"--attachments {place} is no directory: name the one with the attachments' files")
    return Options(run.zone(given.naive), strict, tuple(path.expanduser() for path in given.attachments), run.moment())


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int, int, str], None]]:
    """A step with rows, MB a second and time left; a line every ten seconds where there is no terminal."""
    begun = last = time.monotonic()
    with step(title) as running:

        def show(done: int, total: int, rows: int, table: str) -> None:
            nonlocal last
            now = time.monotonic()
            rate = done / max(now - begun, 0.001)
            left = max(total - done, 0) / rate if rate else 0
            note = f"{rate / 2**20:.1f} MB/s, {left:.0f} s left, {rows} rows, {table}"
            running.update(done, max(total, done), note)
            if not err.is_terminal and now - last > LINE_SECONDS:
                last = now
                say(f"  {100 * done / max(total, done, 1):.0f} %, {note}")

        yield show


def _shown(show: Callable[[int, int, int, str], None]) -> run.Report:
    return lambda progress: show(progress.bytes, progress.total, progress.rows, progress.table)
