"""The pure parts of an upgrade: names that collide, where rows go, what is compared, what people are told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcheo_db.errors import UserError
from orcheo_db.upgrade import digest, report, schema, workspaces
from orcheo_db.upgrade.digest import Digest
from orcheo_db.upgrade.names import Named, free, renames
from orcheo_db.upgrade.tables import TABLES, scoped
from orcheo_db.upgrade.workspaces import Destination, Workspace

NOW = datetime(2026, 11, 25, tzinfo=UTC)
DEAD = "0b02647b-4355-4b59-8007-7d48fb2423e2"
OTHER = "50d4fc45-c1f2-4485-8f1e-e518f3295570"
HOME = Workspace("828f004c-2d64-40e4-a954-c66e68a447bb", "default", "active", 0)
CLOSED = Workspace("2d943ff8-34e5-4153-ad32-3da967dce6b1", "closed", "suspended", 1)


def named(key: str, name: str, *, moved: bool = True, age: int = 0) -> Named:
    return Named(key, "w", name, moved, NOW - timedelta(days=age))


def test_a_name_stays_with_the_row_that_was_there_then_with_the_newest():
    rows = [named("a", "mail", age=1), named("b", "Mail"), named("c", "mail", moved=False, age=9)]
    assert [(new.id, new.old, new.new) for new in renames("credentials", rows, 64)] == [
        ("b", "Mail", "Mail-2"),
        ("a", "mail", "mail-3"),
    ]
    assert [(new.id, new.new) for new in renames("credentials", rows[:2], 64)] == [("a", "mail-2")]


def test_a_suffix_that_somebody_has_is_not_given_and_a_long_name_stays_within_its_limit():
    rows = [named("a", "x"), named("b", "x", age=1), named("c", "x-2", age=2)]
    assert [(new.id, new.new) for new in renames("workflows", rows, 64)] == [("b", "x-3")]
    assert free("h" * 64, set(), 64) == "h" * 62 + "-2"
    assert free("ab-cdef", set(), 5) == "ab-2"  # no two hyphens: a handle could not have them


def test_two_rows_that_were_there_before_are_left_alone():
    assert renames("workflows", [named("a", "x", moved=False), named("b", "x", moved=False)], 64) == []


@given(
    st.lists(
        st.tuples(st.sampled_from(["w1", "w2"]), st.sampled_from(["a", "A", "a-2", "b"]), st.booleans()), max_size=12
    )
)
def test_after_renaming_no_row_that_came_shares_a_name(given_rows):
    rows = [Named(str(n), w, name, moved, NOW - timedelta(days=n)) for n, (w, name, moved) in enumerate(given_rows)]
    new = {rename.id: rename.new for rename in renames("workflows", rows, 64)}
    for workspace in ("w1", "w2"):
        moved = [new.get(row.id, row.name).lower() for row in rows if row.workspace == workspace and row.moved]
        stayed = {row.name.lower() for row in rows if row.workspace == workspace and not row.moved}
        assert len(moved) == len(set(moved)) and not stayed & set(moved)


def test_strays_are_rows_without_a_workspace_or_with_one_that_is_not_there():
    tables = scoped({"workflows": {"workspace_id": "text"}, "chat_attachments": {"workspace_id": "text"}})
    counts = {"workflows": {HOME.id: 3, DEAD: 2, "": 1, CLOSED.id: 4}, "chat_attachments": {"": 7}}
    strays = workspaces.stray(counts, [HOME, CLOSED], tables)
    assert strays == {
        "workflows": {DEAD: 2, "": 1}
    }  # an attachment of no workspace is everybody's; a closed one's rows stay
    assert workspaces.groups(strays) == {DEAD: 2, "": 1}
    assert workspaces.inactive(counts, [HOME, CLOSED]) == {"closed": 4}


def test_a_default_that_is_not_there_is_made_with_the_largest_groups_id():
    strays = {"workflows": {OTHER: 2, DEAD: 5, "": 9}}
    assert workspaces.destination([], strays, None) == Destination(DEAD, "default", True)
    assert workspaces.destination([HOME], strays, None) == Destination(HOME.id, "default", False)
    assert workspaces.destination([HOME], {}, None) is None


@pytest.mark.parametrize(
    ("slug", "words"),
    [
        ("nowhere", "there is no workspace 'nowhere' (there are: default)"),
        ("closed", "workspace 'closed' is suspended"),
    ],
)
def test_a_workspace_that_can_not_be_is_refused(slug, words):
    with pytest.raises(UserError) as caught:
        workspaces.destination([HOME, CLOSED], {"workflows": {DEAD: 1}}, slug)
    assert words in str(caught.value) and str(caught.value).endswith("Nothing was changed.")


def test_tables_come_with_parents_first_and_unknown_ones_by_their_column():
    found = scoped(
        {
            "extra": {"workspace_id": "text", "workflow_id": "text"},
            "workflows": {"workspace_id": "text"},
            "workspaces": {"id": "uuid"},
        }
    )
    assert [table.name for table in found] == ["workflows", "extra"]
    assert found[1].follows and found[1].follows.parent == "workflows"
    names = [table.name for table in TABLES]
    assert all(names.index(table.follows.parent) < names.index(table.name) for table in TABLES if table.follows)


def test_what_may_change_is_named():
    credentials = next(table for table in TABLES if table.name == "credentials")
    assert credentials.deliberate == (
        "workspace_id", "payload.workspace_id", "payload.scope.workspace_ids", "workflow_id", "name", "payload.name",
    )  # fmt: skip


def test_differences_between_two_digests():
    before = {"a": Digest(2, "10"), "b": Digest(1, "5"), "c": Digest(1, "7"), "d": Digest(0, "0")}
    after = {"a": Digest(2, "11"), "b": Digest(0, "0"), "d": Digest(0, "0")}
    assert digest.differences(before, after) == [
        "table a: the contents of its 2 rows changed",
        "table b has 0 rows, before it had 1",
        "table c is gone",
    ]
    assert digest.from_document(digest.document(before)) == before
    assert Digest(1, "-3").plus(Digest(2, "5")) == Digest(3, "2")


def test_a_create_table_is_taken_up_to_its_closing_parenthesis():
    source = 'X = """CREATE TABLE IF NOT EXISTS t (\n a TEXT CHECK (a IN (\'x\')),\n b INT\n);\nCREATE TABLE IF NOT EXISTS t2 (c INT);"""'
    assert schema.created_in(source, "t") == ["CREATE TABLE IF NOT EXISTS t (\n a TEXT CHECK (a IN ('x')),\n b INT\n)"]
    assert schema.created_in(source, "nothing") == []


def document(**changes):
    return {
        "missing_columns": [], "stale_indexes": [], "stray": {}, "groups": {}, "destination": None, "renames": [], "inactive": {},
        "ownerless": [], "tokens_without_workspace": 0, "single_workspace": False, "vault": None, "attachment_files": 0,
        "retention": {"chat_threads": {"days": 30, "rows": 0}, "traces": {"days": 7, "rows": 0}}, "unfinished_runs": 0, "sessions": [],
        "former_tables": [],
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"missing_columns": ["workflows.team_id"]}, "workflows.team_id"),
        ({"retention": {"chat_threads": {"days": 30, "rows": 4}, "traces": {"days": 7, "rows": 0}}}, "4 chat threads not updated for 30 days would be deleted"),
        ({"vault": {"credentials": 3, "unreadable": 1}}, "does not open 1 of 3"),
        ({"unfinished_runs": 1}, "1 run pending or running"),
        ({"inactive": {"closed": 4}}, "suspended or deleted workspace 'closed' stay"),
        ({"tokens_without_workspace": 2}, "2 service tokens without a workspace: the new release refuses them"),
        ({"tokens_without_workspace": 2, "single_workspace": True}, "2 service tokens without a workspace get their own"),
        ({"sessions": [{"pid": 7, "application": "", "state": "active"}]}, "server process 7 (no name, active)"),
    ],
)  # fmt: skip
def test_every_hazard_is_one_line(changes, words):
    (line,) = report.hazards(document(**changes))
    assert words in line and "\n" not in line


def test_nothing_to_say_is_nothing():
    assert report.hazards(document()) == []
