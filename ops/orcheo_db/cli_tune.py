"""The command `orcheo-db tune`: settings with their reasons, for a machine or for a managed service."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from orcheo_db.command import Command, Context, pass_context
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.spec import STORAGE_KINDS, Size, Spec
from orcheo_db.tuning import machine_size, pgbouncer_settings, pool_arithmetic, postgresql_settings
from orcheo_db.tuning.managed import SERVICES, Fitted, fit, monthly

OWN = "server"  # postgresql.conf of a server of one's own


@click.command("tune", cls=Command)
@click.option("--memory", metavar="SIZE", help="Memory for PostgreSQL, for example 16GB.")
@click.option("--cpus", type=click.IntRange(1, 1024), help="CPU cores for PostgreSQL.")
@click.option("--storage", type=click.Choice(sorted(STORAGE_KINDS)), default="ssd", show_default=True)
@click.option("--max-connections", type=click.IntRange(20, 10000), help="Default: by memory and CPUs.")
@click.option("--huge-pages", type=click.Choice(["on", "off", "try"]), help="Default: off, as containers need.")
@click.option(
    "--target",
    "service",
    type=click.Choice([OWN, *SERVICES]),
    default=OWN,
    show_default=True,
    help="rds, cloudsql, azure: in that service's names and units, and what it does not let one set.",
)
@pass_context
def tune_command(
    context: Context,
    memory: str | None,
    cpus: int | None,
    storage: str,
    max_connections: int | None,
    huge_pages: str | None,
    service: str,
) -> None:
    """Settings for a machine, each with its reason (without --memory: for a size of the spec)."""
    found = context.spec()
    if (memory is None) != (cpus is None):
        raise UserError("tune needs both --memory and --cpus, for example `orcheo-db tune --memory 16GB --cpus 8`")
    if memory is not None and cpus is not None:
        size = machine_size(memory, cpus, storage, max_connections)
    else:
        size = found.size(context.size_name)
    if huge_pages:
        size = size.model_copy(update={"settings": {**size.settings, "huge_pages": huge_pages}})
    if service == OWN:
        _server(context, found, size)
    else:
        _managed(context, fit(SERVICES[service], size, found))
    if problems := pool_arithmetic(found, size).problems:
        raise CheckFailed("; ".join(problems))


def _server(context: Context, found: Spec, size: Size) -> None:
    server, pooler = postgresql_settings(size, found), pgbouncer_settings(size, found)
    document = {
        "size": size.model_dump(),
        "postgresql": [asdict(setting) for setting in server],
        "pgbouncer": [asdict(setting) for setting in pooler],
        "pools": asdict(pool_arithmetic(found, size)),
    }
    lines = [f"# PostgreSQL for {size.memory / 2**30:g} GB, {size.cpus} CPUs, {size.storage}"]
    for title, settings in (("postgresql.conf", server), ("pgbouncer.ini", pooler)):
        lines += ["", f"# --- {title} ---", *_lined([(item.name, item.value, item.reason) for item in settings])]
    context.print(document, "\n".join(lines))


def _managed(context: Context, fitted: Fitted) -> None:
    service, machine, cost = fitted.service, fitted.machine, monthly(fitted)
    document: dict[str, Any] = {
        "service": service.key,
        "machine": {"name": machine.name, "memory": machine.memory, "cpus": machine.cpus},
        "storage_gb": fitted.storage_gb,
        "parameters": [asdict(each) for each in fitted.parameters],
        "others": [asdict(each) for each in fitted.others],
        "cost": cost.document(),
    }
    lines = [
        f"# {service.title}: {machine.name} ({machine.memory / 2**30:g} GB, {machine.cpus} CPUs), {fitted.storage_gb} GB",
        f"# {cost}",
        "",
        "# --- parameters, in the service's units (*: waits for a restart) ---",
    ]
    rows = [(f"{each.name}{'*' if each.restart else ''}", each.value, each.reason) for each in fitted.parameters]
    lines += _lined(rows)
    lines += ["", "# --- not as on a server of one's own ---"]
    for other in fitted.others:
        instead = f"{other.value} instead of {other.meant}" if other.value is not None else f"not set ({other.meant})"
        lines.append(f"# {other.setting}: {instead}: {other.why}")
    context.print(document, "\n".join(lines))


def _lined(rows: list[tuple[str, str, str]]) -> list[str]:
    width = max(len(f"{name} = {value}") for name, value, _ in rows)
    return [f"{f'{name} = {value}':{min(width, 60)}}  # {reason}" for name, value, reason in rows]
