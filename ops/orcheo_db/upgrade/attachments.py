"""Chat attachments of a bridge release: their contents lie in files, the newest app reads them from the database alone.

Runs after the init job, which makes the columns and the table for them. Each attachment gets its thread's workspace and workflow;
where its file is found its contents are copied into the database. The file and `storage_path` stay.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from orcheo_db.upgrade.session import Opened, as_owner

LARGEST = 1 << 30  # bytes: PostgreSQL's limit for one value


def adopt(opened: Opened) -> dict[str, Any]:
    """Do it for all that have not been done; returns the counts. Idempotent."""
    conn = opened.conn
    copied, missing = 0, list[str]()
    with conn.transaction():
        as_owner(conn)
        placed = conn.execute("""
            UPDATE chat_attachments a SET workspace_id = t.workspace_id, workflow_id = coalesce(a.workflow_id, t.workflow_id)
              FROM chat_threads t WHERE t.id = a.thread_id AND a.workspace_id IS NULL AND t.workspace_id IS NOT NULL
        """).rowcount
        rows = conn.execute("""
            SELECT id, storage_path FROM chat_attachments WHERE blob_backend IS NULL AND storage_path IS NOT NULL ORDER BY id
        """).fetchall()
        for key, path in rows:
            content = _content(Path(str(path)))
            if content is None:
                missing.append(str(path))
                continue
            checksum = hashlib.sha256(content).hexdigest()
            conn.execute(
                "INSERT INTO chat_attachment_blobs (attachment_id, content, size_bytes, sha256, created_at)"
                " VALUES (%s, %s, %s, %s, now()) ON CONFLICT (attachment_id) DO NOTHING",
                (key, content, len(content), checksum),
            )
            conn.execute(
                "UPDATE chat_attachments SET blob_backend = 'postgres', size_bytes = %s, sha256 = %s WHERE id = %s",
                (len(content), checksum, key),
            )
            copied += 1
    return {"placed": placed, "copied": copied, "missing_files": missing}


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.stat().st_size < LARGEST else None
    except OSError:
        return None
