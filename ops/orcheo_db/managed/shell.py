"""Calls of a cloud's command line: made, or (for a dry run) only shown."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from orcheo_db.errors import CheckFailed, UserError

CALL_SECONDS = 3 * 3600  # some calls wait for what they began: a restore of 400 GB takes an hour or two


class CallFailed(CheckFailed):
    """The cloud's command line said no; the message is its own last line."""


@dataclass
class Shell:
    """Runs calls. With `dry`, shows each and answers with the caller's sample instead.

    Attributes:
        heard: told each call that changes something (with `dry`: each one).
        calls: all calls so far, quoted for a shell.
    """

    heard: Callable[[str], None]
    dry: bool = False
    calls: list[str] = field(default_factory=list)

    def ask(self, argv: Sequence[str], sample: Any) -> Any:
        """The JSON answer of a call that changes nothing.

        Raises:
            UserError: the command line is not installed. CallFailed: it says no.
        """
        return self._call(argv, sample, tell=self.dry)

    def change(self, argv: Sequence[str], sample: Any = None) -> Any:
        """As `ask`, for a call that makes, changes or deletes something."""
        return self._call(argv, sample, tell=True)

    def _call(self, argv: Sequence[str], sample: Any, *, tell: bool) -> Any:
        text = shlex.join(argv)
        self.calls.append(text)
        if tell:
            self.heard(text)
        if self.dry:
            return sample
        if shutil.which(argv[0]) is None:
            raise UserError(f"`{argv[0]}` is not on this machine: install the cloud's command line and log in with it")
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=CALL_SECONDS)
        except subprocess.TimeoutExpired:
            raise CallFailed(f"`{' '.join(argv[:4])} …` was not done after {CALL_SECONDS // 3600} hours") from None
        if done.returncode != 0:
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
            raise CallFailed(f"`{' '.join(argv[:4])} …`: {said[-1][:500]}")
        try:
            return json.loads(done.stdout) if done.stdout.strip() else None
        except ValueError:
            raise CallFailed(f"`{' '.join(argv[:4])} …` did not answer in JSON: {done.stdout[:100]!r}") from None
