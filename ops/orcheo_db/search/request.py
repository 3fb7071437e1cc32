"""What a search asks for, checked before anything is asked of the server."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orcheo_db.errors import UserError

KINDS = {"runs": "run", "steps": "step", "messages": "message", "workflows": "workflow"}
MAX_LIMIT = 200  # a page is for a person or one call of a script; --after gives the next one
MAX_QUERY = 1000  # characters; more than anybody types, less than what makes a tsquery slow


@dataclass(frozen=True)
class Request:
    """One search. Times are ISO texts with their zone; `after` is the last row's (time, id)."""

    query: str = ""
    kinds: tuple[str, ...] = tuple(KINDS.values())
    workspace: str | None = None
    workflow: str | None = None
    since: str | None = None
    until: str | None = None
    filter: str | None = None  # JSON text
    limit: int = 20
    after: tuple[str, int] | None = None
    similar: bool = False


def encode(at: str, number: int) -> str:
    """The cursor after a row: its time (UTC, microseconds) and id, as one word."""
    return base64.urlsafe_b64encode(f"{at}|{number}".encode()).decode().rstrip("=")


def decode(cursor: str) -> tuple[str, int]:
    """The row that a cursor stands for.

    Raises:
        UserError: it is none of ours.
    """
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
        at, _, number = text.rpartition("|")
        if re.fullmatch(r"\d{4,6}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,6})?( BC)?|-?infinity", at) and re.fullmatch(
            r"\d{1,18}", number
        ):
            return at, int(number)
    except (binascii.Error, UnicodeError, ValueError):
        pass
    raise UserError("--after is not a cursor of this command: copy the one that the page before ended with")


def moment(option: str, text: str | None) -> str | None:
    """A time as ISO text with a zone (UTC where none is given).

    Raises:
        UserError: it isn't one.
    """
    if text is None:
        return None
    try:
        value = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UserError(f"{option} {text!r} is not a time: write 2026-11-25 or 2026-11-25T14:30:00+01:00") from None
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()


def kinds(text: str | None) -> tuple[str, ...]:
    """The kinds that `--in` names; all without it.

    Raises:
        UserError: an unknown one.
    """
    names = [name.strip() for name in text.split(",")] if text is not None else list(KINDS)
    for name in names:
        if name not in KINDS:
            raise UserError(f"--in {name!r} is unknown: choose from {', '.join(KINDS)} (several with commas)")
    return tuple(dict.fromkeys(KINDS[name] for name in names))


def json_filter(text: str | None) -> str | None:
    """`--filter` as PostgreSQL takes it.

    Raises:
        UserError: no JSON object, or one that JSONB can't hold.
    """
    if text is None:
        return None
    try:
        value: Any = json.loads(text, parse_constant=_refuse)
        again = json.dumps(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f'--filter is not JSON ({error}): write an object such as \'{{"status": "error"}}\'') from None
    if not isinstance(value, dict) or not value:
        raise UserError('--filter must be a JSON object with at least one key, such as \'{"status": "error"}\'')
    if re.search(r"\\u0000|\\ud[89a-f]", again, re.IGNORECASE) and re.search(r"[\x00\ud800-\udfff]", _strings(value)):
        raise UserError(
            "--filter holds a character that PostgreSQL's JSON can't hold (NUL or half of a surrogate pair)"
        )
    return again


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON number")


def _strings(value: Any) -> str:
    if isinstance(value, dict):
        return "".join(key + _strings(item) for key, item in value.items())
    return "".join(map(_strings, value)) if isinstance(value, list) else value if isinstance(value, str) else ""


def read(
    query: tuple[str, ...], wanted: str | None, places: tuple[str | None, str | None], times: tuple[str | None, str | None],
    options: dict[str, Any],
) -> Request:  # fmt: skip
    """A `Request` from the command line's words.

    Args:
        query: the words; wanted: `--in`; places: workspace and workflow; times: since and until.
        options: filter, limit, after, similar.

    Raises:
        UserError: anything wrong, in one line.
    """
    text = " ".join(query).strip()
    if len(text) > MAX_QUERY or "\0" in text:
        raise UserError(f"the query is longer than {MAX_QUERY} characters or holds a NUL: give the words that matter")
    if options["similar"] and not text:
        raise UserError("--similar needs words to be similar to")
    if not 1 <= options["limit"] <= MAX_LIMIT:
        raise UserError(f"--limit {options['limit']} is out of range: choose 1 to {MAX_LIMIT}, and --after for more")
    since, until = moment("--since", times[0]), moment("--until", times[1])
    if since and until and datetime.fromisoformat(since) >= datetime.fromisoformat(until):
        raise UserError(f"--since {times[0]} is not before --until {times[1]}")
    after = decode(options["after"]) if options["after"] is not None else None
    return Request(
        text,
        kinds(wanted),
        *places,
        since,
        until,
        json_filter(options["filter"]),
        options["limit"],
        after,
        options["similar"],
    )
