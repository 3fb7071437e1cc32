"""`python -m orcheo_db.upgrade inspect|apply|attachments|verify [--workspace SLUG] [--key-from-stdin] [--json]`; exit codes 0 done, 1 the answer is no,
2 wrong input.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any

from orcheo_db.bootstrap.job import read_job
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.upgrade import report
from orcheo_db.upgrade.inspect import KEY
from orcheo_db.upgrade.session import opened

COMMANDS = ("inspect", "apply", "attachments", "verify")


def say(text: str) -> None:
    print(f"upgrade: {text}", file=sys.stderr, flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    """End at once: the server undoes the open transaction. As process 1 of its container it would otherwise not hear signals."""
    del frame
    os.write(2, f"upgrade: stopped by {signal.Signals(number).name}; run it again\n".encode())
    os._exit(128 + number)


def _run(command: str, slug: str | None) -> dict[str, Any]:
    with opened(read_job(), locked=command != "inspect") as session:
        match command:
            case "inspect":
                from orcheo_db.upgrade.inspect import inspect  # noqa: PLC0415 - each imports only what it needs

                return inspect(session, slug)
            case "apply":
                from orcheo_db.upgrade.apply import apply  # noqa: PLC0415

                return apply(session, slug)
            case "attachments":
                from orcheo_db.upgrade.attachments import adopt  # noqa: PLC0415

                return adopt(session)
            case _:
                from orcheo_db.upgrade.verify import verify  # noqa: PLC0415

                return verify(session)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m orcheo_db.upgrade", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--workspace", metavar="SLUG", help="where rows go whose workspace does not exist")
    parser.add_argument("--key-from-stdin", action="store_true", help="the vault key is the first line of stdin")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout and nothing else there")
    options = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    if options.key_from_stdin:
        os.environ[KEY] = sys.stdin.readline().strip()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="upgrade: %(name)s: %(message)s")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what the app prints on its way must not end up in the document
            result = _run(options.command, options.workspace)
    except (UserError, CheckFailed) as error:
        say(str(error))
        _print(options.json, {"ok": False, "error": str(error), "exit_code": error.exit_code})
        return error.exit_code
    if options.command == "inspect":
        print(report.human(result), file=sys.stderr)
    else:
        say(f"{options.command} done")
    _print(options.json, {"ok": True, **result})
    return 0


def _print(wanted: bool, document: dict[str, Any]) -> None:
    if wanted:
        print(json.dumps(document, indent=2, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the app's pools have threads that would only be waited for
