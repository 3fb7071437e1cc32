"""LangGraph's checkpoints, cut as the PostgreSQL saver cuts them and put together again, without a class of the app."""

from __future__ import annotations

import json
import math
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orcheo_db.migrate import langgraph
from orcheo_db.migrate.langgraph import NotSplit, Split, join, same, split
from orcheo_db.migrate.text import MARK

FEW = settings(max_examples=100, deadline=None)
# An object of the app as the savers pack it: an extension type whose content is msgpack again.
MESSAGE = msgpack.ExtType(5, msgpack.packb(["langchain_core.messages", "HumanMessage", {"content": "\x00hi"}]))
VERSION = "00000000000000000000000000000003.0.4417"


def packed(value: Any) -> bytes:
    return bytes(msgpack.packb(value, use_bin_type=True))


def checkpoint(values: dict[str, Any], **more: Any) -> dict[str, Any]:
    head = {
        "v": 4,
        "ts": "2026-01-01T00:00:00+00:00",
        "id": "1f0",
        "versions_seen": {"__input__": {}, "node": {"a": VERSION}},
    }
    return {**head, "channel_versions": dict.fromkeys(values, VERSION), "channel_values": values, **more}


def again(made: Split) -> bytes:
    return join(made.head, {channel: (form, data) for channel, (_, form, data) in made.blobs.items()})


def test_plain_values_stay_in_the_head_and_others_become_blobs_byte_for_byte() -> None:
    plain = {
        "none": None,
        "yes": True,
        "number": 2**63,
        "minus": -(2**63),
        "half": 0.5,
        "text": "ä\U0001f600",
        "empty": "",
    }
    others = {"list": [1], "dict": {"a": 1}, "bytes": b"\x00\xff", "message": MESSAGE, "messages": [MESSAGE, MESSAGE]}
    made = split("msgpack", packed(checkpoint({**plain, **others}, updated_channels=["list"])))
    head = json.loads(made.head)
    assert head["channel_values"] == plain
    assert head["updated_channels"] == ["list"] and head["versions_seen"]["node"] == {"a": VERSION}
    assert made.blobs == {name: (VERSION, "msgpack", packed(value)) for name, value in others.items()}


def test_the_bytes_of_a_value_are_not_written_anew() -> None:
    """Long forms of short values, as another packer may choose: unpacked and packed again they would be others."""
    long = b"\xdd\x00\x00\x00\x01\xd9\x01a"  # ["a"], as array32 and str8
    document = (
        b"\x82"
        + packed("channel_versions")
        + packed({"a": 1})
        + packed("channel_values")
        + b"\xde\x00\x01"
        + packed("a")
        + long
    )
    assert split("msgpack", document).blobs == {"a": ("1", "msgpack", long)}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, "a\x00b", MARK, f"{MARK}#NaN"])
def test_what_jsonb_does_not_hold_is_a_blob(value: Any) -> None:
    made = split("msgpack", packed(checkpoint({"a": value, "b": 0.0})))
    assert json.loads(made.head)["channel_values"] == {"b": 0.0}
    assert made.blobs == {"a": (VERSION, "msgpack", packed(value))}


@pytest.mark.parametrize(("version", "found"), [(VERSION, VERSION), (3, "3"), (3.5, "3.5"), (2**62, str(2**62))])
def test_a_version_is_named_as_jsonb_each_text_names_it(version: Any, found: str) -> None:
    made = split("msgpack", packed(checkpoint({"a": [1]}, channel_versions={"a": version, "gone": version})))
    assert made.blobs["a"][0] == found
    assert json.loads(made.head)["channel_versions"] == {"a": version, "gone": version}


def test_json_of_2024() -> None:
    document = checkpoint({"list": [1, "ä"], "text": "t", "nul": "a\x00"})
    made = split("json", json.dumps(document).encode())
    assert json.loads(made.head)["channel_values"] == {"text": "t"}
    assert {name: (form, json.loads(data)) for name, (_, form, data) in made.blobs.items()} == {
        "list": ("json", [1, "ä"]), "nul": ("json", "a\x00"),
    }  # fmt: skip
    assert msgpack.unpackb(again(made)) == document


def test_a_channel_with_a_value_needs_a_version_unless_the_value_is_plain() -> None:
    document = checkpoint({"a": [1], "b": 1}, channel_versions={})
    with pytest.raises(NotSplit, match="'a' has a value and no version"):
        split("msgpack", packed(document))
    with pytest.raises(NotSplit, match="no version"):
        split("json", json.dumps(document).encode())
    del document["channel_values"]["a"]
    assert json.loads(split("msgpack", packed(document)).head)["channel_values"] == {"b": 1}


GOOD = packed(checkpoint({"a": [1, MESSAGE], "b": "text"}))


def test_a_document_that_is_cut_off_is_none() -> None:
    for end in range(len(GOOD)):
        with pytest.raises(NotSplit):
            split("msgpack", GOOD[:end])
    with pytest.raises(NotSplit, match="bytes after"):
        split("msgpack", GOOD + b"\xc0")


