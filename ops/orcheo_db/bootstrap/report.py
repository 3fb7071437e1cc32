"""What the job prints: one JSON document, or a table for a person."""

from __future__ import annotations

from typing import Any

from psycopg import sql

from orcheo_db.bootstrap.expected import Expected, Table
from orcheo_db.bootstrap.job import LOGINS, OWNER
from orcheo_db.bootstrap.session import Session, statement

_DATABASE = """
SELECT datdba::regrole::text, pg_encoding_to_char(encoding), datcollate::text
  FROM pg_database WHERE datname = current_database()
"""


def summary(
    session: Session, release: dict[str, Any], tables: dict[str, Any], stores: list[dict[str, Any]]
) -> dict[str, Any]:
    """The whole result as JSON-ready data; times are seconds."""
    job, facts = session.job, session.facts
    owner, encoding, collation = session.app.execute(_DATABASE).fetchone() or ("?", "?", "?")
    names = sql.Literal([facts.user, OWNER, *LOGINS])
    roles = session.app.execute(statement("role_summary", names=names)).fetchall()
    extensions = session.app.execute("SELECT extname::text, extversion FROM pg_extension ORDER BY 1").fetchall()
    return {
        "ok": True,
        "changed": any(step.changes for step in session.steps),
        "server": {"address": job.address, "version": facts.version, "tls": facts.tls_version},
        "admin": {"role": facts.user, "superuser": facts.superuser, "managed": job.managed},
        "database": {"name": job.database, "owner": owner, "encoding": encoding, "collation": collation},
        "release": release,
        "installation_id": job.installation_id,
        "roles": [{"name": n, "login": login, "member_of": m, "settings": s} for n, login, m, s in roles],
        "extensions": dict(extensions),
        "tables": tables,
        "stores": stores,
        "steps": [
            {
                "name": s.name,
                "state": "changed" if s.changes else "unchanged",
                "changes": s.changes,
                "seconds": round(s.seconds, 3),
            }
            for s in session.steps
        ],
        "left_out": session.left_out,
        "warnings": session.warnings,
        "pooler_auth": session.pooler_auth,
    }


def table_summary(found: dict[str, Table], expected: Expected | None, names: frozenset[str]) -> dict[str, Any]:
    """Counts of the app's tables and indexes; `names` are the tables that are Orcheo's, `extra` the ones
    that aren't.
    """
    ours = {name: table for name, table in found.items() if name in names}
    return {
        "expected": len(expected.tables) if expected else None,
        "present": len(ours),
        "indexes": sum(len(table.indexes) for table in ours.values()),
        "extra": sorted(set(found) - set(ours)),
    }


def human(result: dict[str, Any]) -> str:
    """The result as a person reads it."""
    server, tables, release = result["server"], result["tables"], result["release"]
    expected = f" of {tables['expected']}" if tables["expected"] else ""
    rows = [
        (
            "server",
            f"PostgreSQL {server['version']} at {server['address']}, {server['tls'] or 'not encrypted'}",
        ),
        (
            "database",
            f"{result['database']['name']} (owner {result['database']['owner']}, {result['database']['encoding']})",
        ),
        (
            "release",
            f"orcheo {release['orcheo']}, orcheo-backend {release['orcheo_backend']} ({release['checked']})",
        ),
        ("tables", f"{tables['present']}{expected}, {tables['indexes']} indexes"),
        ("roles", ", ".join(role["name"] for role in result["roles"])),
        ("extensions", ", ".join(f"{name} {version}" for name, version in result["extensions"].items())),
        ("pooler", result["pooler_auth"]),
    ]
    rows += [("left out", f"{entry['what']}: {entry['why']}") for entry in result["left_out"]]
    rows += [("warning", text) for text in result["warnings"]]
    changed = sum(len(step["changes"]) for step in result["steps"])
    rows.append(
        (
            "result",
            f"{changed} change{'' if changed == 1 else 's'}" if result["changed"] else "nothing changed",
        )
    )
    rows[-1] = ("result", f"{rows[-1][1]} in {result['seconds']:.1f} s")
    return "\n".join(f"  {label:<11}{text}" for label, text in rows)
