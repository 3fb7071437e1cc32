"""What an export for people says about itself: manifest.json, and whether its files are those that it names. Only reads, no server.

format        of this manifest and of the files; a newer one is refused
rows          jsonl or csv; `legend` says how values stand there
database, server, toolkit, releases
moment, lsn   when the snapshot was taken, and how far the WAL was then (null where the server does not say)
order         the tables, each after those that its foreign keys name
tables        file, rows, bytes, sha256, columns with PostgreSQL's types, primary key, tables referred to, and the
              last value of each column's sequence (null: none was taken)
sha256        of the manifest itself, without this line: as JSON with sorted keys and no spaces
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orcheo_db.errors import UserError
from orcheo_db.migrate.people_rows import CSV, Column, NotARow, fields

FORMAT: Final = 1
KIND: Final = "orcheo-db export"
NAME = "manifest.json"
BLOCK = 2**20  # bytes read at a time
_SAFE = re.compile(r"\w[\w.-]*")  # a table's name that is a file's name everywhere


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ColumnEntry(_Model):
    """A column, in the order of the file."""

    name: str
    type: str


class TableEntry(_Model):
    """A table and its file. bytes: of the file."""

    file: str
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    columns: list[ColumnEntry] = Field(min_length=1)
    primary_key: list[str]
    references: list[str]
    sequences: dict[str, int | None]

    @property
    def listed(self) -> list[Column]:
        """The columns as the codecs want them."""
        return [Column(column.name, column.type) for column in self.columns]


class Manifest(_Model):
    """The whole of it, without its own checksum."""

    format: Literal[1]
    kind: Literal["orcheo-db export"]
    rows: Literal["jsonl", "csv"]
    legend: dict[str, str]
    database: str
    server: str
    toolkit: str
    releases: dict[str, str]
    moment: str
    lsn: str | None
    order: list[str]
    tables: dict[str, TableEntry] = Field(min_length=1)


def file_name(table: str, rows: str) -> str:
    """The file of a table.

    Raises:
        UserError: its name can't be a file's.
    """
    if not _SAFE.fullmatch(table):
        raise UserError(f"table {table!r} has a name that no file can take: export the others with --table")
    return f"{table}.{rows}"


def text(manifest: Manifest) -> str:
    """The file's contents."""
    document = manifest.model_dump(mode="json")
    return json.dumps({**document, "sha256": _own(document)}, indent=2, ensure_ascii=False) + "\n"


def _own(document: dict[str, Any]) -> str:
    packed = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(packed.encode("utf-8", "surrogatepass")).hexdigest()


def read(directory: Path) -> Manifest:
    """The manifest of an export.

    Raises:
        UserError: there is none, it is of a newer format, or it is not as an export wrote it.
    """
    path = directory / NAME
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory: name one that `orcheo-db migrate export` made")
    if not path.is_file():
        unfinished = directory.name.endswith(".part")
        raise UserError(
            f"{path} does not exist: "
            + ("this export was cut off, make another" if unfinished else "this is no whole export of orcheo-db")
        )
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise _not_ours(path, "is no JSON") from None
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise _not_ours(path, "is of something else than an export of orcheo-db")
    found = document.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise UserError(
            f"{path} is of format {found}, and this orcheo-db reads up to {FORMAT}: import it with the release that made it"
            f" ({str(document.get('toolkit'))[:40]}) or a newer one. Nothing was changed."
        )
    noted = document.pop("sha256", None)
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise _not_ours(path, f"has a wrong {'.'.join(map(str, first['loc']))} ({first['msg']})") from None
    if noted != _own(document):
        raise _not_ours(path, "was changed or damaged after the export (its own sha256 differs)")
    for name, table in manifest.tables.items():
        if not _SAFE.fullmatch(name) or table.file != f"{name}.{manifest.rows}":
            raise _not_ours(path, f"names a file for table {name[:60]!r} that is not its own")
    if sorted(manifest.order) != sorted(manifest.tables):
        raise _not_ours(path, "has an order of other tables than it has")
    return manifest


def _not_ours(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}: take the export from where it was kept. Nothing was changed.")


def chosen(all_tables: Iterable[str], names: Iterable[str], where: str) -> list[str]:
    """The tables asked for; all, where none is.

    Raises:
        UserError: one is not there.
    """
    there, wanted = list(all_tables), list(dict.fromkeys(names))
    for name in wanted:
        if name not in there:
            raise UserError(f"--table {name}: {where} has no such table. Nothing was changed.")
    return [name for name in there if name in wanted] if wanted else there


def blocks(path: Path) -> Iterator[bytes]:
    """A file in blocks."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def check(directory: Path, manifest: Manifest, names: Iterable[str], report: Callable[[int, str], None]) -> None:
    """Compare the files of these tables with the manifest.

    Args:
        report: takes the bytes that were read since the last call, and the table.

    Raises:
        UserError: one is missing, cut off or damaged.
    """
    for name in names:
        entry = manifest.tables[name]
        path = directory / entry.file
        if not path.is_file():
            raise UserError(f"{path} is missing: take the export whole from where it was kept. Nothing was changed.")
        size = path.stat().st_size
        if size != entry.bytes:
            what = "was cut off" if size < entry.bytes else "has something appended"
            raise UserError(f"{path} {what}: it has {size} bytes, not {entry.bytes}. Nothing was changed.")
        hashed = hashlib.sha256()
        for block in blocks(path):
            hashed.update(block)
            report(len(block), name)
        if hashed.hexdigest() != entry.sha256:
            raise UserError(
                f"{path} was changed or damaged after the export (its sha256 differs). Nothing was changed."
            )
        if manifest.rows == CSV and _header(path) != [column.name for column in entry.columns]:
            raise UserError(f"{path} has another header than {NAME} has columns. Nothing was changed.")


def _header(path: Path) -> list[str]:
    with path.open("rb") as file:
        try:
            return [(value or b"").decode() for value in fields(file.readline(BLOCK))]
        except (NotARow, UnicodeDecodeError):
            return []
