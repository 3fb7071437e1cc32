"""Which tables a release of Orcheo makes, and the check that they are there.

`schema/orcheo-RELEASE.json` comes from a real run (`python -m orcheo_db.bootstrap --snapshot FILE`) and is
used for exactly the pair of releases it names. For any other pair the tables that its stores are known to
make are checked by name, and the summary says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources, util
from pathlib import Path
from typing import Any

from orcheo_db.bootstrap.session import statement
from orcheo_db.database import Connection

# Tables by store that every release from the last bridge (0.34.0) on is known to make (identity and hosted
# apps grew from release to release).
CORE_TABLES: Mapping[str, tuple[str, ...]] = {
    "repository": (
        "workflows", "workflow_versions", "workflow_runs", "webhook_triggers", "cron_triggers",
        "retry_policies", "listener_subscriptions", "listener_cursors", "listener_dedupe",
    ),
    "history": ("execution_history", "execution_history_steps"),
    "agentensor": ("agentensor_checkpoints",),
    "plugins": ("plugin_installations",),
    "service_tokens": ("service_tokens", "service_token_audit_log"),
    "chatkit": ("chat_threads", "chat_messages", "chat_attachments"),
    "vault": ("credentials", "credential_templates", "governance_alerts"),
    "workspaces": ("workspaces", "workspace_audit_events", "workspace_memberships"),
    "identity": ("users",),
    "hosted_apps": (),
    "checkpointer": ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_migrations"),
    "graph_store": ("store", "store_migrations"),
}  # fmt: skip
# LangGraph brings its tables up to date itself (it counts its migrations), so their columns say nothing about
# Orcheo's release.
SELF_MIGRATING = ("checkpointer", "graph_store")
# Made by bridge releases, unknown to the newest.
FORMER_TABLES = frozenset({"workflow_run_remediations"})
# Made by the newest, unknown to bridge releases, and of no family below.
LATER_TABLES = frozenset({"teams"})

FAMILIES = ("auth_", "chat_", "checkpoint_", "hosted_app", "listener_", "oauth_", "workflow_", "workspace_")


@dataclass(frozen=True)
class Table:
    """A table as it is or should be."""

    columns: frozenset[str]
    indexes: frozenset[str]
    owner: str = ""


@dataclass(frozen=True)
class Expected:
    """What one pair of releases makes."""

    orcheo: str
    orcheo_backend: str
    stores: Mapping[str, tuple[str, ...]]
    tables: Mapping[str, Table]
    added_later: Mapping[str, frozenset[str]]  # columns that the app itself adds to an older table
    routines: frozenset[str] = frozenset()  # functions, and triggers as table.trigger

    @property
    def indexes(self) -> int:
        """Number of indexes of all tables."""
        return sum(len(table.indexes) for table in self.tables.values())

    def required_columns(self, table: str) -> frozenset[str]:
        """Columns that a table must have before the app starts, because no bootstrap of the app adds them."""
        if any(table in self.stores.get(store, ()) for store in SELF_MIGRATING):
            return frozenset()
        return self.tables[table].columns - self.added_later.get(table, frozenset())


def load(orcheo: str, orcheo_backend: str) -> Expected | None:
    """The list for this pair of releases; None if there is none."""
    file = resources.files("orcheo_db.bootstrap") / "schema" / f"orcheo-{orcheo}.json"
    if not file.is_file():
        return None
    expected = decode(json.loads(file.read_text(encoding="utf-8")))
    return expected if expected.orcheo_backend == orcheo_backend else None


def decode(document: Mapping[str, Any]) -> Expected:
    """`Expected` from its JSON form."""
    return Expected(
        document["orcheo"],
        document["orcheo_backend"],
        {name: tuple(tables) for name, tables in document["stores"].items()},
        {
            name: Table(frozenset(table["columns"]), frozenset(table["indexes"]))
            for name, table in document["tables"].items()
        },
        {name: frozenset(columns) for name, columns in document["added_later"].items()},
        frozenset(document["routines"]),
    )


def known_tables(expected: Expected | None) -> frozenset[str]:
    """Every table name that is Orcheo's (with no list: that is known to be)."""
    listed = expected.tables if expected else (name for names in CORE_TABLES.values() for name in names)
    return frozenset(listed) | FORMER_TABLES | LATER_TABLES


