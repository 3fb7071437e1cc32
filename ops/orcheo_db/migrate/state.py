"""What a migration knows, in the target itself (schema `orcheo_archive`): written in the transactions that copy the rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import sql

from orcheo_db.bootstrap.job import OWNER, READER
from orcheo_db.database import Connection
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.migrate.home import Home
from orcheo_db.migrate.layout import ARCHIVE, ATTACHMENT_BLOBS, BLOBS, KNOWN
from orcheo_db.upgrade.schema import columns

APPLICATION = "orcheo-db migrate"
COPYING, COPIED, CUT_OVER, ROLLED_BACK = "copying", "copied", "cut over", "rolled back"
# The tables that have to be empty at the start and hold nothing but the migration's rows until the cutover.
TARGETS = (*dict.fromkeys(table.into for table in KNOWN), BLOBS, ATTACHMENT_BLOBS)
_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS orcheo_archive;
CREATE TABLE IF NOT EXISTS orcheo_archive.migration (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    source      text NOT NULL,              -- the directory, with its machine's name
    release     text NOT NULL,              -- class of the release that made it
    phase       text NOT NULL,
    files       jsonb NOT NULL,             -- file to the statements that make its tables
    tables      jsonb NOT NULL,             -- table to its file and columns
    options     jsonb NOT NULL,
    home        jsonb NOT NULL,             -- workspaces, new names
    widths      jsonb NOT NULL,             -- table to rowids a chunk
    indexes     jsonb NOT NULL DEFAULT '[]',-- dropped for the copy, to be made again
    ours        jsonb NOT NULL DEFAULT '{}',-- rows that the source does not have: table to ids
    started_at  timestamptz NOT NULL DEFAULT now(),
    copied_at   timestamptz,
    verified_at timestamptz,
    cut_over_at timestamptz,
    report      jsonb NOT NULL DEFAULT '{}'
);
CREATE TABLE IF NOT EXISTS orcheo_archive.chunk (
    tab    text NOT NULL,
    lo     bigint NOT NULL,                 -- first rowid; as many follow as migration.widths says
    rows   bigint NOT NULL,
    away   bigint NOT NULL,                 -- rows that are in the quarantine and nowhere else
    bytes  bigint NOT NULL,
    marks  bytea NOT NULL,                  -- of each row its rowid and a digest of its values in SQLite (sync.Marks)
    compared boolean NOT NULL DEFAULT false,-- whether it was compared with the source since it was brought
    pending  boolean NOT NULL DEFAULT false,-- its table was not yet looked through for rows that the source has no more
    PRIMARY KEY (tab, lo)
);
CREATE TABLE IF NOT EXISTS orcheo_archive.quarantine (
    tab      text NOT NULL,
    lo       bigint NOT NULL,
    rowid    bigint NOT NULL,
    key      text[] NOT NULL,
    col      text,                          -- null: the whole row
    path     text,                          -- only what was under this key of the JSON document
    original bytea,
    form     text NOT NULL,                 -- SQLite's storage class
    reason   text NOT NULL,
    lossy    boolean NOT NULL
);
-- By hash: a key may be longer than a B-tree takes, and then its row is here for just that.
CREATE INDEX IF NOT EXISTS quarantine_by_key ON orcheo_archive.quarantine USING hash (key);
DROP INDEX IF EXISTS orcheo_archive.quarantine_key;
CREATE INDEX IF NOT EXISTS quarantine_chunk ON orcheo_archive.quarantine (tab, lo);
"""
_MARKS = ("compared", "pending")  # what a migration that an earlier toolkit began does not have


@dataclass
class State:
    """The one migration of a target."""

    source: str
    release: str
    phase: str
    files: dict[str, list[str]]
    tables: dict[str, dict[str, Any]]
    options: dict[str, Any]
    home: Home
    widths: dict[str, int]
    indexes: list[str]
    ours: dict[str, list[str]]
    report: dict[str, Any]


def settle(conn: Connection) -> None:
    """Have the session act as the tables' owner, in UTC.

    Raises:
        CheckFailed: there is no such role.
    """
    row = conn.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (OWNER,)).fetchone()
    if row is None:
        raise CheckFailed(
            f"there is no role {OWNER} on this server: run `orcheo-db up` first, which makes the app's schema"
        )
    conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(OWNER)))
    for name, value in (("TimeZone", "UTC"), ("DateStyle", "ISO"), ("bytea_output", "hex"), ("statement_timeout", "0"),
                        ("lock_timeout", "30s"), ("idle_in_transaction_session_timeout", "0"), ("search_path", "public")):  # fmt: skip
        conn.execute("SELECT set_config(%s, %s, false)", (name, value))


def prepare(conn: Connection) -> None:
    """Make the schema."""
    with conn.transaction():
        conn.execute(_SCHEMA)  # type: ignore[arg-type, unused-ignore]
        query = (
            "SELECT attname::text FROM pg_attribute WHERE attrelid = 'orcheo_archive.chunk'::regclass AND attnum > 0"
        )
        there = {name for (name,) in conn.execute(query)}
        for name in _MARKS:
            if name not in there:
                add = sql.SQL("ALTER TABLE orcheo_archive.chunk ADD COLUMN {} boolean NOT NULL DEFAULT false")
                conn.execute(add.format(sql.Identifier(name)))
        conn.execute(sql.SQL("GRANT USAGE ON SCHEMA orcheo_archive TO {r}").format(r=sql.Identifier(READER)))
        conn.execute(
            sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA orcheo_archive TO {r}").format(r=sql.Identifier(READER))
        )


