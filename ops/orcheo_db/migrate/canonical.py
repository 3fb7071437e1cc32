"""One form for equal values, whichever database they come from, and its digest. Pure.

Equal is what the app reads as equal, and stricter: every digit of a number counts, an integer is no float.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import orjson

# A number of up to 15 significant digits has one double and that double one shortest text (IEEE 754; C's DBL_DIG). Where no run of
# digits is longer, the fast parser loses nothing.
EXACT_DIGITS = 15
_LONG = re.compile(rf"\d[\d.]{{{EXACT_DIGITS},}}|\d[eE]")
BITS = 128
_MASK = (1 << BITS) - 1


def canonical(text: str) -> bytes:
    """A JSON text in its one form: keys sorted, no spaces, numbers normalised.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        value = orjson.loads(text) if not _LONG.search(text) else json.loads(text, parse_float=_float, parse_int=_int)
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except (orjson.JSONEncodeError, RecursionError):  # nested deeper than orjson writes
        return json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _float(text: str) -> Any:
    number = Decimal(text)
    if len(number.normalize().as_tuple().digits) <= EXACT_DIGITS:
        return float(text)
    return orjson.Fragment(f"{number.normalize()}".encode())


def _int(text: str) -> Any:
    return int(text) if len(text) <= EXACT_DIGITS else orjson.Fragment(text.lstrip("0").encode())


def digest(values: Sequence[bytes | None]) -> int:
    """The digest of one row's canonical values; NULL differs from every value, and values don't run together."""
    hashed = hashlib.blake2b(digest_size=BITS // 8)
    for value in values:
        hashed.update(b"\x00" if value is None else b"\x01%d:" % len(value))
        if value is not None:
            hashed.update(value)
    return int.from_bytes(hashed.digest())


def total(digests: Iterable[int]) -> int:
    """The digest of a set of rows: independent of their order."""
    found = 0
    for one in digests:
        found = (found + one) & _MASK
    return found
