"""The tables of Orcheo's SQLite files, what each becomes in the newest release, and what the old release's models accept.

Read from the releases' own code: orcheo-backend 0.15.0 and 0.30.0 (SQLite), 0.39.0 (PostgreSQL).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orcheo_db.upgrade.tables import ARCHIVE, TABLES, Scoped

FORMER = ("workflow_run_remediations",)  # the newest release has no such table: kept in the archive
COUNTERS = (
    "store_migrations",
    "checkpoint_migrations",
    "vector_migrations",
    "sqlite_sequence",
    "sqlite_stat1",
    "sqlite_stat4",
)
NEWER = ("teams", "users", "hosted_apps", "workspace_invitations")  # tables that no release with SQLite has
STORE_MIGRATIONS = (
    4  # the highest that orcheo-backend 0.30.0 installed today writes (langgraph-checkpoint-sqlite, measured)
)


@dataclass(frozen=True)
class Parent:
    """A foreign key of the target: `columns` of the child name the parent's key. nullable: an orphan loses the name, not itself."""

    table: str
    columns: tuple[str, ...]
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """One table of a SQLite file.

    target: its table in schema public. key: its primary key in SQLite, by which rows are named. renamed: source column to target
    column. models: JSON columns that the app validates whole, so that nothing can stand in for an unreadable one. sqlite_times:
    filled by SQLite's CURRENT_TIMESTAMP. texts: JSON columns that the old app
    gives out as they are written. blobs: JSON columns that the app itself fills with bytes. whole: rows refer to each other, so it is copied in one piece. small: few rows, and the
    largest part of the work on them is a look at other rows. kept: payload keys that the old releases' models know
    (they refuse others), by class of release.
    """

    name: str
    key: tuple[str, ...]
    target: str = ""
    parent: Parent | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    models: frozenset[str] = frozenset()
    sqlite_times: bool = False
    blobs: frozenset[str] = frozenset()
    texts: frozenset[str] = frozenset()
    whole: bool = False
    subsystem: str = "workflow repository"
    kept: Mapping[str, frozenset[str]] = field(default_factory=dict)
    level: int = 0  # parents have a lower one

    @property
    def into(self) -> str:
        return self.target or self.name

    @property
    def scoped(self) -> Scoped | None:
        return SCOPED.get(self.name)


def _keys(common: str, bridge: str) -> dict[str, frozenset[str]]:
    stamps = "id created_at updated_at audit_log"
    old = frozenset(f"{stamps} {common}".split())
    return {"0.15": old, "0.34": old | frozenset(bridge.split())}


_PAYLOAD = frozenset({"payload"})
_CONFIG = frozenset({"config"})
_WORKFLOW = _keys(
    "name slug description tags is_archived is_public published_at published_by require_login",
    "handle workspace_id draft_access share_url chatkit",
)
_VERSION = _keys("workflow_id version graph metadata runnable_config created_by notes", "workspace_id mermaid")
_RUN = _keys(
    "workflow_version_id status triggered_by input_payload runnable_config tags callbacks metadata run_name output_payload started_at"
    " completed_at error",
    "workspace_id",
)
_CREDENTIAL = _keys(
    "name provider scopes scope encryption kind oauth_tokens health last_rotated_at template_id", "workspace_id"
)
_TEMPLATE = _keys("description issuance_policy kind name provider scope scopes", "workspace_id")
_ALERT = _keys(
    "acknowledged_at acknowledged_by credential_id is_acknowledged kind message scope severity template_id",
    "workspace_id",
)
SCOPED: dict[str, Scoped] = {table.name: table for table in TABLES}
KNOWN: tuple[Table, ...] = (
    Table("workspaces", ("id",), subsystem="workspaces"),
    Table("workspace_memberships", ("id",), parent=Parent("workspaces", ("workspace_id",)), subsystem="workspaces", level=1),
    Table("workspace_audit_events", ("id",), parent=Parent("workspaces", ("workspace_id",)), subsystem="workspaces", level=1),
    Table("workflows", ("id",), models=_PAYLOAD, kept=_WORKFLOW),
    Table("workflow_versions", ("id",), models=_PAYLOAD, kept=_VERSION),
    Table("workflow_runs", ("id",), models=_PAYLOAD, kept=_RUN),
    Table("webhook_triggers", ("workflow_id",), models=_CONFIG),
    Table("cron_triggers", ("workflow_id",), models=_CONFIG),
    Table("retry_policies", ("workflow_id",), models=_CONFIG),
    Table("listener_subscriptions", ("id",), models=_PAYLOAD),
    Table("listener_cursors", ("subscription_id",), models=_PAYLOAD),
    Table("listener_dedupe", ("subscription_id", "dedupe_key"), models=_PAYLOAD),
    Table("plugin_installations", ("plugin_name", "workspace_id"), subsystem="plugins"),
    Table("execution_history", ("execution_id",), subsystem="run history"),
    Table(
        "execution_history_steps",
        ("execution_id", "step_index"),
        parent=Parent("execution_history", ("execution_id",)),
        subsystem="run history",
        level=1,
    ),
    Table("agentensor_checkpoints", ("id",), subsystem="agentensor checkpoints"),
    Table("service_tokens", ("identifier",), parent=Parent("service_tokens", ("rotated_to",), nullable=True), whole=True, subsystem="service tokens"),
    Table("service_token_audit_log", ("id",), texts=frozenset({"details"}), subsystem="service tokens"),
    Table("chat_threads", ("id",), subsystem="ChatKit store"),
    Table("chat_messages", ("id",), parent=Parent("chat_threads", ("thread_id",)), models=frozenset({"item_json"}), subsystem="ChatKit store", level=1),
    Table(
        "chat_attachments", ("id",), parent=Parent("chat_threads", ("thread_id",), nullable=True), models=frozenset({"details_json"}),
        subsystem="ChatKit store", level=1,
    ),
    Table("credentials", ("id",), models=_PAYLOAD, kept=_CREDENTIAL, subsystem="vault"),
    Table("credential_templates", ("id",), models=_PAYLOAD, kept=_TEMPLATE, subsystem="vault"),
    Table("governance_alerts", ("id",), models=_PAYLOAD, kept=_ALERT, subsystem="vault"),
    Table("checkpoints", ("thread_id", "checkpoint_ns", "checkpoint_id"), models=frozenset({"checkpoint"}), blobs=frozenset({"metadata"}), subsystem="LangGraph checkpoints"),
    Table(
        "writes", ("thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "idx"), target="checkpoint_writes", renamed={"value": "blob"},
        subsystem="LangGraph checkpoints",
    ),
    Table("store", ("prefix", "key"), sqlite_times=True, blobs=frozenset({"value"}), subsystem="LangGraph store"),
)  # fmt: skip
BY_NAME: dict[str, Table] = {table.name: table for table in KNOWN}
# What is there for every column that a stand-in may take the place of; list-valued ones are read as lists.
LISTS = frozenset({"tags", "callbacks", "scopes", "workspace_ids", "allowed_ip_ranges"})
# Filled by a migration beyond the rows of the source.
BLOBS, ATTACHMENT_BLOBS = "checkpoint_blobs", "chat_attachment_blobs"
# Columns of the newest release that the old ones don't have, filled from another row.
DERIVED = {
    "chat_attachments": ("workspace_id", "workflow_id", "size_bytes", "sha256", "blob_backend"),
    "workflows": ("is_archived",),
}

__all__ = ["ARCHIVE", "BY_NAME", "FORMER", "KNOWN", "SCOPED", "Parent", "Table"]
