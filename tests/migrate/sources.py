"""SQLite files with the old releases' tables for what their own stores can't write: damage, and many small rows quickly."""

from __future__ import annotations

import json
import sqlite3
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

# As orcheo-backend 0.15.0 makes them (history/sqlite_utils.py, repository_sqlite/_base.py, chatkit_store_sqlite/schema.py).
WORKFLOWS = """
PRAGMA journal_mode = WAL;
CREATE TABLE workflows (id TEXT PRIMARY KEY, payload TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE execution_history (
    execution_id TEXT PRIMARY KEY, workflow_id TEXT NOT NULL, inputs TEXT NOT NULL, runnable_config TEXT NOT NULL DEFAULT '{}',
    tags TEXT NOT NULL DEFAULT '[]', callbacks TEXT NOT NULL DEFAULT '[]', metadata TEXT NOT NULL DEFAULT '{}', run_name TEXT,
    status TEXT NOT NULL, started_at TEXT NOT NULL, completed_at TEXT, error TEXT, trace_id TEXT, trace_started_at TEXT,
    trace_completed_at TEXT, trace_last_span_at TEXT);
CREATE TABLE execution_history_steps (
    execution_id TEXT NOT NULL, step_index INTEGER NOT NULL, at TEXT NOT NULL, payload TEXT NOT NULL,
    PRIMARY KEY (execution_id, step_index),
    FOREIGN KEY (execution_id) REFERENCES execution_history(execution_id) ON DELETE CASCADE);
CREATE INDEX idx_history_steps_execution ON execution_history_steps(execution_id, step_index);
"""
CHAT = """
PRAGMA journal_mode = WAL;
CREATE TABLE chat_threads (id TEXT PRIMARY KEY, title TEXT, workflow_id TEXT, status_json TEXT NOT NULL, metadata_json TEXT NOT NULL,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE chat_messages (id TEXT PRIMARY KEY, thread_id TEXT NOT NULL, ordinal INTEGER NOT NULL, item_type TEXT, item_json TEXT NOT NULL,
    created_at TEXT NOT NULL, FOREIGN KEY(thread_id) REFERENCES chat_threads(id) ON DELETE CASCADE);
"""
BEGIN = datetime(2025, 12, 1, tzinfo=UTC)


def history(directory: Path, executions: int, *, steps: int = 5, size: int = 2000, workflows: int = 3) -> list[str]:
    """Executions with steps of about `size` bytes; returns the executions' ids."""
    directory.mkdir(parents=True, exist_ok=True)
    made = [str(uuid.UUID(int=i + 1)) for i in range(executions)]
    of = [str(uuid.UUID(int=2**100 + i)) for i in range(workflows)]
    text = "alpha beta gamma delta " * (size // 23)
    with closing(sqlite3.connect(directory / "workflows.sqlite")) as file:
        file.executescript(WORKFLOWS)
        stamp = BEGIN.isoformat()
        file.executemany(
            "INSERT INTO workflows VALUES (?, ?, ?, ?)",
            [
                (
                    w,
                    json.dumps({"id": w, "name": w, "created_at": stamp, "updated_at": stamp, "audit_log": []}),
                    stamp,
                    stamp,
                )
                for w in of
            ],
        )
        for i, key in enumerate(made):
            at = (BEGIN + timedelta(seconds=i, microseconds=i)).isoformat()
            file.execute(
                "INSERT INTO execution_history (execution_id, workflow_id, inputs, status, started_at) VALUES (?, ?, ?, 'completed', ?)",
                (key, of[i % workflows], json.dumps({"n": i}), at),
            )
            file.executemany(
                "INSERT INTO execution_history_steps VALUES (?, ?, ?, ?)",
                [
                    (key, step, at, json.dumps({"node": f"n{step}", "n": i, "text": text[i % 50 :]}))
                    for step in range(steps)
                ],
            )
        file.commit()
    return made


def sql(directory: Path, *statements: str, file: str = "workflows.sqlite") -> None:
    """Change a file as no app does."""
    with closing(sqlite3.connect(directory / file)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def rows(directory: Path, query: str, file: str = "workflows.sqlite") -> list[tuple[object, ...]]:
    """What a file holds, with the storage class of every value; bytes that are no UTF-8 as they are."""
    with closing(sqlite3.connect(directory / file)) as connection:
        connection.text_factory = bytes
        return [tuple(row) for row in connection.execute(query)]
