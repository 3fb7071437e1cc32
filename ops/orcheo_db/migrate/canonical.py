"""One form for equal values, whichever database they come from, and its digest. Pure.

Equal is what the app reads as equal, and stricter: every digit of a number counts, an integer is no float.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import Any

import orjson

# A number of up to 15 significant digits has one double and that double one shortest text (IEEE 754; C's DBL_DIG). Where no run of
# digits is longer, the fast parser loses nothing.
EXACT_DIGITS = 15
_LONG = re.compile(rf"\d[\d.]{{{EXACT_DIGITS},}}|\d[eE]")
# Doubles are exact decimals of 15 digits within this range of exponents; beyond it they are infinite, or zero, or lose digits.
EXACT_EXPONENT = 300
_CONTEXT = Context(prec=200_000, Emax=MAX_EMAX, Emin=MIN_EMIN)  # a numeric has 147455 digits at most
_DEEP_NUMBER = "\ud800#"  # no JSON of either side holds a lone surrogate
BITS = 128
_MASK = (1 << BITS) - 1


def canonical(text: str) -> bytes:
    """A JSON text in its one form: keys sorted, no spaces, numbers normalised.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        value = _EXACT.decode(text) if _LONG.search(text) else orjson.loads(text)
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except (orjson.JSONEncodeError, orjson.JSONDecodeError):  # nested deeper than orjson writes or reads, or no JSON
        return _deep(text)
    except RecursionError:
        raise ValueError("nested deeper than Python reads") from None


def _deep(text: str) -> bytes:
    def real(digits: str) -> str:
        return f"{_DEEP_NUMBER}{_normal(digits):e}"

    def integer(digits: str) -> str:
        return _DEEP_NUMBER + ("0" if digits == "-0" else digits)

    try:
        value = json.loads(text, parse_float=real, parse_int=integer, parse_constant=_constant)
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    except RecursionError:
        raise ValueError("nested deeper than Python reads") from None


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _normal(digits: str) -> Decimal:
    """Without the zeros at its end, and no other digit changed."""
    return Decimal(digits).normalize(_CONTEXT)


def _float(text: str) -> Any:
    number = _normal(text)
    if len(number.as_tuple().digits) <= EXACT_DIGITS and abs(number.adjusted()) < EXACT_EXPONENT:
        return float(text)
    return orjson.Fragment(f"{number}".encode())


def _int(text: str) -> Any:
    return int(text) if len(text) <= EXACT_DIGITS else orjson.Fragment(text.lstrip("0").encode())


_EXACT = json.JSONDecoder(parse_float=_float, parse_int=_int, parse_constant=_constant)


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
