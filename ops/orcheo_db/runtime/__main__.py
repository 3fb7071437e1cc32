"""`python -m orcheo_db.runtime COMMAND`; exit codes 0 fine, 1 the answer is no, 2 wrong input, in one line."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from orcheo_db.errors import CheckFailed, UserError

USAGE = "usage: python -m orcheo_db.runtime backend|worker|beat|vault|pools|ready backend|worker|beat|redis"


def _run(words: list[str]) -> None:  # each branch imports only what it needs: health checks are many and must be light
    match words:
        case ["ready", kind]:
            from orcheo_db.runtime import ready  # noqa: PLC0415

            if kind not in ready.CHECKS:
                raise UserError(USAGE)
            print(ready.CHECKS[kind]())
        case ["vault"]:
            from orcheo_db.runtime import vault  # noqa: PLC0415

            vault.main()
        case ["pools"] | ["pools", _, _]:
            from orcheo_db.runtime import pools  # noqa: PLC0415

            pools.main(words[1:])
        case ["backend" | "worker" | "beat"]:
            from orcheo_db.runtime import processes  # noqa: PLC0415

            {"backend": processes.backend, "worker": processes.worker, "beat": processes.beat}[words[0]]()
        case _:
            raise UserError(USAGE)


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    os._exit(128 + number)


def main() -> int:
    """Run the command; returns the exit code."""
    # As process 1 of a container this process would not even notice a signal without a handler: `docker stop` in the seconds in
    # which the app is imported would wait out its whole grace period. uvicorn and Celery put handlers of their own in place.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        _run(sys.argv[1:])
    except (UserError, CheckFailed) as error:
        print(f"orcheo-db: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