def read(conn: Connection) -> State | None:
    """The migration that the target knows of."""
    row = conn.execute("SELECT to_regclass('orcheo_archive.migration') IS NOT NULL").fetchone()
    if not (row and row[0]):
        return None
    names = "source, release, phase, files, tables, options, home, widths, indexes, ours, report"
    found = conn.execute(f"SELECT {names} FROM orcheo_archive.migration".encode()).fetchone()
    if found is None:
        return None
    source, release, phase, files, tables, options, home, widths, indexes, ours, report = found
    return State(source, release, phase, files, tables, options, Home.read(home), widths, indexes, ours, report)


def write(conn: Connection, state: State) -> None:
    """Note the whole of it."""
    values = {
        "source": state.source, "release": state.release, "phase": state.phase, "files": json.dumps(state.files),
        "tables": json.dumps(state.tables), "options": json.dumps(state.options), "home": json.dumps(state.home.document()),
        "widths": json.dumps(state.widths), "indexes": json.dumps(state.indexes), "ours": json.dumps(state.ours),
        "report": json.dumps(state.report),
    }  # fmt: skip
    names = list(values)
    query = sql.SQL(
        "INSERT INTO orcheo_archive.migration ({}) VALUES ({}) ON CONFLICT (only_row) DO UPDATE SET {}"
    ).format(
        sql.SQL(", ").join(map(sql.Identifier, names)),
        sql.SQL(", ").join(sql.Placeholder(name) for name in names),
        sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in names),
    )
    conn.execute(query, values)


def stamp(conn: Connection, column: str) -> None:
    """Note that something is done now: copied_at, verified_at, cut_over_at."""
    conn.execute(sql.SQL("UPDATE orcheo_archive.migration SET {} = now()").format(sql.Identifier(column)))


@dataclass(frozen=True)
class Catalogue:
    """The target's columns: table to column to type; those that may be null; the primary keys."""

    types: Mapping[str, Mapping[str, str]]
    nullable: Mapping[str, frozenset[str]]
    keys: Mapping[str, tuple[str, ...]]


def catalogue(conn: Connection) -> Catalogue:
    """Read it; the archive's own tables are there under their names too.

    Raises:
        CheckFailed: the app's tables are not there.
    """
    types = columns(conn)
    missing = sorted(set(TARGETS) - set(types))
    if missing:
        raise CheckFailed(
            f"the database has no table {', '.join(missing[:3])}: run `orcheo-db up` first, which makes the app's schema"
        )
    nullable: dict[str, set[str]] = {}
    query = """
        SELECT c.relname::text, a.attname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped AND NOT a.attnotnull
    """
    for table, column in conn.execute(query):
        nullable.setdefault(table, set()).add(column)
    keys = {}
    query = """
        SELECT c.relname::text, array(SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY k(n, o)
                                        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.n ORDER BY k.o)
          FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary WHERE c.relnamespace = 'public'::regnamespace
    """
    for table, key in conn.execute(query):
        keys[table] = tuple(key)
    return Catalogue(types, {t: frozenset(nullable.get(t, ())) for t in types}, keys)


def known_catalogue() -> Catalogue:
    """The newest release's columns as this toolkit knows them (catalogue.json; a test compares it with the server's), for a plan without a target."""
    found = json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
    return Catalogue(
        {t: entry["columns"] for t, entry in found.items()},
        {t: frozenset(entry["nullable"]) for t, entry in found.items()},
        {t: tuple(entry["key"]) for t, entry in found.items()},
    )


def catalogue_text(conn: Connection) -> str:
    """What catalogue.json has to hold."""
    found = catalogue(conn)
    names = sorted(set(TARGETS) & set(found.types))
    lines = [
        f'  "{t}": '
        + json.dumps(
            {"key": list(found.keys[t]), "nullable": sorted(found.nullable[t]), "columns": dict(found.types[t])}
        )
        for t in names
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def refuse_others(conn: Connection, found: State | None, source: str) -> None:
    """A target with rows that are not this migration's is refused.

    Raises:
        UserError: it has rows, or is another source's, or was cut over.
    """
    if found is not None:
        if found.source != source:
            raise UserError(
                f"the target holds the migration of {found.source}, not of {source}: go on with that one, or give this one a database of its own."
                " Nothing was changed."
            )
        if found.phase == CUT_OVER:
            raise UserError(
                f"the migration of {source} was cut over: its rows are the app's now. `orcheo-db migrate rollback` takes them back to SQLite."
                " Nothing was changed."
            )
        if found.phase == ROLLED_BACK:
            raise UserError(
                f"the migration of {source} was rolled back: give a new one a database of its own. Nothing was changed."
            )
        return
    filled = [
        name for name in TARGETS
        if (row := conn.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier("public", name))).fetchone()) and row[0]
    ]  # fmt: skip
    if filled:
        raise UserError(
            f"the target is not empty ({', '.join(filled[:4])} hold rows of an app that runs on it): migrate into an empty database. Nothing was changed."
        )


__all__ = ["APPLICATION", "ARCHIVE", "COPIED", "COPYING", "CUT_OVER", "ROLLED_BACK", "TARGETS", "Catalogue", "State"]
