"""One row of an export for people, as a line of JSON or a record of CSV, and back. Pure.

PostgreSQL writes both forms itself; nothing passes through a Python number. A line of JSON is one object, column to value:

    SQL NULL                 null
    jsonb, json              as it is, with every digit (a line feed between two words of a json is a space); JSON's own null, and a
                             document with a top-level key or element "$json", stand in {"$json": …}, so that they are not taken
                             for SQL NULL or for the marker itself
    bytea                    {"$base64": "…"}
    numbers, booleans        as JSON's; NaN and the infinities as strings
    timestamps               ISO 8601, with time zone: in UTC
    arrays                   as JSON's; as PostgreSQL's text where that says more (arrays of JSON, other bounds than from 1)
    every other type         PostgreSQL's text

In CSV (RFC 4180, lines end with a line feed) an empty field is NULL and "" the empty text; bytea is PostgreSQL's hexadecimal form.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from psycopg import sql

JSONL, CSV = "jsonl", "csv"
FORMATS = (JSONL, CSV)
BYTES_MARK, JSON_MARK = "$base64", "$json"
# What stands in the manifest, for a reader who has the files and nothing else.
LEGEND = {
    JSONL: {
        "null": "SQL NULL",
        f'{{"{JSON_MARK}": X}}': "in a column of JSON: the document X (null, or one that has this marker's name)",
        f'{{"{BYTES_MARK}": "..."}}': "bytea, base64 (RFC 4648)",
        "timestamps": "ISO 8601, in UTC",
    },
    CSV: {
        "(empty)": "SQL NULL",
        '""': "the empty text",
        "\\x...": "bytea, hexadecimal",
        "null in a column of JSON": "JSON's null",
    },
}
ARRAY_DEPTH = 6  # PostgreSQL's MAXDIM

_NATIVE = frozenset((
    "smallint", "integer", "bigint", "numeric", "real", "double precision", "boolean", "text", "character varying", "uuid", "date",
    "timestamp with time zone", "timestamp without time zone",
))  # fmt: skip
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TEXT = re.compile(_STRING, re.DOTALL)
_BRACKET = re.compile(rf'[^"{{}}\[\]]*+(?:{_STRING}[^"{{}}\[\]]*+)*+([{{}}\[\]])', re.DOTALL)
_SCALAR = re.compile(r"-?\d[\d.eE+-]*|true|false|null")
_SPACE = re.compile(r"[ \t\n\r]*")
_FIELD = re.compile(rb'(?:"([^"]*+(?:""[^"]*+)*+)"|([^,"\n]*+))(,|\n)')

Value = str | bytes | None


class Column(NamedTuple):
    """A column and its type, as PostgreSQL names it (format_type)."""

    name: str
    type: str


class NotARow(ValueError):
    """A line is no row of its table; the words name no value."""


def kind(type: str) -> str:
    """How values of a type stand in a line of JSON: native, json, bytea, array or text."""
    if type in ("jsonb", "json", "bytea"):
        return "bytea" if type == "bytea" else "json"
    base = re.sub(r"\([\d,-]+\)", "", type)
    if base.endswith("[]"):
        return "array" if base[:-2] in _NATIVE or base == "bytea[]" else "text"
    return "native" if base in _NATIVE else "text"


# --- what PostgreSQL is told to write ----------------------------------------------------------------------------------------------


def copy_out(form: str, table: sql.Composable, columns: Iterable[Column]) -> sql.Composed:
    """COPY … TO STDOUT that gives a table as a file of that format has it."""
    listed = list(columns)
    if form == CSV:
        names = sql.SQL(", ").join(sql.Identifier(column.name) for column in listed)
        query = sql.SQL("SELECT {} FROM {}").format(names, table)
        return sql.SQL("COPY ({}) TO STDOUT (FORMAT csv, HEADER true, ENCODING 'UTF8')").format(query)
    row: sql.Composable = sql.SQL("row_to_json(t.*)")
    if any(column.type == "json" for column in listed):  # which keeps line feeds; between tokens only
        row = sql.SQL(r"translate(row_to_json(t.*)::text, E'\n\r', '  ')")
    values = sql.SQL(", ").join(
        sql.SQL("{} AS {}").format(_expression(column), sql.Identifier(column.name)) for column in listed
    )
    # JSON has no control characters, so that with these for its signs CSV adds nothing: what comes is the file.
    return sql.SQL(
        r"COPY (SELECT {} FROM (SELECT {} FROM {}) t) TO STDOUT (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02', ENCODING 'UTF8')"
    ).format(row, values, table)


def copy_in(form: str, table: sql.Composable, columns: Iterable[Column]) -> sql.Composed:
    """COPY … FROM STDIN: of a CSV file's records, or of a line's values as `values` gives them."""
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in columns)
    options = sql.SQL(" (FORMAT csv, ENCODING 'UTF8')" if form == CSV else "")
    return sql.SQL("COPY {} ({}) FROM STDIN{}").format(table, names, options)


def _expression(column: Column) -> sql.Composed:
    name, how = sql.Identifier(column.name), kind(column.type)
    mark = sql.Literal(JSON_MARK)
    if column.type == "jsonb":
        return sql.SQL("CASE WHEN {0} = 'null' OR {0} ? {1} THEN jsonb_build_object({1}, {0}) ELSE {0} END").format(
            name, mark
        )
    if column.type == "json":  # whose text may spell the marker in other ways; one too many does no harm
        return sql.SQL(
            r"CASE WHEN json_typeof({0}) = 'null' OR {0}::text ~ '[$]json|\\u' THEN json_build_object({1}, {0}) ELSE {0} END"
        ).format(name, mark)
    if how == "bytea":
        return sql.SQL(
            r"CASE WHEN {0} IS NOT NULL THEN json_build_object({1}, translate(encode({0}, 'base64'), E'\n', '')) END"
        ).format(name, sql.Literal(BYTES_MARK))
    if how == "array":  # only other bounds than from 1 stand before the braces
        return sql.SQL("CASE WHEN {0}::text LIKE '[%' THEN to_json({0}::text) ELSE to_json({0}) END").format(name)
    return sql.SQL("{}::text" if how == "text" else "{}").format(name)


# --- and what a file holds ---------------------------------------------------------------------------------------------------------


def lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, with their line feeds, of a stream in blocks of any size; a last one without comes as it is."""
    pending: list[bytes] = []
    for block in blocks:
        start = 0
        while (end := block.find(b"\n", start) + 1) > 0:
            pending.append(block[start:end])
            yield b"".join(pending)
            pending, start = [], end
        if start < len(block):
            pending.append(block[start:])
    if pending:
        yield b"".join(pending)


