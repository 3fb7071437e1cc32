"""Which workspace each row belongs to in the newest release, and the names that collide there.

The rules are `upgrade.remap`'s, applied to the rows on their way instead of in the database.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from orcheo_db.migrate.layout import SCOPED
from orcheo_db.migrate.source import Found, Source, connect, opened
from orcheo_db.upgrade import workspaces
from orcheo_db.upgrade.names import Named, renames
from orcheo_db.upgrade.tables import Scoped
from orcheo_db.upgrade.workspaces import Destination, Workspace

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass
class Home:
    """id: where a row goes that follows nothing ("": there is none to move). known: all workspaces, the home among them.

    single: nobody is a member of a workspace. renames: (table, row id) to new name. losers: rows of plugin_installations that stand
    behind another one of the same plugin. stays: items of the graph store that keep their dead workspace's id, for the home has one of
    that name.
    """

    id: str = ""
    slug: str = ""
    new: bool = False
    known: frozenset[str] = frozenset()
    single: bool = True
    renames: dict[tuple[str, str], str] = field(default_factory=dict)
    losers: frozenset[tuple[str, str]] = frozenset()
    stays: frozenset[tuple[str, str]] = frozenset()
    strays: dict[str, dict[str, int]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As JSON, for the state in the target."""
        return {
            **{key: value for key, value in asdict(self).items() if key in ("id", "slug", "new", "single", "strays")},
            "known": sorted(self.known),
            "renames": [[*key, value] for key, value in sorted(self.renames.items())],
            "losers": sorted(map(list, self.losers)),
            "stays": sorted(map(list, self.stays)),
        }

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Home:
        """From `document`."""
        return cls(
            found["id"], found["slug"], found["new"], frozenset(found["known"]), found["single"],
            {(table, key): new for table, key, new in found["renames"]},
            frozenset((a, b) for a, b in found["losers"]), frozenset((a, b) for a, b in found["stays"]), dict(found["strays"]),
        )  # fmt: skip

    def store_prefix(self, prefix: str, key: str) -> str:
        """Where a graph store item goes: its namespace begins with its workspace."""
        first = prefix.partition(".")[0]
        if not self.id or first in self.known or not _UUID.fullmatch(first) or (prefix, key) in self.stays:
            return prefix
        return self.id + prefix[len(first) :]


