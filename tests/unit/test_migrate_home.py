"""Which workspace the rows go to, and whose names give way there."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from orcheo_db.errors import UserError
from orcheo_db.migrate import home
from orcheo_db.migrate.home import Home, Lookup
from orcheo_db.migrate.source import look
from orcheo_db.upgrade.workspaces import Workspace
from tests.unit.migrate_files import OLD, Rows, add, install

DEAD, SMALL, LIVE, OTHER = (f"{digit * 8}-0000-0000-0000-000000000000" for digit in "abcd")
THERE = [Workspace(LIVE, "default", "active", 1), Workspace(OTHER, "other", "active", 1)]


def find(
    directory: Path,
    rows: Rows,
    there: list[Workspace] | None = None,
    wanted: str | None = None,
    earlier: Home | None = None,
) -> Home:
    return home.find(look(install(directory, rows) if rows else directory), there or [], wanted, earlier)


def more(directory: Path, table: str, *rows: dict[str, Any]) -> None:
    with closing(sqlite3.connect(directory / "workflows.sqlite")) as conn:
        for row in rows:
            add(conn, table, row)
        conn.commit()


def workflow(key: str, workspace: str | None, handle: str | None = None, day: int = 1, **other: Any) -> dict[str, Any]:
    return {
        "id": key,
        "workspace_id": workspace,
        "handle": handle,
        "updated_at": f"2026-01-{day:02}T00:00:00+00:00",
        **other,
    }


# --- the workspace ------------------------------------------------------------------------------------------------------------


def test_a_new_default_gets_the_id_of_the_largest_group_so_that_its_rows_need_no_change(tmp_path: Path) -> None:
    rows = {
        "workflows": [workflow("a", DEAD), workflow("b", SMALL), workflow("c", None), workflow("d", None), workflow("e", None)],
        "workflow_runs": [{"id": "r", "workflow_id": "a", "workspace_id": DEAD}],
    }  # fmt: skip
    found = find(tmp_path, rows)
    assert (found.id, found.slug, found.new, found.single) == (DEAD, "default", True, True)
    assert found.known == {DEAD}
    assert found.strays == {"workflows": {DEAD: 1, SMALL: 1, "": 3}, "workflow_runs": {DEAD: 1}}


def test_rows_without_any_workspace_get_a_new_one(tmp_path: Path) -> None:
    first, second = (find(tmp_path / name, {"workflows": [workflow("a", None)]}) for name in "ab")
    assert first.new and first.id != second.id and first.known == {first.id} and first.slug == "default"
    old = home.find(look(install(tmp_path / "old", {"workflows": [{"id": "a"}]}, OLD)), [], None)
    assert old.new and old.strays == {"workflows": {"": 1}}
    odd = find(tmp_path / "odd", {"workflows": [workflow("a", "no uuid")]})
    assert odd.new and odd.id != "no uuid"


def test_known_workspaces_stay_and_nothing_is_made_where_nothing_strays(tmp_path: Path) -> None:
    rows = {
        "workspaces": [{"id": LIVE, "slug": "mine"}, {"id": OTHER, "slug": "closed", "status": "deleted"}],
        "workflows": [workflow("a", LIVE), workflow("b", OTHER)],
    }
    found = find(tmp_path / "own", rows)
    assert (found.id, found.slug, found.new, set(found.known)) == ("", "", False, {LIVE, OTHER}) and found.strays == {}
    assert find(tmp_path / "empty", {"workflows": []}).id == ""
    rows["workflows"].append(workflow("c", DEAD))
    found = find(tmp_path / "mixed", rows)
    assert (found.id, found.slug, found.new, set(found.known)) == (DEAD, "default", True, {DEAD, LIVE, OTHER})


def test_the_target_s_default_takes_the_strays(tmp_path: Path) -> None:
    rows = {"workflows": [workflow("a", DEAD), workflow("b", OTHER)]}
    found = find(tmp_path / "a", rows, THERE)
    assert (found.id, found.slug, found.new, set(found.known)) == (LIVE, "default", False, {LIVE, OTHER})
    found = find(tmp_path / "b", rows, THERE, "other")
    assert (found.id, found.slug) == (OTHER, "other")
    rows = {
        "workspaces": [{"id": SMALL, "slug": "default"}, {"id": DEAD, "slug": "second"}],
        "workflows": [workflow("a", SMALL)],
    }
    found = find(tmp_path / "c", rows, THERE)  # the target's own of that slug, and the source's others
    assert (found.id, set(found.known)) == (LIVE, {LIVE, OTHER, DEAD})


@pytest.mark.parametrize(
    ("there", "wanted", "words"),
    [
        (THERE, "none", r"there is no workspace 'none' \(there are: default, other\)"), ([], "none", r"\(there are: none\)"),
        ([Workspace(LIVE, "default", "suspended", 1)], None, "workspace 'default' is suspended"),
    ],
)  # fmt: skip
def test_a_workspace_that_can_not_take_them(
    tmp_path: Path, there: list[Workspace], wanted: str | None, words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        find(tmp_path, {"workflows": [workflow("a", DEAD)]}, there, wanted)
    assert "\n" not in str(caught.value) and "Nothing was changed" in str(caught.value)


def test_somebody_who_is_a_member_ends_the_single_mode(tmp_path: Path) -> None:
    rows: dict[str, list[dict[str, Any]]] = {"workspaces": [{"id": LIVE, "slug": "mine"}]}
    assert find(tmp_path / "a", rows).single
    rows["workspace_memberships"] = [{"id": "m", "workspace_id": LIVE}]
    assert not find(tmp_path / "b", rows).single


def test_what_everybody_shares_is_no_stray(tmp_path: Path) -> None:
    rows = {
        "chat_threads": [{"id": "t", "workspace_id": LIVE}],
        "chat_attachments": [{"id": "f"}],
        "workspaces": [{"id": LIVE, "slug": "mine"}],
    }
    assert find(tmp_path, rows).strays == {}


# --- rows follow their workflow -------------------------------------------------------------------------------------------------


def test_rows_follow_their_workflow(tmp_path: Path) -> None:
    rows = {
        "workspaces": [{"id": LIVE, "slug": "mine"}], "workflows": [workflow("a", LIVE), workflow("b", DEAD), workflow("c", None)],
        "chat_threads": [
            {"id": "own", "workspace_id": LIVE, "workflow_id": "b"}, {"id": "a", "workspace_id": SMALL, "workflow_id": "a"}, {"id": "none"},
            {"id": "gone", "workflow_id": "gone"}, {"id": "b", "workflow_id": "b"},
        ],
    }  # fmt: skip
    found = find(tmp_path, rows)
    lookup = Lookup(look(tmp_path), found)
    asked = [lookup.workspace_of("workflows", "id", key) for key in ("a", "b", "c", "gone", "")]
    assert asked == [LIVE, found.id, found.id, found.id, found.id] and found.id == DEAD
    asked = [lookup.workspace_of("chat_threads", "id", key) for key in ("own", "a", "none", "gone", "b")]
    assert asked == [LIVE, LIVE, found.id, found.id, found.id]
    assert lookup.workspace_of("credentials", "id", "x") == found.id
    assert lookup.exists("workflows", ("id",), ("a",)) and not lookup.exists("workflows", ("id",), ("gone",))
    assert not lookup.exists("no table", ("id",), ("a",))
    lookup.close()


# --- names --------------------------------------------------------------------------------------------------------------------


def test_handles_that_collide_are_renamed(tmp_path: Path) -> None:
    rows = {
        "workflows": [
            workflow("old", DEAD, "flow", 1), workflow("new", SMALL, "Flow", 3), workflow("third", None, "flow", 2), workflow("taken", DEAD, "flow-2"),
            workflow("archived", SMALL, "flow", 9, is_archived=1), workflow("none", DEAD), workflow("alone", SMALL, "alone"),
        ],
    }  # fmt: skip
    found = find(tmp_path, rows)
    assert found.id == DEAD  # whose rows stay where they are
    assert found.renames == {("workflows", "new"): "Flow-3", ("workflows", "third"): "flow-4"}


def test_of_rows_that_all_come_the_last_changed_keeps_its_name(tmp_path: Path) -> None:
    rows = {
        "workspaces": [{"id": LIVE, "slug": "default"}],
        "workflows": [workflow("a", DEAD, "flow", 1), workflow("b", SMALL, "Flow", 3), workflow("c", None, "flow", 2)],
    }
    assert find(tmp_path, rows).renames == {("workflows", "a"): "flow-3", ("workflows", "c"): "flow-2"}


def test_a_row_that_was_there_keeps_its_name_and_two_that_were_there_too(tmp_path: Path) -> None:
    rows = {
        "workspaces": [{"id": LIVE, "slug": "default"}, {"id": OTHER, "slug": "other"}],
        "workflows": [workflow("there", LIVE, "flow", 1), workflow("comes", DEAD, "flow", 9), workflow("elsewhere", OTHER, "flow", 5)],
        "credentials": [
            {"id": "x", "name": "key", "workspace_id": LIVE}, {"id": "y", "name": "KEY", "workspace_id": LIVE}, {"id": "z", "name": "key", "workflow_id": "comes"},
            {"id": "o", "name": "key", "workflow_id": "elsewhere"},
        ],
    }  # fmt: skip
    found = find(tmp_path, rows)
    assert found.id == LIVE
    assert found.renames == {("workflows", "comes"): "flow-2", ("credentials", "z"): "key-2"}


def test_0_15_has_no_handles(tmp_path: Path) -> None:
    assert home.find(look(install(tmp_path, {"workflows": [{"id": "a"}, {"id": "b"}]}, OLD)), [], None).renames == {}


def test_a_long_name_stays_within_its_limit(tmp_path: Path) -> None:
    rows = {"workflows": [workflow("a", None, "x" * 64, 1), workflow("b", None, "x" * 64, 2)]}
    assert find(tmp_path, rows).renames == {("workflows", "a"): "x" * 62 + "-2"}


# --- earlier decisions --------------------------------------------------------------------------------------------------------


def test_earlier_decisions_hold_while_the_old_app_goes_on(tmp_path: Path) -> None:
    first = find(tmp_path, {"workflows": [workflow("a", DEAD, "flow", 1), workflow("b", SMALL, "flow", 2)]})
    assert first.renames == {("workflows", "b"): "flow-2"}
    more(
        tmp_path,
        "workflows",
        *(workflow(f"n{i}", SMALL, f"other{i}") for i in range(5)),
        workflow("c", SMALL, "flow", 9),
        workflow("d", None, "flow-2", 9),
    )
    again = find(tmp_path, {}, earlier=first)
    assert (again.id, again.slug, again.new, again.single) == (
        DEAD,
        "default",
        True,
        True,
    )  # SMALL is the largest group now
    assert again.renames[("workflows", "b")] == "flow-2" and "flow" not in again.renames.values()
    assert ("workflows", "d") in again.renames  # the name was given away before it came
    names = {"a": "flow", "b": "flow", "c": "flow", "d": "flow-2"} | {
        key: new for (_, key), new in again.renames.items()
    }
    assert len({name.lower() for name in names.values()}) == 4
    assert find(tmp_path, {}, earlier=again).renames == again.renames
    assert first.renames == {("workflows", "b"): "flow-2"}  # itself unchanged


def test_a_first_stray_that_comes_later_finds_a_home(tmp_path: Path) -> None:
    rows = {"workspaces": [{"id": LIVE, "slug": "default"}], "workflows": [workflow("a", LIVE)]}
    first = find(tmp_path, rows)
    assert first.id == ""
    more(tmp_path, "workflows", workflow("b", DEAD))
    again = find(tmp_path, {}, [Workspace(LIVE, "default", "active", 1)], earlier=first)
    assert (again.id, again.new) == (LIVE, False)


def test_a_decision_is_kept_as_json() -> None:
    made = Home(
        DEAD, "default", True, frozenset({DEAD, LIVE}), False, {("workflows", "a"): "b"}, frozenset({("p", DEAD)}), frozenset({("x.y", "k")}), {"workflows": {"": 3}}
    )  # fmt: skip
    assert Home.read(json.loads(json.dumps(made.document()))) == made
    assert Home.read(json.loads(json.dumps(Home().document()))) == Home()


# --- plugins and the graph store ------------------------------------------------------------------------------------------------


def plugin(name: str, workspace: str) -> dict[str, str]:
    return {"plugin_name": name, "workspace_id": workspace}


def test_one_state_of_a_plugin_stays_in_a_workspace(tmp_path: Path) -> None:
    rows = {
        "workspaces": [{"id": LIVE, "slug": "default"}, {"id": OTHER, "slug": "other"}],
        "plugin_installations": [
            plugin("p", DEAD), plugin("p", LIVE), plugin("p", OTHER), plugin("p", SMALL), plugin("q", SMALL), plugin("q", DEAD), plugin("r", DEAD), plugin("s", OTHER),
        ],
    }  # fmt: skip
    found = find(tmp_path, rows)
    assert found.id == LIVE
    assert found.losers == {("p", DEAD), ("p", SMALL), ("q", SMALL)}


def test_the_store_s_items_move_with_their_workspace_unless_one_of_that_name_is_there(tmp_path: Path) -> None:
    def item(prefix: str, key: str = "k") -> dict[str, str]:
        return {"prefix": prefix, "key": key}

    rows = {
        "workflows": [workflow("a", DEAD)], "workspaces": [{"id": OTHER, "slug": "other"}],
        "store": [item(f"{DEAD}.a"), item(f"{SMALL}.a"), item(f"{LIVE}.a"), item(f"{LIVE}.b"), item(f"{SMALL}.b"), item(f"{OTHER}.a"), item("plain.a"), item(SMALL),
                  item(f"{LIVE}.a", "z")],
    }  # fmt: skip
    found = find(tmp_path, rows)
    assert found.id == DEAD
    assert found.stays == {(f"{SMALL}.a", "k"), (f"{LIVE}.a", "k"), (f"{LIVE}.b", "k")}
    moved = {row["prefix"]: found.store_prefix(row["prefix"], row["key"]) for row in rows["store"][:-1]}
    assert moved == {
        f"{DEAD}.a": f"{DEAD}.a", f"{SMALL}.a": f"{SMALL}.a", f"{LIVE}.a": f"{LIVE}.a", f"{LIVE}.b": f"{LIVE}.b", f"{SMALL}.b": f"{DEAD}.b",
        f"{OTHER}.a": f"{OTHER}.a", "plain.a": "plain.a", SMALL: DEAD,
    }  # fmt: skip
    assert found.store_prefix(f"{LIVE}.a", "z") == f"{DEAD}.a"
    ends = [(found.store_prefix(row["prefix"], row["key"]), row["key"]) for row in rows["store"]]
    assert len(set(ends)) == len(ends)
    assert Home().store_prefix(f"{DEAD}.a", "k") == f"{DEAD}.a"
