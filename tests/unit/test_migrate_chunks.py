"""Chunks of rows and the processes that bring them: what needs no server."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.migrate import gone, pool, run, source, state, sync, verify
from orcheo_db.migrate.convert import LOSSY, REFUSED, UNSPLIT, Converted, Converter, Kept, Options
from orcheo_db.migrate.home import Home, Lookup
from orcheo_db.migrate.layout import BLOBS, KNOWN
from orcheo_db.migrate.pool import Pool
from orcheo_db.migrate.source import look, opened
from orcheo_db.migrate.state import State
from orcheo_db.migrate.sync import Done, Marks, Task, Worker, Writer, is_lossy
from orcheo_db.migrate.verify import Check, Compared
from tests.unit.migrate_files import Way, change, install

WIDE = 2**62


def begun(**more: Any) -> State:
    given = {"source": "here:/a", "release": "0.34", "phase": state.COPYING, "files": {}, "tables": {}, "options": {"naive": "UTC", "moment": "m"},
             "home": Home(), "widths": {}, "indexes": [], "ours": {}, "report": {}}  # fmt: skip
    return State(**{**given, **more})


# --- chunks -------------------------------------------------------------------------------------------------------------------


@given(
    st.sets(st.integers(-30, 60) | st.sampled_from([-(2**60), 2**60, 2**61]), max_size=12),
    st.integers(1, 25),
    st.sets(st.integers(-6, 9), max_size=5),
)
@example({1}, 10, {-5, 7})
@example(set(), 10, {0, 3})
@settings(max_examples=60, deadline=None)
def test_every_row_is_in_one_chunk_and_every_chunk_that_was_noted_is_looked_at(
    rowids: set[int], width: int, noted: set[int]
) -> None:
    """Noted chunks without a row any more are where rows were deleted."""
    with tempfile.TemporaryDirectory() as place:
        source = look(install(Path(place), {}, files=["workflows.sqlite"]))
        with closing(sqlite3.connect(Path(place) / "workflows.sqlite")) as conn:
            conn.execute("PRAGMA synchronous = OFF")
            conn.executemany(
                "INSERT INTO webhook_triggers (rowid, workflow_id, config) VALUES (?, ?, '{}')",
                [(i, str(i)) for i in rowids],
            )
            conn.commit()
        table = source.table("webhook_triggers")
        assert table is not None
        before = {number * width for number in noted}
        target: Any = SimpleNamespace(execute=lambda *_: [(lo,) for lo in sorted(before)])
        found = list(run.tasks(target, source, begun(widths={table.name: width}), table, fresh=True))
        chunks = [task.lo for task in found]
        assert len(set(chunks)) == len(chunks) and before <= set(chunks)
        assert all(lo % width == 0 for lo in chunks)
        with opened(Path(place) / table.file) as reading:
            seen = [rowid for lo in chunks for rowid, _ in sync.read(reading, table, lo, width)]
        assert sorted(seen) == sorted(rowids)
        assert len(chunks) <= len(rowids) + len(before)  # no empty stretch is walked through


def test_what_goes_in_one_piece(tmp_path: Path) -> None:
    install(tmp_path, {"service_tokens": [{"identifier": "a"}, {"identifier": "b", "rotated_to": "a"}]})
    change(
        tmp_path,
        "workflows.sqlite",
        "CREATE TABLE mine (a TEXT PRIMARY KEY) WITHOUT ROWID; INSERT INTO mine VALUES ('x'), ('y')",
    )
    source = look(tmp_path)
    for name in ("service_tokens", "mine"):
        table = source.table(name)
        assert table is not None
        assert run.width(source, table) == WIDE
        target: Any = SimpleNamespace(execute=lambda *_: [])
        (task,) = run.tasks(target, source, begun(widths={name: WIDE}), table, fresh=True)
        with opened(tmp_path / table.file) as reading:
            assert len(list(sync.read(reading, table, task.lo, WIDE))) == 2


def test_a_chunk_is_as_wide_as_its_rows_are_short(tmp_path: Path) -> None:
    rows = [{"workflow_id": str(number), "config": "x" * 10000} for number in range(30)]
    source = look(install(tmp_path, {"webhook_triggers": rows}, files=["workflows.sqlite"]))
    for name, width in (("webhook_triggers", run.CHUNK_BYTES // 10001), ("cron_triggers", 1000)):
        table = source.table(name)
        assert table is not None and abs(run.width(source, table) - width) <= 2


ROWS = st.lists(
    st.tuples(
        st.none() | st.integers(-3, 3) | st.sampled_from([0.0, -0.0, 1.0, "1", b"1", "", b"", "\udcff", "ä"]),
        st.sampled_from(["", "a", "ab", "b"]),
    ),
    max_size=4,
)


@given(ROWS, ROWS)
@example([("1", "")], [(b"1", "")])
@example([("1", "")], [(1, "")])
@example([(1, "")], [(1.0, "")])
@example([("a", "b")], [("ab", "")])
@settings(max_examples=200, deadline=None)
def test_a_chunk_s_marks_see_every_change(first: list[tuple[Any, ...]], second: list[tuple[Any, ...]]) -> None:
    """Also of a storage class, and of the order: it is the rowids'."""
    one, other = marks(first), marks(second)
    assert (one.raw == other.raw) == (repr(first) == repr(second))
    changed, gone = other.since(bytes(one.raw))
    assert changed == [i for i, row in enumerate(second) if i >= len(first) or repr(first[i]) != repr(row)]
    assert gone == list(range(len(second), len(first)))


