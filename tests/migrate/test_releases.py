"""The old releases' data is real: every table is filled, their own stores read it back, strange values among it."""

from __future__ import annotations

import hashlib
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.migrate.inside import exact
from tests.migrate.releases import RELEASES, OldApp, fill, make_rows, read_rows
from tests.migrate.strange import TIMES, VALUES

# Pydantic turns these into null where a store dumps a model as JSON; the others keep NaN and Infinity in their JSON text.
NOT_FINITE = {"not a number", "infinity", "minus infinity"}
DUMPED = {"versions", "runs", "items", "cursors", "store"}
# Written, and then not read again by the release's own stores: Pydantic's JSON parser takes no lone surrogate and less depth.
UNREADABLE = {
    "0.15.0": {
        ("versions", "surrogate"),
        ("versions", "deep"),
        ("runs", "surrogate"),
        ("runs", "deep"),
        ("cursors", "deep"),
    },
    "0.34.0": {("runs", "surrogate"), ("runs", "deep"), ("cursors", "surrogate"), ("cursors", "deep")},
}
FIELDS = {
    "versions": ("versions", ["metadata"]),
    "runs": ("runs", ["input_payload"]),
    "agentensor": ("agentensor", ["runnable_config", "metrics"]),
    "cursors": ("listener cursors", ["metadata"]),
    "store": ("store", ["value"]),
}


@dataclass
class Data:
    """One release's directory, what was made in it and what the release reads from it."""

    name: str
    directory: Path
    made: dict[str, Any]
    rows: dict[str, Any]


@pytest.fixture(scope="module", params=list(RELEASES))
def data(request: pytest.FixtureRequest, docker_ready: None, tmp_path_factory: pytest.TempPathFactory) -> Data:
    sys.setrecursionlimit(20000)  # pytest compares documents of depth 200
    directory = tmp_path_factory.mktemp("old") / "orcheo"
    made = make_rows(request.param, directory)
    return Data(request.param, directory, made, read_rows(request.param, directory))


def counts(directory: Path) -> dict[str, int]:
    """Rows of each table of all files; not SQLite's own tables.

    `immutable`, because mode=ro leaves -wal and -shm files beside a file in WAL mode.
    """
    found = {}
    for file in sorted(directory.glob("*.sqlite")):
        with closing(sqlite3.connect(f"file:{file}?immutable=1", uri=True)) as connection:
            query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            for (table,) in connection.execute(query).fetchall():
                found[f"{file.name}: {table}"] = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    return found


