"""One row of SQLite to rows of PostgreSQL: what becomes of each kind of damage, and what of the original is kept."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orcheo_db.migrate import convert, text
from orcheo_db.migrate.convert import (
    BYTES,
    EXTRA,
    INVALID,
    NO_FILE,
    NULL,
    ODD,
    ORPHAN,
    REFUSED,
    UNSPLIT,
    Kept,
    form,
    from_whole,
    unform,
    whole,
)  # fmt: skip
from orcheo_db.migrate.text import MARK
from tests.unit.migrate_files import DAY, OLD, Rows, Way, change, install

FEW = settings(max_examples=200, deadline=None)
MOMENT = "2026-11-25T00:00:00+00:00"
# What SQLite gives: its five storage classes; text that is no UTF-8 comes by PEP 383. It has no NaN.
CELLS = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(st.characters(codec="utf-8")), st.binary(),
    st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")), st.sampled_from(["\x00", MARK, "", b"", -0.0, math.inf]),
)  # fmt: skip


def way(directory: Path, rows: Rows, **options: Any) -> Way:
    return Way(install(directory, rows), moment=MOMENT, **options)


def alone(kept: list[Kept]) -> Kept:
    """The only thing that was kept, but for the workspace that every stray row gets."""
    (one,) = [one for one in kept if one.column != "workspace_id"]
    return one


# --- whole rows -------------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), CELLS, max_size=8))
@example(
    {"a": "\udcff", "b": "\x00", "c": b"\xff", "d": -0.0, "e": 5e-324, "f": 2**63 - 1, "g": "", "h": b"", "i": None}
)
@FEW
def test_a_whole_row_comes_back_to_the_last_bit(row: dict[str, Any]) -> None:
    document = whole(list(row), list(row.values()))
    found = from_whole(document)
    assert list(found) == list(row)
    assert repr(found) == repr(row)  # repr: 1 is no 1.0, and -0.0 no 0.0
    assert "\x00" not in document.decode("ascii")  # a type json column takes it


@given(CELLS)
@FEW
def test_a_value_comes_back_with_its_storage_class(value: Any) -> None:
    assert repr(unform(*form(value))) == repr(value)


# --- columns ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "shown", "kept"),
    [
        ("inputs", '{"a": NaN}', f'{{"a": "{MARK}#NaN"}}', (b'{"a": NaN}', "text", text.NOT_FINITE)),
        ("inputs", '{"a": "\\u0000"}', f'{{"a": "{MARK}\u2400"}}', (b'{"a": "\\u0000"}', "text", text.NUL)),
        ("inputs", '{"a": NaN, "b": "\\ud800"}', f'{{"a": "{MARK}#NaN", "b": "{MARK}\ufffdd800"}}', (b'{"a": NaN, "b": "\\ud800"}', "text", text.NOT_FINITE)),
        ("inputs", '{"a": 1, "a": 2}', '{"a": 1, "a": 2}', (b'{"a": 1, "a": 2}', "text", text.DUPLICATE)),
        ("inputs", '{"a":', "{}", (b'{"a":', "text", INVALID)),
        ("inputs", "", "{}", (b"", "text", INVALID)),
        ("inputs", '{"a": "\udcff"}', "{}", (b'{"a": "\xff"}', "text", INVALID)),
        ("inputs", '{"a": NaN, "a": 1}', f'{{"a": "{MARK}#NaN", "a": 1}}', (b'{"a": NaN, "a": 1}', "text", text.NOT_FINITE)),
        ("tags", "[1", "[]", (b"[1", "text", INVALID)),
        ("callbacks", "nonsense", "[]", (b"nonsense", "text", INVALID)),
        ("inputs", b'{"a": 1}', '{"a": 1}', (b'{"a": 1}', "blob", BYTES)),
        ("inputs", b"\xff", "{}", (b"\xff", "blob", INVALID)),
        ("run_name", b"bytes \xff\x00", f"bytes {MARK}\ufffddcff{MARK}\u2400", (b"bytes \xff\x00", "blob", BYTES)),
        ("run_name", "a\x00b", f"a{MARK}\u2400b", (b"a\x00b", "text", text.NUL)),
        ("run_name", "\udcff", f"{MARK}\ufffddcff", (b"\xff", "text", text.SURROGATE)),
        ("status", b"done", "done", (b"done", "blob", BYTES)),
        ("started_at", "2026-01-01 00:00:00", "2025-12-31T23:00:00+00:00", (b"2026-01-01 00:00:00", "text", text.NAIVE)),
        ("started_at", "1712011512", "2024-04-01T22:45:12+00:00", (b"1712011512", "text", text.EPOCH)),
        ("started_at", "soon", MOMENT, (b"soon", "text", text.NO_TIME)),
        ("completed_at", "soon", None, (b"soon", "text", text.NO_TIME)),
        ("completed_at", b"2026", None, (b"2026", "blob", text.NO_TIME)),
        ("trace_started_at", "0001-01-01T00:00:00+05:45", "0001-01-01T00:00:00+00:00", (b"0001-01-01T00:00:00+05:45", "text", text.RANGE)),
    ],
)  # fmt: skip
def test_what_becomes_of_a_value(
    tmp_path: Path, column: str, value: Any, shown: str | None, kept: tuple[bytes, str, str]
) -> None:
    rows = {"execution_history": [{"execution_id": "e", column: value}]}
    row, found = way(tmp_path, rows, naive=ZoneInfo("Europe/Zurich")).one("execution_history")
    assert row[column] == shown and row["execution_id"] == "e"
    assert alone(found) == Kept(column, None, *kept)


@pytest.mark.parametrize(
    ("column", "value", "shown"),
    [
        ("inputs", '{"a": 1.10, "b": 123456789012345678901234567890, "c": "ä"}', None), ("inputs", "null", None), ("run_name", None, None),
        ("run_name", "", None), ("run_name", "ä \U0001f600", None), ("completed_at", None, None), ("completed_at", DAY, None),
        ("inputs", "1e5", "100000.0"),
    ],
)  # fmt: skip
def test_a_good_value_leaves_nothing_behind(tmp_path: Path, column: str, value: Any, shown: str | None) -> None:
    row, found = way(tmp_path, {"execution_history": [{"execution_id": "e", column: value}]}).one("execution_history")
    assert row[column] == (shown or value)
    assert [one for one in found if one.column != "workspace_id"] == []


@pytest.mark.parametrize(
    ("column", "value", "shown", "kept"),
    [
        ("is_best", 1, "t", None), ("is_best", 0, "f", None), ("is_best", 7, "t", (b"7", "integer", ODD)), ("is_best", 0.5, "t", (b"0.5", "real", ODD)),
        ("is_best", "no", "t", (b"no", "text", ODD)), ("config_version", 2**31 - 1, str(2**31 - 1), None), ("config_version", -1, "-1", None),
        ("config_version", 1.5, "1", (b"1.5", "real", ODD)), ("artifact_url", b"\x01", "\x01", (b"\x01", "blob", BYTES)),
    ],
)  # fmt: skip
def test_odd_types(tmp_path: Path, column: str, value: Any, shown: str, kept: tuple[bytes, str, str] | None) -> None:
    rows = {"agentensor_checkpoints": [{"id": "a", column: value}]}
    row, found = way(tmp_path, rows).one("agentensor_checkpoints")
    assert row[column] == shown
    assert [one for one in found if one.column == column] == ([Kept(column, None, *kept)] if kept else [])


@pytest.mark.parametrize(("value", "reason"), [("many", ODD), (2**31, REFUSED), (-(2**31) - 1, REFUSED), (b"x", ODD)])
def test_a_number_that_is_none_takes_its_row_away(tmp_path: Path, value: Any, reason: str) -> None:
    row, (kept,) = way(tmp_path, {"agentensor_checkpoints": [{"id": "a", "config_version": value}]}).one(
        "agentensor_checkpoints"
    )
    assert row == {} and (kept.column, kept.form, kept.reason) == (None, "json", reason)
    assert from_whole(kept.original or b"")["config_version"] == value


def test_null_where_the_new_release_has_none(tmp_path: Path) -> None:
    """The old files' columns may lack a NOT NULL that the new ones have."""
    found = way(tmp_path / "a", {"workflows": [{"id": None, "payload": "{}"}]})
    row, kept = found.one("workflows")
    assert row["id"] == "" and alone(kept) == Kept("id", None, None, "null", NULL)
    install(tmp_path / "b", {}, files=["chatkit.sqlite"])
    change(
        tmp_path / "b",
        "workflows.sqlite",
        "CREATE TABLE execution_history (execution_id, inputs, tags, started_at); INSERT INTO execution_history VALUES ('e', NULL, NULL, NULL)",
    )
    row, kept = Way(tmp_path / "b", moment=MOMENT).one("execution_history")
    assert (row["inputs"], row["tags"], row["started_at"]) == ("{}", "[]", MOMENT)
    assert {(one.column, one.original, one.form, one.reason) for one in kept if one.column != "workspace_id"} == {
        ("inputs", None, "null", NULL), ("tags", None, "null", NULL), ("started_at", None, "null", text.NO_TIME),
    }  # fmt: skip


