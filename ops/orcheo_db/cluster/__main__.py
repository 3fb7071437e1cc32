"""`python -m orcheo_db.cluster COMMAND`: what runs in the tier's jobs. Progress on stderr; exit codes 0 done, 1 the answer is no, 2 wrong
input (with 1, Kubernetes tries again).

    secrets       the namespace's Secrets, where they are missing
    backup TYPE   a backup of that type (full, differential, incremental, logical), and the note of how it went
    drill         a restore drill, likewise
    volume        what lies aside on PostgreSQL's volume, as JSON on stdout
    place NAME    put one of those in the place of the cluster in use;  remove NAME  remove it for ever
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from orcheo_db.backup import config as configuration
from orcheo_db.backup import jobs
from orcheo_db.cluster import results, secrets, volume
from orcheo_db.cluster.api import inside
from orcheo_db.errors import CheckFailed, UserError

WAIT_SECONDS = 4 * 3600.0  # for a job that runs: a full backup of a big cluster


def say(text: str) -> None:
    """One line of progress."""
    print(f"orcheo-db: {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m orcheo_db.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("secrets")
    backup = commands.add_parser("backup")
    backup.add_argument("type", choices=("full", "differential", "incremental", "logical"))
    drill = commands.add_parser("drill")
    drill.add_argument("--switch", action="store_true", help="end the WAL segment now; RPO is then not measured")
    for each in (backup, drill):
        each.add_argument("--json", action="store_true", help="the answer on stdout, as orcheo_db.backup gives it")
    commands.add_parser("volume")
    for name in ("place", "remove"):
        commands.add_parser(name).add_argument("name")
    return parser


def _make_secrets() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        made = secrets.make(inside(), Path(scratch), say)
    say("every Secret is there" if not made else f"{len(made)} Secrets made")


def _run(kind: str, *, switch: bool = False, as_json: bool = False) -> None:
    """One job of the schedule; how it went is noted whatever it was.

    Raises:
        CheckFailed: it failed. A drill that failed is an answer, too, where one is asked for.
    """
    api, config = inside(), configuration.load()
    noted = f"second-{kind}" if config.remote else kind
    try:
        outcome = jobs.run_recorded_job(config, kind, say, wait_seconds=WAIT_SECONDS, switch=switch)
    except (UserError, CheckFailed) as error:  # it never began
        results.tell(api, noted, ok=False, words=str(error), details={})
        raise CheckFailed(str(error)) from None
    results.tell(api, noted, ok=outcome.ok, words=outcome.message, details=outcome.details)
    say(f"{kind}: {outcome.message}")
    if as_json and outcome.details:
        drilled = {"record": outcome.details, "report": jobs.text(config)}
        print(json.dumps(drilled if kind == "drill" else outcome.details, default=str), flush=True)
        if kind == "drill":
            return
    if not outcome.ok:
        raise CheckFailed(f"{kind} failed: {outcome.message}")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _stop)
    try:
        if options.command == "secrets":
            _make_secrets()
        elif options.command == "volume":
            print(json.dumps(volume.look()))
        elif options.command in ("place", "remove"):
            print(json.dumps((volume.place if options.command == "place" else volume.remove)(options.name)))
        else:
            drill = options.command == "drill"
            _run("drill" if drill else options.type, switch=drill and options.switch, as_json=options.json)
    except (UserError, CheckFailed) as error:
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        say("stopped; it is run again")
        return 130
    return 0


def _stop(_number: int, _frame: FrameType | None) -> None:
    """End as by Ctrl-C: what was begun is cleaned up on the way out."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
