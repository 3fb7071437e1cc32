"""A command under measurement: its seconds, and the memory of it and all its children."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MB = 2**20
PROGRAM = str(Path(sys.executable).with_name("orcheo-db"))
INTERVAL = 0.2  # seconds between looks at the memory
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Process:
    """One line of /proc. begun: with the pid it names a process for good."""

    pid: int
    parent: int
    begun: int


def processes() -> dict[int, Process]:
    """All processes of this machine."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # Behind the name, which may hold spaces and brackets: state, parent, …, and as the 20th its start.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            found[int(entry.name)] = Process(int(entry.name), int(fields[1]), int(fields[19]))
    return found


def tree(root: int, among: Mapping[int, Process]) -> list[Process]:
    """A process and its children, their children, …"""
    children: dict[int, list[Process]] = {}
    for process in among.values():
        children.setdefault(process.parent, []).append(process)
    found = [among[root]] if root in among else []
    for process in found:  # grows while it is read
        found += children.get(process.pid, [])
    return found


def resident(pid: int) -> int:
    """Bytes of a process' memory, with what it shares; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


class Watched:
    """A running command. peak: of the sum over its processes; largest: of any one of them. Bytes."""

    def __init__(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self.peak = self.largest = 0
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=dict(env),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while True:
            sizes = [resident(process.pid) for process in tree(self.process.pid, processes())]
            self.peak, self.largest = max(self.peak, sum(sizes)), max(self.largest, *sizes, 0)
            if self._ended.wait(INTERVAL):
                return

    def children(self) -> list[Process]:
        """Its processes but itself, now."""
        return tree(self.process.pid, processes())[1:]

    def end(self) -> tuple[int, str, str]:
        """Wait for its end; exit code, what it printed, and its last words on stderr."""
        try:
            printed, said = self.process.communicate()
        except BaseException:  # the benchmark was ended: nothing goes on behind it
            self.process.kill()
            raise
        self.seconds = round(time.monotonic() - self.begun, 2)
        self._ended.set()
        self._thread.join()
        return self.process.returncode, printed, (said.strip().splitlines() or ["?"])[-1]

    @property
    def cost(self) -> dict[str, float]:
        """For the document."""
        return {"seconds": self.seconds, "peak_mb": round(self.peak / MB, 1), "largest_mb": round(self.largest / MB, 1)}
