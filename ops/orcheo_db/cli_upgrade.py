"""The command `orcheo-db upgrade-app`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from orcheo_db import upgrade_app
from orcheo_db.command import Command, Context, pass_context
from orcheo_db.errors import UserError


@click.command("upgrade-app", cls=Command)
@click.option("--workspace", metavar="SLUG", help="Where rows go whose workspace does not exist. Default: default.")
@click.option("--check", is_flag=True, help="The preflight alone: say what would be met and done.")
@click.option("--back", "back", metavar="FILE", type=click.Path(path_type=Path), help="Restore a backup point instead.")
@pass_context
def upgrade_app_(context: Context, workspace: str | None, check: bool, back: Path | None) -> None:
    """Bring an older release's database to the releases in the spec, with a backup point; or go back to one."""
    target = context.stack()
    if back is not None:
        if workspace or check:
            raise UserError("--back goes alone: it restores the file it names and nothing else")
        done = upgrade_app.back(target, back)
        text = (
            f"Database {target.spec.database.name} is {back.name} again ({done['tables']} tables). The one before is kept as {done['kept_aside']}."
            f" PgBouncer and the app are stopped. Next: {done['next']}."
        )
        context.print(done, text)
        return
    report = upgrade_app.upgrade(target, workspace, check=check)
    context.print(report, _human(report, check=check))


def _human(report: dict[str, Any], *, check: bool) -> str:
    if not report["done"]:
        found = report["preflight"]
        if check and (found["needed"] or found["from"] != found["to"]):
            return "Nothing was changed. Without --check the upgrade would go on from here."
        return "Nothing to do: the database is of the releases in the spec and every row has its workspace."
    applied, seen = report["applied"], report["verified"]["seen"]
    lines = [f"Upgraded to orcheo {report['to']['orcheo']} + orcheo-backend {report['to']['orcheo_backend']}."]
    lines += [f"  column added: {text}" for text in applied["columns_added"]]
    lines += [f"  index dropped: {index['name']}" for index in applied["indexes_dropped"]]
    if applied["rows_moved"]:
        lines.append(
            f"  rows given a workspace: {', '.join(f'{count} {name}' for name, count in applied['rows_moved'].items())}"
        )
    lines += [f"  renamed: {new['table']} {new['old']!r} -> {new['new']!r}" for new in applied["renames"]]
    lines += [f"  kept in {name}: {count} rows" for name, count in applied["archived"].items()]
    lines += [f"  attachment without its file: {path}" for path in report["attachments"]["missing_files"]]
    lines.append(f"  seen through the app's own stores: {', '.join(f'{count} {kind}' for kind, count in seen.items())}")
    lines.append(f"Backup point (never deleted by this toolkit): {report['backup']}")
    lines.append(f"Report: {report['report']}. To go back: {report['back']}")
    return "\n".join(lines)
