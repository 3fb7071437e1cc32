"""Reading and copying files beside a writer, after one that died, and where nothing may be written."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.migrate import source
from orcheo_db.migrate.source import copy, keys, look, needs_copy, opened, schema, snapshot
from tests.unit.migrate_files import add, fingerprint, install

FILE = "workflows.sqlite"
ROWS: list[dict[str, Any]] = [{"id": f"w{number}", "payload": '{"a": "' + "x" * 900 + '"}'} for number in range(60)]


def count(file: Path) -> int:
    """Rows of a whole file that has no journal."""
    assert not file.with_name(f"{file.name}-wal").exists() and not file.with_name(f"{file.name}-journal").exists()
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return int(conn.execute("SELECT count(*) FROM workflows").fetchone()[0])


def seen(directory: Path) -> int:
    look(directory)
    with opened(directory / FILE) as conn:
        return int(conn.execute("SELECT count(*) FROM workflows").fetchone()[0])


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """The old app at work: five rows in the file, five in the WAL, one more not committed."""
    install(tmp_path / "orcheo", {"workflows": ROWS[:5]}, files=[FILE])
    with closing(sqlite3.connect(tmp_path / "orcheo" / FILE)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for row in ROWS[5:10]:
            add(conn, "workflows", row)
        conn.commit()
        add(conn, "workflows", ROWS[10])
        yield conn


def left_behind(tmp_path: Path, ends: tuple[str, ...]) -> Path:
    """What a writer's files are at this moment, with only these of its journals."""
    directory = tmp_path / "left"
    directory.mkdir()
    for end in ("", *ends):
        shutil.copyfile(tmp_path / "orcheo" / f"{FILE}{end}", directory / f"{FILE}{end}")
    return directory


def hot(tmp_path: Path) -> Path:
    """A file whose writer died in a transaction that had reached the file (rollback journal)."""
    install(tmp_path / "orcheo", {"workflows": ROWS}, files=[FILE])
    with closing(sqlite3.connect(tmp_path / "orcheo" / FILE, isolation_level=None)) as conn:
        conn.execute("PRAGMA cache_size = 1")
        conn.execute("BEGIN")
        conn.execute("DELETE FROM workflows WHERE id <> 'w1'")
        conn.execute("UPDATE workflows SET payload = hex(randomblob(90000))")
        directory = left_behind(tmp_path, ("-journal",))
        conn.execute("ROLLBACK")
    return directory


def test_beside_a_writer_what_is_committed_is_read_and_nothing_is_written(
    tmp_path: Path, writer: sqlite3.Connection
) -> None:
    directory = tmp_path / "orcheo"
    before = fingerprint(directory)
    assert set(before) == {".", FILE, f"{FILE}-wal", f"{FILE}-shm"} and not needs_copy(directory / FILE)
    assert seen(directory) == 10
    taken = snapshot(look(directory), tmp_path / "snapshot")
    assert fingerprint(directory) == before
    assert count(tmp_path / "snapshot" / FILE) == 10 and [p.name for p in (tmp_path / "snapshot").iterdir()] == [FILE]
    assert (taken.directory, taken.origin, taken.files) == (tmp_path / "snapshot", directory, [FILE])
    writer.commit()
    assert seen(directory) == 11 and count(tmp_path / "snapshot" / FILE) == 10
    assert source.size(look(directory)) == sum((directory / f"{FILE}{end}").stat().st_size for end in ("", "-wal"))


@pytest.mark.parametrize("ends", [("-wal",), ("-wal", "-shm")])
def test_a_wal_that_was_left_behind_is_read(tmp_path: Path, writer: sqlite3.Connection, ends: tuple[str, ...]) -> None:
    directory = left_behind(tmp_path, ends)
    writer.rollback()
    before = fingerprint(directory)
    assert needs_copy(directory / FILE) == (ends == ("-wal",))
    assert seen(directory) == 10
    snapshot(look(directory), tmp_path / "snapshot")
    assert fingerprint(directory) == before
    assert count(tmp_path / "snapshot" / FILE) == 10


