"""Comparing the settings that were meant with those that a server reports (pg_settings), whatever unit each is written in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from orcheo_db.errors import CheckFailed

Row = tuple[str, str, str | None, str, bool]  # name, setting, unit, vartype, pending_restart

# PostgreSQL 17, guc.c: memory_unit_conversion_table and time_unit_conversion_table; bytes and milliseconds here.
UNITS: dict[str, Decimal | int] = {
    "B": 1, "kB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4,
    "us": Decimal("0.001"), "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000,
}  # fmt: skip
TRUE = {"on", "true", "yes", "1"}
FALSE = {"off", "false", "no", "0"}
# As JSON, for psql on the server's own host: the superuser's session has no settings of its role on top of the server's.
# reset_val, because `setting` shows the tcp_keepalives_* of this very session, a socket's, as 0.
QUERY = "SELECT json_agg(json_build_array(name, reset_val, unit, vartype, pending_restart)) FROM pg_settings"


@dataclass(frozen=True)
class Difference:
    """A setting that is not as meant; `actual` is None when the server does not know it."""

    name: str
    meant: str
    actual: str | None
    pending_restart: bool = False

    def __str__(self) -> str:
        tail = " (changed in the file, waits for a restart)" if self.pending_restart else ""
        return f"{self.name} is {self.actual if self.actual is not None else 'unknown to the server'}, meant {self.meant}{tail}"


def quantity(text: str, default_unit: str | None) -> Decimal:
    """A number with PostgreSQL's units ("256MB", "8kB", "15min", "0.9") in bytes, milliseconds or as it is.

    Raises:
        ValueError: it is not a number with a known unit.
    """
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None:
        raise ValueError(f"not a quantity: {text!r}")
    factor = Decimal(1)
    unit = match[2] or default_unit or ""
    if multiple := re.fullmatch(r"(\d+)(kB|MB)", unit):  # pg_settings says 8kB (pages) or 16MB (segments)
        factor, unit = Decimal(multiple[1]), multiple[2]
    if unit and unit not in UNITS:
        raise ValueError(f"unknown unit: {text!r}")
    return Decimal(match[1]) * factor * UNITS.get(unit, 1)


def same(meant: str, actual: str, unit: str | None, vartype: str) -> bool:
    """Whether a value as written in postgresql.conf means the value that pg_settings reports."""
    if vartype == "bool":
        return (meant.lower() in TRUE) == (actual.lower() in TRUE) and meant.lower() in TRUE | FALSE
    if re.fullmatch(r"0[0-7]+", meant) and vartype == "integer":
        return int(meant, 8) == int(
            actual
        )  # file modes: PostgreSQL reads a leading 0 as octal, pg_settings shows decimal
    if vartype in ("integer", "real"):
        if actual in ("-1", "0") or Decimal(actual) < 0:
            return quantity(meant, None) == Decimal(actual)
        return quantity(meant, unit) == quantity(actual, unit)
    return [part.strip() for part in meant.split(",")] == [part.strip() for part in actual.split(",")]


def read(run: Callable[[str, Sequence[str]], Any]) -> list[Row]:
    """Every setting of the server as rows for `compare`; `run` is a target's `run`.

    Raises:
        CheckFailed: psql on the server's host fails, with its words.
    """
    result = run("postgres", ["psql", "-XAtq", "-d", "postgres", "-c", QUERY])
    if result.code != 0:
        raise CheckFailed(f"the server's settings can't be read: {' '.join(result.stderr.split())}")
    return [(row[0], row[1], row[2], row[3], row[4]) for row in json.loads(result.stdout)]


def compare(meant: Iterable[tuple[str, str]], rows: Sequence[Row]) -> list[Difference]:
    """The settings that are not as meant. `meant` is (name, value) pairs; `rows` come from `read`."""
    known = {row[0]: row for row in rows}
    found = []
    for name, value in meant:
        row = known.get(name)
        if row is None:
            found.append(Difference(name, value, None))
        elif not same(value, row[1], row[2], row[3]) or row[4]:
            found.append(Difference(name, value, f"{row[1]}{row[2] or ''}", row[4]))
    return found
