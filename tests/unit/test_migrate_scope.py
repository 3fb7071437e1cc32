"""Rows on their way into their workspace: what changes in them, and that what was there is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orcheo_db.migrate.convert import PLUGIN, RENAMED, WORKSPACE, Kept, from_whole
from orcheo_db.migrate.home import Home
from tests.unit.migrate_files import Rows, Way, install

DEAD, SMALL, LIVE, OTHER = (f"{digit * 8}-0000-0000-0000-000000000000" for digit in "abcd")
BASE: dict[str, list[dict[str, Any]]] = {
    "workspaces": [{"id": LIVE, "slug": "default"}, {"id": OTHER, "slug": "other"}],
    "workflows": [{"id": "w", "workspace_id": OTHER}, {"id": "dead", "workspace_id": DEAD}],
}


def way(directory: Path, rows: Rows, decided: Home | None = None) -> Way:
    return Way(install(directory, {**BASE, **rows}), decided)


def payload(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


@pytest.mark.parametrize(
    ("row", "final", "kept"),
    [
        ({"workflow_id": "w", "workspace_id": OTHER}, OTHER, None), ({"workflow_id": "w", "workspace_id": LIVE}, LIVE, None),
        ({"workflow_id": "w", "workspace_id": DEAD}, OTHER, Kept("workspace_id", None, DEAD.encode(), "text", WORKSPACE)),
        ({"workflow_id": "w"}, OTHER, Kept("workspace_id", None, None, "null", WORKSPACE)),
        ({"workflow_id": "dead", "workspace_id": SMALL}, LIVE, Kept("workspace_id", None, SMALL.encode(), "text", WORKSPACE)),
        ({"workflow_id": "gone", "workspace_id": ""}, LIVE, Kept("workspace_id", None, b"", "text", WORKSPACE)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("table", ["execution_history", "workflow_runs", "agentensor_checkpoints", "chat_threads"])
def test_a_row_stays_follows_its_workflow_or_comes_home(
    tmp_path: Path, table: str, row: dict[str, Any], final: str, kept: Kept | None
) -> None:
    key = "execution_id" if table == "execution_history" else "id"
    found, originals = way(tmp_path, {table: [{key: "x", **row}]}).one(table)
    assert found["workspace_id"] == final
    assert originals == ([kept] if kept else [])
    if table == "workflow_runs":
        assert json.loads(found["payload"]) == {"workspace_id": final}


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ({"a": 1}, {"a": 1, "workspace_id": LIVE}, []), ({"workspace_id": LIVE}, {"workspace_id": LIVE}, []),
        ({"workspace_id": DEAD, "a": 1}, {"workspace_id": LIVE, "a": 1}, [Kept("payload", "workspace_id", f'"{DEAD}"'.encode(), "json", WORKSPACE)]),
        ({"workspace_id": None}, {"workspace_id": LIVE}, [Kept("payload", "workspace_id", b"null", "json", WORKSPACE)]),
        ({"workspace_id": [1.10]}, {"workspace_id": LIVE}, [Kept("payload", "workspace_id", b"[1.1]", "json", WORKSPACE)]),
    ],
)  # fmt: skip
def test_a_payload_says_the_same_workspace(tmp_path: Path, before: Any, after: Any, kept: list[Kept]) -> None:
    rows = {"workflow_runs": [{"id": "x", "workspace_id": LIVE, "payload": payload(before)}]}
    found, originals = way(tmp_path, rows).one("workflow_runs")
    assert json.loads(found["payload"]) == after and originals == kept


def test_a_payload_that_is_written_anew_keeps_every_digit(tmp_path: Path) -> None:
    digits = '{"a":1.10,"b":123456789012345678901234567890,"c":0.1234567890123456789012345678901234567890,"d":1e5,"e":"\\u0000 \\ud800 ä"}'
    found, _ = way(tmp_path, {"workflow_runs": [{"id": "x", "payload": digits}]}).one("workflow_runs")
    body = found["payload"]
    assert (
        '"a":1.10,"b":123456789012345678901234567890,"c":0.1234567890123456789012345678901234567890,"d":100000.0'
        in body
    )


def test_a_payload_that_is_right_is_not_written_anew(tmp_path: Path) -> None:
    document = f'{{ "a" : 1.10, "workspace_id" : "{LIVE}" }}'
    found, kept = way(tmp_path, {"workflow_runs": [{"id": "x", "workspace_id": LIVE, "payload": document}]}).one(
        "workflow_runs"
    )
    assert found["payload"] == document and not kept


def test_a_workflow_whose_name_is_taken_is_renamed_in_its_payload_too(tmp_path: Path) -> None:
    rows = {
        "workflows": [
            {"id": "a", "workspace_id": LIVE, "handle": "flow", "payload": payload({"handle": "flow", "workspace_id": LIVE})},
            {"id": "b", "workspace_id": DEAD, "handle": "flow", "payload": payload({"handle": "flow", "workspace_id": DEAD})},
        ],
    }  # fmt: skip
    found = way(tmp_path, rows)
    stays, moves = found.rows("workflows")
    assert not stays.kept
    row = dict(zip(found.converter("workflows").into, moves.rows[0][1], strict=True))
    assert row["handle"] == "flow-2" and json.loads(str(row["payload"])) == {"handle": "flow-2", "workspace_id": LIVE}
    assert set(moves.kept) == {
        Kept("workspace_id", None, DEAD.encode(), "text", WORKSPACE), Kept("handle", None, b"flow", "text", RENAMED),
        Kept("payload", "workspace_id", f'"{DEAD}"'.encode(), "json", WORKSPACE), Kept("payload", "handle", b'"flow"', "json", RENAMED),
    }  # fmt: skip


def test_a_credential_s_scope_and_hint_follow(tmp_path: Path) -> None:
    scope = {"workspace_ids": [DEAD, OTHER, SMALL], "workflow_ids": []}
    rows = {
        "credentials": [
            {
                "id": "c",
                "workflow_id": DEAD,
                "workspace_id": DEAD,
                "payload": payload({"scope": scope, "workspace_id": LIVE}),
            }
        ]
    }
    row, kept = way(tmp_path, rows).one("credentials")
    assert row["workflow_id"] == LIVE and row["workspace_id"] == LIVE
    assert json.loads(row["payload"])["scope"] == {"workspace_ids": [LIVE, OTHER], "workflow_ids": []}
    assert set(kept) == {
        Kept("workspace_id", None, DEAD.encode(), "text", WORKSPACE), Kept("workflow_id", None, DEAD.encode(), "text", WORKSPACE),
        Kept("payload", "scope", payload(scope).encode(), "json", WORKSPACE),
    }  # fmt: skip
    good = {
        "credentials": [
            {
                "id": "c",
                "workflow_id": OTHER,
                "workspace_id": OTHER,
                "payload": payload({"scope": {"workspace_ids": [OTHER]}, "workspace_id": OTHER}),
            }
        ]
    }
    row, kept = way(tmp_path / "good", good).one("credentials")
    assert not kept and row["workflow_id"] == OTHER


def test_an_alert_follows_its_credential(tmp_path: Path) -> None:
    rows = {
        "credentials": [{"id": "c", "workspace_id": DEAD, "workflow_id": "dead"}, {"id": "d", "workspace_id": OTHER}],
        "governance_alerts": [
            {"id": "1", "payload": payload({"credential_id": "c"})}, {"id": "2", "payload": payload({"credential_id": "d"})},
            {"id": "3", "payload": payload({"credential_id": None})}, {"id": "4", "payload": "{}"},
        ],
    }  # fmt: skip
    found = way(tmp_path, rows)
    place = found.converter("governance_alerts").into.index("workspace_id")
    assert [made.rows[0][1][place] for made in found.rows("governance_alerts")] == [LIVE, OTHER, LIVE, LIVE]


@pytest.mark.parametrize(
    ("before", "after", "single"),
    [
        (None, [LIVE], True), ("[]", [LIVE], True), (None, None, False), ("[]", [], False), (payload([DEAD]), [LIVE], True), (payload([OTHER]), [OTHER], True),
        (payload([DEAD, OTHER, SMALL]), [LIVE, OTHER], False), (payload([OTHER, LIVE]), [OTHER, LIVE], True),
    ],
)  # fmt: skip
def test_a_token_opens_the_workspaces_that_are_there(
    tmp_path: Path, before: str | None, after: Any, single: bool
) -> None:
    rows = {"service_tokens": [{"identifier": "t", "workspace_id": DEAD, "workspace_ids": before}]}
    if not single:
        rows["workspace_memberships"] = [{"id": "m", "workspace_id": LIVE}]
    row, kept = way(tmp_path, rows).one("service_tokens")
    assert (json.loads(row["workspace_ids"]) if row["workspace_ids"] else None) == after
    originals = [one for one in kept if one.column == "workspace_ids"]
    changed = (json.loads(before) if before else None) != after
    assert originals == (
        [Kept("workspace_ids", None, before.encode() if before else None, "text" if before else "null", WORKSPACE)]
        if changed
        else []
    )


def test_a_plugin_s_losing_state_is_kept_whole_and_a_dead_one_moves(tmp_path: Path) -> None:
    states = [("p", LIVE), ("p", DEAD), ("q", DEAD), ("r", OTHER)]
    found = way(
        tmp_path, {"plugin_installations": [{"plugin_name": p, "workspace_id": w, "enabled": 0} for p, w in states]}
    )
    stays, loses, moves, others = found.rows("plugin_installations")
    assert (
        stays.rows[0][1] == ("p", LIVE, "f") and others.rows[0][1] == ("r", OTHER, "f") and not stays.kept + others.kept
    )
    assert moves.rows[0][1] == ("q", LIVE, "f") and moves.kept == [
        Kept("workspace_id", None, DEAD.encode(), "text", WORKSPACE)
    ]
    (kept,) = loses.kept
    assert not loses.rows and kept.reason == PLUGIN
    assert from_whole(kept.original or b"") == {"plugin_name": "p", "workspace_id": DEAD, "enabled": 0}


def test_a_store_item_moves_with_its_workspace(tmp_path: Path) -> None:
    items = [f"{DEAD}.a.b", f"{OTHER}.a", "users.1", DEAD]
    found = way(tmp_path, {"store": [{"prefix": prefix, "value": b'{"a": 1}'} for prefix in items]})
    converter, made = found.converter("store"), found.rows("store")
    rows = [dict(zip(converter.into, one.rows[0][1], strict=True)) for one in made]
    assert [row["prefix"] for row in rows] == [f"{LIVE}.a.b", f"{OTHER}.a", "users.1", LIVE]
    assert [one.kept for one in made] == [
        [Kept("prefix", None, f"{DEAD}.a.b".encode(), "text", WORKSPACE)], [], [], [Kept("prefix", None, DEAD.encode(), "text", WORKSPACE)],
    ]  # fmt: skip
    assert rows[0]["value"] == '{"a": 1}' and str(rows[0]["created_at"]).endswith("+00:00")


def test_an_attachment_of_no_thread_is_everybody_s(tmp_path: Path) -> None:
    rows: Rows = {
        "chat_threads": [{"id": "t", "workflow_id": "w", "workspace_id": DEAD}],
        "chat_attachments": [{"id": "f"}, {"id": "g", "thread_id": None}, {"id": "h", "thread_id": "gone"}],
    }  # fmt: skip
    found = way(tmp_path, rows)
    into = found.converter("chat_attachments").into
    made = [dict(zip(into, one.rows[0][1], strict=True)) for one in found.rows("chat_attachments")]
    assert [(row["thread_id"], row["workspace_id"], row["workflow_id"]) for row in made] == [
        ("t", OTHER, "w"),
        (None, None, None),
        (None, None, None),
    ]


def test_where_nothing_strays_nothing_is_touched(tmp_path: Path) -> None:
    rows: Rows = {
        "workflows": [{"id": "w", "workspace_id": OTHER, "payload": payload({"workspace_id": OTHER})}],
        "workflow_runs": [{"id": "r", "workspace_id": OTHER, "payload": payload({"workspace_id": OTHER})}],
    }
    found = way(tmp_path, rows)
    assert found.home.id == ""
    for table in rows:
        row, kept = found.one(table)
        assert row["workspace_id"] == OTHER and not kept