def test_a_process_that_was_killed_leaves_a_file_that_is_read(tmp_path: Path) -> None:
    install(tmp_path / "orcheo", {"workflows": ROWS[:5]}, files=[FILE])
    program = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA journal_mode = WAL');"
        " c.execute(\"INSERT INTO workflows SELECT 'new', NULL, 0, '{}', '', '', NULL\"); c.commit(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "orcheo" / FILE)])
    before = fingerprint(tmp_path / "orcheo")
    assert f"{FILE}-wal" in before and seen(tmp_path / "orcheo") == 6
    snapshot(look(tmp_path / "orcheo"), tmp_path / "snapshot")
    assert fingerprint(tmp_path / "orcheo") == before
    assert count(tmp_path / "snapshot" / FILE) == 6


def test_a_transaction_that_was_left_half_way_is_undone_in_the_copy_alone(tmp_path: Path) -> None:
    directory = hot(tmp_path)
    before = fingerprint(directory)
    assert needs_copy(directory / FILE) and seen(directory) == len(ROWS)
    snapshot(look(directory), tmp_path / "snapshot")
    assert fingerprint(directory) == before
    assert count(tmp_path / "snapshot" / FILE) == len(ROWS)


def test_a_copy_that_was_read_is_made_again_when_the_file_has_changed(
    tmp_path: Path, writer: sqlite3.Connection
) -> None:
    directory = left_behind(tmp_path, ("-wal",))
    assert seen(directory) == 10
    writer.commit()
    shutil.copyfile(tmp_path / "orcheo" / f"{FILE}-wal", directory / f"{FILE}-wal")
    assert seen(directory) == 11


@pytest.mark.parametrize("journal", [None, "-wal", "-journal"])
def test_a_directory_that_is_read_only(
    open_to_all: Path, nobody: Callable[[], None], tmp_path: Path, journal: str | None
) -> None:
    directory = open_to_all / "orcheo"
    if journal == "-journal":
        shutil.copytree(hot(tmp_path), directory)
    else:
        install(tmp_path / "orcheo", {"workflows": ROWS}, files=[FILE])
        with closing(sqlite3.connect(tmp_path / "orcheo" / FILE)) as conn:
            conn.execute("PRAGMA journal_mode = WAL")
            conn.execute("UPDATE workflows SET handle = id")
            conn.commit()
            if journal:
                shutil.copytree(tmp_path / "orcheo", directory, ignore=shutil.ignore_patterns("*-shm"))
        if not journal:
            shutil.copytree(tmp_path / "orcheo", directory)
    for file in directory.iterdir():
        file.chmod(0o444)
    directory.chmod(0o555)
    before = fingerprint(directory)
    nobody()
    assert seen(directory) == len(ROWS)
    snapshot(look(directory), open_to_all / "snapshot")
    assert fingerprint(directory) == before
    assert count(open_to_all / "snapshot" / FILE) == len(ROWS)


def test_no_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(install(tmp_path / "orcheo", {"workflows": ROWS}, files=[FILE]))
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - source.SPARE, source.SPARE)
    )
    with pytest.raises(
        UserError, match=r"takes 0 MB and .* has 256 MB free: make room, or name another place with --work"
    ) as caught:
        snapshot(found, tmp_path / "snapshot")
    assert "\n" not in str(caught.value) and list((tmp_path / "snapshot").iterdir()) == []


def test_no_space_for_a_copy_to_read_is_said(
    tmp_path: Path, writer: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = left_behind(tmp_path, ("-wal",))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(
        UserError, match=r"No space left on device\): make room, or name another place with TMPDIR"
    ) as caught:
        look(directory)
    assert "\n" not in str(caught.value)


def test_a_whole_copy_is_not_taken_again_and_a_part_is(tmp_path: Path) -> None:
    directory = install(tmp_path / "orcheo", {"workflows": ROWS})
    target = tmp_path / "snapshot"
    target.mkdir()
    (target / "chatkit.sqlite").write_bytes(b"of an earlier run")
    for end in ("", "-wal", "-journal", "-shm"):
        (target / f"{FILE}.part{end}").write_bytes(b"cut off")
    snapshot(look(directory), target)
    assert (target / "chatkit.sqlite").read_bytes() == b"of an earlier run"
    assert count(target / FILE) == len(ROWS)
    assert not list(target.glob("*.part*"))


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    install(tmp_path, {"workflows": ROWS}, files=[FILE])
    found = look(tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:5000])
    with pytest.raises(CheckFailed, match=f"{FILE} can't be copied") as caught:
        snapshot(found, tmp_path / "snapshot")
    assert "\n" not in str(caught.value) and not (tmp_path / "snapshot" / FILE).exists()


