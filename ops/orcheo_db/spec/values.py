"""The kinds of values that the spec has, as types; each says in its description what is accepted."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from orcheo_db.errors import UserError

STORAGE_KINDS = ("ssd", "hdd", "san")

_UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(?:i?b)?|b)\s*", re.IGNORECASE | re.ASCII)
_MEMORY_FORMS = "a size such as 512MB or 2GB (units kB, MB, GB, TB; powers of 1024)"


class SpecError(UserError):
    """The spec, an environment override or a machine given to `tune` is wrong: one line."""


def parse_memory(text: str) -> int:
    """Bytes of a memory size such as "2GB", "512 MB", "64kB" or "1.5GiB".

    Units are powers of 1024, as PostgreSQL's; letter case is ignored (PostgreSQL insists on kB, MB, GB, TB).

    Raises:
        ValueError: no unit, an unknown unit, or not a whole number of bytes.
    """
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise ValueError(f"expected {_MEMORY_FORMS}")
    whole, _, fraction = match[1].partition(".")
    unit = _UNITS[(match[2] or "").upper() + "B"]
    size = int(whole + fraction) * unit
    denominator = int("1" + "0" * len(fraction))
    if size % denominator:
        raise ValueError(f"expected {_MEMORY_FORMS}; this one is not a whole number of bytes")
    return size // denominator


def format_memory(size: int) -> str:
    """Bytes in the largest PostgreSQL unit that divides them: 268435456 -> "256MB"; undoes `parse_memory`."""
    for unit, name in ((1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")):
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return f"{size}B"


# A Field's `description` is what an error says is accepted.


def _memory(value: object) -> int:
    if not isinstance(value, str):  # a bare number has no unit: 2 what?
        raise ValueError(f"expected {_MEMORY_FORMS}")  # noqa: TRY004 - pydantic reports only ValueError
    size = parse_memory(value)
    if size > 16 << 40:
        raise ValueError("expected at most 16TB, which is all that PostgreSQL's settings can express")
    return size


def _address(value: object) -> str:
    try:
        return str(ipaddress.ip_address(str(value)))
    except ValueError:
        raise ValueError("expected an IP address, for example 127.0.0.1 or 0.0.0.0") from None


def _scalar(value: object) -> str:
    """A setting's value as configuration files write it: true -> on, 100 -> "100", "4MB" -> "4MB"."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise ValueError("expected a string, a number or a boolean")  # noqa: TRY004 - pydantic reports only ValueError
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise ValueError("expected one line without control characters")
    return value


def unique(value: object) -> object:
    if not isinstance(value, list):
        return value
    if repeated := sorted({str(item) for item in value if value.count(item) > 1}):
        raise ValueError(f"expected each name once, but {', '.join(repeated)} is repeated")
    return tuple(value)


_CRON = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))  # minute, hour, day, month, weekday (0 and 7: Sunday)


def _cron(value: str) -> str:
    """Each field's numbers within its range, each step at least 1."""
    for field, (low, high) in zip(value.split(" "), _CRON, strict=True):
        for part in field.split(","):
            span, _, step = part.partition("/")
            first, dash, last = span.partition("-")
            numbers = [] if span == "*" else [first, *([last] if dash else [])]
            right = all(re.fullmatch(r"[0-9]{1,2}", number) and low <= int(number) <= high for number in numbers)
            ordered = len(numbers) < 2 or not right or int(numbers[0]) <= int(numbers[1])
            if not right or not ordered or ("/" in part and not re.fullmatch(r"[1-9][0-9]?", step)):
                raise ValueError(f"expected numbers from {low} to {high} in the field {field!r}")
    return value


def not_reserved(*reserved: str) -> AfterValidator:
    def check(value: str) -> str:
        if value in reserved:
            raise ValueError(f"expected a name other than the reserved {', '.join(reserved)}")
        return value

    return AfterValidator(check)


def text(pattern: str, accepted: str) -> Any:
    return Field(pattern=rf"^(?:{pattern})$", max_length=255, description=accepted)


def whole(low: int, high: int, unit: str = "") -> Any:
    return Field(ge=low, le=high, description=f"a whole number{f' of {unit}' if unit else ''} from {low} to {high}")


_PATH = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
_REPOSITORY = rf"{_PATH}(?::[0-9]+/{_PATH})?(?:/{_PATH})*"
_TAG = r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
IMAGE = _REPOSITORY + _TAG
_RELEASE = r"[0-9]+(?:\.[0-9]+){1,3}(?:(?:a|b|rc|\.post|\.dev)[0-9]+)?"

SizeName = Annotated[str, text(r"[a-z][a-z0-9-]{0,30}", "a name of at most 31 a-z, 0-9 and -, for example small")]
Memory = Annotated[int, BeforeValidator(_memory), Field(ge=512 << 20, description=f"{_MEMORY_FORMS}, at least 512MB")]
Scalar = Annotated[str, BeforeValidator(_scalar), Field(description="a string, a number or a boolean")]
Settings = dict[str, Scalar]  # names and ranges are PostgreSQL's and PgBouncer's: `tuning` checks them
Repository = Annotated[str, text(_REPOSITORY, "an image name without a tag, for example orcheo-db/postgres")]
Release = Annotated[str, text(_RELEASE, "a release number such as 0.46.1")]
Address = Annotated[str, BeforeValidator(_address), Field(description="an IP address, for example 127.0.0.1")]
Extension = Annotated[str, text(r"[a-z][a-z0-9_-]{0,62}", "an extension's name, for example pg_trgm")]
# Five fields of numbers, *, ranges, lists and steps; names of days and months differ between crons.
_FIELD = r"[0-9*][0-9*,/-]{0,60}"
Cron = Annotated[
    str,
    text(rf"{_FIELD}(?: {_FIELD}){{4}}", 'cron\'s five fields in numbers, UTC, for example "15 1 * * 0"'),
    AfterValidator(_cron),
]
VariableValue = Annotated[
    str,
    BeforeValidator(
        lambda value: str(value).lower() if isinstance(value, bool) else _scalar(value)
    ),  # programs read true, not on
    Field(description="a string, a number or a boolean"),
]
Variable = Annotated[str, text(r"[A-Z][A-Z0-9_]{0,99}", "a variable's name, for example ORCHEO_LOG_LEVEL")]
