"""Which tables carry a workspace's id, whose workspace their rows follow, and where their JSON repeats the id.

Read from the two releases' own code (orcheo 0.34.0 to 0.46.1): a workflow is shown by its column, a run, a credential, a
template and an alert by their payload's `workspace_id` too, and a credential's scope lists workspaces. A table of a later
release that isn't listed here is treated by its column alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import LiteralString


@dataclass(frozen=True)
class Follows:
    """A row's workspace is that of its parent: `child` = `parent.key` (SQL expressions on aliases t and p)."""

    parent: str
    child: LiteralString
    key: LiteralString


@dataclass(frozen=True)
class Scoped:
    """One table with rows of a workspace in column `workspace_id` (text).

    payload: its JSON column `payload` repeats the id. scope: `payload.scope.workspace_ids` may list it and column `hint`
    repeat the first of them. shared: a row without a workspace is everybody's in the newest app too. unique: the column whose values must differ within a workspace, for the rows that `among` says.
    """

    name: str
    id: str = "id"
    follows: Follows | None = None
    payload: bool = False
    scope: bool = False
    hint: str | None = None
    shared: bool = False
    unique: str | None = None
    among: LiteralString = "true"
    unique_limit: int = 64

    @property
    def deliberate(self) -> tuple[str, ...]:
        """What an upgrade may change in the table, for people: columns and paths in them."""
        changed = ["workspace_id"]
        changed += ["payload.workspace_id"] if self.payload else []
        changed += ["payload.scope.workspace_ids"] if self.scope else []
        changed += [self.hint] if self.hint else []
        changed += [self.unique, *([f"payload.{self.unique}"] if self.payload else [])] if self.unique else []
        changed += ["workspace_ids"] if self.name == "service_tokens" else []
        return tuple(changed)


_OF_WORKFLOW = Follows("workflows", "t.workflow_id", "p.id")
# In this order: a parent's rows are at home before its children's are looked at.
TABLES: tuple[Scoped, ...] = (
    Scoped("workflows", payload=True, unique="handle", among="NOT t.is_archived AND t.handle IS NOT NULL"),
    Scoped("workflow_versions", follows=_OF_WORKFLOW, payload=True),
    Scoped("workflow_runs", follows=_OF_WORKFLOW, payload=True),
    Scoped("execution_history", id="execution_id", follows=_OF_WORKFLOW),
    Scoped("agentensor_checkpoints", follows=_OF_WORKFLOW),
    Scoped("chat_threads", follows=_OF_WORKFLOW),
    Scoped("chat_attachments", follows=Follows("chat_threads", "t.thread_id", "p.id"), shared=True),
    # For a credential the app itself refuses a second one of the same name; no index does.
    Scoped("credentials", follows=_OF_WORKFLOW, payload=True, scope=True, hint="workflow_id", unique="name"),
    Scoped("credential_templates", payload=True, scope=True, hint="scope_hint"),
    Scoped(
        "governance_alerts",
        follows=Follows("credentials", "t.payload->>'credential_id'", "p.id"),
        payload=True,
        scope=True,
        hint="scope_hint",
    ),
    Scoped("plugin_installations", id="plugin_name"),
    Scoped("service_tokens", id="identifier"),
    Scoped("service_token_audit_log", follows=Follows("service_tokens", "t.token_id", "p.identifier")),
    Scoped("teams", unique="slug"),
)
# A plugin is on or off once for a workspace: a stray row beside the workspace's own is kept here and not in the way.
ARCHIVE = "orcheo_archive"
ARCHIVED = "plugin_installations"
# Their rows count the migrations of LangGraph's own tables and grow when those are brought up to date.
COUNTERS = ("checkpoint_migrations", "store_migrations")
# An upgrade adds rows to these (their ids are in its report).
GROWING = ("workspaces", "workspace_memberships")


def scoped(columns: Mapping[str, Mapping[str, str]]) -> list[Scoped]:
    """The tables with a workspace's rows among those that are there, parents first.

    Args:
        columns: table to column to type, of schema public.
    """
    known = {table.name: table for table in TABLES}
    there = {name for name, types in columns.items() if types.get("workspace_id") == "text"}
    others = (Scoped(name, follows=_parent(columns[name])) for name in sorted(there - set(known)))
    return [table for table in TABLES if table.name in there] + list(others)


def _parent(types: Mapping[str, str]) -> Follows | None:
    return _OF_WORKFLOW if types.get("workflow_id") == "text" else None
