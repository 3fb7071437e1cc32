"""`orcheo_db.installation`: one row that says which installation prepared the database, with which releases,
and when.

It is written last, so its presence means that a bootstrap has finished.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from importlib import metadata, resources

from psycopg import sql

from orcheo_db.bootstrap.job import MONITOR, OWNER, READER
from orcheo_db.bootstrap.session import Session, statement
from orcheo_db.database import Connection

_COLUMNS = "installation_id, orcheo_version, backend_version, bootstrap_digest, tables"


@dataclass(frozen=True)
class Installation:
    """The row without its time."""

    installation_id: str
    orcheo_version: str
    backend_version: str
    bootstrap_digest: str  # see `digest`
    tables: int


def digest() -> str:
    """sha256 over this package's files and the release of LangGraph's tables: if either changes, the whole
    job runs again.
    """
    total = hashlib.sha256(_langgraph().encode())
    root = resources.files("orcheo_db.bootstrap")
    folders = [("", root), ("sql/", root / "sql"), ("schema/", root / "schema")]
    for prefix, folder in folders:
        for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if file.is_file() and file.name.endswith((".py", ".sql", ".json")):
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                total.update(f"{prefix}{file.name} {content}\n".encode())
    return total.hexdigest()


def _langgraph() -> str:
    try:
        return metadata.version("langgraph-checkpoint-postgres")
    except metadata.PackageNotFoundError:
        return "none"


def read(conn: Connection) -> Installation | None:
    """The row, or None where no bootstrap has finished yet."""
    row = conn.execute("SELECT to_regclass('orcheo_db.installation') IS NOT NULL").fetchone()
    if not (row and row[0]):
        return None
    found = conn.execute(sql.SQL("SELECT {} FROM orcheo_db.installation").format(sql.SQL(_COLUMNS))).fetchone()
    return Installation(*found) if found else None


def write(session: Session, wanted: Installation, changes: list[str]) -> None:
    """Make the schema and the row say `wanted`; untouched (also its time) if they already do."""
    conn = session.app
    if read(conn) == wanted and not _grants_missing(conn):
        return
    with conn.transaction():
        names = {"monitor": sql.Identifier(MONITOR), "reader": sql.Identifier(READER), "owner": sql.Identifier(OWNER)}
        conn.execute(statement("installation", **names))
        if read(conn) != wanted:
            conn.execute(statement("installation_row"), asdict(wanted))
    changes.append("orcheo_db.installation")


def _grants_missing(conn: Connection) -> bool:
    roles = sql.Literal([MONITOR, READER])
    row = conn.execute(statement("installation_grants_missing", roles=roles, owner=sql.Literal(OWNER))).fetchone()
    return bool(row and row[0])