def marks(rows: list[tuple[Any, ...]]) -> Marks:
    found = Marks()
    for rowid, row in enumerate(rows):
        found.add(rowid, row)
    return found


@given(
    st.lists(
        st.text() | st.binary() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.none(), max_size=6
    )
)
@example(["a", b"a", "", b"", "\x00b", "x" * (sync.LARGE + 1)])
@settings(max_examples=100, deadline=None)
def test_marks_are_the_same_whether_a_text_was_decoded_or_not(values: list[Any]) -> None:
    """The first copy decodes, a later look does not; a text that is no UTF-8 is among the values."""
    found = []
    with closing(sqlite3.connect(":memory:")) as conn:
        conn.execute("CREATE TABLE t (v)")
        conn.executemany("INSERT INTO t VALUES (?)", [(value,) for value in values])
        conn.execute("INSERT INTO t VALUES (CAST(x'ff00fe' AS TEXT)), (x'ff00fe')")
        for factory in (source._text, bytearray):
            conn.text_factory = factory
            found.append(marks(conn.execute("SELECT v, v FROM t ORDER BY rowid").fetchall()))
    assert found[0].raw == found[1].raw and found[0].bytes == found[1].bytes
    of_text, of_bytes = (mark for _, mark in list(Marks._ONE.iter_unpack(bytes(found[0].raw)))[-2:])
    assert of_text != of_bytes


def test_marks_know_rowids_of_any_size() -> None:
    found = Marks()
    for rowid in (-(2**63), -1, 2**63 - 1):
        found.add(rowid, ("x",))
    assert found.since(b"") == ([-(2**63), -1, 2**63 - 1], [])
    assert Marks().since(bytes(found.raw)) == ([], [-(2**63), -1, 2**63 - 1])


def test_some_rows_of_a_chunk_are_read_by_their_rowids(tmp_path: Path) -> None:
    source = look(install(tmp_path, {"workflows": [{"id": str(i)} for i in range(6)]}))
    table = source.table("workflows")
    assert table is not None
    with opened(source.directory / table.file) as reading:
        found = [(rowid, row[0]) for rowid, row in sync.read(reading, table, 0, 100, (2, 5, 99))]
        assert found == [(2, "1"), (5, "4")]
        assert list(sync.read(reading, table, 0, 100, ())) == []


def test_what_counts_as_lossy() -> None:
    assert all(is_lossy(reason) for reason in LOSSY) and is_lossy(f"{REFUSED}: numeric field overflow")
    assert not is_lossy("workspace") and not is_lossy("timestamp without zone")


# --- writing ------------------------------------------------------------------------------------------------------------------