def test_a_column_that_no_release_has_is_kept(tmp_path: Path) -> None:
    install(tmp_path, {"execution_history": [{"execution_id": "e"}, {"execution_id": "f"}]})
    change(
        tmp_path,
        "workflows.sqlite",
        "ALTER TABLE execution_history ADD COLUMN colour; UPDATE execution_history SET colour = x'00ff' WHERE execution_id = 'e'",
    )
    first, second = Way(tmp_path).rows("execution_history")
    assert alone(first.kept) == Kept("colour", None, b"\x00\xff", "blob", EXTRA)
    assert first.rows and [one.column for one in second.kept] == ["workspace_id"]


# --- models and parents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("workflows", {"workflows": [{"id": "a", "payload": "{"}]}), ("workflow_runs", {"workflow_runs": [{"id": "a", "payload": "[01]"}]}),
        ("webhook_triggers", {"webhook_triggers": [{"workflow_id": "a", "config": ""}]}),
        ("chat_messages", {"chat_threads": [{"id": "t"}], "chat_messages": [{"id": "a", "item_json": '{"a"}'}]}),
        ("credentials", {"credentials": [{"id": "a", "payload": "[1]"}]}), ("workflows", {"workflows": [{"id": "a", "payload": "null"}]}),
    ],
)  # fmt: skip
def test_invalid_json_that_the_app_reads_as_a_model_takes_its_row_away(tmp_path: Path, table: str, rows: Rows) -> None:
    row, (kept,) = way(tmp_path, rows).one(table)
    assert row == {} and (kept.column, kept.reason) == (None, INVALID)
    assert from_whole(kept.original or b"").items() >= rows[table][0].items()


