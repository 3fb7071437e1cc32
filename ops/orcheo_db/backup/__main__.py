"""`python -m orcheo_db.backup COMMAND`: what runs in the backup image. One JSON document on stdout, progress on stderr; exit codes 0 done,
1 the answer is no, 2 wrong input.

    serve [--elsewhere]        the service: the schedule (but for --elsewhere), its pages on port 9188 of the container: /metrics, /drill, /healthz
    prepare                    stanza and first backup, where there are none;  stanza  the stanza alone
    run --type full|…          a backup now;  drill [--switch]  a drill now;  point NAME  a restore point
    job NAME                   one run of the schedule's, by whoever keeps it (systemd's timers): full … logical, drill
    list | check [--deep] | report [--html] | metrics
    restore [--to …] [--table …]   into the volume at /var/lib/postgresql, in a container of its own
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from orcheo_db.backup import config as configuration
from orcheo_db.backup import health, operations
from orcheo_db.backup.config import Config
from orcheo_db.errors import CheckFailed, UserError

KINDS = ("full", "differential", "incremental", "logical")
WAIT_SECONDS = 3600.0  # a scheduled job waits for the one before it


def say(text: str) -> None:
    """One line of progress."""
    print(f"orcheo-db backup: {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m orcheo_db.backup", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare")
    prepare.add_argument(
        "--set-aside", action="store_true", help="a repository that the key does not open is kept aside"
    )
    commands.add_parser("stanza", help="where there is none; another cluster's is refused")
    told = commands.add_parser("metrics")
    told.add_argument(
        "--here", action="store_true", help="without the service, which a host has not: timers run its jobs"
    )
    serve = commands.add_parser("serve")
    serve.add_argument(
        "--elsewhere", action="store_true", help="the schedule is another's: only what it needs and the pages"
    )
    listing = commands.add_parser("list")
    listing.add_argument("--archiver", action="store_true", help="also ask PostgreSQL whether WAL is on its way")
    run = commands.add_parser("run")
    run.add_argument("--type", choices=KINDS, default="incremental")
    run.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="for a job that runs")
    job = commands.add_parser("job")
    job.add_argument("name", choices=(*KINDS, "drill"))
    drill = commands.add_parser("drill")
    drill.add_argument("--switch", action="store_true", help="end the WAL segment now; RPO is then not measured")
    check = commands.add_parser("check")
    check.add_argument("--deep", action="store_true")
    claim = commands.add_parser("claim", help="let a restored cluster go on as a timeline")
    claim.add_argument("timeline", type=int)
    claim.add_argument("id")
    commands.add_parser("stanza-upgrade", help="the cluster came over to another major version by pg_upgrade")
    point = commands.add_parser("point")
    point.add_argument("name")
    report = commands.add_parser("report")
    report.add_argument("--html", action="store_true")
    restore = commands.add_parser("restore")
    for option in ("--to", "--to-lsn", "--to-name", "--table", "--where"):
        restore.add_argument(option)
    restore.add_argument("--timeline", type=int)
    restore.add_argument("--into", type=Path, metavar="DIRECTORY", help="where to (default: the container's volume)")
    restore.add_argument("--check", action="store_true", help="only whether the target can be reached")
    return parser


def _serve(config: Config, *, elsewhere: bool) -> None:
    from orcheo_db.backup import jobs  # noqa: PLC0415

    (jobs.serve_elsewhere if elsewhere else jobs.serve)(config, say)


def _restore(config: Config, options: argparse.Namespace) -> Any:
    from orcheo_db.backup import restore  # noqa: PLC0415 - each imports only what it needs

    target = restore.parse_target(options.to, options.to_lsn, options.to_name, options.timeline)
    if options.check:
        if options.to and not config.remote:
            try:
                operations.end_segment(config)
            except CheckFailed as error:  # it may be what is to be restored
                say(f"the newest WAL can't be asked for: {error}")
        return {"backup": restore.check_target(config, target).document(), "target": str(target)}
    if options.where and not options.table:
        raise UserError("--where goes with --table")
    extract = restore.Extract(options.table, options.where) if options.table else None
    if options.into:
        options.into.mkdir(mode=0o700)
    return restore.run(config, target, say, extract, options.into)


def _answer(config: Config, options: argparse.Namespace) -> Any:
    """What a command gives; each imports only what it needs."""
    if options.command == "restore":
        return _restore(config, options)
    simple: dict[str, Callable[[], Any]] = {
        "list": lambda: (
            operations.listing(config) | ({"archiver": operations.archiver(config)} if options.archiver else {})
        ),
        "check": lambda: health.check(config, say, deep=options.deep),
        "claim": lambda: operations.claim(config, options.timeline, options.id),
        "point": lambda: operations.point(config, options.name),
        "stanza-upgrade": lambda: operations.upgrade_stanza(config),
    }
    if options.command in simple:
        return simple[options.command]()
    from orcheo_db.backup import jobs  # noqa: PLC0415

    others: dict[str, Callable[[], Any]] = {
        "prepare": lambda: jobs.prepare(config, say, set_aside=options.set_aside),
        "stanza": lambda: {"done": operations.make_stanza(config, say)},
        "run": lambda: jobs.run_now(config, options.type, say, wait_seconds=options.wait),
        "job": lambda: jobs.scheduled(config, options.name, say, wait_seconds=WAIT_SECONDS),
        "drill": lambda: jobs.drill_now(config, say, switch=options.switch),
        "report": lambda: jobs.page(config) if options.html else jobs.text(config),
        "metrics": lambda: jobs.rendered(config, here=options.here),
    }
    return others[options.command]()


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        config = configuration.load()
        if options.command == "serve":
            _serve(config, elsewhere=options.elsewhere)
            return 0
        signal.signal(signal.SIGTERM, _stop)
        _print(_answer(config, options), rows=bool(getattr(options, "table", None)))
    except (UserError, CheckFailed) as error:
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        say("stopped; run it again")
        return 130
    return 0


def _print(answer: Any, *, rows: bool) -> None:
    """The answer on stdout; where that has a table's rows, as the last line of stderr."""
    if isinstance(answer, str):
        sys.stdout.write(answer)
    else:
        print(json.dumps(answer, default=str), file=sys.stderr if rows else sys.stdout, flush=True)


def _stop(_number: int, _frame: FrameType | None) -> None:
    """End as by Ctrl-C: what was begun is cleaned up on the way out."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    if threading.active_count() > 1:
        os._exit(code)
    sys.exit(code)
