"""Text, JSON and time between SQLite and PostgreSQL, both ways. Pure.

SQLite keeps whatever it is given; PostgreSQL refuses NUL and lone surrogates in text and JSON, and NaN and Infinity in JSON. Such a
value is escaped by a rule that undoes itself (`restore`, `from_jsonb`), whatever is added around it later. MARK is one of Unicode's
noncharacters, reserved for a program's own use (Unicode 16, 23.7):

    MARK U+2400              NUL
    MARK U+FFFD d83d         the lone surrogate U+D83D
    MARK MARK                MARK itself
    "MARK#NaN"               as a whole JSON string: a number that JSON or PostgreSQL doesn't have

The newest app may write MARK itself, and knows of no escapes: they are undone only in columns of which the quarantine holds an original.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple

MARK = "\ufdd0"
NUL_SIGN, SURROGATE_SIGN = "\u2400", "\ufffd"
NUMBER = MARK + "#"
# PostgreSQL's numeric: up to 131072 digits before the point, 16383 after it (manual, 8.1.2). Far less is kept plain here: a number
# written with an exponent is spelt out, and no double needs more than 308 digits before the point or 1074 after it.
PLAIN_DIGITS = 1100
NUL, SURROGATE, NOT_FINITE, NEGATIVE_ZERO, DUPLICATE, MARKED = (
    "NUL", "lone surrogate", "NaN or Infinity", "negative zero", "duplicate keys", "U+FDD0",
)  # fmt: skip
NAIVE, NOT_UTC, RANGE, EPOCH, NO_TIME = (
    "timestamp without zone", "timestamp in another form", "timestamp out of range", "epoch time", "no timestamp",
)  # fmt: skip
# What PostgreSQL can't hold (`--strict` stops there); the other reasons keep the original where a value is stored in another form.
LOSSY = frozenset({NUL, SURROGATE, NOT_FINITE, RANGE, NO_TIME})

_BAD = re.compile(f"[\x00\ud800-\udfff{MARK}]")
_ESCAPED = re.compile(f"{MARK}({MARK}|{NUL_SIGN}|{SURROGATE_SIGN}[0-9a-f]{{4}})")
# Possessive: a plain group remembers a place for each character, a hundred times the text's size.
STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_NUMBER = re.compile(r"-?Infinity|NaN|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_TOKEN = re.compile(f"{STRING.pattern}|{_NUMBER.pattern}", re.DOTALL)
_EPOCH = re.compile(r"[-+]?(\d{9,}|\d+\.\d*)")  # eight digits are a date (ISO 8601's basic form), more of them are none
_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F]|[fF][dD][dD]0)")  # NUL, a surrogate (also half of a pair), MARK


class NotJson(ValueError):
    """The text is no JSON that the app could read."""


class Time(NamedTuple):
    """`text`: ISO 8601 in UTC, what PostgreSQL gets; `reason`: why the original has to be kept, or None."""

    text: str | None
    reason: str | None


def clean(text: str) -> tuple[str, set[str]]:
    """A text as PostgreSQL takes it, and the reasons where that is not the text itself."""
    if (text.isascii() and "\x00" not in text) or not _BAD.search(text):
        return text, set()
    reasons: set[str] = set()

    def one(match: re.Match[str]) -> str:
        char = match[0]
        if char == MARK:
            reasons.add(MARKED)
            return MARK + MARK
        reasons.add(NUL if char == "\x00" else SURROGATE)
        return MARK + (NUL_SIGN if char == "\x00" else f"{SURROGATE_SIGN}{ord(char):04x}")

    return _BAD.sub(one, text), reasons


def restore(text: str) -> str:
    """What `clean` made the text from; a text that it can't have made is left as it is."""
    if MARK not in text:
        return text

    def one(match: re.Match[str]) -> str:
        sign = match[1]
        if sign == MARK:
            return MARK
        return "\x00" if sign == NUL_SIGN else chr(int(sign[1:], 16))

    made = _ESCAPED.sub(one, text)
    return made if clean(made)[0] == text else text


