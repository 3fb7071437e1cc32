"""What a migration would meet: read-only, without a target, also beside the old app at work."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from orcheo_db.migrate import home, state, text, vault
from orcheo_db.migrate.convert import EXTRA, LOSSY, NO_FILE, ORPHAN, RENAMED, WORKSPACE, Converter, Options
from orcheo_db.migrate.home import Home, Lookup
from orcheo_db.migrate.pool import WORKERS
from orcheo_db.migrate.run import width
from orcheo_db.migrate.source import Found, Source, changed, live, look, opened, size, stamp, unknown, writers
from orcheo_db.migrate.sync import read, size_of, stretches

# Bytes of values a second and processor of a copy, the server's work among it, and of messages, whose full-text index takes most of it:
# between what `make bench-migrate` measured on two machines that differ by a factor of two. For the estimate alone.
COPY_RATE, MESSAGE_RATE = 15 * 2**20, 4 * 2**20
BIG = 2**53  # the largest integer up to which every JSON reader (a browser's) keeps each one
_BIG = re.compile(r'(?<![\w."])-?\d{16,}(?![\w.])')
WORDS = "more words than PostgreSQL's full-text index takes"
FULL_TEXT = {"chat_messages": "item_json"}  # the app's one index over to_tsvector
# Of a tsvector (PostgreSQL's manual, 12.11): bytes of all words and their places; bytes of a word; the last place that is noted.
LARGEST_VECTOR, LONGEST_WORD, LAST_PLACE = 2**20 - 1, 2048, 16383
_WORD = re.compile(r"\w+(?:-\w+)*")
# Rows that name another row that isn't there, without a constraint: column, the other table and its key.
REFERENCES = {
    "workflow_versions": ("workflow_id", "workflows", "id"), "workflow_runs": ("workflow_version_id", "workflow_versions", "id"),
    "webhook_triggers": ("workflow_id", "workflows", "id"), "cron_triggers": ("workflow_id", "workflows", "id"),
    "retry_policies": ("workflow_id", "workflows", "id"), "agentensor_checkpoints": ("workflow_id", "workflows", "id"),
    "service_token_audit_log": ("token_id", "service_tokens", "identifier"), "execution_history": ("workflow_id", "workflows", "id"),
}  # fmt: skip


@dataclass
class Scan:
    """What the rows of a chunk hold. reasons: (table, column, reason) to number of values or rows."""

    rows: int = 0
    bytes: int = 0
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    big: Counter[tuple[str, str]] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def add(self, other: Scan) -> None:
        self.rows += other.rows
        self.bytes += other.bytes
        self.reasons += other.reasons
        self.big += other.big
        self.lost += other.lost


@dataclass(frozen=True)
class Hazard:
    """One thing to know. option: what decides about it, with its default; empty where there is nothing to decide. where: column to number."""

    text: str
    option: str = ""
    where: Mapping[str, int] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return {"text": self.text, "option": self.option or None, "where": dict(self.where)}


def places(where: Mapping[str, int], shown: int = 4) -> str:
    """The columns with the most first, for a line."""
    most = sorted(where.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(most) - shown} more" if len(most) > shown else ""
    return ", ".join(f"{name} {count}" for name, count in most[:shown]) + more


def plan(
    directory: Path, options: Options, workspace: str | None, retention_days: int, report: Callable[[Scan, int], None]
) -> dict[str, Any]:
    """Read everything once; the document has tables, bytes, an estimate and `hazards`, of which those with an option want a decision.

    Args:
        retention_days: after how many days the new app will delete chats.

    Raises:
        UserError: the directory holds nothing that can be read. sqlite3.DatabaseError: a file is damaged.
    """
    for again in (True, False):
        source = look(directory)
        before = {name: stamp(directory / name) for name in source.files}
        damaged: sqlite3.DatabaseError | None = None
        try:
            found = _plan(source, options, workspace, retention_days, report)
        except sqlite3.DatabaseError as error:
            damaged = error
        # What was read while somebody wrote may be of two moments: once more, now as beside a writer.
        written = [name for name, was in before.items() if changed(directory / name, was)]
        if not (again and written):
            break
    if damaged is not None:
        raise damaged
    return found


def _plan(
    source: Source, options: Options, workspace: str | None, retention_days: int, report: Callable[[Scan, int], None]
) -> dict[str, Any]:
    decided = home.find(source, [], workspace)
    begun, total = time.monotonic(), size(source)
    scans = {table.name: Scan() for table in source.tables}
    done = Scan()
    for name, scan in _scan(source, decided, options):
        scans[name].add(scan)
        done.add(scan)
        report(done, total)
    number, unreadable = vault.count(source, vault.key(source))
    tables = [
        {"table": t.name, "file": t.file, "rows": scans[t.name].rows, "bytes": scans[t.name].bytes,
         "subsystem": t.known.subsystem if t.known else None, "into": t.known.into if t.known else f"orcheo_archive.{t.name}"}
        for t in source.data
    ]  # fmt: skip
    hazards = [
        *_of_values(done), *_of_tables(source, scans, done), *_of_workspaces(decided), *_of_vault(source, number, unreadable),
        *_of_chats(source, retention_days), *[Hazard(f"{line}: its writes are brought by the cutover") for line in writers(source)],
    ]  # fmt: skip
    return {
        "source": str(source.origin), "release": source.release, "files": source.files, "bytes": total, "rows": done.rows, "tables": tables,
        "estimated_seconds": _seconds({name: scan.bytes for name, scan in scans.items()}),
        "scanned_seconds": round(time.monotonic() - begun, 1),
        "hazards": [hazard.document() for hazard in hazards],
        "decisions": sum(bool(hazard.option) for hazard in hazards),
    }  # fmt: skip


def _seconds(sizes: Mapping[str, int]) -> int:
    """How long a copy of tables of so many bytes takes, with seconds to begin and to end."""
    work = sum(taken / (MESSAGE_RATE if name in FULL_TEXT else COPY_RATE) for name, taken in sizes.items())
    return round(work / min(WORKERS, os.cpu_count() or 1) + 5)


def _scan(source: Source, decided: Home, options: Options) -> Iterator[tuple[str, Scan]]:
    work = []
    for table in source.data:
        step = width(source, table)
        if not table.rowid:
            work.append((table.name, 0, step))
            continue
        with opened(source.directory / table.file) as connection:
            work += [(table.name, lo, step) for lo in stretches(connection, table, step)]
    with ProcessPoolExecutor(WORKERS, get_context("spawn"), _initialise, (source, decided, options, live())) as pool:
        yield from pool.map(_one, work)


_given: tuple[Source, Home, Options] | None = None
_converters: dict[str, Converter] = {}


def _initialise(source: Source, decided: Home, options: Options, written: frozenset[Path]) -> None:
    global _given  # noqa: PLW0603 - a process of the pool has no other place
    _given = (source, decided, options)
    live(written)


def _one(task: tuple[str, int, int]) -> tuple[str, Scan]:
    name, lo, step = task
    assert _given is not None
    source, decided, options = _given
    table = source.table(name)
    assert table is not None
    scan = Scan()
    with opened(source.directory / table.file) as reading:
        if table.known is None:
            for _, row in read(reading, table, lo, step):
                scan.rows += 1
                scan.bytes += size_of(row)
            return name, scan
        if name not in _converters:
            catalogue = state.known_catalogue()
            _converters[name] = Converter(
                source, table, catalogue.types, catalogue.nullable, decided, options, Lookup(source, decided)
            )
        _rows(reading, table, lo, step, _converters[name], scan)
    return name, scan


def _rows(reading: sqlite3.Connection, table: Found, lo: int, step: int, converter: Converter, scan: Scan) -> None:
    json_columns = [i for i, c in enumerate(table.names) if converter.types.get(c) == "jsonb"]
    words = table.names.index(FULL_TEXT[table.name]) if FULL_TEXT.get(table.name) in table.names else None
    reference = REFERENCES.get(table.name)
    at = table.names.index(reference[0]) if reference and reference[0] in table.names else None
    for _, row in read(reading, table, lo, step):
        scan.rows += 1
        scan.bytes += size_of(row)
        for kept in converter.convert(row).kept:
            scan.reasons[table.name, kept.column or "", kept.reason] += 1
        for i in json_columns:
            value = row[i]
            if isinstance(value, str) and any(abs(int(n)) > BIG for n in _BIG.findall(value)[:20] if len(n) < 400):
                scan.big[table.name, table.names[i]] += 1
        if words is not None and too_many_words(_as_text(row[words])):
            scan.reasons[table.name, "", WORDS] += 1
        if (
            reference is not None
            and at is not None
            and row[at]
            and not converter.lookup.exists(reference[1], (reference[2],), (row[at],))
        ):
            scan.lost[table.name] += 1


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace") if isinstance(value, bytes) else ""


def too_many_words(document: str) -> bool:
    """Whether to_tsvector probably refuses a JSON text: its parser finds some words otherwise, and leaves the commonest out.

    A vector has the different words, two bytes for each and two for each place; of places it knows 16383, and one more for each word.
    """
    if 4 * len(document) < LARGEST_VECTOR:  # a letter takes no more, with its part of what its word takes
        return False
    seen: set[str] = set()
    size = places = 0
    for string in (document,) if "\\" not in document else (match[0] for match in text.STRING.finditer(document)):
        for match in _WORD.finditer(_unescaped(string)):
            whole = match[0].lower()
            for word in (whole, *whole.split("-")) if "-" in whole else (whole,):
                length = len(word.encode(errors="replace"))
                if length >= LONGEST_WORD:
                    continue
                places += 1
                if word not in seen:
                    seen.add(word)
                    size += length + 2
            if size + 2 * min(places, LAST_PLACE + len(seen)) > LARGEST_VECTOR:
                return True
    return False


def _unescaped(string: str) -> str:
    try:
        return str(json.loads(string, strict=False)) if "\\" in string else string
    except ValueError:
        return string


STRICT = "--strict stops instead; default: go on"
DECIDES = {
    text.NAIVE: "--naive-timestamps ZONE; default: UTC",
    NO_FILE: "--attachments DIR; default: migrated without their contents",
    WORDS: STRICT,
}
MEANS = {
    NO_FILE: "the row is migrated, the file is not found",
    ORPHAN: "they refer to a row that isn't there: kept in the quarantine, and put back by a rollback",
}


def _of_values(done: Scan) -> Iterator[Hazard]:
    """One line a reason; a whole row that has no place counts under its table's name."""
    found: dict[tuple[str, bool], dict[str, int]] = {}
    for (table, column, reason), count in done.reasons.items():
        if reason not in (WORKSPACE, RENAMED, EXTRA):
            found.setdefault((reason, not column), {})[f"{table}.{column}".rstrip(".")] = count
    for (reason, rows), where in sorted(found.items(), key=lambda item: (item[0][0] not in LOSSY, item[0])):
        means = MEANS.get(reason)
        if means is None and rows:
            means = "these rows are kept in the quarantine and nowhere else"
        elif means is None and reason in LOSSY:
            means = "replaced by a rule that can be undone, the original is kept"
        elif means is None:
            means = "the value is equal, its original form is kept for a rollback"
        option = DECIDES.get(reason, STRICT if reason in LOSSY else "")
        yield Hazard(f"{sum(where.values())} x {reason} ({places(where)}): {means}", option, where)
    big = {f"{table}.{column}": count for (table, column), count in done.big.items()}
    if big:
        yield Hazard(
            f"{sum(big.values())} JSON documents hold integers beyond 2^53 ({places(big)}): PostgreSQL and Orcheo keep every digit, a browser rounds"
            " them",
            "",
            big,
        )


