"""The command `orcheo-db drill`: of this toolkit's own backups, or of a managed instance's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from orcheo_db import job_kubernetes
from orcheo_db.backup import report
from orcheo_db.backup_lifecycle import no_backups, service_of, stream
from orcheo_db.cli_backup import on_repository
from orcheo_db.command import INSTANCE_VARIABLE, Command, Context, pass_context
from orcheo_db.console import step
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.managed import drill as managed
from orcheo_db.managed.clouds import cloud
from orcheo_db.managed.shell import Shell
from orcheo_db.targets.external import ExternalTarget
from orcheo_db.targets.kubernetes import KubernetesTarget


@dataclass(frozen=True)
class Managed:
    """What only a managed instance's drill has."""

    instance: str | None
    dry_run: bool
    keep: bool
    remove: str | None
    confirm: str | None

    @property
    def asked(self) -> bool:
        return any((self.instance, self.dry_run, self.keep, self.remove))


@click.command("drill", cls=Command)
@click.argument("instance", required=False)
@click.option(
    "--switch", is_flag=True, help="Don't wait for archive_timeout to end the WAL segment: RPO is not measured then."
)
@click.option(
    "--html", "page", type=click.Path(path_type=Path), help="Only write the page with the history of all drills there."
)
@on_repository
@click.option("--dry-run", is_flag=True, help="Managed: only show the cloud's calls, in order; none is made.")
@click.option("--keep", is_flag=True, help="Managed: leave the copy there.")
@click.option(
    "--remove", metavar="COPY", help="Managed: only delete a copy that an earlier drill left; --confirm names it again."
)
@click.option("--confirm", metavar="COPY", help="Confirms --remove.")
@pass_context
def drill_command(  # noqa: PLR0913, PLR0917 - click passes each option by its name
    context: Context, /, instance: str | None, switch: bool, page: Path | None, repository: str, dry_run: bool, keep: bool, remove: str | None, confirm: str | None,
) -> None:  # fmt: skip
    """Restore the newest backup beside production, to just after a marker, and prove that it is the same; exit code 1 if not.

    INSTANCE (target external, once; default: ORCHEO_DB_INSTANCE, as `up` remembers it): the managed instance, as its cloud names it: an ARN of RDS,
    projects/PROJECT/instances/NAME of Cloud SQL, a resource id of Azure. Its cloud restores a copy, by the command line aws, gcloud or az.
    """
    asked = Managed(instance, dry_run, keep, remove, confirm)
    target = context.target()
    if isinstance(target, ExternalTarget):
        if switch or repository != "first":
            raise UserError(
                "--switch and --repository are for this toolkit's own backups; the cloud makes this server's"
            )
        _managed(context, target, asked, page)
        return
    if asked.asked:
        raise UserError(
            f"INSTANCE, --dry-run, --keep and --remove are for a managed instance (--target external), not for target {target.name}"
        )
    if page is not None:
        result = target.run(service_of(target, repository), ["python", "-m", "orcheo_db.backup", "report", "--html"])
        if result.code != 0:
            raise CheckFailed(result.stderr.strip().splitlines()[-1])
        _write_page(context, page, result.stdout)
        return
    options = ["--switch"] if switch else []
    if isinstance(target, KubernetesTarget):
        done = job_kubernetes.run(target, "drill" if repository == "first" else "drill-second", options)
    else:
        done = stream(target, ["drill", *options], repository)
    _tell(context, done["record"], done["report"])


def _managed(context: Context, target: ExternalTarget, asked: Managed, page: Path | None) -> None:
    if page is not None:
        _write_page(context, page, report.html(*managed.history(target.store)))
        return
    chosen = asked.instance or os.environ.get(INSTANCE_VARIABLE) or target.store.choices().get(INSTANCE_VARIABLE)
    if not chosen:
        raise UserError(
            f"{no_backups(target)}; to try them, name the instance: `orcheo-db --target external drill INSTANCE` (--help has the forms)"
        )
    with step("Working") as bar:
        shell = Shell(lambda text: bar.update(0, 0, text), dry=asked.dry_run)
        instance = cloud(chosen, shell)
        if asked.remove is not None:
            instance.check_copy(asked.remove)
            if asked.confirm != asked.remove and not asked.dry_run:
                raise UserError(
                    f"{asked.remove} and all in it would be deleted for ever: confirm with --confirm {asked.remove}"
                )
            instance.remove(asked.remove)
        elif asked.dry_run:
            managed.show(instance, datetime.now(UTC).replace(microsecond=0))
        else:
            target.admin()  # says so where there is no such installation
            drill = managed.Drill(
                target.store.installation_id(), shell.heard, cloud=instance, tier=target, keep=asked.keep
            )
            record = managed.run(drill)
    if asked.dry_run:
        context.print({"calls": shell.calls}, "\n".join(shell.calls))
    elif asked.remove is not None:
        context.print({"removed": asked.remove}, f"{asked.remove} is deleted.")
    else:
        _tell(context, record, report.text(*managed.history(target.store)))


def _write_page(context: Context, page: Path, text: str) -> None:
    page.write_text(text, encoding="utf-8")
    context.print({"page": str(page)}, f"{page} is written.")


def _tell(context: Context, record: dict[str, Any], text: str) -> None:
    context.print(record, text)
    if record["result"] != "pass":
        raise CheckFailed(f"the drill failed: {record['failure']}")
