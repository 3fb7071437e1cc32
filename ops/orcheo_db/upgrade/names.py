"""Names that collide when rows of several workspaces come together in one. Pure: no database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Named:
    """A row with a name that must be the only one in its workspace. `moved`: it comes from elsewhere."""

    id: str
    workspace: str
    name: str
    moved: bool
    updated_at: datetime


@dataclass(frozen=True)
class Rename:
    """One row's new name."""

    table: str
    id: str
    workspace: str
    old: str
    new: str

    def document(self) -> dict[str, Any]:
        return {"table": self.table, "id": self.id, "workspace": self.workspace, "old": self.old, "new": self.new}


def renames(table: str, rows: Iterable[Named], limit: int) -> list[Rename]:
    """Which rows need another name, and which.

    Of several rows of one name (compared without case) in a workspace, one keeps it: a row that was there before those that
    come, then the one changed last. The others get `-2`, `-3`, … , whichever is free; `limit` is a name's greatest length.
    """
    taken: dict[str, set[str]] = defaultdict(set)
    same: dict[tuple[str, str], list[Named]] = defaultdict(list)
    for row in rows:
        taken[row.workspace].add(row.name.lower())
        same[row.workspace, row.name.lower()].append(row)
    found = []
    for (workspace, _), group in sorted(same.items()):
        # Two rows that were there before are the app's own doing; only those that come are renamed.
        group.sort(key=lambda row: (row.moved, -row.updated_at.timestamp(), row.id))
        for row in group[1:]:
            if row.moved:
                new = free(row.name, taken[workspace], limit)
                taken[workspace].add(new.lower())
                found.append(Rename(table, row.id, workspace, row.name, new))
    return found


def free(name: str, taken: set[str], limit: int) -> str:
    """`name` with the first suffix that nobody in `taken` (lower case) has."""
    number = 2
    while (new := f"{name[: limit - len(str(number)) - 1].rstrip('-')}-{number}").lower() in taken:
        number += 1
    return new
