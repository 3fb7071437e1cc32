"""`python -m orcheo_db.bootstrap [--json] [--full] [--snapshot FILE]`; exit codes 0 done, 1 the answer is
no, 2 wrong input.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from orcheo_db.bootstrap import run
from orcheo_db.bootstrap.job import read_job
from orcheo_db.bootstrap.report import human
from orcheo_db.bootstrap.session import say
from orcheo_db.errors import CheckFailed, UserError


def _stop(number: int, frame: FrameType | None) -> None:
    """End at once. The server frees the lock and undoes what was open as soon as the sockets close; the next
    run continues.

    A handler is needed because this may be process 1 of its container, which has no default action for
    signals.
    """
    del frame
    os.write(2, f"bootstrap: stopped by {signal.Signals(number).name}; run it again to finish\n".encode())
    os._exit(128 + number)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m orcheo_db.bootstrap", description="Make a PostgreSQL server ready for Orcheo."
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout and nothing else there")
    parser.add_argument(
        "--full",
        action="store_true",
        help="call the app's own bootstraps even where a finished run is recorded",
    )
    parser.add_argument(
        "--snapshot",
        type=Path,
        metavar="FILE",
        help="for maintainers: write what a run on an empty database made",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    options = _arguments(argv)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="bootstrap: %(name)s: %(message)s")
    try:
        # What the app prints or logs on its way must not end up in the document.
        with contextlib.redirect_stdout(sys.stderr):
            full = options.full or options.snapshot is not None
            result = run.run(read_job(), run.Options(full=full, snapshot=options.snapshot))
    except (UserError, CheckFailed) as error:
        say(str(error))
        _print(options.json, {"ok": False, "changed": None, "error": str(error), "exit_code": error.exit_code})
        return error.exit_code
    print(human(result), file=sys.stderr)
    _print(options.json, result)
    return 0


def _print(wanted: bool, document: dict[str, Any]) -> None:
    if wanted:
        print(json.dumps(document, indent=2, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    sys.exit(main())
