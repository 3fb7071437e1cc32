"""`make test`: the suite in two lanes at once, then what measures Orcheo under load by itself. Most tests wait for containers, not for a processor.

Each lane is a pytest of its own, with stacks of its own; lines are marked with the lane's name. Options are handed to all of them
(PYTEST_ADDOPTS works, too); a path or an expression is better given to pytest itself.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOAD = "tests/e2e/test_load.py"
# By what takes about as long, and does not use the same names: the session's stack has the lane's.
TOGETHER = {
    "a": [
        "tests/unit",
        "tests/verify",
        "tests/compose",
        "tests/terraform",
        "tests/e2e/test_upgrade.py",
        "tests/e2e/test_rollback.py",
    ],
    "b": [
        "tests/migrate",
        "tests/k8s",
        "tests/ansible",
        "tests/e2e",
        *(f"--ignore=tests/e2e/test_{name}.py" for name in ("upgrade", "rollback", "load")),
    ],
}
ALONE = {"load": [LOAD]}
LOCK = Path(tempfile.gettempdir()) / "orcheo-db-test.lock"


class Lane:
    """One pytest."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        self.name, self.last, self.seconds = name, "it said nothing", 0.0
        self.summary: list[str] = []  # pytest's own: what was slow, what failed, what was skipped and why, how many
        env = {**os.environ, "ORCHEO_DB_TEST_LANE": name, "PYTHONUNBUFFERED": "1"}
        argv = [sys.executable, "-m", "pytest", "--durations=20", "--durations-min=10", *arguments, *sys.argv[1:]]
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.thread = threading.Thread(target=self.follow)
        self.thread.start()

    def follow(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "= slowest " in line or ("= short test summary info =" in line and not self.summary):
                self.summary = [line]
            elif self.summary:
                self.summary.append(line)
            self.last = line.strip() or self.last
            print(f"{self.name} | {line}", end="", flush=True)

    def end(self) -> int:
        self.thread.join()
        code = self.process.wait()
        self.seconds = time.monotonic() - self.begun
        return code


def run(lanes: dict[str, list[str]]) -> list[tuple[Lane, int]]:
    """Run lanes at once, to their ends."""
    started = [Lane(name, arguments) for name, arguments in lanes.items()]
    try:
        return [(lane, lane.end()) for lane in started]
    except KeyboardInterrupt:
        for lane in started:  # the terminal has told them, too: they clean up
            lane.end()
        raise


def prepare() -> int:
    """Docker and the images, which both lanes want: made once."""
    return subprocess.run([str(Path(sys.executable).with_name("orcheo-db")), "images"], cwd=ROOT).returncode


def main() -> int:
    """Run all of it; returns the exit code."""
    with LOCK.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another run of this suite holds {held.name} on this machine: wait for its end", file=sys.stderr)
            return 2
        if prepare() != 0:
            return 1
        done = [*run(TOGETHER), *run(ALONE)]
    for lane, code in done:
        print(f"\nlane {lane.name}: exit code {code} after {lane.seconds:.0f} s\n{''.join(lane.summary) or lane.last}")
    return max(abs(code) for _, code in done)  # negative: ended by a signal


if __name__ == "__main__":
    sys.exit(main())