def _of_tables(source: Source, scans: Mapping[str, Scan], done: Scan) -> Iterator[Hazard]:
    known = state.known_catalogue()
    for name in unknown(source, {table: list(columns) for table, columns in known.types.items()}):
        table = name.partition(".")[0]
        if not scans[table].rows:
            continue
        where = f"orcheo_archive.{table}" if "." not in name else "the quarantine"
        yield Hazard(
            f"{name} is of no release that is known: it goes to {where}",
            "move it out of the directory to leave it behind; default: kept",
        )
    for table_ in source.tables:
        if table_.former and scans[table_.name].rows:
            yield Hazard(f"the newest release has no {table_.name}: its rows go to orcheo_archive.{table_.name}")
    for table, count in sorted(done.lost.items()):
        column, other, _ = REFERENCES[table]
        yield Hazard(
            f"{count} rows of {table} have a {column} that no row of {other} has: they are copied, and unseen in the app as they are now"
        )


def _of_workspaces(decided: Home) -> Iterator[Hazard]:
    if decided.strays:
        count = sum(sum(ids.values()) for ids in decided.strays.values())
        ids = sorted({i for found in decided.strays.values() for i in found if i})
        why = (
            f"no workspace or one that doesn't exist ({', '.join(ids[:3])}{' …' if len(ids) > 3 else ''})"
            if ids
            else "no workspace"
        )
        yield Hazard(
            f"{count} rows have {why} and would be invisible: they follow their workflow, else go to workspace {decided.slug!r}"
            f"{' (made for it)' if decided.new else ''}",
            f"--workspace SLUG; default: {decided.slug}",
        )
    for (table, key), new in sorted(decided.renames.items()):
        yield Hazard(f"{table} {key}: its name is taken in the workspace, it becomes {new!r}")
    for plugin, workspace in sorted(decided.losers):
        yield Hazard(
            f"plugin {plugin} has a state of workspace {workspace} and of another: this one is kept in the quarantine"
        )


