"""The command `orcheo-db`: parse, call, show progress, print. No logic lives here.

Results go to stdout (`--json`: one JSON document and nothing else), progress and messages to stderr. Exit codes: 0 done; 1 it ran and
the answer is no; 2 wrong input or a missing prerequisite, in one line.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict
from typing import Any

import click
import psycopg
from docker.errors import DockerException
from rich.table import Table

from orcheo_db import __version__, app_lifecycle, backup_lifecycle, lifecycle, removal, render
from orcheo_db.bench.command import bench_group
from orcheo_db.cli_backup import backup_group, restore_command
from orcheo_db.cli_drill import drill_command
from orcheo_db.cli_kubernetes import kubernetes_group
from orcheo_db.cli_people import migrate_group
from orcheo_db.cli_tune import tune_command
from orcheo_db.cli_upgrade import upgrade_app_
from orcheo_db.command import NAMESPACE, TARGETS, Context, Group, pass_context, running
from orcheo_db.console import err, out, say
from orcheo_db.doctor import diagnose
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.host import ensure_docker
from orcheo_db.images import ensure_images
from orcheo_db.search.command import search_command
from orcheo_db.secrets import ROLES
from orcheo_db.shell import open_psql
from orcheo_db.spec import load_spec
from orcheo_db.targets.base import Target
from orcheo_db.targets.compose import ROOT, ComposeTarget
from orcheo_db.targets.kubernetes import KubernetesTarget
from orcheo_db.tuning import pool_arithmetic


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--target",
    type=click.Choice(TARGETS),
    default="compose",
    show_default=True,
    help="Where the tier runs.",
)
@click.option("--size", metavar="SIZE", help="A size of ops/spec.toml (default: the spec's own).")
@click.option("--namespace", metavar="NAME", help=f"Target kubernetes: its namespace (default: {NAMESPACE}).")
@click.option(
    "--context",
    "kube_context",
    metavar="NAME",
    help="Target kubernetes: a context of the kubeconfig (default: the current one).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else there.")
@click.version_option(__version__, prog_name="orcheo-db")
@click.pass_context
def cli(
    context: click.Context,
    target: str,
    size: str | None,
    namespace: str | None,
    kube_context: str | None,
    as_json: bool,
) -> None:
    """Production PostgreSQL for Orcheo: one spec, every target."""
    context.obj = Context(target, size, as_json)
    context.obj.namespace, context.obj.kube_context = namespace, kube_context
    running.append(context.obj)


cli.add_command(search_command)
cli.add_command(tune_command)
cli.add_command(bench_group)
cli.add_command(upgrade_app_)
cli.add_command(backup_group)
cli.add_command(drill_command)
cli.add_command(restore_command)
cli.add_command(migrate_group)
cli.add_command(kubernetes_group)


# --- the spec -----------------------------------------------------------------------------------------------------------------


@cli.group()
def spec() -> None:
    """The one specification, ops/spec.toml."""


def _stale() -> list[str]:
    """Committed files that differ from the committed spec; a spec of one's own (ORCHEO_DB_SPEC) has none."""
    return [] if "ORCHEO_DB_SPEC" in os.environ else render.stale(ROOT, render.render(load_spec(env={})))


@spec.command("check")
@pass_context
def spec_check(context: Context) -> None:
    """Validate ops/spec.toml, the pool arithmetic of every size and that the rendered files match."""
    found = context.spec()
    budgets = {name: pool_arithmetic(found, found.size(name)) for name in found.sizes}
    problems = [f"size {name}: {problem}" for name, budget in budgets.items() for problem in budget.problems]
    problems += [f"{path} does not match ops/spec.toml: run `make render`" for path in _stale()]
    document = {
        "valid": not problems,
        "problems": problems,
        "sizes": {name: asdict(budget) for name, budget in budgets.items()},
    }
    matching = "" if "ORCHEO_DB_SPEC" in os.environ else "; the rendered files match"
    context.print(document, f"{found.source} is valid{matching}." if not problems else None)
    if problems:
        raise CheckFailed("; ".join(problems))


@cli.command("render")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if a committed file differs.")
@pass_context
def render_(context: Context, check: bool) -> None:
    """Write every target's configuration files from the spec."""
    files = render.render(load_spec(env={}))
    if check:
        stale = [str(path) for path in render.stale(ROOT, files)]
        context.print({"stale": stale}, None)
        if stale:
            raise CheckFailed(f"differs from ops/spec.toml: {', '.join(stale)}: run `make render`")
        return
    changed = [str(path) for path in render.write(ROOT, files)]
    context.print({"changed": changed}, "\n".join(changed) or "Nothing changed.")


# --- lifecycle ----------------------------------------------------------------------------------------------------------------