def test_orphans(tmp_path: Path) -> None:
    rows: Rows = {
        "execution_history": [{"execution_id": "e"}], "execution_history_steps": [{"step_index": 0}, {"execution_id": "gone", "step_index": 1}],
        "chat_threads": [{"id": "t"}], "chat_messages": [{"id": "m"}, {"id": "o", "thread_id": "gone"}],
        "chat_attachments": [{"id": "f"}, {"id": "g", "thread_id": "gone"}, {"id": "h", "thread_id": None}],
        "service_tokens": [{"identifier": "a", "rotated_to": "b"}, {"identifier": "b", "rotated_to": "gone"}],
    }  # fmt: skip
    found = way(tmp_path, rows)
    for table, original in (
        ("execution_history_steps", {"execution_id": "gone", "step_index": 1}),
        ("chat_messages", {"thread_id": "gone"}),
    ):
        good, orphan = found.rows(table)
        assert good.rows and not good.kept
        (kept,) = orphan.kept
        assert not orphan.rows and (kept.column, kept.reason) == (None, ORPHAN)
        assert from_whole(kept.original or b"").items() >= original.items()
    converter = found.converter("chat_attachments")
    shown = [dict(zip(converter.into, made.rows[0][1], strict=True)) for made in found.rows("chat_attachments")]
    assert [row["thread_id"] for row in shown] == ["t", None, None]
    assert [one.original for made in found.rows("chat_attachments") for one in made.kept if one.reason == ORPHAN] == [
        b"gone"
    ]
    first, second = found.rows("service_tokens")
    assert [one.original for one in first.kept + second.kept if one.reason == ORPHAN] == [b"gone"]