def records(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Whole records of a CSV stream, with their line feeds: one within quotes ends none."""
    pending: list[bytes] = []
    inside = False
    for line in lines(blocks):
        pending.append(line)
        inside ^= line.count(b'"') % 2 == 1
        if not inside:
            yield b"".join(pending)
            pending = []
    if pending:
        yield b"".join(pending)


def fields(record: bytes) -> list[bytes | None]:
    """The values of a CSV record as PostgreSQL reads them.

    Raises:
        NotARow: it is none, or not whole.
    """
    found: list[bytes | None] = []
    at, sign = 0, b","
    while sign == b",":
        match = _FIELD.match(record, at)
        if match is None:
            raise NotARow("is no record of CSV")
        quoted, plain, sign = match.groups()
        found.append(plain or None if quoted is None else quoted.replace(b'""', b'"'))
        at = match.end()
    if at != len(record):
        raise NotARow("is no record of CSV")
    return found


def values(line: str, columns: Iterable[Column]) -> list[Value]:
    """A line of JSON as the values that COPY takes, in the order of the columns.

    Raises:
        NotARow: it is no object, or has other keys, or a value is not in its column's form.
    """
    try:
        found = _members(line)
    except (ValueError, IndexError):
        raise NotARow("is no JSON object") from None
    row = []
    for column in columns:
        if column.name not in found:
            raise NotARow(f"has no value for column {column.name}")
        try:
            row.append(_value(kind(column.type), found.pop(column.name)))
        except (ValueError, IndexError, AttributeError):
            raise NotARow(f"has a value for column {column.name} that is none of type {column.type}") from None
    if found:
        raise NotARow(f"has a value for {', '.join(sorted(found))}, which is no column of the export")
    return row


def hashable(value: Value) -> bytes | None:
    """A value as it goes into a row's digest: its text, so that 1.10 is not 1.1; bytes by their checksum."""
    if isinstance(value, bytes):
        return hashlib.sha256(value).digest()
    return value if value is None else value.encode()


def _value(how: str, raw: str) -> Value:
    if raw == "null":
        return None
    if how == "json":
        return _unmarked(raw)
    if how == "bytea":
        members = _members(raw)
        text = json.loads(members.pop(BYTES_MARK, "null"))
        if members or not isinstance(text, str):
            raise ValueError(BYTES_MARK)
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError(BYTES_MARK) from error
    if raw[0] == '"':
        return _text(raw)
    if how == "array" and raw[0] == "[":
        return _array(raw, ARRAY_DEPTH)
    if raw[0] in "{[":
        raise ValueError(how)
    return raw


def _unmarked(raw: str) -> str:
    if raw[0] != "{" or JSON_MARK not in raw[: len(JSON_MARK) + 16]:
        return raw
    members = _members(raw)
    return members[JSON_MARK] if list(members) == [JSON_MARK] else raw


def _array(raw: str, depth: int) -> str:
    """A JSON array as PostgreSQL's text of an array."""
    if depth == 0:
        raise ValueError("array")
    made = []
    for item in _items(raw):
        if item == "null":
            made.append("NULL")
        elif item[0] == "[":
            made.append(_array(item, depth - 1))
        elif item[0] == '"':
            text = _text(item).replace("\\", "\\\\").replace('"', '\\"')
            made.append(f'"{text}"')
        elif item[0] == "{":
            raise ValueError("array")
        else:
            made.append(item)
    return f"{{{','.join(made)}}}"


def _text(raw: str) -> str:
    return raw[1:-1] if "\\" not in raw else str(json.loads(raw))


def _members(text: str) -> dict[str, str]:
    """The members of a JSON object, each value as the text that it has there.

    Raises:
        ValueError, IndexError: it is none, or a key stands twice.
    """
    found: dict[str, str] = {}
    at = _open(text, "{")
    if text[at] == "}":
        return _closed(text, at + 1, found)
    while True:
        if text[at] != '"':
            raise ValueError("key")
        start, at = at, _end(text, at)
        key = _text(text[start:at])
        at = _skip(text, at)
        if text[at] != ":" or key in found:
            raise ValueError("member")
        start = _skip(text, at + 1)
        end = _end(text, start)
        found[key] = text[start:end]
        at = _skip(text, end)
        if text[at] == "}":
            return _closed(text, at + 1, found)
        if text[at] != ",":
            raise ValueError("member")
        at = _skip(text, at + 1)


def _items(text: str) -> list[str]:
    found: list[str] = []
    at = _open(text, "[")
    while text[at] != "]":
        end = _end(text, at)
        found.append(text[at:end])
        at = _skip(text, end)
        if text[at] == "]":
            break
        if text[at] != ",":
            raise ValueError("item")
        at = _skip(text, at + 1)
        if text[at] == "]":
            raise ValueError("item")
    return found


def _open(text: str, sign: str) -> int:
    at = _skip(text, 0)
    if text[at] != sign:
        raise ValueError(sign)
    return _skip(text, at + 1)


def _closed(text: str, at: int, found: dict[str, str]) -> dict[str, str]:
    if _skip(text, at) != len(text):
        raise ValueError("more")
    return found


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _end(text: str, at: int) -> int:
    """Where a JSON value ends. That it is well formed within, PostgreSQL says; no depth is too deep here."""
    sign = text[at]
    if sign not in "{[":
        match = (_TEXT if sign == '"' else _SCALAR).match(text, at)
        if match is None:
            raise ValueError("value")
        return match.end()
    depth = 0
    while True:
        match = _BRACKET.match(text, at)
        if match is None:
            raise ValueError("value")
        depth += 1 if match[1] in "{[" else -1
        at = match.end()
        if depth == 0:
            return at
