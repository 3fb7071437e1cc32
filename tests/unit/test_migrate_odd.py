"""Rows that once stopped a migration, or that its two ways of reading took differently; sparse rowids, damaged pages."""

from __future__ import annotations

import json
import math
import sqlite3
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import psycopg
import pytest
from click.testing import CliRunner

from orcheo_db.cli import cli
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.migrate import back, home, plan, run, sync
from orcheo_db.migrate.convert import LOSSY, Options
from orcheo_db.migrate.pool import Pool
from orcheo_db.migrate.source import look, opened
from orcheo_db.migrate.sync import Task
from tests.unit.migrate_files import Way, change, install

DEAD, LIVE, OTHER = (f"{digit * 8}-0000-0000-0000-000000000000" for digit in "abc")
EMPTY = msgpack.packb({"channel_values": {}, "channel_versions": {}})
DEEP = '{"a":' + "[" * 300 + "1.10" + "]" * 300 + "}"
DEEPER = '{"a":' + "[" * 1200 + "]" * 1200 + "}"


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("agentensor_checkpoints", {"agentensor_checkpoints": [{"id": "a", "config_version": math.inf}]}),
        ("workflow_runs", {"workflow_runs": [{"id": "a", "payload": DEEP, "workspace_id": DEAD}]}),
        ("workflow_runs", {"workflow_runs": [{"id": "a", "payload": DEEPER, "workspace_id": DEAD}]}),
        ("chat_messages", {"chat_messages": [{"id": "a", "thread_id": "\udcff"}]}),
        ("workflow_runs", {"workflow_runs": [{"id": "a", "workflow_id": "\udcff"}]}),
        ("chat_attachments", {"chat_threads": [{"id": "t"}], "chat_attachments": [{"id": "/abc"}]}),
        ("checkpoints", {"checkpoints": [{"thread_id": b"abc", "checkpoint": EMPTY}]}),
        ("checkpoints", {"checkpoints": [{"checkpoint_ns": b"abc", "checkpoint": EMPTY}]}),
        (
            "credentials",
            {"credentials": [{"id": "a", "payload": json.dumps({"scope": {"workspace_ids": [{}, DEAD]}})}]},
        ),
        (
            "service_tokens",
            {"service_tokens": [{"identifier": "a", "workspace_ids": '[{"a": 1}]', "workspace_id": DEAD}]},
        ),
        ("credentials", {"credentials": [{"id": "a", "workflow_id": "\udcff"}]}),
    ],
    ids=[
        "inf",
        "depth 300",
        "depth 1200",
        "parent",
        "workflow",
        "attachment",
        "thread",
        "ns",
        "scope",
        "token",
        "names",
    ],
)
def test_no_row_stops_the_converter(tmp_path: Path, table: str, rows: Any) -> None:
    (made,) = Way(install(tmp_path, rows), moment="2026-01-01T00:00:00+00:00").rows(table)
    assert made.rows or made.kept


def test_minutes_to_live_that_are_whole_lose_nothing(tmp_path: Path) -> None:
    """The SQLite store's column is REAL, and its class writes float(ttl): every item with a TTL stops --strict."""
    row, kept = Way(install(tmp_path, {"store": [{"prefix": "p", "ttl_minutes": 10.0}]})).one("store")
    assert row["ttl_minutes"] == "10" and not [one for one in kept if one.reason in LOSSY]


@pytest.mark.parametrize("metadata", [None, "{}", 5])
def test_a_checkpoint_s_metadata_of_another_class_is_remembered(tmp_path: Path, metadata: Any) -> None:
    """A rollback writes bytes whatever it was."""
    _, kept = Way(install(tmp_path, {"checkpoints": [{"metadata": metadata, "checkpoint": EMPTY}]})).one("checkpoints")
    assert [one.column for one in kept] == ["metadata"]


def test_an_alert_follows_its_credential_that_follows_its_workflow(tmp_path: Path) -> None:
    rows: Any = {
        "workspaces": [{"id": LIVE, "slug": "default"}, {"id": OTHER, "slug": "other"}], "workflows": [{"id": "w", "workspace_id": OTHER}],
        "credentials": [{"id": "c", "workflow_id": "w", "workspace_id": DEAD}],
        "governance_alerts": [{"id": "1", "payload": '{"credential_id": "c"}'}],
    }  # fmt: skip
    way = Way(install(tmp_path, rows))
    assert way.one("credentials")[0]["workspace_id"] == OTHER
    assert way.one("governance_alerts")[0]["workspace_id"] == OTHER


