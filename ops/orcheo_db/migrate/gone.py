"""Rows of the target that the source has no more: found by the keys that they had, or by all keys of the table."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from orcheo_db.errors import UserError
from orcheo_db.migrate.convert import Converter, Row
from orcheo_db.migrate.source import Found, opened
from orcheo_db.migrate.state import State
from orcheo_db.migrate.sync import SAME_KEY, SHARING, Before, Marks, Setting, Worker

Connection = psycopg.Connection[Any]
MANY = 100_000  # rows of a table that were changed or deleted: from there on reading all keys is no slower


@dataclass
class Lost:
    """Rows that were noted and have changed or gone since, by table; `snapshot`: files in which they may still be as they were noted."""

    snapshot: Path | None
    rows: dict[str, list[Before] | None] = field(default_factory=dict)

    def add(self, table: str, since: Sequence[Before] | None) -> None:
        """Add those of a chunk; None: too many to be named."""
        there = self.rows.setdefault(table, [])
        if since is None or there is None or len(there) + len(since) > MANY:
            self.rows[table] = None
        else:
            there.extend(since)


def delete(setting: Setting, conn: Connection, found: State, table: Found, lost: Lost, *, thorough: bool) -> int:
    """Delete the target's rows that the source has no more; unless `thorough`, they are only looked for where the numbers differ."""
    known = table.known
    assert known is not None
    place = sql.Identifier("public", known.into)
    ours = found.ours.get(known.into, [])
    if not thorough and not _surplus(conn, table, place, len(ours)):
        return 0
    names = sql.SQL(", ").join(map(sql.Identifier, setting.catalogue.keys[known.into]))
    spared = sql.SQL(" AND t.id::text <> ALL ({})").format(sql.Literal(list(ours))) if ours else sql.SQL("")
    worker = Worker(setting)
    try:
        # A row that went there because another one has its key is no reason to take that one for gone.
        query = "SELECT key FROM orcheo_archive.quarantine WHERE tab = %s AND col IS NULL AND reason <> %s"
        away = {tuple(name) for (name,) in conn.execute(query, (table.name, SAME_KEY))}
        converter = worker.converter(table)
        key = setting.catalogue.keys[known.into]
        deleted = 0
        if not thorough and (former := _former(setting, table, converter, key, away, lost)) is not None:
            with conn.transaction():
                _into(conn, "gone", names, place, former)
                deleted = conn.execute(
                    sql.SQL("DELETE FROM {} t USING gone g WHERE {}{}").format(place, _same("g", key), spared)
                ).rowcount
            if not _surplus(conn, table, place, len(ours)):
                return deleted
        with conn.transaction(), opened(setting.source.directory / table.file) as reading:
            _into(conn, "wanted", names, place, converter.names(reading, key, away))
            conn.execute("ANALYZE wanted")
            deleted += conn.execute(
                sql.SQL("DELETE FROM {} t WHERE NOT EXISTS (SELECT FROM wanted w WHERE {}){}").format(
                    place, _same("w", key), spared
                )
            ).rowcount
            if known.into == "checkpoints":
                conn.execute(_STALE_BLOBS)
    finally:
        worker.close()
    return deleted


def _surplus(conn: Connection, table: Found, place: sql.Identifier, ours: int) -> bool:
    """Whether the target has another number of rows than was brought, and our own."""
    query = "SELECT coalesce(sum(rows - away), 0) FROM orcheo_archive.chunk WHERE tab = %s"
    wanted = conn.execute(query, (table.name,)).fetchone()
    there = conn.execute(sql.SQL("SELECT count(*) FROM {}").format(place)).fetchone()
    assert wanted is not None and there is not None
    return int(there[0]) != int(wanted[0]) + ours


def _same(alias: str, key: Sequence[str]) -> sql.Composable:
    return sql.SQL(" AND ").join(
        sql.SQL("{0}.{1} = t.{1}").format(sql.Identifier(alias), sql.Identifier(name)) for name in key
    )


def _into(conn: Connection, name: str, names: sql.Composable, place: sql.Identifier, keys: Any) -> None:
    """Keys into a table of this transaction."""
    made = sql.Identifier(name)
    conn.execute(sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {} FROM {} LIMIT 0").format(made, names, place))
    with conn.cursor() as cursor, cursor.copy(sql.SQL("COPY {} FROM STDIN").format(made)) as stream:
        for key in keys:
            stream.write_row(key)


def _former(
    setting: Setting, table: Found, converter: Converter, key: Sequence[str], away: set[tuple[str, ...]], lost: Lost
) -> list[Row] | None:
    """The target's keys of rows that were noted and that the source has no more; None: they can't be told.

    A cutover has to read no table whole for that. The snapshot counts only where its row is the one that was noted.
    """
    rows = lost.rows.get(table.name)
    if lost.snapshot is None or rows is None or not table.rowid:
        return None
    if (
        table.name in SHARING or converter.has_files
    ):  # the key is not the row's own alone, or the mark has more than the row
        return None
    assert table.known is not None
    names = ", ".join(f'"{name}"' for name in table.names)
    same = " AND ".join(f'"{name}" = ?' for name in table.known.key)
    places = [converter.into.index(name) for name in key]
    found: list[Row] = []
    try:
        with opened(lost.snapshot / table.file) as before, opened(setting.source.directory / table.file) as now:
            for rowid, mark in rows:
                row = before.execute(f'SELECT {names} FROM "{table.name}" WHERE rowid = ?', (rowid,)).fetchone()
                if row is None or Marks.of(row) != mark:
                    return None
                named = [row[i] for i in converter.key]
                if not {type(part) for part in named} <= {
                    str,
                    int,
                }:  # a text and the same bytes are one key in the target
                    return None
                query = f'SELECT 1 FROM "{table.name}" WHERE {same} LIMIT 1'
                if now.execute(query, named).fetchone() is None and converter.key_of(row) not in away:
                    found.append(converter.name_of(row, places))
    except (sqlite3.Error, OSError, UserError):  # no such table there, or the file has gone
        return None
    return found


# Blobs of channels' versions that no checkpoint names any more.
_STALE_BLOBS = """
DELETE FROM checkpoint_blobs b WHERE NOT EXISTS (
    SELECT FROM checkpoints c WHERE c.thread_id = b.thread_id AND c.checkpoint_ns = b.checkpoint_ns
                                AND c.checkpoint -> 'channel_versions' ->> b.channel = b.version)
"""
