"""Bringing stray rows home: those whose workspace_id is null or names no workspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString

from psycopg import sql

from orcheo_db.database import Connection
from orcheo_db.upgrade.names import Named, Rename, renames
from orcheo_db.upgrade.tables import ARCHIVE, ARCHIVED, Scoped


@dataclass
class Moves:
    """What was done: table to number of rows moved, new names, rows put into the archive."""

    moved: dict[str, int] = field(default_factory=dict)
    renamed: list[Rename] = field(default_factory=list)
    archived: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Home:
    """`known`: the ids of all workspaces (also closed ones); `id`: where a stray row goes that follows nothing."""

    id: str
    known: Sequence[str]

    def stray(self, table: Scoped) -> sql.Composable:
        """Whether row t is a stray."""
        query: LiteralString = "coalesce(t.workspace_id <> ALL ({}), {})"
        return sql.SQL(query).format(sql.Literal(list(self.known)), sql.Literal(not table.shared))

    def final(self, table: Scoped) -> sql.Composable:
        """The workspace in which row t belongs: its own, else its parent's, else the home of strays."""
        parent: sql.Composable = sql.SQL("NULL")
        if table.follows:
            parent = sql.SQL(
                "(SELECT p.workspace_id FROM {} p WHERE {} = {} AND p.workspace_id = ANY ({}) LIMIT 1)"
            ).format(
                sql.Identifier("public", table.follows.parent),
                sql.SQL(table.follows.key),
                sql.SQL(table.follows.child),
                sql.Literal(list(self.known)),
            )
        return sql.SQL("CASE WHEN {} THEN coalesce({}, {}) ELSE t.workspace_id END").format(
            self.stray(table), parent, sql.Literal(self.id)
        )


def collisions(conn: Connection, table: Scoped, home: Home) -> list[Rename]:
    """The new names that rows of a table need when they are home. Parents need not have moved yet."""
    if table.unique is None:
        return []
    query = sql.SQL(
        "SELECT t.{id}::text, {final}, t.{name}, {stray}, t.updated_at FROM {table} t WHERE {among} ORDER BY 1"
    ).format(
        id=sql.Identifier(table.id),
        final=home.final(table),
        name=sql.Identifier(table.unique),
        stray=home.stray(table),
        table=sql.Identifier("public", table.name),
        among=sql.SQL(table.among),
    )
    rows = [Named(str(i), str(w), str(n), bool(m), at) for i, w, n, m, at in conn.execute(query)]
    return renames(table.name, rows, table.unique_limit)


def rename(conn: Connection, table: Scoped, new: Rename) -> None:
    """Give one row its new name, in its column and where its JSON repeats it."""
    assert table.unique is not None
    column = sql.Identifier(table.unique)
    payload: sql.Composable = sql.SQL("")
    if table.payload:
        payload = sql.SQL(", payload = jsonb_set(payload, {}, to_jsonb({}::text))").format(
            sql.Literal([table.unique]), sql.Literal(new.new)
        )
    conn.execute(
        sql.SQL("UPDATE {} SET {} = {}{} WHERE {} = {}").format(
            sql.Identifier("public", table.name),
            column,
            sql.Literal(new.new),
            payload,
            sql.Identifier(table.id),
            sql.Literal(new.id),
        )
    )


def move(conn: Connection, table: Scoped, home: Home) -> int:
    """Move a table's stray rows; returns how many."""
    sets = [sql.SQL("workspace_id = {}").format(home.final(table))]
    if table.payload:
        sets.append(sql.SQL("payload = {}").format(_payload(table, home)))
    if table.hint:
        # The hint is the first of the scope's workspaces where the scope has no workflow.
        known = sql.Literal(list(home.known))
        sets.append(
            sql.SQL(
                "{0} = CASE WHEN {0} = payload #>> '{{scope,workspace_ids,0}}' AND {0} <> ALL ({1}) THEN {2} ELSE {0} END"
            ).format(sql.Identifier(table.hint), known, home.final(table))
        )
    where = home.stray(table)
    if table.payload:  # a row at home whose JSON still names a workspace that isn't there
        where = sql.SQL("({} OR t.payload->>'workspace_id' <> ALL ({}))").format(where, sql.Literal(list(home.known)))
    query = sql.SQL("UPDATE {} t SET {} WHERE {}").format(
        sql.Identifier("public", table.name), sql.SQL(", ").join(sets), where
    )
    return conn.execute(query).rowcount


def _payload(table: Scoped, home: Home) -> sql.Composable:
    final = home.final(table)
    text: sql.Composable = sql.SQL("jsonb_set(t.payload, '{{workspace_id}}', to_jsonb({}::text))").format(final)
    if not table.scope:
        return text
    listed = sql.SQL("t.payload #> '{{scope,workspace_ids}}'").format()
    strange = sql.SQL("EXISTS (SELECT FROM jsonb_array_elements_text({}) w WHERE w <> ALL ({}))").format(
        listed, sql.Literal(list(home.known))
    )
    mended = sql.SQL(
        "(SELECT jsonb_agg(DISTINCT CASE WHEN w = ANY ({}) THEN w ELSE {}::text END) FROM jsonb_array_elements_text({}) w)"
    ).format(sql.Literal(list(home.known)), final, listed)
    return sql.SQL(
        "CASE WHEN jsonb_typeof({listed}) = 'array' AND {strange} THEN jsonb_set({text}, '{{scope,workspace_ids}}', {mended}) ELSE {text} END"
    ).format(listed=listed, strange=strange, text=text, mended=mended)