def test_a_missing_right_ends_the_run_in_one_line() -> None:
    """InsufficientPrivilege is no OperationalError."""

    def submit(_: Any, task: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(psycopg.errors.InsufficientPrivilege("denied"))
        return future

    found = Pool.__new__(Pool)
    found.workers, found._pool = 2, SimpleNamespace(submit=submit)  # type: ignore[assignment]
    with pytest.raises(CheckFailed, match="denied"):
        found.run(iter([Task("workflows", 0, True)]), lambda _: None)


def test_a_plan_of_few_rows_far_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """plan._scan lists every chunk between them: it never ends, in ever more memory (here: cut off at a million)."""
    install(tmp_path, {"webhook_triggers": [{"workflow_id": "a"}]}, files=["workflows.sqlite"])
    change(
        tmp_path,
        "workflows.sqlite",
        f"INSERT INTO webhook_triggers (rowid, workflow_id, config) VALUES ({2**40}, 'b', '{{}}')",
    )
    source = look(tmp_path)
    monkeypatch.setattr(
        plan,
        "range",
        lambda *a: (_ for _ in ()).throw(AssertionError(len(range(*a)))) if len(range(*a)) > 10**6 else range(*a),
        raising=False,
    )
    assert sum(scan.rows for _, scan in plan._scan(source, home.find(source, [], None), Options())) == 2


def test_the_last_rowid_there_is(tmp_path: Path) -> None:
    install(tmp_path, {}, files=["workflows.sqlite"])
    change(
        tmp_path,
        "workflows.sqlite",
        f"INSERT INTO webhook_triggers (rowid, workflow_id, config) VALUES ({2**63 - 1}, 'b', '{{}}')",
    )
    source = look(tmp_path)
    table = source.table("webhook_triggers")
    assert table is not None
    target: Any = SimpleNamespace(execute=lambda *_: [])
    state: Any = SimpleNamespace(widths={table.name: 100})
    with opened(tmp_path / table.file) as reading:
        found = [
            row
            for task in run.tasks(target, source, state, table, fresh=True)
            for row in sync.read(reading, table, task.lo, 100)
        ]
    assert len(found) == 1


def test_a_plan_of_a_damaged_page_is_one_line(tmp_path: Path) -> None:
    rows = [{"workflow_id": str(number), "config": json.dumps("x" * 3000)} for number in range(60)]
    install(tmp_path, {"webhook_triggers": rows}, files=["workflows.sqlite"])
    file = tmp_path / "workflows.sqlite"
    raw = bytearray(file.read_bytes())
    for page in range(40, 44):
        raw[4096 * page : 4096 * page + 4096] = b"\xff" * 4096
    file.write_bytes(raw)
    done = CliRunner().invoke(cli, ["migrate", "plan", str(tmp_path)])
    assert isinstance(done.exception, UserError | CheckFailed), repr(done.exception)


def test_a_checkpoint_that_the_old_release_cannot_keep_is_named() -> None:
    """msgpack, and so SQLite's saver, has no integer beyond 64 bits."""
    head = json.dumps({"channel_values": {"n": 2**70}, "channel_versions": {"n": "1"}})
    with pytest.raises(CheckFailed, match="checkpoint t, , c can't be written"):
        back._joined(("t", "", "c"), head, {})


def test_text_that_is_no_utf8_goes_in_as_text() -> None:
    value = back._store("\udcff")
    assert isinstance(value, back.RawText) and bytes(value) == b"\xff"
    with closing(sqlite3.connect(":memory:")) as file:
        assert file.execute("SELECT typeof(CAST(? AS TEXT)), hex(CAST(? AS TEXT))", [bytes(value)] * 2).fetchone() == (
            "text",
            "FF",
        )


def test_a_table_without_rows_is_no_hazard(tmp_path: Path) -> None:
    install(tmp_path, {"workflows": [{"id": "a"}]})
    change(tmp_path, "workflows.sqlite", "CREATE TABLE extra (a TEXT)")
    found = look(tmp_path)
    scans = {table.name: plan.Scan() for table in found.tables}
    assert not [one.text for one in plan._of_tables(found, scans, plan.Scan()) if "extra" in one.text]
    scans["extra"].rows = 1
    assert [one.text for one in plan._of_tables(found, scans, plan.Scan()) if "extra" in one.text]
