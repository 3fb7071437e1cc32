"""The arithmetic of `bench migrate`: rates, ratios and aims, parts of a text file, the order of tables, a process tree."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from orcheo_db.bench import migrate
from orcheo_db.bench.plain_copy import blocks, parents_first, split
from orcheo_db.bench.watched import Process, tree


def document(**changed: float) -> dict[str, Any]:
    """A run that meets every aim, but for what is given."""
    given = {"run": 60.0, "peak": 290.0, "down": 10.0, "peer": 12.0, "copy": 100.0} | changed
    ours: dict[str, dict[str, float]] = {name: {"peak_mb": 200.0} for name in migrate.MEASURED}
    ours["run"]["mb_s"] = given["run"]
    ours["verify"]["peak_mb"] = given["peak"]
    ours["cutover"]["downtime_seconds"] = given["down"]
    return {
        "ours": ours,
        "ours_same_tables": {"mb_s": 66.0},
        "peer": {"mb_s": given["peer"]},
        "indexes": {"mb_s": 180.0},
        "limit": {"plain": {"mb_s": given["copy"]}, "lz4": {"mb_s": 120.0}, "two_connections": {"mb_s": 150.0}},
    }


def test_rate():
    assert migrate.rate(1000, 50 * 2**20, 4.0) == {"rows_s": 250, "mb_s": 12.5}


def test_ratios_and_aims():
    found = migrate.judged(document())
    assert found["ok"] and found["missed"] == [] and found["aims"] == migrate.AIMS
    assert found["ratios"] == {
        "to_peer": 5.0,
        "to_peer_same_tables": 5.5,
        "to_copy": 0.6,
        "to_copy_lz4": 0.5,
        "to_copy_two_connections": 0.4,
        "limit_to_peer": 8.33,
        "indexes_to_peer": 15.0,
    }


def test_more_than_plain_copy_is_not_asked_for():
    assert migrate.judged(document(peer=70.0, copy=60.0))["ok"]  # both are a little faster than COPY is than the peer
    found = migrate.judged(document(peer=40.0, copy=90.0))
    assert found["missed"] == ["1.5 times the speed of Orcheo's own tool, not 2.2"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"peer": 13.0}, "4.6 times the speed"),
        ({"copy": 120.0}, "50% of plain COPY"),
        ({"peak": 301.0}, "301 MB of memory"),
        ({"down": 60.0}, "60 s of downtime"),
    ],
)
def test_a_missed_aim_is_named(changed: dict[str, float], words: str):
    found = migrate.judged(document(**changed))
    assert not found["ok"]
    (missed,) = found["missed"]
    assert missed.startswith(words)


def test_a_killed_run_that_was_not_whole_is_named():
    found = migrate.judged(document() | {"kills": {"wanted": 50, "killed": 50, "ok": 49}})
    assert found["missed"] == ["49 of 50 killed runs were whole after a second one"]
    assert migrate.judged(document() | {"kills": {"wanted": 50, "killed": 50, "ok": 50}})["ok"]


def test_without_baselines_the_other_aims_are_judged():
    alone = document()
    for name in ("peer", "limit", "ours_same_tables"):
        del alone[name]
    found = migrate.judged(alone)
    assert found["ok"] and found["ratios"] == {}
    alone["ours"]["cutover"]["downtime_seconds"] = 61.0
    assert migrate.judged(alone)["missed"] == ["61 s of downtime, not below 60"]


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "content", [b"one\n", b"a\n" * 10, b"first row\nsecond, longer row\nx\n", b"x" * 5000 + b"\ny\n"]
)
def test_parts_of_a_file_are_whole_lines_and_all_of_it(tmp_path: Path, content: bytes, parts: int):
    file = tmp_path / "rows"
    file.write_bytes(content)
    read = [b"".join(blocks(file, *part)) for part in split(file, parts)]
    assert b"".join(read) == content and len(read) <= parts
    assert all(part.endswith(b"\n") for part in read)


def test_parents_come_first():
    order = parents_first(["a", "b", "c", "d"], [("a", "c"), ("b", "a"), ("b", "elsewhere")])
    assert sorted(order) == ["a", "b", "c", "d"]
    assert order.index("c") < order.index("a") < order.index("b")
    assert sorted(parents_first(["a", "b"], [("a", "b"), ("b", "a")])) == ["a", "b"]  # a circle ends


def test_a_tree_of_processes():
    among = {pid: Process(pid, parent, 0) for pid, parent in {1: 0, 10: 1, 11: 10, 12: 11, 20: 1}.items()}
    assert [process.pid for process in tree(10, among)] == [10, 11, 12]
    assert tree(99, among) == []


def test_changes_are_spread_over_the_tables(tmp_path: Path):
    tables = {
        "workflows.sqlite": {
            "execution_history_steps": "execution_id, step_index, payload, PRIMARY KEY (execution_id, step_index)",
            "workflow_runs": "id PRIMARY KEY, status, payload",
        },
        "chatkit.sqlite": {"chat_messages": "id PRIMARY KEY, ordinal, item_json"},
        "checkpoints.sqlite": {"writes": "thread_id, idx, value, PRIMARY KEY (thread_id, idx)"},
    }
    for file, columns in tables.items():
        with sqlite3.connect(tmp_path / file) as connection:
            for table, form in columns.items():
                connection.execute(f"CREATE TABLE {table} ({form})")
                connection.executemany(f"INSERT INTO {table} VALUES (?, ?, '{{}}')", [(n, n) for n in range(1000)])
    made = migrate.change(tmp_path)
    assert made == dict.fromkeys(("added", "changed", "deleted"), 4 * migrate.CHANGES)
    with sqlite3.connect(tmp_path / "chatkit.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM chat_messages").fetchone() == (1000,)
        assert connection.execute("SELECT count(*) FROM chat_messages WHERE item_json LIKE '%bench%'").fetchone() == (
            100,
        )