def test_a_file_that_never_holds_still_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, {"workflows": ROWS}, files=[FILE])
    stamps = iter(range(99))
    monkeypatch.setattr(source, "stamp", lambda path: ((0, next(stamps)),))
    monkeypatch.setattr(source, "LOCKED_BYTES", 0)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(CheckFailed, match=f"{FILE} changed at each of 5 tries to copy it: stop the old app first"):
        copy(tmp_path / FILE, tmp_path / "copy.sqlite")
    assert not (tmp_path / "copy.sqlite").exists()


def test_a_journal_that_goes_meanwhile_has_the_file_copied_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer of a rollback journal ends its transaction between two of our copies: the journal is not the file's any more."""
    directory = hot(tmp_path)
    shutil.copyfile(tmp_path / "orcheo" / FILE, tmp_path / "committed.sqlite")
    with closing(sqlite3.connect(tmp_path / "committed.sqlite")) as conn:
        conn.execute("DELETE FROM workflows WHERE id > 'w3'")
        conn.commit()
    real, calls = shutil.copyfile, 0

    def copyfile(start: Path, end: Path) -> None:
        nonlocal calls
        real(start, end)
        calls += 1
        if calls == 2:  # the file and its journal were copied; now the transaction is committed
            real(tmp_path / "committed.sqlite", directory / FILE)
            (directory / f"{FILE}-journal").unlink()

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    monkeypatch.setattr("time.sleep", lambda _: None)
    copy(directory / FILE, tmp_path / "copy.sqlite")
    assert calls == 3
    assert count(tmp_path / "copy.sqlite") == sum(row["id"] <= "w3" for row in ROWS)