def is_known(name: str, known: frozenset[str], exact: bool) -> bool:
    """Whether a table is Orcheo's; without a list (`exact` false) its families count too."""
    return name in known or (not exact and name.startswith(FAMILIES))


def present(conn: Connection) -> dict[str, Table]:
    """Tables of schema public with owner, columns and valid indexes; an extension's own tables are not
    counted.
    """
    return {
        str(name): Table(frozenset(columns), frozenset(indexes), str(owner))
        for name, owner, columns, indexes in conn.execute(statement("present_tables"))
    }


def routines(conn: Connection) -> frozenset[str]:
    """Functions of schema public (no extension's) and triggers as table.trigger."""
    return frozenset(str(row[0]) for row in conn.execute(statement("present_routines")))


def problems(
    found: Mapping[str, Table],
    made: frozenset[str],
    expected: Expected | None,
    stores: Iterable[str],
    owner: str,
) -> list[str]:
    """What is missing or wrong, one short text each; empty if the schema is complete.

    Args:
        found: `present()` after the bootstraps.
        made: `routines()` after the bootstraps.
        expected: the list for these releases, or None.
        stores: names of the stores that ran (only used without a list).
        owner: role that must own the tables.
    """
    texts = []
    names = sorted(expected.tables) if expected else [name for store in stores for name in CORE_TABLES[store]]
    for name in names:
        table = found.get(name)
        if table is None:
            texts.append(f"table {name} is missing")
            continue
        if table.owner != owner:
            texts.append(f"table {name} belongs to {table.owner} instead of {owner}")
        if expected:
            texts += [
                f"column {name}.{column} is missing" for column in sorted(expected.tables[name].columns - table.columns)
            ]
            texts += [
                f"index {index} is missing or invalid"
                for index in sorted(expected.tables[name].indexes - table.indexes)
            ]
    texts += [f"function or trigger {name} is missing" for name in sorted(expected.routines - made if expected else ())]
    return texts


def snapshot(
    found: Mapping[str, Table],
    made: frozenset[str],
    stores: Mapping[str, list[str]],
    versions: tuple[str, str],
) -> str:
    """The JSON text of what a run on an empty database made, to be kept as `schema/orcheo-RELEASE.json`;
    one line a table.
    """
    document = {
        "generated_by": "python -m orcheo_db.bootstrap --snapshot",
        "orcheo": versions[0],
        "orcheo_backend": versions[1],
        "stores": {store: sorted(tables) for store, tables in stores.items()},
        "added_later": {name: sorted(columns) for name, columns in sorted(added_columns().items()) if name in found},
        "routines": sorted(made),
        "tables": {
            name: {"columns": sorted(table.columns), "indexes": sorted(table.indexes)}
            for name, table in sorted(found.items())
        },
    }
    return _lines(document) + "\n"


def _lines(document: Mapping[str, Any]) -> str:
    """JSON whose second level is one line an entry, so that a release's changes read well in a diff."""
    parts = []
    for key, value in document.items():
        text = json.dumps(value)
        if isinstance(value, dict):
            text = "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n }"
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"


def added_columns() -> dict[str, set[str]]:
    """Columns that the installed app's code adds to existing tables (`ALTER TABLE ... ADD COLUMN IF NOT
    EXISTS`).
    """
    found: dict[str, set[str]] = {}
    for package in ("orcheo", "orcheo_backend"):
        spec = util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            for file in sorted(Path(root).rglob("*.py")):
                for table, columns in added_in(file.read_text(encoding="utf-8")).items():
                    found.setdefault(table, set()).update(columns)
    return found


def added_in(source: str) -> dict[str, set[str]]:
    """`added_columns` of one file's text: table to columns."""
    text = re.sub(r"[\"\s]+", " ", source)  # statements are split over lines and over string literals
    found: dict[str, set[str]] = {}
    for match in re.finditer(r"ALTER TABLE (\w+) (ADD COLUMN IF NOT EXISTS .*?)(?=;|ALTER TABLE|CREATE |$)", text):
        columns = re.findall(r"ADD COLUMN IF NOT EXISTS (\w+)", match[2])
        found.setdefault(match[1], set()).update(columns)
    return found