def digests(directory: Path) -> dict[str, str]:
    files = (file for file in directory.rglob("*") if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_every_table_has_rows(data: Data):
    found = counts(data.directory)
    assert len(found) == {"0.15.0": 19, "0.34.0": 29}[data.name], sorted(found)
    assert [table for table, number in found.items() if number == 0] == []


def test_reading_twice_is_equal_and_changes_nothing(data: Data):
    before = digests(data.directory)
    assert read_rows(data.name, data.directory) == data.rows
    assert digests(data.directory) == before


def test_what_was_made_is_read(data: Data):
    made, rows = data.made, data.rows
    assert set(made["workflows"].values()) <= set(rows["workflows"])
    assert rows["workflows"][made["workflows"]["archived"]]["is_archived"]
    runs = [rows["runs"][run] for some in made["runs"].values() for run in some]
    assert {run["status"] for run in runs} == {"pending", "running", "succeeded", "failed", "cancelled"}
    assert {run["triggered_by"] for run in runs} >= {"manual", "webhook", "cron", "api"}
    assert [rows["executions"][each]["status"] for each in made["executions"]] == ["error", "completed"]
    assert [rows["agentensor"][each]["is_best"] for each in made["agentensor"]] == [False, False, True]
    assert {each: rows["attachments"][each]["sha256"] for each in made["attachments"]} == made["attachments"]
    secrets = {each: rows["credentials"][each]["revealed"]["secret"] for each in made["credentials"]}
    assert secrets == made["credentials"]
    for identifier, secret in made["tokens"].items():
        assert rows["tokens"][identifier]["secret_hash"] == hashlib.sha256(secret.encode()).hexdigest()
    assert rows["tokens"]["alpha-rotated"]["rotated_to"] in made["tokens"]
    assert rows["tokens"]["alpha-revoked"]["revoked_at"]
    assert len(rows["alerts"]) >= 2
    assert rows["alerts"][made["alerts"][0]]["is_acknowledged"]
    kinds = {item["type"] for thread in made["threads"] for item in rows["threads"][thread]["items"]}
    assert kinds == {"user_message", "assistant_message", "hidden_context_item", "client_tool_call"}
    assert set(made["runs"]["succeeded"]) <= set(rows["checkpoints"])
    if data.name != "0.15.0":
        assert set(made["listeners"]) <= set(rows["listeners"])
        assert set(made["workspaces"]) == set(rows["workspaces"])
        assert rows["store"]["memories.alpha"]["fact-0"]["value"]["text"] == "fact 0"


def places(rows: dict[str, Any], place: str, key: str) -> dict[str, Any]:
    """Where a strange value of a place stands in the rows, by the name of what holds it."""
    if place == "threads":
        thread = rows["threads"][key]
        return {"metadata": thread["metadata"], "items": thread["items"][0]["content"]}
    if place == "executions":
        found = rows["executions"][key]
        return {"inputs": found["inputs"], "metadata": found["metadata"], "steps": found["steps"][0]["payload"]}
    if place == "checkpoints":
        states = [state for spaces in rows["checkpoints"][key].values() for state in spaces]
        values = {"checkpoint": states[0]["checkpoint"]["channel_values"]}
        return values | {"write": {"value": states[0]["pending_writes"][0][2]}}
    table, names = FIELDS[place]
    row = (rows["store"]["strange.alpha"] if place == "store" else rows[table])[key]
    return {name: row.get(name, row) for name in names}


@pytest.mark.parametrize(
    "place", ["versions", "runs", "executions", "agentensor", "threads", "checkpoints", "store", "cursors"]
)
def test_strange_values_are_read(data: Data, place: str):
    kept = data.made["strange"]["kept"].get(place)
    if kept is None:
        assert data.name == "0.15.0"
        assert place in ("store", "cursors")  # which it does not have
        return
    assert {"nul", "past a double", "1e23", "minus zero", "long", "deep", "empty"} <= set(kept)
    for kind, key in kept.items():
        if kind not in VALUES:
            continue
        for where, holder in places(data.rows, place, key).items():
            if (place, kind) in UNREADABLE[data.name]:
                assert holder == {"$error": "ValidationError"}, (place, kind)
                continue
            value = None if kind in NOT_FINITE and {place, where} & DUMPED else exact(VALUES[kind])
            if (place, kind) == ("checkpoints", "surrogate"):
                value = "half ? of a pair"  # LangGraph replaces it
            # As text: -0.0 and 0.0 are equal, and so are 1 and 1.0.
            assert repr(holder["value"]) == repr(value), (place, kind, where)


def test_times_are_read(data: Data):
    kept, rows = data.made["strange"]["kept"], data.rows
    for kind, value in TIMES.items():
        read = {"$time": value.isoformat()}
        assert rows["executions"][kept["execution times"][kind]]["trace_started_at"] == read
        assert rows["tokens"][kept["token times"][kind]]["revoked_at"] == read
        assert rows["threads"][kept["thread times"][kind]]["items"][0]["created_at"] == read


def test_the_app_itself_starts_on_the_files(data: Data):
    before = digests(data.directory)
    with OldApp(data.name, data.directory) as app:
        main = data.made["workflows"]["main"]
        assert main in {each["id"] for each in app.api.call("GET", "/api/workflows")}
        found = app.api.call("GET", f"/api/workflows/{main}/executions")
        assert set(data.made["executions"]) <= {each["execution_id"] for each in found}
        app.api.token = data.made["tokens"]["alpha-used"]
        assert app.api.call("GET", f"/api/runs/{data.made['runs']['succeeded'][0]}")["status"] == "succeeded"
    assert digests(data.directory) == before


def test_the_bridge_with_its_default_workspaces(docker_ready: None, tmp_path: Path):
    made = make_rows(
        "0.34.0", tmp_path, label="beta", strange=False, copies=3, workspace_backend="inmemory", vault_key="mine"
    )
    assert not (tmp_path / "workspaces.sqlite").exists()
    assert not (tmp_path / "vault.key").exists()
    rows = read_rows("0.34.0", tmp_path, vault_key="mine")
    assert rows["workspaces"] == {}
    assert rows["workflows"][made["workflows"]["main"]]["workspace_id"] == made["workspace"]
    assert {each: rows["credentials"][each]["revealed"]["secret"] for each in made["credentials"]} == made[
        "credentials"
    ]
    assert len(made["runs"]["succeeded"]) == 3


@pytest.mark.parametrize("name", list(RELEASES))
def test_bulk(docker_ready: None, tmp_path: Path, name: str):
    made = fill(name, tmp_path, megabytes=5)
    assert 4_000_000 < made["bytes"] < 6_500_000
    found = counts(tmp_path)
    tables = {
        "workflows.sqlite: execution_history_steps": "steps",
        "workflows.sqlite: workflow_runs": "runs",
        "chatkit.sqlite: chat_messages": "messages",
        "checkpoints.sqlite: checkpoints": "checkpoints",
        "checkpoints.sqlite: writes": "writes",
    }
    assert {table: found[table] for table in tables} == {table: made[kind] for table, kind in tables.items()}
    assert len(read_rows(name, tmp_path)["executions"]) == made["executions"]
