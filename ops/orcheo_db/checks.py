"""One check's answer, as `doctor` prints it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """What was found; where it is not well, what to do."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