def test_children_of_a_row_in_the_quarantine_are_orphans(tmp_path: Path) -> None:
    found = way(
        tmp_path,
        {
            "chat_threads": [{"id": "t"}, {"id": "a\x00b"}],
            "chat_messages": [{"id": "m"}, {"id": "n", "thread_id": "a\x00b"}],
        },
    )
    converter = found.converter("chat_messages")
    rows = [("m", "t", 0, None, "{}", DAY), ("n", "a\x00b", 0, None, "{}", DAY)]
    assert all(converter.convert(row).rows for row in rows)
    converter.away = frozenset({(f"a{MARK}\u2400b",)})
    assert [bool(converter.convert(row).rows) for row in rows] == [True, False]


def test_keys_are_texts_that_postgresql_holds(tmp_path: Path) -> None:
    converter = way(tmp_path, {}).converter("execution_history_steps")
    assert converter.key_of(("e\x00", 3, DAY, "{}")) == (f"e{MARK}\u2400", "3")
    assert converter.key_of((None, 3, DAY, "{}")) == ("", "3")


# --- LangGraph --------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_becomes_a_head_and_blobs(tmp_path: Path) -> None:
    document = msgpack.packb(
        {"id": "c", "channel_values": {"a": [1], "b": "text"}, "channel_versions": {"a": "7", "b": "7"}}
    )
    rows = [
        {"checkpoint": document, "metadata": b'{"step": 1, "s": "\\u0000"}', "parent_checkpoint_id": "p"},
        {"checkpoint_id": "d", "checkpoint": document[:-1]}, {"checkpoint_id": "e", "checkpoint": None}, {"checkpoint_id": "f", "type": "pickle", "checkpoint": b"x"},
    ]  # fmt: skip
    found = way(tmp_path, {"checkpoints": rows})
    made, *bad = found.rows("checkpoints")
    (table, head), blob = made.rows
    columns = dict(zip(found.converter("checkpoints").columns_of(table), head, strict=True))
    assert table == "checkpoints" and columns["parent_checkpoint_id"] == "p" and columns["type"] is None
    assert json.loads(str(columns["checkpoint"]))["channel_values"] == {"b": "text"}
    assert columns["metadata"] == f'{{"step": 1, "s": "{MARK}\u2400"}}'
    assert blob == ("checkpoint_blobs", ("t", "", "a", "7", "msgpack", b"\x91\x01"))
    assert found.converter("checkpoints").columns_of("checkpoint_blobs") == (
        "thread_id",
        "checkpoint_ns",
        "channel",
        "version",
        "type",
        "blob",
    )
    assert [(one.rows, one.kept[0].column, one.kept[0].reason) for one in bad] == [([], None, UNSPLIT)] * 3
    assert from_whole(bad[0].kept[0].original or b"")["checkpoint"] == document[:-1]


def test_writes_keep_their_bytes(tmp_path: Path) -> None:
    row, kept = way(tmp_path, {"writes": [{"value": b"\x00\xff"}]}).one("writes")
    assert (row["blob"], row["type"], row["task_path"], row["idx"]) == (b"\x00\xff", "msgpack", "", "0") and not kept
    assert "value" not in row


# --- attachments ------------------------------------------------------------------------------------------------------------