def test_rows_are_sent_when_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, int]] = []
    monkeypatch.setattr(Writer, "_send", lambda self, table, rows: sent.append((table, len(rows))))
    originals: list[Any] = []
    monkeypatch.setattr(sync, "keep", lambda conn, task, kept: originals.append(list(kept)))
    writer = Writer(None, Task("child", 0, False), None, None, upsert=False)  # type: ignore[arg-type]
    monkeypatch.setattr(sync, "FLUSH_BYTES", 10)
    kept = Kept("a", None, b"123", "text", "NUL")
    writer.add(7, ("k",), Converted([("parent", ("1234", None)), ("child", (b"12",))], [kept]))
    assert sent == [] and writer.bytes == 9
    writer.add(8, ("l",), Converted([("parent", ("12", None))]))
    assert sent == [("parent", 2), ("child", 1)]  # parents before what belongs to them
    assert originals == [[(7, ["k"], kept)]] and writer.kept == []  # in the same transaction, and no longer in memory
    writer.flush()
    assert len(sent) == 2 and originals[1:] == [[]]


def test_strict_stops_at_what_is_lost_and_at_nothing_else() -> None:
    worker = Worker.__new__(Worker)
    worker.setting = SimpleNamespace(options=Options(strict=True))  # type: ignore[assignment]
    table: Any = SimpleNamespace(name="workflows")
    worker._strict(table, ("w",), Converted([], [Kept("created_at", None, b"", "text", "timestamp without zone")]))
    for kept, words in (
        (Kept("payload", None, b"", "text", "NUL"), r"workflows w, column payload as it is \(NUL\)"),
        (Kept(None, None, b"", "json", "orphan"), r"workflows w as it is \(orphan\)"),
    ):
        with pytest.raises(CheckFailed, match=words) as caught:
            worker._strict(table, ("w",), Converted([], [kept]))
        assert "\n" not in str(caught.value)
    worker.setting = SimpleNamespace(options=Options())  # type: ignore[assignment]
    worker._strict(table, ("w",), Converted([], [Kept("payload", None, b"", "text", "NUL")]))


def test_a_blob_that_several_checkpoints_name_is_sent_once_and_another_content_is_trouble(tmp_path: Path) -> None:
    converter = Way(install(tmp_path, {})).converter("checkpoints")
    row = ("t", "", "c", None, "msgpack", b"", b"")
    seen: dict[Any, bytes] = {}

    def made(data: bytes, version: str = "1") -> Converted:
        return Converted([("checkpoints", ("t", "", "c")), (BLOBS, ("t", "", "a", version, "msgpack", data))])

    assert len(sync._once(made(b"x"), seen, converter, row).rows) == 2
    assert [table for table, _ in sync._once(made(b"x"), seen, converter, row).rows] == ["checkpoints"]
    assert len(sync._once(made(b"y", "2"), seen, converter, row).rows) == 2
    away = sync._once(made(b"other"), seen, converter, row)
    assert away.rows == [] and away.kept[0].reason == UNSPLIT and away.kept[0].column is None


# --- the processes --------------------------------------------------------------------------------------------------------------


class Executor:
    """Stands in for the processes: each task's results in order, the last again and again. A wiring double."""

    def __init__(self, results: Callable[[Any], Any]) -> None:
        self.results = results
        self.submitted: list[Any] = []

    def submit(self, _: Any, task: Any) -> Future[Any]:
        self.submitted.append(task)
        future: Future[Any] = Future()
        try:
            future.set_result(self.results(task))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], Any]], tuple[Pool, Executor]]:
    monkeypatch.setattr(pool, "RETRY_SECONDS", 0)

    def made(results: Callable[[Any], Any]) -> tuple[Pool, Executor]:
        found = Pool.__new__(Pool)
        found.workers, found._pool = 2, Executor(results)  # type: ignore[assignment]
        return found, found._pool  # type: ignore[return-value]

    return made


