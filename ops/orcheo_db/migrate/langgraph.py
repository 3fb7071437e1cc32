"""LangGraph's checkpoints: one msgpack document a row in SQLite, split into head and channel values by the PostgreSQL saver.

A channel's value is cut out of the document byte by byte and kept as it is, so no class of the app is ever loaded and the document
can be put together again. As `langgraph.checkpoint.postgres` does it: plain values stay in the head (JSON), all others become a blob
of their channel's version.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import msgpack

from orcheo_db.migrate.text import clean

_VALUES, _VERSIONS = "channel_values", "channel_versions"


class NotSplit(ValueError):
    """The document is none that the savers write."""


@dataclass(frozen=True)
class Split:
    """`head`: the checkpoint as JSON without what is in `blobs`: channel to (version, type, bytes)."""

    head: str
    blobs: dict[str, tuple[str, str, bytes]]


def split(kind: str | None, document: bytes) -> Split:
    """Split a checkpoint as the PostgreSQL saver would have stored it.

    Args:
        kind: column `type`: msgpack, or json in files of 2024.

    Raises:
        NotSplit: neither, or a channel that has a value and no version.
    """
    try:
        if kind == "json":
            head = json.loads(document)
            raw = {name: ("json", json.dumps(value).encode()) for name, value in head[_VALUES].items()}
            plain = dict(head[_VALUES])
        elif kind == "msgpack":
            head, raw, plain = _cut(document)
        else:
            raise NotSplit(f"a checkpoint of type {kind!r}")
        versions = head[_VERSIONS]
        blobs, values = {}, {}
        for name, (form, data) in raw.items():
            if name in plain and _is_plain(plain[name]):
                values[name] = plain[name]
            elif name not in versions:
                raise NotSplit(f"channel {name!r} has a value and no version")
            else:
                blobs[name] = (_version(versions[name]), form, data)
        return Split(json.dumps({**head, _VALUES: values}), blobs)
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.exceptions.UnpackException) as error:
        raise error if isinstance(error, NotSplit) else NotSplit(f"no checkpoint: {error!r}") from None


def _cut(document: bytes) -> tuple[dict[str, Any], dict[str, tuple[str, bytes]], dict[str, Any]]:
    unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=len(document) + 1, ext_hook=_no_ext)
    unpacker.feed(document)
    head: dict[str, Any] = {}
    raw: dict[str, tuple[str, bytes]] = {}
    plain: dict[str, Any] = {}
    for _ in range(unpacker.read_map_header()):
        key = unpacker.unpack()
        if key != _VALUES:
            head[key] = unpacker.unpack()
            continue
        head[key] = {}
        for _ in range(unpacker.read_map_header()):
            channel = unpacker.unpack()
            begin = unpacker.tell()
            unpacker.skip()
            raw[channel] = ("msgpack", document[begin : unpacker.tell()])
            if _small(raw[channel][1]):
                plain[channel] = msgpack.unpackb(raw[channel][1])
    if unpacker.tell() != len(document):
        raise NotSplit("bytes after the checkpoint")
    return head, raw, plain


def _no_ext(code: int, data: bytes) -> Any:
    raise NotSplit(f"an object of kind {code} ({len(data)} bytes) outside the channels' values")


def _small(data: bytes) -> bool:
    """Whether a msgpack value is nil, a boolean, a number or a string (its first byte, by the format's specification)."""
    first = data[0]
    return first <= 0x7F or 0xA0 <= first <= 0xBF or first in (0xC0, 0xC2, 0xC3) or 0xCA <= first <= 0xD3 or 0xD9 <= first <= 0xDB or first >= 0xE0  # fmt: skip


def _is_plain(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value) and not (value == 0 and math.copysign(1, value) < 0)
    if isinstance(value, str):
        return clean(value)[0] == value
    return value is None or isinstance(value, bool | int)


def _version(version: object) -> str:
    """A channel's version as `jsonb_each_text` gives it, by which the saver finds the blob."""
    return version if isinstance(version, str) else json.dumps(version)


def join(head: str, blobs: dict[str, tuple[str, bytes]]) -> bytes:
    """The msgpack document of a checkpoint; `blobs`: channel to (type, bytes). Equal to the split one as a value, not in its order of keys.

    Raises:
        NotSplit: a blob of a form that has no place in a msgpack document.
    """
    document = json.loads(head)
    values = document.pop(_VALUES, None) or {}
    packer = msgpack.Packer()
    parts = [packer.pack_map_header(len(document) + 1)]
    for key, value in document.items():
        parts += [packer.pack(key), _pack(value)]
    parts.append(packer.pack(_VALUES))
    kept = {channel: found for channel, found in blobs.items() if found[0] != "empty"}
    plain = {channel: value for channel, value in values.items() if channel not in kept}
    parts.append(packer.pack_map_header(len(plain) + len(kept)))
    for channel, value in plain.items():
        parts += [packer.pack(channel), _pack(value)]
    for channel, (form, data) in kept.items():
        parts += [packer.pack(channel), _member(channel, form, data)]
    return b"".join(parts)


def _member(channel: str, form: str, data: bytes) -> bytes:
    match form:
        case "msgpack":
            return data
        case "null":
            return b"\xc0"
        case "bytes" | "bytearray":
            return _pack(bytes(data))
        case "json":
            return _pack(json.loads(data))
        case _:
            raise NotSplit(f"channel {channel!r} is of type {form!r}")


def _pack(value: object) -> bytes:
    return bytes(msgpack.packb(value, use_bin_type=True))


def same(first: bytes, second: bytes) -> bool:
    """Whether two msgpack documents are equal but for the order of keys in the head and in the channels' values."""
    try:
        one, other = _cut(first), _cut(second)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException):
        return False
    return one[0] == other[0] and one[1] == other[1]
