"""Small SQLite files with the old releases' own tables, their rows' way through the converter, and how PostgreSQL prints values."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from orcheo_db.migrate import home, state
from orcheo_db.migrate.convert import Converted, Converter, Kept, Options
from orcheo_db.migrate.home import Home, Lookup
from orcheo_db.migrate.source import look

DAY = "2026-01-01T00:00:00+00:00"
# orcheo 0.34.0, orcheo-backend 0.30.0 and langgraph-checkpoint-sqlite 3.0.1: as they make them, less their indexes.
BRIDGE = {
    "workflows.sqlite": """
        CREATE TABLE workflows (id TEXT PRIMARY KEY, handle TEXT, is_archived INTEGER NOT NULL DEFAULT 0, payload TEXT NOT NULL,
            created_at TEXT NOT NULL, updated_at TEXT NOT NULL, workspace_id TEXT);
        CREATE TABLE workflow_versions (id TEXT PRIMARY KEY, workflow_id TEXT NOT NULL, workspace_id TEXT, version INTEGER NOT NULL,
            payload TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL, UNIQUE(workflow_id, version));
        CREATE TABLE workflow_runs (id TEXT PRIMARY KEY, workflow_id TEXT NOT NULL, workflow_version_id TEXT NOT NULL,
            status TEXT NOT NULL, triggered_by TEXT NOT NULL, payload TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
            workspace_id TEXT);
        CREATE TABLE workflow_run_remediations (id TEXT PRIMARY KEY, workflow_id TEXT NOT NULL, workflow_version_id TEXT NOT NULL,
            run_id TEXT NOT NULL, status TEXT NOT NULL, fingerprint TEXT NOT NULL, version_checksum TEXT NOT NULL, payload TEXT NOT NULL,
            attempt_count INTEGER NOT NULL DEFAULT 0, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
        CREATE TABLE webhook_triggers (workflow_id TEXT PRIMARY KEY, config TEXT NOT NULL);
        CREATE TABLE cron_triggers (workflow_id TEXT PRIMARY KEY, config TEXT NOT NULL, last_dispatched_at TEXT);
        CREATE TABLE plugin_installations (plugin_name TEXT NOT NULL, workspace_id TEXT NOT NULL, enabled INTEGER NOT NULL DEFAULT 1,
            PRIMARY KEY (plugin_name, workspace_id));
        CREATE TABLE execution_history (execution_id TEXT PRIMARY KEY, workflow_id TEXT NOT NULL, workspace_id TEXT, inputs TEXT NOT NULL,
            runnable_config TEXT NOT NULL DEFAULT '{}', tags TEXT NOT NULL DEFAULT '[]', callbacks TEXT NOT NULL DEFAULT '[]',
            metadata TEXT NOT NULL DEFAULT '{}', run_name TEXT, status TEXT NOT NULL, started_at TEXT NOT NULL, completed_at TEXT,
            error TEXT, trace_id TEXT, trace_started_at TEXT, trace_completed_at TEXT, trace_last_span_at TEXT);
        CREATE TABLE execution_history_steps (execution_id TEXT NOT NULL, step_index INTEGER NOT NULL, at TEXT NOT NULL,
            payload TEXT NOT NULL, PRIMARY KEY (execution_id, step_index),
            FOREIGN KEY (execution_id) REFERENCES execution_history(execution_id) ON DELETE CASCADE);
        CREATE TABLE agentensor_checkpoints (id TEXT PRIMARY KEY, workflow_id TEXT NOT NULL, workspace_id TEXT,
            config_version INTEGER NOT NULL, runnable_config TEXT NOT NULL, metrics TEXT NOT NULL, metadata TEXT NOT NULL DEFAULT '{}',
            artifact_url TEXT, is_best INTEGER NOT NULL DEFAULT 0, created_at TEXT NOT NULL);
    """,
    "chatkit.sqlite": """
        CREATE TABLE chat_threads (id TEXT PRIMARY KEY, title TEXT, workflow_id TEXT, workspace_id TEXT, status_json TEXT NOT NULL,
            metadata_json TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
        CREATE TABLE chat_messages (id TEXT PRIMARY KEY, thread_id TEXT NOT NULL, ordinal INTEGER NOT NULL, item_type TEXT,
            item_json TEXT NOT NULL, created_at TEXT NOT NULL,
            FOREIGN KEY(thread_id) REFERENCES chat_threads(id) ON DELETE CASCADE);
        CREATE TABLE chat_attachments (id TEXT PRIMARY KEY, thread_id TEXT, attachment_type TEXT NOT NULL, name TEXT NOT NULL,
            mime_type TEXT NOT NULL, details_json TEXT NOT NULL, storage_path TEXT, created_at TEXT NOT NULL,
            FOREIGN KEY(thread_id) REFERENCES chat_threads(id) ON DELETE SET NULL);
    """,
    "vault.sqlite": """
        CREATE TABLE credentials (id TEXT PRIMARY KEY, workflow_id TEXT NOT NULL, workspace_id TEXT, name TEXT NOT NULL,
            provider TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL, payload TEXT NOT NULL);
        CREATE TABLE governance_alerts (id TEXT PRIMARY KEY, scope_hint TEXT NOT NULL, workspace_id TEXT, acknowledged INTEGER NOT NULL,
            created_at TEXT NOT NULL, updated_at TEXT NOT NULL, payload TEXT NOT NULL);
    """,
    "service_tokens.sqlite": """
        CREATE TABLE service_tokens (identifier TEXT PRIMARY KEY, secret_hash TEXT NOT NULL, scopes TEXT, workspace_ids TEXT,
            created_at TEXT NOT NULL, created_by TEXT, issued_at TEXT, expires_at TEXT, last_used_at TEXT, use_count INTEGER DEFAULT 0,
            rotation_expires_at TEXT, rotated_to TEXT, rotated_from TEXT, revoked_at TEXT, revoked_by TEXT, revocation_reason TEXT,
            allowed_ip_ranges TEXT, rate_limit_override INTEGER, workspace_id TEXT,
            FOREIGN KEY (rotated_to) REFERENCES service_tokens(identifier));
    """,
    "checkpoints.sqlite": """
        CREATE TABLE checkpoints (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
            parent_checkpoint_id TEXT, type TEXT, checkpoint BLOB, metadata BLOB, PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id));
        CREATE TABLE writes (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
            task_id TEXT NOT NULL, idx INTEGER NOT NULL, channel TEXT NOT NULL, type TEXT, value BLOB,
            PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx));
    """,
    "graph_store.sqlite": """
        CREATE TABLE store (prefix text NOT NULL, key text NOT NULL, value text NOT NULL, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
            updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, expires_at TIMESTAMP, ttl_minutes REAL, PRIMARY KEY (prefix, key));
        CREATE TABLE store_migrations (v INTEGER PRIMARY KEY);
    """,
    "workspaces.sqlite": """
        CREATE TABLE workspaces (id TEXT PRIMARY KEY, slug TEXT NOT NULL UNIQUE, name TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'active',
            quotas TEXT NOT NULL DEFAULT '{}', deleted_at TEXT, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
        CREATE TABLE workspace_memberships (id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, user_id TEXT NOT NULL, role TEXT NOT NULL,
            created_at TEXT NOT NULL, FOREIGN KEY (workspace_id) REFERENCES workspaces(id) ON DELETE CASCADE);
    """,
}
# orcheo-backend 0.15.0: the tables that differ.
OLD = {
    "workflows.sqlite": """
        CREATE TABLE workflows (id TEXT PRIMARY KEY, payload TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
        CREATE TABLE workflow_versions (id TEXT PRIMARY KEY, workflow_id TEXT NOT NULL, version INTEGER NOT NULL, payload TEXT NOT NULL,
            created_at TEXT NOT NULL, updated_at TEXT NOT NULL, UNIQUE(workflow_id, version));
        CREATE TABLE cron_triggers (workflow_id TEXT PRIMARY KEY, config TEXT NOT NULL);
    """,
    "chatkit.sqlite": """
        CREATE TABLE chat_threads (id TEXT PRIMARY KEY, title TEXT, workflow_id TEXT, status_json TEXT NOT NULL,
            metadata_json TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
    """,
}
# What a test does not say of a row.
_REST: dict[str, dict[str, Any]] = {
    "webhook_triggers": {"config": "{}"},
    "workflows": {"handle": None, "payload": "{}"},
    "workflow_versions": {"workflow_id": "w", "version": 1, "payload": "{}"},
    "workflow_runs": {"workflow_id": "w", "workflow_version_id": "v", "status": "done", "triggered_by": "me", "payload": "{}"},
    "execution_history": {"workflow_id": "w", "inputs": "{}", "status": "done", "started_at": DAY},
    "execution_history_steps": {"execution_id": "e", "step_index": 0, "at": DAY, "payload": "{}"},
    "agentensor_checkpoints": {"workflow_id": "w", "config_version": 1, "runnable_config": "{}", "metrics": "{}", "created_at": DAY},
    "workflow_run_remediations": {"workflow_id": "w", "workflow_version_id": "v", "run_id": "r", "status": "open", "fingerprint": "f",
                                  "version_checksum": "c", "payload": "{}"},
    "chat_threads": {"status_json": "{}", "metadata_json": "{}"},
    "chat_messages": {"thread_id": "t", "ordinal": 0, "item_json": "{}", "created_at": DAY},
    "chat_attachments": {"thread_id": "t", "attachment_type": "file", "name": "n", "mime_type": "m", "details_json": "{}", "created_at": DAY},
    "credentials": {"workflow_id": "w", "name": "key", "provider": "p", "payload": "{}"},
    "governance_alerts": {"scope_hint": "GLOBAL", "acknowledged": 0, "payload": "{}"},
    "service_tokens": {"secret_hash": "s", "created_at": DAY},
    "checkpoints": {"thread_id": "t", "checkpoint_id": "c", "type": "msgpack", "metadata": b"{}"},
    "writes": {"thread_id": "t", "checkpoint_id": "c", "task_id": "k", "idx": 0, "channel": "ch", "type": "msgpack", "value": b"\xc0"},
    "store": {"key": "k", "value": b"{}"},
    "workspaces": {"name": "n"},
    "workspace_memberships": {"user_id": "u", "role": "owner", "created_at": DAY},
}  # fmt: skip
_STAMPED = ("workflows", "workflow_versions", "workflow_runs", "workflow_run_remediations", "chat_threads", "credentials",
            "governance_alerts", "workspaces")  # fmt: skip
Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def install(
    directory: Path, rows: Rows, release: Mapping[str, str] = BRIDGE, files: Sequence[str] | None = None
) -> Path:
    """An installation's directory, with these rows."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in files or release:
        with closing(sqlite3.connect(directory / name)) as conn:
            conn.execute("PRAGMA synchronous = OFF")
            conn.executescript(release[name])
            tables = {table for (table,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for table in tables & set(rows):
                for row in rows[table]:
                    add(conn, table, row)
            conn.commit()
    return directory


def add(conn: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> None:
    """One row; a text that is no UTF-8 as its bytes, marked by PEP 383's surrogates."""
    full = {**({"created_at": DAY, "updated_at": DAY} if table in _STAMPED else {}), **_REST.get(table, {}), **row}
    there = {found[1] for found in conn.execute(f'PRAGMA table_info("{table}")')}
    full = {name: value for name, value in full.items() if name in there or name in row}
    values = [value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value for value in full.values()]
    marks = ["CAST(? AS TEXT)" if isinstance(value, str) else "?" for value in full.values()]
    conn.execute(f"INSERT INTO {table} ({', '.join(full)}) VALUES ({', '.join(marks)})", values)


def change(directory: Path, file: str, statements: str) -> None:
    """Damage done by hand."""
    with closing(sqlite3.connect(directory / file)) as conn:
        conn.executescript(statements)


class Way:
    """A directory's rows on their way through the converter."""

    def __init__(
        self, directory: Path, decided: Home | None = None, workspace: str | None = None, **options: Any
    ) -> None:
        self.source = look(directory)
        self.home = decided or home.find(self.source, [], workspace)
        self.options = Options(**options)
        self.catalogue = state.known_catalogue()

    def converter(self, name: str) -> Converter:
        table = self.source.table(name)
        assert table is not None
        lookup = Lookup(self.source, self.home)
        return Converter(
            self.source, table, self.catalogue.types, self.catalogue.nullable, self.home, self.options, lookup
        )

    def rows(self, name: str) -> list[Converted]:
        """All rows of a table, converted, in the order in which they were written."""
        converter = self.converter(name)
        columns = ", ".join(f'"{column}"' for column in converter.columns)
        with closing(sqlite3.connect(self.source.directory / converter.found.file)) as conn:
            conn.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            return [converter.convert(row) for row in conn.execute(f'SELECT {columns} FROM "{name}" ORDER BY rowid')]

    def one(self, name: str) -> tuple[dict[str, Any], list[Kept]]:
        """The only row: its columns in the target (none where it was kept whole), and what was kept."""
        (made,) = self.rows(name)
        return (named(self.converter(name), made) if made.rows else {}), made.kept


def named(converter: Converter, made: Converted) -> dict[str, Any]:
    table, values = made.rows[0]
    return dict(zip(converter.columns_of(table), values, strict=True))


def fingerprint(directory: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """All that can change in a directory: names, sizes, modes, times and bytes."""
    found = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        stat = path.stat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(directory))] = (stat.st_size, stat.st_mtime_ns, stat.st_mode, content)
    return found


def jsonb(document: str) -> str:
    """What PostgreSQL 17 prints of a document; an AssertionError where it takes none (measured: `SELECT $1::jsonb::text`)."""

    def number(digits: str) -> orjson.Fragment:
        plain = format(Decimal(digits), "f")
        whole, _, part = plain.lstrip("-").partition(".")
        assert len(whole) <= 131072 and len(part) <= 16383, "numeric overflows"
        return orjson.Fragment((plain.lstrip("-") if not plain.strip("-0.") else plain).encode())

    def constant(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    def check(value: Any) -> None:
        if isinstance(value, str):
            assert not re.search("[\x00\ud800-\udfff]", value), f"{value!r} is no text of PostgreSQL"
        for inner in value if isinstance(value, list) else (*value, *value.values()) if isinstance(value, dict) else ():
            check(inner)

    document.encode()
    assert "\x00" not in document
    value = json.loads(document, parse_int=number, parse_float=number, parse_constant=constant)
    check(value)
    return orjson.dumps(value).decode()


def seen(value: Any) -> str:
    """A value so that equal ones are equal texts: NaN is NaN, 1 is no 1.0, and 0.0 is -0.0."""

    def positive(inner: Any) -> Any:
        if isinstance(inner, float) and inner == 0:
            return 0.0
        if isinstance(inner, list):
            return [positive(one) for one in inner]
        return {key: positive(one) for key, one in inner.items()} if isinstance(inner, dict) else inner

    return json.dumps(positive(value), sort_keys=True)


def timestamptz(iso: str) -> str:
    """How PostgreSQL prints one (TimeZone UTC, DateStyle ISO)."""
    head, point, part = iso.removesuffix("+00:00").replace("T", " ").partition(".")
    return f"{head}{point}{part.rstrip('0')}+00"