def test_all_tasks_are_done_a_few_at_a_time(make: Any) -> None:
    found, _ = make(lambda task: task)
    ahead: list[int] = []
    done: list[int] = []

    def work() -> Iterator[int]:
        for number in range(50):
            ahead.append(number - len(done))
            yield number

    found.run(work(), done.append)
    assert sorted(done) == list(range(50)) and max(ahead) <= 4
    found.run(iter(()), done.append)


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("gone"),
        psycopg.InterfaceError("closed"),
        psycopg.errors.DeadlockDetected("two workers"),
    ],
)
def test_a_chunk_that_met_a_restart_is_tried_again(make: Any, error: Exception) -> None:
    fails = iter([error] * 3)

    def results(task: Task) -> Done:
        if task.lo == 5 and (one := next(fails, None)):
            raise one
        return Done(task)

    found, executor = make(results)
    done: list[Done] = []
    found.run(iter([Task("t", lo, True) for lo in (0, 5, 10)]), done.append)
    assert sorted(one.task.lo for one in done) == [0, 5, 10] and len(executor.submitted) == 6


@pytest.mark.parametrize(
    ("error", "tries", "words"),
    [
        (psycopg.OperationalError("server closed\nthe connection"), 10, "the target ended the work on workflows: server closed the connection. Mend that"),
        (psycopg.errors.DiskFull("no space"), 1, "the target ended the work on workflows: no space"),
        (BrokenProcessPool("killed"), 1, "a worker process was ended from outside"),
    ],
)  # fmt: skip
def test_a_chunk_that_can_not_be_brought_ends_the_run_in_one_line(
    make: Any, error: Exception, tries: int, words: str
) -> None:
    def results(_: Any) -> None:
        raise error

    found, executor = make(results)
    with pytest.raises(CheckFailed, match=words) as caught:
        found.run(iter([Task("workflows", 0, True)]), lambda _: None)
    assert "\n" not in str(caught.value) and len(executor.submitted) == tries