@pytest.mark.parametrize(
    "document",
    [
        b"", b"\xc0", b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xff" * 40, packed([1]), packed("text"), packed({}), packed({"channel_values": {}}),
        packed({"channel_values": 1, "channel_versions": {}}), packed({"channel_values": {"a": [1]}, "channel_versions": 1}),
        packed(checkpoint({}, channel_versions=None) | {"channel_values": {"a": [1]}}), packed(checkpoint({}, object=MESSAGE)),
        packed(checkpoint({}, raw=b"bytes")), packed(checkpoint({}, when=msgpack.Timestamp(1))), b"\x91" * 2000,
        packed(checkpoint({})) + GOOD, b"SQLite format 3\x00", packed({"a": "x"}).replace(b"x", b"\xff"),
    ],
    ids=lambda document: ascii(document[:12]),
)  # fmt: skip
def test_what_is_no_checkpoint(document: bytes) -> None:
    with pytest.raises(NotSplit):
        split("msgpack", document)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b"\xff",
        b'{"channel_values": {}}',
        b'{"channel_values": [], "channel_versions": {}}',
        GOOD,
    ],
)
def test_what_is_no_json_checkpoint(document: bytes) -> None:
    with pytest.raises(NotSplit):
        split("json", document)


@pytest.mark.parametrize("kind", [None, "", "pickle", "MSGPACK"])
def test_another_type_is_not_guessed_at(kind: str | None) -> None:
    with pytest.raises(NotSplit, match="of type"):
        split(kind, GOOD)


@given(
    st.binary(max_size=60)
    | st.tuples(st.integers(0, len(GOOD) - 1), st.binary(max_size=3)).map(
        lambda cut: GOOD[: cut[0]] + cut[1] + GOOD[cut[0] + 1 :]
    )
)
@FEW
def test_damage_is_refused_or_kept(document: bytes) -> None:
    try:
        made = split("msgpack", document)
    except NotSplit:
        return
    made.head.encode()
    assert isinstance(json.loads(made.head), dict)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=5) | st.sampled_from(["\x00", MARK, ""])
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXTS
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
OBJECTS = st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
CONTENTS = st.recursive(
    PLAIN | st.binary(max_size=9) | OBJECTS | st.just(math.nan),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.integers(0, 9), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(TEXTS, CONTENTS, max_size=5),
    st.dictionaries(TEXTS.filter(lambda k: not k.startswith("channel_")), JSON, max_size=3),
    st.text("0123456789.", min_size=1, max_size=9) | st.integers(0, 2**63),
)
@example({"a": MESSAGE, "b": [math.nan], "c": "\x00"}, {"pending_sends": []}, 4)
@FEW
def test_what_was_split_is_joined_to_the_same(values: dict[str, Any], more: dict[str, Any], version: Any) -> None:
    document = packed(checkpoint(values, channel_versions=dict.fromkeys(values, version)) | more)
    made = split("msgpack", document)
    assert same(again(made), document)
    assert split("msgpack", again(made)).blobs == made.blobs
    for name, (_, form, data) in made.blobs.items():
        assert form == "msgpack" and data == packed(values[name])


def test_a_version_without_a_value_stays_one() -> None:
    """The PostgreSQL saver writes an `empty` blob for it; SQLite's checkpoint has nothing there."""
    made = split("msgpack", packed(checkpoint({}, channel_versions={"a": VERSION})))
    joined = msgpack.unpackb(join(made.head, {"a": ("empty", b"")}))
    assert joined["channel_values"] == {} and joined["channel_versions"] == {"a": VERSION}


@pytest.mark.parametrize(
    ("form", "data", "value"),
    [
        ("msgpack", packed([1, None]), [1, None]), ("null", b"", None), ("bytes", b"\x00\xff", b"\x00\xff"), ("bytearray", b"a", b"a"),
        ("json", b'{"a": 1.5}', {"a": 1.5}),
    ],
)  # fmt: skip
def test_every_form_of_blob_that_the_new_app_writes_comes_home(form: str, data: bytes, value: Any) -> None:
    head = json.dumps(checkpoint({"b": 1}))
    assert msgpack.unpackb(join(head, {"a": (form, data)}))["channel_values"] == {"b": 1, "a": value}


def test_a_blob_of_another_form_is_refused_by_its_name() -> None:
    with pytest.raises(NotSplit, match="'a' is of type 'pickle'"):
        join(json.dumps(checkpoint({})), {"a": ("pickle", b"")})


def test_a_blob_stands_before_a_plain_value_of_its_name() -> None:
    joined = join(json.dumps(checkpoint({"a": 1})), {"a": ("msgpack", packed([2]))})
    assert msgpack.unpackb(joined)["channel_values"] == {"a": [2]}


@pytest.mark.parametrize("other", [
    checkpoint({"a": [1, MESSAGE], "b": "texT"}), checkpoint({"a": [1, MESSAGE]}), checkpoint({"a": [1, MESSAGE], "b": "text", "c": None}),
    checkpoint({"a": [1.0, MESSAGE], "b": "text"}), checkpoint({"a": [1, MESSAGE], "b": "text"}, id="1f1"),
    checkpoint({"a": [1, msgpack.ExtType(5, MESSAGE.data[:-1] + b"?")], "b": "text"}),
])  # fmt: skip
def test_one_changed_byte_is_not_the_same(other: dict[str, Any]) -> None:
    assert not same(GOOD, packed(other)) and not same(packed(other), GOOD)
    assert same(GOOD, packed(dict(reversed(checkpoint({"b": "text", "a": [1, MESSAGE]}).items()))))
    assert not same(GOOD, GOOD[:-1]) and not same(b"", b"")


def test_small_is_what_msgpack_calls_nil_boolean_number_and_string() -> None:
    for first in range(256):
        value = bytes([first])
        plain = (
            first < 0x80
            or 0xA0 <= first < 0xC1
            or first in (0xC2, 0xC3)
            or 0xCA <= first < 0xD4
            or 0xD9 <= first < 0xDC
            or first >= 0xE0
        )
        assert langgraph._small(value) == plain, hex(first)