def to_jsonb(text: str) -> tuple[str, set[str]]:
    """A JSON text as jsonb takes it and the app reads an equal value from, and the reasons why the original is kept.

    Raises:
        NotJson: the app itself could not read it (Python's json).
    """
    if _is_plain(text):
        return text, set()
    reasons: set[str] = set()
    _check(text, reasons)
    return _TOKEN.sub(lambda match: _token(match[0], reasons), text), reasons


class _Odd(Exception):
    """Something that jsonb holds in another form."""


def _odd_float(digits: str) -> None:
    if "e" in digits or "E" in digits or len(digits) > PLAIN_DIGITS or (digits[0] == "-" and not digits.strip("-0.")):
        raise _Odd


def _odd_integer(digits: str) -> None:
    if len(digits) > PLAIN_DIGITS:
        raise _Odd


def _odd_constant(_: str) -> None:
    raise _Odd


def _odd_pairs(found: list[tuple[str, Any]]) -> None:
    if len(dict(found)) != len(found):
        raise _Odd


# Python's own parser, in C but for these: it says what the app can read, and no value is made.
_PLAIN = json.JSONDecoder(
    parse_float=_odd_float, parse_int=_odd_integer, parse_constant=_odd_constant, object_pairs_hook=_odd_pairs
)


def _is_plain(text: str) -> bool:
    """Whether it is JSON that jsonb takes as it is."""
    if "\\u" in text and _ESCAPE.search(text):
        return False
    if not text.isascii():
        if MARK in text:
            return False
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    try:
        _PLAIN.decode(text)
    except (_Odd, ValueError, RecursionError):
        return False
    return True


def _check(text: str, reasons: set[str]) -> None:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) != len(found):
            reasons.add(DUPLICATE)
        return made

    try:
        json.loads(text, parse_int=len, object_pairs_hook=pairs)
        text.encode()
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from None


def _token(token: str, reasons: set[str]) -> str:
    if token[0] == '"':
        if "\\" not in token and MARK not in token:
            return token
        value, found = clean(json.loads(token))
        reasons |= found
        return json.dumps(value, ensure_ascii=False) if found or MARK in value else token
    if token[-1] in "Ny":  # NaN, Infinity, -Infinity
        reasons.add(NOT_FINITE)
        return json.dumps(NUMBER + token, ensure_ascii=False)
    return _number(token, reasons)


def _number(token: str, reasons: set[str]) -> str:
    if "e" not in token and "E" not in token:
        if len(token) > PLAIN_DIGITS and not _fits(token):
            reasons.add(NOT_FINITE)
            return json.dumps(NUMBER + token, ensure_ascii=False)
        if token[0] == "-" and "." in token and not token.strip("-0."):
            reasons.add(NEGATIVE_ZERO)
            return token[1:]  # as numeric has it
        return token
    exponent = re.split("[eE]", token)[1].lstrip("+-0")
    plain = "" if len(exponent) > 4 or int(exponent or 0) > PLAIN_DIGITS else format(Decimal(token), "f")
    if not plain or abs(float(token)) == float("inf") or not _fits(plain):
        reasons.add(NOT_FINITE)
        return json.dumps(NUMBER + token, ensure_ascii=False)
    if plain[0] == "-" and not plain.strip("-0."):
        reasons.add(NEGATIVE_ZERO)
        plain = plain[1:]
    # Python reads a number without a point as an integer, which for 1e23 is another value than the double.
    return plain if "." in plain else f"{plain}.0"


def _fits(token: str) -> bool:
    whole, _, part = token.lstrip("-").partition(".")
    return len(whole) <= 131072 and len(part) <= 16383


def from_jsonb(text: str) -> str:
    """A jsonb's text as the old app reads it: `to_jsonb`'s escapes undone."""
    if MARK not in text:
        return text

    def one(match: re.Match[str]) -> str:
        if MARK not in match[0]:
            return match[0]
        value: str = json.loads(match[0])
        key = text[match.end() : match.end() + 1] == ":"  # jsonb's own text has no space there
        if value.startswith(NUMBER) and not key and _NUMBER.fullmatch(value, len(NUMBER)):
            return value[len(NUMBER) :]
        return json.dumps(restore(value))

    return STRING.sub(one, text)


