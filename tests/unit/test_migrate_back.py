"""A row on its way to PostgreSQL and back again is the row that it was; where the app has changed it, it is the app's."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orcheo_db.migrate import back, state, text
from orcheo_db.migrate.back import Back, Writer
from orcheo_db.migrate.convert import Converted, Converter, Kept
from orcheo_db.migrate.layout import BY_NAME
from orcheo_db.migrate.state import State
from orcheo_db.migrate.text import MARK
from tests.unit.migrate_files import BRIDGE, DAY, OLD, Rows, Way, install, jsonb, seen, timestamptz

DEAD, LIVE = (f"{digit * 8}-0000-0000-0000-000000000000" for digit in "ab")
KNOWN = state.known_catalogue()
FEW = settings(max_examples=100, deadline=None)


class Trip:
    """A source, and what a rollback makes of its rows after a stay in PostgreSQL."""

    def __init__(self, directory: Path, rows: Rows, release: Any = BRIDGE) -> None:
        self.way = Way(install(directory, rows, release), moment="2026-11-25T00:00:00+00:00")

    def there(self, converter: Converter, made: Converted) -> dict[str, Any]:
        """The row as the server prints it: every column of the table, text but for bytea."""
        types = KNOWN.types[converter.table.into]
        empty = {"jsonb": "{}", "boolean": "false"}
        row = {
            name: None if name in KNOWN.nullable[converter.table.into] else empty.get(kind)
            for name, kind in types.items()
        }
        for name, value in zip(converter.into, made.rows[0][1], strict=True):
            match types[name], value:
                case "jsonb", str():
                    row[name] = jsonb(value)
                case "timestamp with time zone", str():
                    row[name] = timestamptz(value)
                case "boolean", str():
                    row[name] = {"t": "true", "f": "false"}[value]
                case _:
                    row[name] = value  # type: ignore[assignment]
        return row

    def home(self, table: str, row: dict[str, Any], kept: list[Kept]) -> dict[str, Any]:
        converter, left = self.way.converter(table), io.StringIO()
        writer = Writer.__new__(Writer)
        writer.state = State("s", self.way.source.release, state.COPIED, {}, {}, {}, self.way.home, {}, [], {}, {})
        writer.catalogue, writer.converters, writer.done, writer.left = KNOWN, {table: converter}, Back(), left  # type: ignore[assignment]
        found = writer._one(converter.table, converter.columns, row, KNOWN.types[converter.table.into], kept)
        self.left = [json.loads(line) for line in left.getvalue().splitlines()]
        return {name: back._store(value) for name, value in found.items()}

    def both(self, table: str, original: tuple[Any, ...]) -> dict[str, Any] | None:
        """None: the row is in the quarantine whole."""
        converter = self.way.converter(table)
        made = converter.convert(original)
        return self.home(table, self.there(converter, made), made.kept) if made.rows else None


def same(kind: str, mine: Any, theirs: Any) -> bool:
    """Equal to the app: JSON as a value (it is written anew), all else to the last bit."""
    if kind == "jsonb" and isinstance(mine, str) and isinstance(theirs, str):
        try:
            return seen(json.loads(mine)) == seen(json.loads(theirs))
        except ValueError:
            pass
    return repr(mine) == repr(theirs)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=5) | st.sampled_from(
    ["\x00", MARK, f"{MARK}#NaN", "", "0", "-0.0"]
)
IN_TEXT = TEXTS | st.binary(max_size=4) | st.none()  # what a column of type TEXT holds: a number becomes a text there
STRANGE = IN_TEXT | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | TEXTS
    | st.text(st.characters(exclude_categories=()), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
DOCUMENTS = st.builds(json.dumps, JSON) | st.sampled_from(
    ['{"a":1,"a":2}', "{", "", "1e400", '{"a": 1.10}', "[1", "-0.0", '{"a": 1e5}']
)
TIMES = st.datetimes().map(lambda when: when.isoformat()) | st.sampled_from(
    [DAY, "2026-01-01 00:00:00", "2026-01-01T05:45:00+05:45", "0001-01-01T00:00:00+05:45", "9999-12-31T23:59:59-01:00", "1712011512304", "soon", "2026-01-01T00:00:00Z"]
)  # fmt: skip


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> Trip:
    rows: Rows = {
        "workspaces": [{"id": LIVE, "slug": "default"}],
        "workflows": [{"id": "w", "workspace_id": LIVE}, {"id": "x", "workspace_id": DEAD}],
    }
    return Trip(tmp_path_factory.mktemp("back"), rows)


@given(
    st.sampled_from([LIVE, DEAD, None, "", "no uuid"]), DOCUMENTS | IN_TEXT, DOCUMENTS | IN_TEXT, TEXTS | st.none() | st.binary(max_size=3),
    TIMES | STRANGE, TIMES | STRANGE, st.sampled_from(["w", "x", "gone"]),
)  # fmt: skip
@example(DEAD, "{", "", b"\xff", "soon", "", "w")
@FEW
def test_a_run_s_history_comes_home(
    trip: Trip, workspace: Any, inputs: Any, tags: Any, name: Any, started: Any, completed: Any, workflow: str
) -> None:
    row = (
        "e",
        workflow,
        workspace,
        inputs,
        "{}",
        tags,
        "[]",
        '{"a": NaN}',
        name,
        "done",
        started,
        completed,
        name,
        name,
        started,
        completed,
        None,
    )
    found = trip.both("execution_history", row)
    assert found is not None
    types = KNOWN.types["execution_history"]
    for column, value in zip(trip.way.converter("execution_history").columns, row, strict=True):
        assert same(types[column], value, found[column]), column
    assert trip.left == []


@given(
    st.sampled_from([LIVE, DEAD, None]),
    st.dictionaries(st.sampled_from(["workspace_id", "status", "error", "tags"]), JSON, max_size=4),
    TIMES | STRANGE,
)
@example(DEAD, {"workspace_id": DEAD, "error": "\x00"}, DAY)
@example(DEAD, {"workspace_id": None, "error": math.nan}, DAY)
@FEW
def test_a_run_comes_home(trip: Trip, workspace: Any, payload: dict[str, Any], when: Any) -> None:
    row = ("r", "w", "v", "done", "me", json.dumps(payload), when, DAY, workspace)
    found = trip.both("workflow_runs", row)
    assert found is not None
    before, after = payload, json.loads(found["payload"])
    if "workspace_id" not in before:  # the bridge's model knows the key, and takes it from the column
        after.pop("workspace_id", None)
    assert seen(before) == seen(after)
    for column, value in zip(trip.way.converter("workflow_runs").columns, row, strict=True):
        assert column == "payload" or same("", value, found[column]), column


@given(
    st.sampled_from([0, 1]) | STRANGE,
    st.integers(-(2**31), 2**31 - 1),
    TEXTS | st.none() | st.binary(max_size=3),
    DOCUMENTS,
)
@FEW
def test_booleans_and_numbers_come_home(trip: Trip, best: Any, version: int, url: Any, metrics: str) -> None:
    row = ("a", "w", LIVE, version, "{}", metrics, "{}", url, best, DAY)
    found = trip.both("agentensor_checkpoints", row)
    assert found is not None
    types = KNOWN.types["agentensor_checkpoints"]
    for column, value in zip(trip.way.converter("agentensor_checkpoints").columns, row, strict=True):
        assert same(types[column], value, found[column]), column


@given(
    JSON, st.sampled_from([f"{DEAD}.a", f"{LIVE}.b", "users", DEAD]), TIMES.filter(lambda t: t != "soon"), st.booleans()
)
@FEW
def test_a_store_item_comes_home(trip: Trip, value: Any, prefix: str, when: str, as_text: bool) -> None:
    document: Any = json.dumps(value) if as_text else json.dumps(value).encode()
    row = (prefix, "k", document, "2026-01-01 00:00:00", when, "2026-01-01 00:00:00.500000+00:00", None)
    found = trip.both("store", row)
    assert found is not None
    for column, before in zip(trip.way.converter("store").columns, row, strict=True):
        if column == "value":
            assert isinstance(found[column], type(document)) and seen(json.loads(found[column])) == seen(value)
        else:
            assert repr(found[column]) == repr(before), column


# --- where the app has worked since ---------------------------------------------------------------------------------------------


def test_what_the_app_has_changed_is_the_app_s(trip: Trip) -> None:
    row = (
        "e",
        "w",
        DEAD,
        '{"a": NaN}',
        "{}",
        "[1",
        "[]",
        "{}",
        "a\x00b",
        "done",
        "2026-01-01 00:00:00",
        "soon",
        None,
        None,
        None,
        None,
        None,
    )
    converter = trip.way.converter("execution_history")
    made = converter.convert(row)
    there = trip.there(converter, made)
    there |= {
        "inputs": '{"a": 1}',
        "tags": '["new"]',
        "run_name": "new",
        "started_at": "2026-01-01 00:00:01+00",
        "completed_at": "2026-02-01 00:00:00+00",
    }
    found = trip.home("execution_history", there, made.kept)
    assert found["inputs"] == '{"a": 1}' and found["tags"] == '["new"]' and found["run_name"] == "new"
    assert (found["started_at"], found["completed_at"]) == ("2026-01-01T00:00:01+00:00", "2026-02-01T00:00:00+00:00")
    assert found["workspace_id"] == DEAD  # what the migration alone has changed


def test_a_row_that_the_app_wrote_reads_as_the_old_release_writes_it(trip: Trip) -> None:
    empty = dict.fromkeys(KNOWN.types["execution_history"])
    there = empty | {
        "execution_id": "n", "workflow_id": "w", "workspace_id": LIVE, "inputs": f'{{"a": "{MARK}\u2400", "n": "{MARK}#NaN"}}', "tags": "[]",
        "started_at": "2026-01-01 00:00:00.5+00", "status": f"a{MARK}\u2400",
    }  # fmt: skip
    kept = [Kept(column, None, b"was", "text", text.NUL) for column in ("inputs", "status")]
    found = trip.home("execution_history", there, kept)  # changed since: the app has added to what was there
    assert json.loads(found["inputs"])["a"] == "\x00" and math.isnan(json.loads(found["inputs"])["n"])
    assert (
        found["started_at"] == "2026-01-01T00:00:00.500000+00:00"
        and found["status"] == "a\x00"
        and found["completed_at"] is None
    )
    found = trip.home(
        "execution_history", there, []
    )  # a row that the migration has not touched: it is the app's own text
    assert (
        json.loads(found["inputs"]) == {"a": f"{MARK}\u2400", "n": f"{MARK}#NaN"} and found["status"] == there["status"]
    )


def test_a_renamed_workflow_gets_its_name_back_unless_the_app_gave_it_another(tmp_path: Path) -> None:
    rows: Rows = {
        "workspaces": [{"id": LIVE, "slug": "default"}],
        "workflows": [{"id": "a", "workspace_id": LIVE, "handle": "flow"}, {"id": "b", "workspace_id": DEAD, "handle": "flow"}],
    }  # fmt: skip
    trip = Trip(tmp_path, rows)
    payload = json.dumps({"handle": "flow", "workspace_id": DEAD, "name": "n"})
    converter = trip.way.converter("workflows")
    made = converter.convert(("b", "flow", 0, payload, DAY, DAY, DEAD))
    there = trip.there(converter, made)
    assert there["handle"] == "flow-2" and json.loads(there["payload"]) == {
        "handle": "flow-2",
        "workspace_id": LIVE,
        "name": "n",
    }
    found = trip.home("workflows", there, made.kept)
    assert (found["handle"], found["workspace_id"], json.loads(found["payload"])) == ("flow", DEAD, json.loads(payload))
    there |= {"handle": "mine", "payload": json.dumps({"handle": "mine", "workspace_id": LIVE, "name": "n"})}
    found = trip.home("workflows", there, made.kept)
    assert found["handle"] == "mine" and json.loads(found["payload"])["handle"] == "mine"


def test_what_the_old_release_has_no_place_for_is_left_behind_and_said(tmp_path: Path) -> None:
    trip = Trip(tmp_path, {"workflows": [{"id": "w"}]}, OLD)
    empty = dict.fromkeys(KNOWN.types["workflows"])
    payload = {
        "name": "n",
        "handle": "flow",
        "workspace_id": trip.way.home.id,
        "team_id": "team",
        "brand_new": [1.10],
        "nothing": None,
    }
    there = empty | {"id": "w", "handle": "flow", "is_archived": "false", "payload": json.dumps(payload), "created_at": "2026-01-01 00:00:00+00",
                     "updated_at": "2026-01-01 00:00:00+00", "workspace_id": trip.way.home.id, "team_id": "team"}  # fmt: skip
    found = trip.home("workflows", there, [])
    assert found == {"id": "w", "payload": '{"name":"n"}', "created_at": DAY, "updated_at": DAY}
    assert [(line["table"], line["key"], line["column"], line["value"]) for line in trip.left] == [
        ("workflows", ["w"], "payload.brand_new", "[1.1]"), ("workflows", ["w"], "handle", "flow"), ("workflows", ["w"], "team_id", "team"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        ("text", None, None), ("text", f"a{MARK}\u2400", "a\x00"), ("boolean", "true", 1), ("boolean", "false", 0), ("integer", "-7", -7), ("bigint", "9", 9),
        ("bytea", memoryview(b"\x00\xff"), b"\x00\xff"), ("jsonb", f'"{MARK}#NaN"', "NaN"), ("uuid", LIVE, LIVE),
    ],
)  # fmt: skip
def test_a_value_for_sqlite(kind: str, value: Any, shown: Any) -> None:
    assert back._back(kind, value, sqlite_times=False, zone=False, escaped=True) == shown


def test_the_vault_s_key_goes_with_the_files(tmp_path: Path) -> None:
    source = Trip(tmp_path / "a", {}).way.source
    (tmp_path / "a" / "vault.key").write_text("key")
    (tmp_path / "a" / "vault.key").chmod(0o600)
    (tmp_path / "out").mkdir()
    assert back.beside(source, tmp_path / "out") == ["vault.key"]
    assert (tmp_path / "out" / "vault.key").read_text() == "key" and (
        tmp_path / "out" / "vault.key"
    ).stat().st_mode & 0o777 == 0o600


def test_an_attachment_with_a_name_that_no_file_can_have() -> None:
    assert back.file_name("k", "a/b\x00.png") == "k_a_b_.png"
    long = back.file_name("k", "\u00e4" * 250 + ".png")
    assert len(long.encode()) <= 255 and long.startswith("k_\u00e4") and long.endswith("\u00e4.png")
    assert len(back.file_name("k", "x" * 250 + "." + "y" * 90).encode()) == 255


@pytest.mark.parametrize(
    ("release", "seen", "more", "less"),
    [
        ("0.15", [], set(), {"handle", "workspace_id"}),
        ("0.15", ["name", "id"], set(), {"handle"}),
        (
            "0.15",
            ["name", "handle", "draft_access"],
            {"handle", "draft_access", "slug"},
            {"workspace_id", "share_url"},
        ),  # 0.24 to 0.33
        ("0.34", [], {"handle", "workspace_id", "share_url"}, {"colour"}),
        ("0.34", ["name"], {"workspace_id"}, {"colour"}),
        ("0.34", ["name", "workspace_id"], {"workspace_id", "slug"}, {"share_url"}),  # a bridge release with fewer keys
    ],
)
def test_what_the_sources_own_rows_have_is_never_taken_from_them(
    release: str, seen: list[str], more: set[str], less: set[str]
) -> None:
    found: Any = SimpleNamespace(release=release, report={"keys": {"workflows": seen}})
    keys = back.allowed(BY_NAME["workflows"], found)
    assert keys >= more | {"id", "name"} and not keys & less
    found.report = {}
    assert back.allowed(BY_NAME["workflows"], found) == BY_NAME["workflows"].kept[release]
