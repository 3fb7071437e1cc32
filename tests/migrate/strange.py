"""Values that the app's own stores accept and a migration may stumble over; and writing them wherever a store takes them."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

DEPTH = 200


def _deep() -> Any:
    value: Any = "bottom"
    for level in range(DEPTH):
        value = {"down": value} if level % 2 else [value]
    return value


VALUES: dict[str, Any] = {
    "nul": "before\x00after",
    "surrogate": "half \ud83d of a pair",
    "not a number": float("nan"),
    "infinity": float("inf"),
    "minus infinity": float("-inf"),
    "past a double": 2**53 + 1,
    "past a bigint": 2**63,
    "huge": 2**200,
    "minus huge": -(2**200),
    "1e23": 1e23,  # no double is nearer, and a decimal type prints it otherwise
    "greatest": sys.float_info.max,
    "least": 5e-324,
    "minus zero": -0.0,
    "whole": 1.0,
    "empty": "",
    "nothing": [{}, [], None],
    "looks escaped": "\\u0000 and \\ud83d as text",
    "characters": "\u2028\x7f\x1b\ufeff\U0001f600e\u0301\u00e9",
    "key nul": {"a\x00b": 1},
    "key surrogate": {"\ud83d": 1},
    "key empty": {"": 1},
    "key like a type": {"$type": "number", "__type__": 1},
    "long": [f"{number:06d} " + "lorem ipsum " * 8 for number in range(2900)],
    "deep": _deep(),
}
TIMES: dict[str, datetime] = {
    "naive": datetime(2025, 1, 2, 3, 4, 5, 678901),
    "kathmandu": datetime(2025, 1, 2, 3, 4, 5, 600000, tzinfo=timezone(timedelta(hours=5, minutes=45))),
    "whole second": datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
    "year 1": datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
    "year 9999": datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
}
NUL = "nul\x00here"


class Notes:
    """What each place said to each value: the id under which it was kept, or the store's refusal."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, str]] = {}
        self.refused: dict[str, dict[str, str]] = {}

    async def each(self, place: str, values: dict[str, Any], write: Callable[[str, Any], Awaitable[Any]]) -> None:
        """Write each value there by itself, so that one refusal hides no other."""
        for kind, value in values.items():
            await self.one(place, kind, write, kind, value)

    async def one(self, place: str, kind: str, write: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        try:
            found = await write(*arguments)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".encode("ascii", "backslashreplace").decode()
            self.refused.setdefault(place, {})[kind] = " ".join(reason.split())[:200]
        else:
            self.kept.setdefault(place, {})[kind] = str(found)