def there_and_back(kind: str, value: str, *, escaped: bool) -> str:
    """What PostgreSQL would be given for a value of its own (type `kind`) that had been written to SQLite.

    Args:
        escaped: whether what stands for unstorable characters is undone on the way to SQLite.
    """
    if MARK not in value:
        return value
    if kind == "jsonb":
        return to_jsonb(from_jsonb(value) if escaped else value)[0]
    return clean(restore(value) if escaped else value)[0]


def python_style(text: str) -> str:
    """A JSON text as Python's json.dumps writes it; as it is where a number has more digits than a double keeps."""
    try:
        return json.dumps(json.loads(text, parse_float=_double))
    except (ArithmeticError, RecursionError, ValueError):  # ValueError: an integer of more digits than Python reads
        return text


def _double(digits: str) -> float:
    number = float(digits)
    if Decimal(repr(number)) != Decimal(digits):
        raise ArithmeticError(digits)
    return number


def to_timestamp(value: object, naive: tzinfo, *, sqlite_style: bool = False) -> Time:
    """A timestamp of a SQLite file as PostgreSQL takes it.

    Args:
        naive: the zone of a timestamp that names none.
        sqlite_style: the column is filled by SQLite's CURRENT_TIMESTAMP: `YYYY-MM-DD HH:MM:SS`, UTC.
    """
    if value is None:
        return Time(None, None)
    reason: str | None = None
    when = _iso(value) if isinstance(value, str) else None
    if when is None:
        when, reason = _epoch(value) if isinstance(value, str | int | float) else None, EPOCH
        if when is None:
            return Time(None, NO_TIME)
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC if sqlite_style else naive)
        reason = NAIVE if not sqlite_style or value != when.replace(tzinfo=None).isoformat(sep=" ") else None
    try:
        when = when.astimezone(UTC)
    except OverflowError:
        limit = datetime.min if when.year < 5000 else datetime.max
        return Time(limit.replace(tzinfo=UTC).isoformat(), RANGE)
    text = when.isoformat()
    if reason is None and value not in (
        (spaced(text), spaced(text).removesuffix("+00:00")) if sqlite_style else (text,)
    ):
        reason = NOT_UTC
    return Time(text, reason)


def _iso(value: str) -> datetime | None:
    if _EPOCH.fullmatch(value):  # fromisoformat takes 1712011512304 for a day of the year 1712
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


def _epoch(value: str | float) -> datetime | None:
    """Seconds, milliseconds or microseconds since 1970, by size (as databases and JavaScript write them)."""
    try:
        number = float(value)
        for unit in (1.0, 1e3, 1e6):
            if abs(number) / unit < 1e11:
                return datetime.fromtimestamp(number / unit, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return None


def from_timestamp(text: str, *, sqlite_style: bool = False, zone: bool = False) -> str:
    """PostgreSQL's text of a timestamptz (TimeZone UTC, DateStyle ISO) as the old app writes them.

    Args:
        sqlite_style: as SQLite's CURRENT_TIMESTAMP. zone: then with its zone all the same, as the graph store writes `expires_at`.
    """
    when = iso(text)
    if not sqlite_style:
        return when
    return spaced(when) if zone else spaced(when).removesuffix("+00:00")


def spaced(text: str) -> str:
    """An ISO timestamp with a space for its T."""
    return text.replace("T", " ")


def iso(text: str) -> str:
    """PostgreSQL's text of a timestamptz in UTC, in the form of Python's isoformat."""
    body = text.removesuffix("+00").replace(" ", "T", 1)
    head, point, part = body.partition(".")
    return f"{head}.{part:0<6}+00:00" if point else f"{head}+00:00"


def lossy(reasons: Iterable[str]) -> bool:
    """Whether one of the reasons is something that PostgreSQL can't hold."""
    return not LOSSY.isdisjoint(reasons)