@cli.command()
@click.option(
    "--install-docker",
    type=click.Choice(["yes", "no"]),
    default="yes",
    show_default=True,
    help="Whether Docker may be installed.",
)
@pass_context
def images(context: Context, install_docker: str) -> None:
    """Build the images that are missing or out of date."""
    target = context.stack()
    done = ensure_docker(install=install_docker == "yes")
    done += ensure_images(target.spec, ROOT, target.store.path / "logs")
    context.print({"done": done, "images": target.tags}, "\n".join(done) or "All images are up to date.")


@cli.command()
@click.option(
    "--install-docker",
    type=click.Choice(["yes", "no"]),
    default="yes",
    show_default=True,
    help="Whether Docker may be installed.",
)
@click.option("--new-secrets", is_flag=True, help="Keep a volume whose secrets are lost, and replace every password.")
@click.option("--confirm", metavar="PROJECT", help="The project's name, to confirm --new-secrets.")
@click.option("--with", "parts", metavar="PARTS", help="What else runs: app (Orcheo itself), or none. Remembered.")
@pass_context
def up(context: Context, install_docker: str, new_secrets: bool, confirm: str | None, parts: str | None) -> None:
    """Bring the database tier up; changes nothing where everything is as wanted."""
    if parts:
        os.environ["ORCHEO_DB_WITH"] = parts
    target = context.stack()
    stale = _stale()
    if stale:
        raise UserError(
            f"{', '.join(stale[:2])}{' …' if len(stale) > 2 else ''} differ from ops/spec.toml: run `make render` first"
        )
    if new_secrets and confirm != target.project:
        raise UserError(
            f"--new-secrets replaces every password of project {target.project}: confirm with --confirm {target.project}"
        )
    outcome = lifecycle.up(
        target,
        install_docker=install_docker == "yes",
        new_secrets=new_secrets,
        choices=target.store.choices() | context.chosen(),
    )
    seen = lifecycle.probe(target)
    document = {
        "changed": outcome.changed,
        "seconds": outcome.seconds,
        "init": outcome.init,
        "app_sees": seen,
        "dsn_command": "make dsn",
    } | ({"app": app_lifecycle.access(target)} if target.with_app else {})
    context.print(document, None)
    if context.as_json:
        return
    if remembered := {**target.store.choices()}:
        say("Chosen against the spec, now or at an earlier up: " + ", ".join(f"{k}={v}" for k, v in remembered.items()))
    say("")
    for line in outcome.changed or ["Nothing changed."]:
        say(f"  {line}")
    if outcome.init and outcome.init.get("left_out"):
        for item in outcome.init["left_out"]:
            say(f"  left out: {item['what']}: {item['why']}")
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in outcome.seconds.items() if seconds >= 1)
    say(
        f"\nPostgreSQL {seen['server_version']} serves {seen['tables']} tables through PgBouncer{f' ({took})' if took else ''}."
    )
    _print_services(target)
    _print_access(target)
    say("\nDSN for the app (make dsn):")
    out.print(target.dsn(), markup=False)


def _print_services(target: Target) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("service", "state", "health", "since (UTC)", "image"):
        table.add_column(title)
    for state in target.services():
        table.add_row(state.name, state.state, state.health, state.since, state.image)
    err.print(table)
    if not isinstance(target, ComposeTarget):
        return
    end = target.pooler()
    say(
        f"PgBouncer listens on {target.spec.stack.bind_address}:{end.port} (TLS required, verify with {target.ca_file()})"
    )


def _print_access(target: Target) -> None:
    if not target.with_app:
        return
    found = app_lifecycle.access(target)
    say(
        f"\nOrcheo's API: {found['url']} (its documentation: {found['url']}/docs), token in {found['token_file']}; to try it:"
    )
    say(f"  {found['try']}")


@cli.command()
@pass_context
def down(context: Context) -> None:
    """Stop the tier; data, secrets and images stay."""
    target = context.stack()
    stopped = removal.down(target)
    kept = (
        f"Kept: volume {target.volume}, {target.store.path}."
        if target.managed_server
        else f"Kept: {target.store.path}."
    )
    context.print({"stopped": stopped}, f"Stopped: {', '.join(stopped)}. {kept}" if stopped else "Nothing was running.")


@cli.command()
@click.option("--confirm", metavar="PROJECT", help="The project's name: nothing is removed without it.")
@pass_context
def destroy(context: Context, confirm: str | None) -> None:
    """Remove the tier with its data volume and its secrets, after naming them."""
    target = context.stack()
    names = removal.doomed(target)
    if not names:
        context.print({"removed": []}, f"Nothing of project {target.project} is here.")
        return
    removal.check_confirmation(target, confirm)
    context.print({"removed": removal.destroy(target)}, "Removed: " + "; ".join(names))


