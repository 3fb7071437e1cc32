"""The commands `orcheo-db migrate export` and `migrate import`: the app's rows as files that people and other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from orcheo_db.cli_migrate import migrate_group
from orcheo_db.command import Command, Context, pass_context
from orcheo_db.lifecycle import exclusive
from orcheo_db.migrate import people, people_import
from orcheo_db.migrate.people_rows import FORMATS, JSONL


def _tables(function: Any) -> Any:
    return click.option(
        "--table", "tables", multiple=True, metavar="NAME", help="Only this table; may be given again."
    )(function)


@migrate_group.command("export", cls=Command)
@click.option(
    "--to", "to", required=True, metavar="DIR", type=click.Path(path_type=Path), help="A directory that is made."
)
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default=JSONL, show_default=True, help="One file a table."
)
@_tables
@pass_context
def export_(context: Context, to: Path, form: str, tables: tuple[str, ...]) -> None:
    """Write the app's tables, as they are at one moment, into files with a manifest and checksums. Credentials stay encrypted."""
    target = context.target()
    target.store.installation_id()  # says so where there is none
    found = people.export(target.dsn("orcheo_admin", direct=True), to.expanduser().absolute(), form, tables)
    lines = [
        f"{found['rows']} rows of {len(found['tables'])} tables ({found['bytes'] / 2**20:.1f} MB) are in {found['directory']} ({found['seconds']} s).",
        "They hold the vault's ciphertexts and the tokens' hashes: keep them as you keep the database.",
    ]
    context.print(found, "\n".join(lines))


@migrate_group.command("import", cls=Command)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@_tables
@pass_context
def import_(context: Context, directory: Path, tables: tuple[str, ...]) -> None:
    """Take what `export` wrote into empty tables, in one transaction, and compare them with the files. Nothing is ever overwritten."""
    target = context.target()
    target.store.installation_id()
    with exclusive(target.store):
        found = people_import.load(target.dsn("orcheo_admin", direct=True), directory.expanduser().absolute(), tables)
    text = f"{found['rows']} rows of {len(found['tables'])} tables are in database {found['database']}, equal to the files ({found['seconds']} s)."
    context.print(found, text)


__all__ = ["migrate_group"]