def _of_vault(source: Source, number: int, unreadable: int) -> Iterator[Hazard]:
    if not number:
        return
    if vault.key(source) is None:
        yield Hazard(
            f"{number} credentials and no vault key (no vault.key beside them): they are copied, and nobody can open them",
            "ORCHEO_VAULT_ENCRYPTION_KEY_FILE=FILE; default: copied as they are",
        )
    elif unreadable:
        yield Hazard(
            f"the vault key opens {number - unreadable} of {number} credentials",
            "ORCHEO_VAULT_ENCRYPTION_KEY_FILE=FILE; `run` refuses until it fits",
        )


def _of_chats(source: Source, days: int) -> Iterator[Hazard]:
    table = source.table("chat_threads")
    if table is None:
        return
    limit = (datetime.now(UTC) - timedelta(days=min(days, 36500))).isoformat()
    with opened(source.directory / table.file) as connection:
        old = connection.execute("SELECT count(*) FROM chat_threads WHERE updated_at < ?", (limit,)).fetchone()[0]
    if old:
        yield Hazard(
            f"{old} chat threads are older than {days} days: the new app deletes them at its first start",
            "[app] chatkit_retention_days in ops/spec.toml (and ORCHEO_CHATKIT_RETENTION_DAYS of an app of your own); default: as it is",
        )
