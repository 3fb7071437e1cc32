"""The preflight: what an upgrade would meet and do. Read-only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psycopg import sql

from orcheo_db.bootstrap import expected
from orcheo_db.bootstrap.job import APP_LOGINS
from orcheo_db.database import Connection
from orcheo_db.errors import CheckFailed
from orcheo_db.runtime import vault
from orcheo_db.upgrade import remap, report, schema, workspaces
from orcheo_db.upgrade.session import UNTOUCHED, Opened, foreign_owners, settled
from orcheo_db.upgrade.tables import scoped

KEY_FILE = "ORCHEO_DB_VAULT_KEY_FILE"
KEY = "ORCHEO_VAULT_ENCRYPTION_KEY"
RETENTION = {"chat_threads": ("ORCHEO_CHATKIT_RETENTION_DAYS", 30), "traces": ("ORCHEO_TRACE_RETENTION_DAYS", 7)}


def inspect(opened: Opened, slug: str | None) -> dict[str, Any]:
    """Everything worth knowing before an upgrade, with `hazards` as lines and `needed`: whether `apply` has something to do.

    Raises:
        UserError: no such workspace. CheckFailed: the database is no Orcheo's, or belongs to somebody else.
    """
    conn = opened.conn
    with conn.transaction():
        conn.execute("SET TRANSACTION READ ONLY")
        settled(conn)
        found = expected.present(conn)
        check(opened, found)
        columns = schema.columns(conn)
        tables = scoped(columns)
        there = workspaces.present(conn)
        counts = workspaces.counts(conn, tables)
        strays = workspaces.stray(counts, there, tables)
        home = workspaces.destination(there, strays, slug)
        known = [*(workspace.id for workspace in there), *([home.id] if home else [])]
        document = {
            **opened.releases.document(),
            "database": opened.job.database,
            "size_bytes": _number(conn, "SELECT pg_database_size(current_database())"),
            "missing_columns": [f"{table}.{column}" for table, column in schema.missing(found, opened.wanted)],
            "stale_indexes": [
                {"name": n, "definition": d} for n, d in schema.stale_indexes(conn, found, opened.wanted)
            ],
            "stray": strays,
            "groups": workspaces.groups(strays),
            "inactive": workspaces.inactive(counts, there),
            "workspaces": [vars(workspace) for workspace in there],
            "ownerless": [
                workspace.slug for workspace in there if workspace.status == "active" and not workspace.members
            ],
            "single_workspace": not any(workspace.members for workspace in there),
            "destination": vars(home) if home else None,
            "renames": remap.plan(conn, tables, remap.Home(home.id, known)) if home else [],
            "tokens_without_workspace": _tokens(conn, columns),
            "retention": {name: _old(conn, columns, name) for name in RETENTION},
            "vault": _vault(conn, columns),
            "attachment_files": _attachments(conn, columns),
            "unfinished_runs": _number(
                conn, "SELECT count(*) FROM workflow_runs WHERE status IN ('pending', 'running')"
            ),
            "sessions": sessions(conn),
            "former_tables": sorted(set(found) & expected.FORMER_TABLES),
        }
    document["needed"] = bool(
        document["missing_columns"] or document["stale_indexes"] or strays or document["ownerless"]
        or (document["tokens_without_workspace"] and document["single_workspace"])
    )  # fmt: skip
    document["hazards"] = report.hazards(document)
    return document


def check(opened: Opened, found: Mapping[str, expected.Table]) -> None:
    """Refuse a database that isn't Orcheo's or whose tables belong to another role.

    Raises:
        CheckFailed: with what was found.
    """
    if "workflows" not in found:
        raise CheckFailed(f"database {opened.job.database} at {opened.job.address} holds no Orcheo. {UNTOUCHED}")
    if theirs := foreign_owners(found, opened.wanted):
        raise CheckFailed(
            f"tables of Orcheo belong to another role than orcheo ({', '.join(theirs[:5])}): make orcheo their owner"
            f" (REASSIGN OWNED BY ... TO orcheo). {UNTOUCHED}"
        )


def _number(conn: Connection, query: str) -> int:
    row = conn.execute(query.encode()).fetchone()
    return int(row[0]) if row else 0


def _tokens(conn: Connection, columns: Mapping[str, Mapping[str, str]]) -> int:
    if "workspace_ids" not in columns.get("service_tokens", {}):
        return 0
    return _number(
        conn,
        "SELECT count(*) FROM service_tokens WHERE revoked_at IS NULL"
        " AND coalesce(CASE WHEN jsonb_typeof(workspace_ids) = 'array' THEN jsonb_array_length(workspace_ids) END, 0) = 0",
    )


def _old(conn: Connection, columns: Mapping[str, Mapping[str, str]], name: str) -> dict[str, int]:
    """Rows older than the app's own retention allows; 0 days means never for traces and the default for chats."""
    variable, default = RETENTION[name]
    text = os.environ.get(variable, "").strip()
    days = int(text) if text.isdigit() else default
    table, column = ("chat_threads", "updated_at") if name == "chat_threads" else ("execution_history", "started_at")
    if name == "chat_threads" and days == 0:
        days = default
    if days == 0 or table not in columns:
        return {"days": days, "rows": 0}
    query = sql.SQL("SELECT count(*) FROM {} WHERE {} < now() - make_interval(days => {})").format(
        sql.Identifier("public", table), sql.Identifier(column), sql.Literal(days)
    )
    row = conn.execute(query).fetchone()
    return {"days": days, "rows": int(row[0]) if row else 0}


def vault_key() -> str | None:
    """The key that the app will have: from the mounted file, else the environment."""
    file = os.environ.get(KEY_FILE)
    if file and Path(file).is_file():
        return Path(file).read_text(encoding="utf-8").strip()
    return os.environ.get(KEY) or None


def _vault(conn: Connection, columns: Mapping[str, Mapping[str, str]]) -> dict[str, int] | None:
    """How many credentials there are and how many the key does not open; None without a key to try."""
    key = vault_key()
    if key is None or "credentials" not in columns:
        return None
    count = unreadable = 0
    cipher: Any = None
    for (payload,) in conn.execute("SELECT payload FROM public.credentials"):
        if cipher is None:
            from orcheo.models import AesGcmCredentialCipher  # noqa: PLC0415 - importing the app takes seconds

            cipher = AesGcmCredentialCipher(key=key)
        count += 1
        unreadable += not vault.opens(cipher, payload)
    return {"credentials": count, "unreadable": unreadable}


def _attachments(conn: Connection, columns: Mapping[str, Mapping[str, str]]) -> int:
    """Attachments whose contents are in a file and not in the database."""
    there = columns.get("chat_attachments", {})
    if "storage_path" not in there:
        return 0
    if "blob_backend" in there:
        return _number(
            conn, "SELECT count(*) FROM chat_attachments WHERE storage_path IS NOT NULL AND blob_backend IS NULL"
        )
    return _number(conn, "SELECT count(*) FROM chat_attachments WHERE storage_path IS NOT NULL")


def sessions(conn: Connection) -> list[dict[str, Any]]:
    """Sessions of the app's logins that are at work (PgBouncer's idle ones are nobody's)."""
    query = """
        SELECT pid, application_name, state FROM pg_stat_activity
         WHERE datname = current_database() AND usename = ANY (%s) AND pid <> pg_backend_pid() AND state <> 'idle' ORDER BY pid
    """
    rows = conn.execute(query, (list(APP_LOGINS),))
    return [{"pid": pid, "application": name, "state": state} for pid, name, state in rows]