class Lookup:
    """Asks other rows of the source: parents, their workspaces. One a process; the connections are its own."""

    def __init__(self, source: Source, home: Home) -> None:
        self.source, self.home = source, home
        self._connections: dict[str, sqlite3.Connection] = {}
        # Rows of one parent lie together; ten times as many would be 30 MB in each process.
        self.workspace_of = lru_cache(maxsize=10_000)(self._workspace_of)
        self.exists = lru_cache(maxsize=10_000)(self._exists)

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    def one(self, table: Found, columns: str, where: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The first row that fits."""
        connection = self._connections.get(table.file)
        if connection is None:
            connection = self._connections[table.file] = connect(self.source.directory / table.file)
        query = f'SELECT {columns} FROM "{table.name}" WHERE {where} LIMIT 1'
        try:
            row: tuple[Any, ...] | None = connection.execute(query, values).fetchone()
        except UnicodeEncodeError:  # a text that is no UTF-8 is bound as its bytes
            raw = [v.encode("utf-8", "surrogateescape") if isinstance(v, str) else v for v in values]
            row = connection.execute(query.replace("?", "CAST(? AS TEXT)"), raw).fetchone()
        return row

    def _exists(self, name: str, columns: tuple[str, ...], key: tuple[Any, ...]) -> bool:
        table = self.source.table(name)
        where = " AND ".join(f'"{column}" = ?' for column in columns)
        return table is not None and self.one(table, "1", where, key) is not None

    def _workspace_of(self, name: str, column: str, key: str) -> str:
        """The workspace where a parent row is going to be; the home of strays where there is no such row."""
        table = self.source.table(name)
        if table is None or not key:
            return self.home.id
        has = "workspace_id" in table.names
        follows = name in ("chat_threads", "credentials") and "workflow_id" in table.names
        extra = '"workflow_id"' if follows else "NULL"
        row = self.one(table, f"{'workspace_id' if has else 'NULL'}, {extra}", f'"{column}" = ?', (key,))
        if row is None:
            return self.home.id
        if row[0] in self.home.known:
            return str(row[0])
        return self._workspace_of("workflows", "id", row[1]) if row[1] else self.home.id


def find(source: Source, there: Iterable[Workspace], wanted: str | None, earlier: Home | None = None) -> Home:
    """Decide for a source. `there`: the target's workspaces. `earlier`: what was decided before stays.

    Raises:
        UserError: no such workspace, or it is not active.
    """
    with ExitStack() as stack:
        connections = {name: stack.enter_context(opened(source.directory / name)) for name in source.files}
        present, members = _present(source, connections)
        there = [*there, *(w for w in present if w.slug not in {t.slug for t in there})]
        scoped = [SCOPED[t.name] for t in source.tables if t.name in SCOPED and t.name != "chat_attachments"]
        counts = {t.name: _counts(connections[t.file], t) for t in source.tables if t.name in {s.name for s in scoped}}
        strays = workspaces.stray(counts, there, scoped)
        known = {w.id for w in there}
        if earlier is not None:
            home = Home(
                earlier.id,
                earlier.slug,
                earlier.new,
                frozenset(known | earlier.known),
                earlier.single,
                dict(earlier.renames),
            )
            if strays and not home.id:
                home = _settle(home, workspaces.destination(there, strays, wanted))
        else:
            home = _settle(
                Home(known=frozenset(known), single=not members), workspaces.destination(there, strays, wanted)
            )
        home.strays = strays
        _names(source, connections, home)
        home.losers = frozenset(_losers(source, connections, home))
        home.stays = frozenset(_stays(source, connections, home))
        return home


def _settle(home: Home, where: Destination | None) -> Home:
    if where is not None:
        home.id, home.slug, home.new, home.known = where.id, where.slug, where.new, home.known | {where.id}
    return home


def _present(source: Source, connections: Mapping[str, sqlite3.Connection]) -> tuple[list[Workspace], int]:
    """The source's own workspaces and how many members they have."""
    table = source.table("workspaces")
    if table is None:
        return [], 0
    connection = connections[table.file]
    found = [
        Workspace(str(i), str(s), str(st), 0)
        for i, s, st in connection.execute("SELECT id, slug, status FROM workspaces")
    ]
    members = source.table("workspace_memberships")
    count = (
        connections[members.file].execute("SELECT count(*) FROM workspace_memberships").fetchone()[0] if members else 0
    )
    return found, int(count)


def _counts(connection: sqlite3.Connection, table: Found) -> dict[str, int]:
    column = "coalesce(workspace_id, '')" if "workspace_id" in table.names else "''"
    query = f'SELECT {column}, count(*) FROM "{table.name}" GROUP BY 1'
    return {str(workspace): int(count) for workspace, count in connection.execute(query)}


def _final(home: Home, workspace: object, parent: str | None = None) -> str:
    return str(workspace) if workspace in home.known else (parent or home.id)


def _names(source: Source, connections: Mapping[str, sqlite3.Connection], home: Home) -> None:
    """Names that must differ within a workspace: workflow handles, credentials."""
    lookup = Lookup(source, home)
    for name in ("workflows", "credentials"):
        table, listed = source.table(name), SCOPED[name]
        if table is None or listed.unique is None:
            continue
        rows = list(_named(connections[table.file], table, listed, home, lookup))
        for new in renames(name, rows, listed.unique_limit):
            home.renames[name, new.id] = new.new
    lookup.close()


def _named(connection: sqlite3.Connection, table: Found, listed: Scoped, home: Home, lookup: Lookup) -> Iterable[Named]:
    has = set(table.names)
    own = "workspace_id" if "workspace_id" in has else "NULL"
    follows = "workflow_id" if table.name == "credentials" and "workflow_id" in has else "NULL"
    if listed.unique not in has:
        return
    among = " WHERE is_archived = 0 AND handle IS NOT NULL" if table.name == "workflows" else ""
    query = f'SELECT id, {own}, {follows}, "{listed.unique}", updated_at FROM "{table.name}"{among} ORDER BY id'
    for key, workspace, workflow, name, updated in connection.execute(query):
        if not isinstance(name, str) or (table.name, str(key)) in home.renames:
            if isinstance(name, str):
                yield Named(
                    str(key), home.id, home.renames[table.name, str(key)], False, datetime.max.replace(tzinfo=UTC)
                )
            continue
        parent = lookup.workspace_of("workflows", "id", str(workflow)) if workflow else None
        final, moved = _final(home, workspace, parent), workspace not in home.known
        yield Named(str(key), final, name, moved, _when(updated))


def _when(text: object) -> datetime:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _losers(source: Source, connections: Mapping[str, sqlite3.Connection], home: Home) -> Iterable[tuple[str, str]]:
    table = source.table("plugin_installations")
    if table is None or not home.id:
        return
    seen: dict[str, bool] = {}
    rows = connections[table.file].execute("SELECT plugin_name, workspace_id FROM plugin_installations").fetchall()
    rows.sort(key=lambda row: (str(row[0]), row[1] != home.id, str(row[1])))
    for plugin, workspace in rows:
        if workspace in home.known and workspace != home.id:
            continue
        if str(plugin) in seen:
            yield str(plugin), str(workspace)
        seen[str(plugin)] = True


def _stays(source: Source, connections: Mapping[str, sqlite3.Connection], home: Home) -> Iterable[tuple[str, str]]:
    table = source.table("store")
    if table is None or not home.id:
        return
    connection = connections[table.file]
    firsts = [str(row[0]) for row in connection.execute("SELECT DISTINCT substr(prefix, 1, 36) FROM store")]
    dead = [first for first in firsts if _UUID.fullmatch(first) and first not in home.known]
    if not dead:
        return
    seen: set[tuple[str, str]] = set()
    for first in (home.id, *sorted(dead)):  # the home's own come first
        for prefix, key in connection.execute(
            "SELECT prefix, key FROM store WHERE substr(prefix, 1, 36) = ? ORDER BY 1, 2", (first,)
        ):
            rest = (prefix[36:], key)
            if rest in seen and first != home.id:
                yield prefix, key
            seen.add(rest)