def test_a_writer_that_comes_while_a_quiet_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody had it open, so it is read without locks; what was read before and after the writer's checkpoint does not fit together."""
    install(tmp_path, {"workflows": ROWS}, files=[FILE])
    with closing(sqlite3.connect(tmp_path / FILE)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
    come: list[sqlite3.Connection] = []
    connect = source._connect_as

    def connect_and_then(path: Path, way: str) -> sqlite3.Connection:
        reading = connect(path, way)
        reading.execute(
            "SELECT count(*), sum(length(payload)) FROM workflows"
        ).fetchone()  # some pages are in its memory
        come.append(sqlite3.connect(tmp_path / FILE))
        come[0].execute("DELETE FROM workflows WHERE id > 'w3'")
        come[0].commit()
        come[0].execute("VACUUM")
        come[0].execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return reading

    monkeypatch.setattr(source, "_connect_as", connect_and_then)
    copy(tmp_path / FILE, tmp_path / "copy.sqlite")
    come[0].close()
    assert count(tmp_path / "copy.sqlite") == sum(row["id"] <= "w3" for row in ROWS)


def test_what_passes_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app's last connection goes, and the -shm that was there a moment ago with it: nothing was written, the file is whole."""
    install(tmp_path, {"workflows": ROWS}, files=[FILE])
    with closing(sqlite3.connect(tmp_path / FILE)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
    ways = iter([source.SHARED, source.SHARED])
    way = source._way
    monkeypatch.setattr(source, "_way", lambda path: next(ways, None) or way(path))
    assert source.steady(tmp_path / FILE, lambda conn: conn.execute("SELECT count(*) FROM workflows").fetchone()) == (
        len(ROWS),
    )
    monkeypatch.setattr(source, "_live", set())
    copy(tmp_path / FILE, tmp_path / "copy.sqlite")
    assert count(tmp_path / "copy.sqlite") == len(ROWS)


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_beside_an_app_that_opens_the_file_for_each_write(tmp_path: Path, mode: str) -> None:
    """As the old releases do: between two writes nobody has it open, and each end of a writer works its WAL in."""
    directory = tmp_path / "orcheo"
    install(
        directory,
        {"workflows": [*ROWS, *({"id": f"more{i}", "payload": f'{{"x": "{i * 7:0>20000}"}}'} for i in range(300))]},
        files=[FILE],
    )
    with closing(sqlite3.connect(directory / FILE)) as conn:
        conn.execute(f"PRAGMA journal_mode = {mode}").fetchone()
    stop, wrote, failed = threading.Event(), [0], list[BaseException]()

    def app() -> None:
        try:
            while not stop.wait(0.003):
                with closing(sqlite3.connect(directory / FILE, timeout=10)) as conn:
                    conn.execute(
                        "UPDATE workflows SET payload = ? WHERE id = ?",
                        (f'{{"x": "{wrote[0]:0>20000}"}}', f"more{wrote[0] % 300}"),
                    )
                    conn.commit()
                wrote[0] += 1
        except sqlite3.Error as error:
            failed.append(error)

    writer = threading.Thread(target=app)
    writer.start()
    try:
        for i in range(8):
            found = look(directory)
            taken = snapshot(found, tmp_path / f"snapshot{i}")
            with opened(taken.directory / FILE) as reading:
                assert reading.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                assert reading.execute("SELECT count(*) FROM workflows").fetchone() == (len(ROWS) + 300,)
            assert schema(found)[FILE]
    finally:
        stop.set()
        writer.join()
    assert not failed and wrote[0] > 8


@pytest.mark.parametrize("ends", [("-wal",), ("-wal", "-shm")])
def test_a_link_to_a_file_with_a_journal(tmp_path: Path, ends: tuple[str, ...]) -> None:
    """SQLite keeps the journal beside the file, not beside the link: a process that was killed has left it there."""
    install(tmp_path / "disk", {"workflows": ROWS[:2]}, files=[FILE])
    conn = sqlite3.connect(tmp_path / "disk" / FILE)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("PRAGMA wal_autocheckpoint = 0")
    install_rows = [(f"late{i}",) for i in range(7)]
    conn.execute("CREATE TABLE late (id)")
    conn.executemany("INSERT INTO late VALUES (?)", install_rows)
    conn.commit()
    shutil.copytree(
        tmp_path / "disk", tmp_path / "killed", ignore=shutil.ignore_patterns(*(() if "-shm" in ends else ("*-shm",)))
    )
    conn.close()
    (tmp_path / "orcheo").mkdir()
    (tmp_path / "orcheo" / FILE).symlink_to(tmp_path / "killed" / FILE)
    before = fingerprint(tmp_path / "killed")
    assert needs_copy(tmp_path / "orcheo" / FILE) == ("-shm" not in ends)
    found = look(tmp_path / "orcheo")
    with opened(tmp_path / "orcheo" / FILE) as reading:
        assert reading.execute("SELECT count(*) FROM late").fetchone() == (7,)
    taken = snapshot(found, tmp_path / "snapshot")
    with opened(taken.directory / FILE) as reading:
        assert reading.execute("SELECT count(*) FROM late").fetchone() == (7,)
    assert fingerprint(tmp_path / "killed") == before
    with closing(sqlite3.connect(tmp_path / "killed" / FILE)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        (busy,) = [line for line in _writers_of_this_process(found) if FILE in line][:1]
        assert "open" in busy


def _writers_of_this_process(found: Any) -> list[str]:
    """`writers` leaves out its own process, and here that is the writer."""
    asked = subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path; from orcheo_db.migrate.source import look, writers; print(*writers(look(Path({str(found.origin)!r}))), sep='\\n')"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return asked.stdout.splitlines()


def test_keys_of_payloads(tmp_path: Path) -> None:
    documents = [
        '{"name": 1, "handle": 2, "c\\ud800d": 1}',
        b'{"draft_access": {"x": 1}}',
        "{",
        '["z"]',
        '{"n": NaN}',
    ]
    rows: list[dict[str, Any]] = [{"id": f"w{i}", "payload": document} for i, document in enumerate(documents)]
    install(tmp_path, {"workflows": rows}, files=[FILE])
    assert keys(look(tmp_path))["workflows"] == ["draft_access", "handle", "name"]