CONTENT = b"the file\x00\xff"


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("{origin}/chatkit/f_n", "{origin}/chatkit/f_n"), ("{origin}/chatkit/f_n", "/root/.orcheo/chatkit/f_n"), ("{origin}/f_n", "C/elsewhere/f_n"),
        ("{origin}/chatkit/f_n", None), ("{origin}/f_any name", None), ("{other}/chatkit/f_n", None), ("{other}/deep/f", "/data/deep/f"),
        ("{origin}/chatkit/f_n", "\x00"), ("{origin}/chatkit/f_n", ""),
    ],
)  # fmt: skip
def test_an_attachment_finds_its_file(tmp_path: Path, file: str, place: str | None) -> None:
    origin, other = tmp_path / "orcheo", tmp_path / "other"
    path = Path(file.format(origin=origin, other=other))
    noted = place.format(origin=origin) if place else place
    install(
        origin,
        {
            "workflows": [{"id": "w", "workspace_id": WORKSPACE}],
            "chat_threads": [{"id": "t", "workflow_id": "w"}],
            "chat_attachments": [{"id": "f", "storage_path": noted}],
        },
    )
    for decoy in (origin / "chatkit" / "f", origin / "chatkit" / "g_n", origin / "ff_n"):
        decoy.parent.mkdir(exist_ok=True)
        decoy.write_bytes(b"another's")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONTENT)
    found = Way(origin, attachments=[other])
    (made,) = found.rows("chat_attachments")
    (_, values), blob = made.rows
    row = dict(zip(found.converter("chat_attachments").into, values, strict=True))
    checksum = hashlib.sha256(CONTENT).hexdigest()
    assert (row["size_bytes"], row["sha256"], row["blob_backend"]) == (str(len(CONTENT)), checksum, "postgres")
    assert (row["workflow_id"], row["workspace_id"]) == ("w", WORKSPACE)
    assert blob == ("chat_attachment_blobs", ("f", CONTENT, str(len(CONTENT)), checksum, DAY))
    assert not [one for one in made.kept if one.reason == NO_FILE]


WORKSPACE = "00000000-0000-0000-0000-000000000001"


@pytest.mark.parametrize("place", ["/nowhere/f_n", "f_n", None, "\x00", "/", "."])
@pytest.mark.parametrize("key", ["f", "*", "[f]", "", "\x00"])
def test_an_attachment_without_its_file_is_kept_and_said(tmp_path: Path, place: str | None, key: str) -> None:
    install(tmp_path, {"chat_threads": [{"id": "t"}], "chat_attachments": [{"id": key, "storage_path": place}]})
    (tmp_path / "chatkit").mkdir()
    (tmp_path / "chatkit" / "other_n").write_bytes(b"another's")
    row, kept = Way(tmp_path).one("chat_attachments")
    assert (row["size_bytes"], row["sha256"], row["blob_backend"], row["name"]) == (None, None, None, "n")
    assert Kept("storage_path", None, *form(place), NO_FILE) in kept


def test_a_file_larger_than_a_value_may_be_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, {"chat_threads": [{"id": "t"}], "chat_attachments": [{"id": "f"}]})
    (tmp_path / "f_n").write_bytes(CONTENT)
    monkeypatch.setattr(convert, "LARGEST_FILE", len(CONTENT))
    assert Way(tmp_path).one("chat_attachments")[0]["size_bytes"] is None
    monkeypatch.setattr(convert, "LARGEST_FILE", len(CONTENT) + 1)
    assert Way(tmp_path).rows("chat_attachments")[0].rows[1][1][1] == CONTENT


# --- what the old release lacks ----------------------------------------------------------------------------------------------


def test_rows_of_0_15_get_the_columns_that_it_lacks(tmp_path: Path) -> None:
    rows = {
        "workflows": [{"id": "w", "payload": '{"is_archived": true}'}, {"id": "x"}],
        "workflow_versions": [{"id": "v"}],
        "chat_threads": [{"id": "t", "workflow_id": "w"}],
    }
    found = Way(install(tmp_path, rows, OLD))
    first, second = found.rows("workflows")
    into = found.converter("workflows").into
    assert {"is_archived", "handle", "workspace_id"} <= set(into)
    archived = [dict(zip(into, made.rows[0][1], strict=True))["is_archived"] for made in (first, second)]
    assert archived == ["t", "f"] and not first.kept
    for table in ("workflow_versions", "chat_threads"):
        row, kept = found.one(table)
        assert row["workspace_id"] == found.home.id and not kept
    assert json.loads(found.one("workflow_versions")[0]["payload"]) == {"workspace_id": found.home.id}