@cli.command()
@pass_context
def status(context: Context) -> None:
    """What runs, where, and whether an app is served; exit code 1 if not."""
    target = context.target()
    states = target.services()
    document: dict[str, Any] = {
        "project": target.project,
        "services": [asdict(state) | {"ok": state.ok} for state in states],
    }
    problem = next(
        (f"service {state.name} is {state.state} ({state.health})" for state in states if not state.ok), None
    )
    if problem is None:
        document["app_sees"] = lifecycle.probe(target)
    document["ok"] = problem is None
    if target.with_app:
        document["app"] = app_lifecycle.access(target)
    document["backups"] = backup_lifecycle.summary(target)
    context.print(document, None)
    if not context.as_json:
        _print_services(target)
        if problem is None:
            seen = document["app_sees"]
            say(f"PostgreSQL {seen['server_version']}: {seen['tables']} tables; an app that uses `make dsn` is served.")
            _print_access(target)
        say(f"Backups: {document['backups']['said']}.")
    if problem:
        raise CheckFailed(f"{problem}: run `{target.up_command}`")


@cli.command()
@click.option("--role", type=click.Choice(ROLES), help="Default: the app's login in use.")
@click.option("--direct", is_flag=True, help="To PostgreSQL itself, not through PgBouncer.")
@click.option(
    "--forward",
    is_flag=True,
    help="Target kubernetes: one for this machine, by a port that is forwarded while this runs.",
)
@pass_context
def dsn(context: Context, role: str | None, direct: bool, forward: bool) -> None:
    """Print the DSN that an app uses (contains its password)."""
    target = context.target()
    if not forward:
        value = target.client_dsn(role, direct=direct)
        context.print({"dsn": value}, value)
        return
    if not isinstance(target, KubernetesTarget):
        raise UserError("--forward is for target kubernetes: here the port is published already")
    value = target.dsn(role, direct=direct)
    context.print({"dsn": value}, value)
    say("It leads through kubectl port-forward for as long as this runs: end it with Ctrl-C.")
    with contextlib.suppress(KeyboardInterrupt):
        target.kubectl.hold()


@cli.command(context_settings={"ignore_unknown_options": True})
@click.option("--role", type=click.Choice(ROLES), help="Default: the app's login in use.")
@click.option("--direct", is_flag=True, help="To PostgreSQL itself, not through PgBouncer.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@pass_context
def psql(context: Context, role: str | None, direct: bool, arguments: tuple[str, ...]) -> None:
    """Open psql (in a container) as the app's role; further arguments go to psql."""
    sys.exit(open_psql(context.target(), role, direct=direct, arguments=arguments))


@cli.command()
@pass_context
def bootstrap(context: Context) -> None:
    """Run the init job again: roles, grants, extensions and the app's own schema."""
    target = context.stack()
    target.store.installation_id()  # says so where there is none
    with lifecycle.exclusive(target.store):
        summary = lifecycle.init(target, force=True)
    context.print(
        summary,
        "The init job is done."
        if summary and summary.get("changed")
        else "The init job is done; nothing had to be changed.",
    )


@cli.command()
@pass_context
def doctor(context: Context) -> None:
    """Check the running tier: reachable, TLS, settings, roles, pools, schema, disk; exit code 1 if anything is wrong."""
    checks = diagnose(context.target())
    failed = [check for check in checks if not check.ok]
    if not context.as_json:
        table = Table(box=None, pad_edge=False)
        for title in ("", "check", "what was found"):
            table.add_column(title, overflow="fold")
        for check in checks:
            table.add_row(
                "ok" if check.ok else "NO",
                check.name,
                check.found + (f" -> {check.remedy}" if not check.ok else ""),
            )
        out.print(table)
    context.print({"ok": not failed, "checks": [asdict(check) for check in checks]}, None)
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(checks)} checks failed: {', '.join(check.name for check in failed)}")


def _answer(code: int, message: str) -> int:
    """An error: one line on stderr, and with --json a document where none was printed yet."""
    text = " ".join(message.split())
    say(f"orcheo-db: {text}")
    known = running[-1] if running else None
    wants = known.as_json if known else "--json" in sys.argv
    if wants and not (known and known.printed):
        click.echo(json.dumps({"ok": False, "error": text, "exit_code": code}))
    return code


def main() -> None:
    """Entry point: runs a command and turns errors into one line and an exit code."""
    try:
        code = cli.main(standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 2
    except click.exceptions.Abort:
        code = _answer(130, "interrupted; run the same command again to go on")
    except click.ClickException as error:
        code = _answer(2, f"{error.format_message()} (see orcheo-db --help)")
    except (UserError, CheckFailed) as error:
        code = _answer(error.exit_code, str(error))
    except DockerException as error:
        code = _answer(2, f"Docker does not answer as expected ({error}): start it, or run `make up`, which does")
    except psycopg.Error as error:
        code = _answer(1, f"PostgreSQL says: {error}")
    except PermissionError as error:
        code = _answer(2, f"{error.filename} may not be used by this user: run as the user who ran `make up`")
    except OSError as error:
        code = _answer(2, f"{error.filename or 'the system'}: {error.strerror or error}")
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