def test_another_error_is_a_defect_and_shown(make: Any) -> None:
    found, _ = make(lambda task: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        found.run(iter([Check("workflows", 0)]), lambda _: None)


# --- what a migration says of itself ----------------------------------------------------------------------------------------------


def test_a_table_s_result_is_its_chunks_together() -> None:
    whole, bad = Compared("t"), Compared("t", rows=2, found=1, source=7, target=3, bytes=9, bad={5})
    bad.note(("a", "b"), "differs in payload")
    whole.add(Compared("t", rows=3, found=3, source=4, target=4))
    assert whole.ok
    whole.add(bad)
    assert (whole.rows, whole.found, whole.source, whole.target, whole.bytes, whole.bad) == (
        5,
        4,
        11,
        7,
        9,
        {5},
    ) and not whole.ok
    assert whole.document()["wrong"] == [{"key": "a, b", "what": "differs in payload"}]
    for number in range(99):
        whole.note((str(number),), "is missing in the target")
    assert whole.mismatches == 100 and len(whole.wrong) == 50


def test_a_key_as_the_newest_app_may_have_made_it() -> None:
    mark = "\ufdd0"
    assert verify._unescaped((f"a{mark}{mark}", "b", b"\x00", None, f"{mark}\u2400", f"{mark}\ufffdd83d")) == (
        f"a{mark}", "b", b"\x00", None, f"{mark}\u2400", f"{mark}\ufffdd83d",
    )  # fmt: skip


def test_options_that_rows_depend_on_hold() -> None:
    given = Options(ZoneInfo("Europe/Zurich"), True, (Path("/a"),), "later")
    kept = run.options_of(begun(options={"naive": "Europe/Zurich", "moment": "first"}), given)
    assert (kept.moment, kept.strict, kept.attachments) == ("first", True, (Path("/a"),))
    with pytest.raises(UserError, match="begun with --naive-timestamps UTC, and Europe/Zurich is asked for now"):
        run.options_of(begun(), given)
    assert run.settings(given) == {"naive": "Europe/Zurich", "moment": "later", "attachments": ["/a"]}
    noted = begun(options={"naive": "Europe/Zurich", "moment": "first", "attachments": ["/b", "/a"]})
    assert run.options_of(noted, given).attachments == (
        Path("/b"),
        Path("/a"),
    )  # given once, it counts for every later command
    assert str(run.zone("utc")) == "UTC" and str(run.zone("Asia/Kathmandu")) == "Asia/Kathmandu"
    for wrong in ("Mars", "", "../etc/passwd", "/etc/passwd"):
        with pytest.raises(UserError, match="no such time zone"):
            run.zone(wrong)


@pytest.mark.parametrize(
    ("found", "source", "words"),
    [
        (begun(), "there:/b", "holds the migration of here:/a, not of there:/b"), (begun(phase=state.CUT_OVER), "here:/a", "was cut over"),
        (begun(phase=state.ROLLED_BACK), "here:/a", "was rolled back"),
    ],
)  # fmt: skip
def test_a_target_of_another_migration_is_refused(found: State, source: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        state.refuse_others(None, found, source)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and "Nothing was changed" in str(caught.value)


def test_its_own_target_is_not_refused() -> None:
    for phase in (state.COPYING, state.COPIED):
        state.refuse_others(None, begun(phase=phase), "here:/a")  # type: ignore[arg-type]


def test_the_time_left_is_that_of_the_rate_until_now(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = run.Progress(1000, begun=0.0)
    monkeypatch.setattr("time.monotonic", lambda: 10.0)
    assert progress.left == 0
    progress.bytes = 250
    assert (progress.rate, progress.left) == (25, 30)


def test_the_catalogue_knows_every_table_and_its_key() -> None:
    known = state.known_catalogue()
    assert set(known.types) == set(state.TARGETS) == set(known.keys) == set(known.nullable)
    for table in KNOWN:
        columns = known.types[table.into]
        assert set(known.keys[table.into]) <= set(columns) and known.nullable[table.into] <= set(columns)
        assert {
            table.renamed.get(name, name) for name in (*table.key, *table.models, *table.blobs, *table.texts)
        } <= set(columns)
        assert table.parent is None or table.name == table.parent.table or table.level > 0


# --- rows that went ---------------------------------------------------------------------------------------------------------------


def test_too_many_rows_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gone, "MANY", 3)
    lost = gone.Lost(Path("snapshot"))
    lost.add("few", ((1, b"a"), (2, b"b")))
    lost.add("few", ((3, b"c"),))
    lost.add("many", ((1, b"a"), (2, b"b")))
    lost.add("many", ((3, b"c"), (4, b"d")))
    lost.add("unknown", None)
    lost.add("unknown", ((1, b"a"),))
    assert lost.rows == {"few": [(1, b"a"), (2, b"b"), (3, b"c")], "many": None, "unknown": None}


@pytest.mark.parametrize("case", ["told", "changed since", "gone there", "bytes", "no snapshot", "shared"])
def test_keys_of_rows_that_went_are_told_by_the_snapshot_or_not_at_all(tmp_path: Path, case: str) -> None:
    files: dict[str, list[dict[str, Any]]] = {
        "workflows": [{"id": "a"}, {"id": "b"}, {"id": "c"}, {"id": b"d" if case == "bytes" else "d"}]
    }
    before = look(install(tmp_path / "before", files))
    table = before.table("workflows")
    assert table is not None
    with opened(before.directory / table.file) as reading:
        marks_of = {row[0]: (rowid, Marks.of(row)) for rowid, row in sync.read(reading, table, 0, 100)}
    now = look(install(tmp_path / "now", {"workflows": [{"id": "c"}, {"id": "new"}]}))
    if case == "changed since":
        change(tmp_path / "before", "workflows.sqlite", "UPDATE workflows SET created_at = 'x' WHERE id = 'b'")
    elif case == "gone there":
        change(tmp_path / "before", "workflows.sqlite", "DELETE FROM workflows WHERE id = 'b'")
    lost = gone.Lost(None if case == "no snapshot" else before.directory)
    lost.add("workflows", tuple(marks_of.values()))
    known = state.known_catalogue()
    setting = sync.Setting("", now, known, Home(), Options(), {})
    converter = Converter(now, table, known.types, known.nullable, Home(), Options(), Lookup(now, Home()))
    if case == "shared":
        table = replace(table, name="store")
    found = gone._former(setting, table, converter, ["id"], {("a",)}, lost)
    # c is there under another rowid, a is in the quarantine.
    assert found == ([("b",), ("d",)] if case == "told" else None)
