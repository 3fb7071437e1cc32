"""Which directories are read, as what, and which are refused; the user's files are never written to."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from orcheo_db.errors import UserError
from orcheo_db.migrate import source
from orcheo_db.migrate.source import Found, look, opened
from orcheo_db.migrate.state import known_catalogue
from tests.unit.migrate_files import BRIDGE, OLD, change, fingerprint, install

PAGE = 4096
SOME = {"workflows": [{"id": f"w{number}", "payload": '{"a": "' + "x" * 2000 + '"}'} for number in range(20)]}
STORE = "CREATE TABLE store_migrations (v INTEGER PRIMARY KEY); INSERT INTO store_migrations VALUES ({});"


def write(name: str, content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        file = directory / name
        file.write_bytes(content(file.read_bytes() if file.exists() else b""))

    return damage


def statements(file: str, text: str) -> Callable[[Path], None]:
    return lambda directory: change(directory, file, text)


def nothing(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


def no_sqlite(directory: Path) -> None:
    nothing(directory)
    (directory / "notes.txt").write_text("not a database")
    (directory / "empty.sqlite").touch()


def another_app(directory: Path) -> None:
    nothing(directory)
    change(directory, "other.db", "CREATE TABLE stars (name); INSERT INTO stars VALUES ('Sirius')")


def two_tables(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "copy.sqlite")) as conn:
        conn.executescript(BRIDGE["workflows.sqlite"])
        conn.execute("INSERT INTO workflows SELECT 'w', NULL, 0, '{}', '', '', NULL")
        conn.commit()


NOTES = "CREATE TABLE notes (a); INSERT INTO notes VALUES (1);"


def two_unknown_tables(directory: Path) -> None:
    change(directory, "workflows.sqlite", NOTES)
    change(directory, "chatkit.sqlite", NOTES)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (nothing, "holds no SQLite file of Orcheo: name the directory with workflows.sqlite"),
        (no_sqlite, "holds no SQLite file of Orcheo"),
        (another_app, r"holds no SQLite file of Orcheo \(other.db hold none of its tables\)"),
        (write("workflows.sqlite", lambda _: bytes(range(256)) * 64), "workflows.sqlite is encrypted or no SQLite file"),
        (write("notes.db", lambda _: b"just text"), "notes.db is encrypted or no SQLite file"),
        (write("workflows.sqlite", lambda old: b"SQLite format 4\x00" + old[16:]), "workflows.sqlite has a damaged header"),
        (write("workflows.sqlite", lambda old: old[:10]), "workflows.sqlite has a damaged header"),
        (write("workflows.sqlite", lambda old: old[:100]), "workflows.sqlite can't be read"),
        (write("workflows.sqlite", lambda old: old[: PAGE + 100]), "workflows.sqlite can't be read"),
        (write("workflows.sqlite", lambda old: old[: len(old) // 2]), "workflows.sqlite can't be read"),
        (write("workflows.sqlite", lambda old: old[:16] + b"\xff" * 84 + old[100:]), "workflows.sqlite can't be read"),
        (write("workflows.sqlite", lambda old: old[:PAGE] + b"\xff" * (len(old) - PAGE)), "workflows.sqlite can't be read"),
        (statements("workflows.sqlite", "CREATE TABLE teams (id)"), r"doesn't know \(it has teams\): 0.14 to 0.34 are known"),
        (statements("x.db", "CREATE TABLE hosted_apps (id)"), r"doesn't know \(it has hosted_apps\)"),
        (statements("graph.sqlite", STORE.format(5) + "CREATE TABLE store (prefix, key, value);"), r"it has store_migrations v=5"),
        (two_tables, "table workflows has rows in copy.sqlite and workflows.sqlite of"),
        (two_unknown_tables, "table notes has rows in chatkit.sqlite and workflows.sqlite of"),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_in_one_line_and_left_alone(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    install(tmp_path, SOME, files=["workflows.sqlite", "chatkit.sqlite"])
    damage(tmp_path)
    before = fingerprint(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        look(tmp_path)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2 and str(tmp_path) in str(caught.value)
    assert fingerprint(tmp_path) == before


def test_what_is_no_directory(tmp_path: Path) -> None:
    file = tmp_path / "workflows.sqlite"
    file.write_bytes(b"")
    with pytest.raises(UserError, match="is no directory: name the directory with Orcheo's SQLite files"):
        look(file)
    with pytest.raises(UserError, match=r"/none does not exist: name the directory"):
        look(tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == ["workflows.sqlite"]


@pytest.mark.parametrize("name", ["workflows.sqlite", "."])
def test_what_may_not_be_read(open_to_all: Path, name: str, nobody: Callable[[], None]) -> None:
    install(open_to_all, SOME, files=["workflows.sqlite"])
    (open_to_all / name).chmod(0)
    nobody()
    with pytest.raises(
        UserError, match=r"can't be read \(Permission denied\): run this as its owner or as root"
    ) as caught:
        look(open_to_all)
    assert "\n" not in str(caught.value)


# --- what is recognised -----------------------------------------------------------------------------------------------------


def test_the_release_is_recognised_by_its_schema(tmp_path: Path) -> None:
    new, old = look(install(tmp_path / "new", {})), look(install(tmp_path / "old", {}, OLD))
    assert (new.release, old.release) == ("0.34", "0.15")
    assert new.files == sorted(BRIDGE) and old.files == ["chatkit.sqlite", "workflows.sqlite"]
    assert look(install(tmp_path / "chats", {}, OLD, ["chatkit.sqlite"])).release == "0.15"
    assert look(install(tmp_path / "both", {}, files=["chatkit.sqlite", "vault.sqlite"])).release == "0.34"


def test_tables_are_found_with_their_columns_and_places(tmp_path: Path) -> None:
    install(tmp_path, {})
    change(
        tmp_path,
        "workflows.sqlite",
        "CREATE TABLE mine (a INT PRIMARY KEY, b text) WITHOUT ROWID; CREATE VIEW seen AS SELECT 1",
    )
    found = {table.name: table for table in look(tmp_path).tables}
    mine, runs, writes, former = (
        found[name] for name in ("mine", "workflow_runs", "writes", "workflow_run_remediations")
    )
    assert mine.known is None and not mine.rowid and [c.type for c in mine.columns] == ["INT", "TEXT"]
    assert runs.rowid and runs.known is not None and runs.known.into == "workflow_runs"
    assert writes.known is not None and writes.known.into == "checkpoint_writes"
    assert former.former and former.known is None
    assert not {"seen", "sqlite_sequence"} & set(found)


def test_what_the_newest_release_has_no_place_for(tmp_path: Path) -> None:
    install(tmp_path, {})
    change(tmp_path, "workflows.sqlite", "CREATE TABLE mine (a); ALTER TABLE workflows ADD COLUMN colour TEXT")
    change(tmp_path, "checkpoints.sqlite", "ALTER TABLE writes ADD COLUMN blob BLOB")
    known = {table: list(columns) for table, columns in known_catalogue().types.items()}
    assert source.unknown(look(tmp_path), known) == ["mine", "workflows.colour"]
    known["checkpoint_writes"].remove("blob")  # where `value` goes, too
    assert source.unknown(look(tmp_path), known) == ["writes.value", "writes.blob", "mine", "workflows.colour"]


def test_an_empty_table_beside_the_one_in_use_is_none(tmp_path: Path) -> None:
    install(tmp_path, SOME, files=["workflows.sqlite"])
    install(tmp_path / "other", {}, files=["workflows.sqlite"])
    (tmp_path / "other" / "workflows.sqlite").rename(tmp_path / "a.sqlite")
    where = {table.name: table.file for table in look(tmp_path).tables}
    assert where["workflows"] == "workflows.sqlite" and where["workflow_runs"] == "a.sqlite"
    assert len(where) == len(look(tmp_path).tables)


def test_text_that_is_no_utf8_is_read(tmp_path: Path) -> None:
    install(tmp_path, {"workflows": [{"id": "bad \udcff\udc80", "payload": "a\x00b"}]}, files=["workflows.sqlite"])
    with opened(tmp_path / "workflows.sqlite") as conn:
        assert conn.execute("SELECT id, payload FROM workflows").fetchall() == [("bad \udcff\udc80", "a\x00b")]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            conn.execute("DELETE FROM workflows")


@pytest.mark.parametrize("name", ["with space", "100%", "a?b#c", "ä&mode=rw"])
def test_a_directory_of_any_name(tmp_path: Path, name: str) -> None:
    directory = install(tmp_path / name, SOME, files=["workflows.sqlite"])
    with opened(directory / "workflows.sqlite") as conn:
        assert conn.execute("SELECT count(*) FROM workflows").fetchone() == (20,)
    assert look(directory).files == ["workflows.sqlite"]


def test_files_are_made_anew_from_their_schema(tmp_path: Path) -> None:
    directory = install(tmp_path / "a", {}, files=["workflows.sqlite", "graph_store.sqlite"])
    change(
        directory,
        "workflows.sqlite",
        "PRAGMA journal_mode = WAL; PRAGMA user_version = 7; CREATE INDEX i ON workflows(handle); CREATE VIEW v AS SELECT 1",
    )
    change(directory, "graph_store.sqlite", "INSERT INTO store_migrations VALUES (0), (1), (2), (3)")
    made = source.schema(look(directory))
    for name, found in made.items():
        with closing(sqlite3.connect(tmp_path / name)) as conn:
            for statement in found:
                conn.execute(statement)
            conn.commit()
            there = conn.execute("SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()
            mode, version = (
                conn.execute("PRAGMA journal_mode").fetchone()[0],
                conn.execute("PRAGMA user_version").fetchone()[0],
            )
        with closing(sqlite3.connect(directory / name)) as conn:
            assert there == conn.execute("SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()
        assert (mode, version) == (("wal", 7) if name == "workflows.sqlite" else ("delete", 0))
    with closing(sqlite3.connect(tmp_path / "graph_store.sqlite")) as conn:
        assert conn.execute("SELECT v FROM store_migrations ORDER BY 1").fetchall() == [(0,), (1,), (2,), (3,)]


# --- who has it open --------------------------------------------------------------------------------------------------------


def test_a_process_that_has_a_file_open_is_named(tmp_path: Path) -> None:
    install(tmp_path, SOME, files=["workflows.sqlite", "chatkit.sqlite"])
    found = look(tmp_path)
    with (tmp_path / "workflows.sqlite").open("rb"):  # this process itself does not count
        assert source.writers(found) == []
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM workflows').fetchone(); print(flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "workflows.sqlite")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin and child.stdout
    try:
        child.stdout.readline()
        (line,) = source.writers(found)
        name = Path(f"/proc/{child.pid}/comm").read_text().strip()
        assert line == f"process {child.pid} ({name}) has workflows.sqlite open"
    finally:
        child.communicate(b"\n")
    assert source.writers(found) == []


def test_a_process_that_ends_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(install(tmp_path, SOME, files=["workflows.sqlite"]))
    stat = (tmp_path / "workflows.sqlite").stat()
    monkeypatch.setattr(source, "_open_files", lambda process: iter([(stat.st_dev, stat.st_ino)]))
    monkeypatch.setattr(
        Path, "iterdir", lambda self: iter([Path("/proc/999999999"), Path("/proc/self"), Path(f"/proc/{os.getpid()}")])
    )
    assert source.writers(found) == []


def test_names_of_columns() -> None:
    assert Found("f", "t", (source.Column("a", "TEXT"), source.Column("b", "")), None, True).names == ("a", "b")
