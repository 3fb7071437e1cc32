"""The limit: PostgreSQL's own COPY of the migrated rows, from text files into empty tables with all their indexes and constraints."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import sql

from orcheo_db.bench.stage import Stage
from orcheo_db.migrate import run

BLOCK = 256 * 1024
_TABLES = """
SELECT c.relname::text, array_agg(a.attname::text ORDER BY a.attnum)
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
 WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' GROUP BY 1 ORDER BY 1
"""
_REFERENCES = """
SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint
 WHERE contype = 'f' AND connamespace = 'public'::regnamespace AND conrelid <> confrelid
"""
_INDEXES = """
SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
 WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND NOT i.indisunique
   AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid)
"""


@dataclass(frozen=True)
class File:
    """A table's rows as COPY writes them."""

    table: str
    columns: tuple[str, ...]
    path: Path


def parents_first(tables: list[str], references: list[tuple[str, str]]) -> list[str]:
    """Tables so that each stands behind those that it refers to; a circle is broken anywhere."""
    waiting: Mapping[str, set[str]] = {
        name: {to for of, to in references if of == name and to in tables} for name in tables
    }
    done: list[str] = []
    while len(done) < len(tables):
        left = [name for name in tables if name not in done]
        done.append(next((name for name in left if waiting[name] <= set(done)), left[0]))
    return done


def unload(stage: Stage, directory: Path) -> list[File]:
    """COPY every table that has rows to a file; in the order in which they can be loaded."""
    directory.mkdir()
    files = []
    with stage.connect() as connection:
        columns = {name: tuple(names) for name, names in connection.execute(_TABLES)}
        references = connection.execute(_REFERENCES).fetchall()
        for table in parents_first(list(columns), references):
            file = File(table, columns[table], directory / table)
            statement = sql.SQL("COPY {} ({}) TO STDOUT").format(*_names(file))
            with file.path.open("wb") as out, connection.cursor() as cursor, cursor.copy(statement) as rows:
                for block in rows:
                    out.write(block)
            if file.path.stat().st_size:
                files.append(file)
    return files


def indexes(stage: Stage) -> dict[str, Any]:
    """Seconds of making the indexes that only make reading faster, over the rows that are there, two at a time.

    Whoever brings the rows, the server has to have these: the full-text index of chat messages on one processor, up to PostgreSQL 17.
    """
    with stage.connect() as connection:
        made = dict(connection.execute(_INDEXES).fetchall())
        for name in made:
            connection.execute(f"DROP INDEX {name}".encode())
    stage.own.rest()
    begun = time.monotonic()
    run.rebuild(stage.dsn, list(made.values()))
    return {"seconds": round(time.monotonic() - begun, 2), "indexes": len(made)}


def load(stage: Stage, files: list[File], *, connections: int = 1, compression: str = "pglz") -> dict[str, Any]:
    """Seconds of COPY FROM into the emptied tables, a table after the other; with several connections each takes a part of its rows."""
    stage.fresh()
    opened = [stage.connect() for _ in range(connections)]
    try:
        tables = sql.SQL(", ").join(sql.Identifier("public", file.table) for file in files)
        opened[0].execute(sql.SQL("TRUNCATE {} CASCADE").format(tables))
        for connection in opened:
            connection.execute("SELECT set_config('default_toast_compression', %s, false)", (compression,))
        begun = time.monotonic()
        with ThreadPoolExecutor(connections) as threads:
            for file in files:
                parts = zip(opened, split(file.path, connections), strict=False)
                for one in [threads.submit(_load, connection, file, *part) for connection, part in parts]:
                    one.result()
        seconds = time.monotonic() - begun
    finally:
        for connection in opened:
            connection.close()
    return {"seconds": round(seconds, 2), "connections": connections, "compression": compression}


def _load(connection: Any, file: File, first: int, last: int) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(*_names(file))
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for block in blocks(file.path, first, last):
            copy.write(block)


def _names(file: File) -> tuple[sql.Composable, sql.Composable]:
    return sql.Identifier("public", file.table), sql.SQL(", ").join(map(sql.Identifier, file.columns))


def split(path: Path, parts: int) -> list[tuple[int, int]]:
    """Ranges of a file's bytes, each of whole lines: in COPY's text format a line is a row."""
    size = path.stat().st_size
    cuts = [0]
    with path.open("rb") as file:
        for part in range(1, parts):
            file.seek(max(size * part // parts, cuts[-1]))
            file.readline()
            cuts.append(min(file.tell(), size))
    return [pair for pair in zip(cuts, [*cuts[1:], size], strict=True) if pair[0] < pair[1]]


def blocks(path: Path, first: int, last: int) -> Iterator[bytes]:
    """A range of a file."""
    with path.open("rb") as file:
        file.seek(first)
        left = last - first
        while left > 0 and (block := file.read(min(BLOCK, left))):
            left -= len(block)
            yield block
