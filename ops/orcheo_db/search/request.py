"""What is looked for: every value checked, each mistake one line; and the cursor that a next page starts from."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orcheo_db.errors import UserError

KINDS = {"runs": "run", "steps": "step", "messages": "message", "workflows": "workflow"}
MOST = 1000  # results of one page: what a person or a script reads at once
LONGEST = 1000  # characters of a query; PostgreSQL takes more, nobody means more


@dataclass(frozen=True)
class Cursor:
    """The last result of a page, in the order of all: newest first, then kind and id."""

    at: str  # ISO 8601 with its offset, to the microsecond
    kind: str
    id: str

    def encode(self) -> str:
        """As text for a command line."""
        text = json.dumps([self.at, self.kind, self.id], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Cursor:
        """From that text.

        Raises:
            UserError: it is no cursor.
        """
        try:
            at, kind, id_ = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
            if not (isinstance(id_, str) and kind in KINDS.values() and dt.datetime.fromisoformat(at).tzinfo):
                raise ValueError  # noqa: TRY301 - said below with the others
        except (ValueError, TypeError, binascii.Error):
            raise UserError(f"--after {text[:40]!r} is no cursor: take the one that the page before printed") from None
        return cls(at, kind, id_)


@dataclass(frozen=True)
class Request:
    """One question. Empty: everything, newest first."""

    text: str = ""
    similar: bool = False
    kinds: tuple[str, ...] = tuple(KINDS.values())
    workspace: str | None = None
    workflow: str | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    contains: tuple[Any, ...] = field(default=())
    limit: int = 20  # a screen
    after: Cursor | None = None


def moment(option: str, text: str | None) -> dt.datetime | None:
    """An ISO 8601 time; without an offset it is UTC.

    Raises:
        UserError: it is none.
    """
    if text is None:
        return None
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{option} {text!r} is no time: write for example 2026-11-23, or '2026-11-23 10:15:00+01:00'"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def kinds(text: str | None) -> tuple[str, ...]:
    """Kinds of documents by their names, separated by commas.

    Raises:
        UserError: an unknown one.
    """
    if text is None:
        return tuple(KINDS.values())
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in KINDS]:
        raise UserError(f"--in {text}: {unknown[0]!r} is not searched: expected some of {','.join(KINDS)}")
    return tuple(dict.fromkeys(KINDS[name] for name in names))


def containment(texts: Sequence[str]) -> tuple[Any, ...]:
    """JSON values that a document must contain (PostgreSQL's @>).

    Raises:
        UserError: one is no JSON object or array, or has what PostgreSQL's JSONB can't hold.
    """
    found = []
    for text in texts:
        try:
            value = json.loads(text, parse_constant=_refuse)
        except ValueError as error:
            raise UserError(
                f'--filter {text!r} is no JSON ({error}): write for example \'{{"status": "error"}}\''
            ) from None
        if not isinstance(value, dict | list):
            raise UserError(
                f'--filter {text!r} matches nothing: give an object or an array, for example \'{{"status": "error"}}\''
            )
        if "\\u0000" in json.dumps(value):
            raise UserError(f"--filter {text!r} has a NUL, which no document can hold: leave it out")
        found.append(value)
    return tuple(found)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON's")


def checked(request: Request) -> Request:
    """The request if it can be asked.

    Raises:
        UserError: it can't.
    """
    if not 1 <= request.limit <= MOST:
        raise UserError(f"--limit {request.limit}: expected 1 to {MOST}; further results come with --after")
    if len(request.text) > LONGEST or "\0" in request.text:
        raise UserError(f"the query is too long or has a NUL: expected at most {LONGEST} characters of text")
    if request.similar and len(request.text.strip()) < 3:
        raise UserError("--similar compares groups of three letters: give at least three")
    if request.since and request.until and request.since >= request.until:
        raise UserError(f"--since {request.since} is not before --until {request.until}: nothing lies between them")
    return request
