"""What a person sees while the toolkit works: steps and progress on stderr, never on stdout (that is for results)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

# Where the output is no terminal, nothing is cut or wrapped at 80 columns: it may be a log or a pipe.
err = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else 250)
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 250)


def say(text: str) -> None:
    """One line about what the toolkit does now."""
    err.print(text, markup=False)


class Step:
    """Handle on one running step: `update` moves its bar."""

    def __init__(self, progress: Progress | None, task: int) -> None:
        self._progress, self._task = progress, task

    def update(self, done: float, total: float, note: str = "") -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total, note=note[:60])  # type: ignore[arg-type]


@contextmanager
def step(title: str) -> Iterator[Step]:
    """A long step: a bar with elapsed time on a terminal, one line at its start elsewhere."""
    if not err.is_terminal:
        say(f"{title} …")
        yield Step(None, 0)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, transient=False) as progress:
        task = progress.add_task(title, total=None, note="")
        yield Step(progress, int(task))
        progress.update(task, completed=1, total=1, note="done")