def archive_plugins(conn: Connection, plugins: Scoped, home: Home) -> int:
    """Put stray plugin rows that the home has a row of its own for into the archive; of several strays one stays.

    Returns the number of rows archived.
    """
    schema, table = sql.Identifier(ARCHIVE), sql.Identifier("public", ARCHIVED)
    ranked = sql.SQL(
        "SELECT t.ctid AS place, row_number() OVER (PARTITION BY t.plugin_name ORDER BY {stray}, t.workspace_id) AS place_in, {stray} AS stray"
        " FROM {table} t WHERE {stray} OR t.workspace_id = {home}"
    ).format(stray=home.stray(plugins), table=table, home=sql.Literal(home.id))
    row = conn.execute(sql.SQL("SELECT count(*) FROM ({}) r WHERE place_in > 1 AND stray").format(ranked)).fetchone()
    if not (row and row[0]):
        return 0
    conn.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(schema))
    conn.execute(sql.SQL("CREATE TABLE IF NOT EXISTS {} (LIKE {})").format(sql.Identifier(ARCHIVE, ARCHIVED), table))
    query = sql.SQL(
        "WITH gone AS (DELETE FROM {table} d USING ({ranked}) r WHERE d.ctid = r.place AND r.place_in > 1 AND r.stray RETURNING d.*)"
        " INSERT INTO {archive} SELECT * FROM gone"
    ).format(table=table, ranked=ranked, archive=sql.Identifier(ARCHIVE, ARCHIVED))
    return conn.execute(query).rowcount


def tokens(conn: Connection, home: Home, *, single: bool) -> int:
    """Service tokens: ids of workspaces that aren't there are replaced by the token's own workspace; returns how many changed.

    Args:
        single: nobody is a member of any workspace, so the bridge release ran in its single-workspace mode, in which every token
            served the one workspace there was. Such a token gets its workspace; elsewhere one without stays without.
    """
    query = sql.SQL("""
        UPDATE public.service_tokens t
           SET workspace_ids = CASE
                 WHEN jsonb_typeof(t.workspace_ids) = 'array' AND jsonb_array_length(t.workspace_ids) > 0
                 THEN (SELECT jsonb_agg(DISTINCT CASE WHEN w = ANY ({known}) THEN w ELSE t.workspace_id END)
                         FROM jsonb_array_elements_text(t.workspace_ids) w)
                 ELSE jsonb_build_array(t.workspace_id) END
         WHERE CASE WHEN jsonb_typeof(t.workspace_ids) = 'array' AND jsonb_array_length(t.workspace_ids) > 0
                    THEN EXISTS (SELECT FROM jsonb_array_elements_text(t.workspace_ids) w WHERE w <> ALL ({known}))
                    ELSE {single} END
    """).format(known=sql.Literal(list(home.known)), single=sql.Literal(single))
    return conn.execute(query).rowcount


def graph_store(conn: Connection, home: Home, dead: Sequence[str]) -> tuple[int, int]:
    """Items of the LangGraph store, whose namespace begins with the workspace (`orcheo.nodes.storage`), follow to the home of strays.

    Args:
        dead: ids that name no workspace.

    Returns how many moved, and how many stay under their dead id because the home has an item of that name.
    """
    values = {"home": home.id, "rest": len(home.id) + 1, "dead": list(dead)}
    moved = conn.execute(
        """
        UPDATE public.store s SET prefix = %(home)s || substr(s.prefix, %(rest)s)
         WHERE split_part(s.prefix, '.', 1) = ANY (%(dead)s)
           AND NOT EXISTS (SELECT FROM public.store o WHERE o.prefix = %(home)s || substr(s.prefix, %(rest)s) AND o.key = s.key)
           AND NOT EXISTS (SELECT FROM public.store e WHERE e.ctid < s.ctid AND e.key = s.key
                              AND split_part(e.prefix, '.', 1) = ANY (%(dead)s)
                              AND substr(e.prefix, %(rest)s) = substr(s.prefix, %(rest)s))
        """,
        values,
    ).rowcount
    row = conn.execute(
        "SELECT count(*) FROM public.store WHERE split_part(prefix, '.', 1) = ANY (%(dead)s)", values
    ).fetchone()
    return moved, int(row[0]) if row else 0


def bring_home(conn: Connection, tables: Sequence[Scoped], home: Home, *, single: bool) -> Moves:
    """All of it, parents first."""
    done = Moves()
    for table in tables:
        for new in collisions(conn, table, home):
            rename(conn, table, new)
            done.renamed.append(new)
        if table.name == ARCHIVED:
            done.archived = archive_plugins(conn, table, home)
        if count := move(conn, table, home):
            done.moved[table.name] = count
        if table.name == "service_tokens":
            done.tokens = tokens(conn, home, single=single)
    return done


def plan(conn: Connection, tables: Sequence[Scoped], home: Home) -> list[dict[str, Any]]:
    """The new names that `bring_home` would give, without changing anything."""
    return [new.document() for table in tables for new in collisions(conn, table, home)]
