"""`orcheo-db search` on the running installation: what is found, how fresh, and that the app's tables are left alone."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from orcheo_db.bootstrap import search as index
from orcheo_db.search import pages, run
from orcheo_db.search.request import Request, decode
from orcheo_db.targets.base import Target
from tests.conftest import Installation

PATIENCE = 60.0  # seconds to catch up: what is tested here is the result, on a machine that may be busy


@pytest.fixture
def db(target: Target) -> Iterator[psycopg.Connection[Any]]:
    with run.open_(target.dsn()) as conn:
        yield conn


@pytest.fixture
def mark(db) -> Iterator[str]:
    """A word that only this test's rows hold; they are removed at the end."""
    word = "zq" + "".join(chr(ord("a") + int(c, 16)) for c in uuid.uuid4().hex[:12])
    yield word
    for table, column in (
        ("execution_history", "execution_id"),
        ("chat_threads", "id"),
        ("workflows", "id"),
        ("workspaces", "slug"),
    ):
        db.execute(f"DELETE FROM {table} WHERE {column} LIKE %s", (f"{word}%",))
    run.refresh(db)


def execution(conn, name: str, text: str, steps: int = 1, workspace: str | None = None) -> None:
    """As PostgresRunHistoryStore.start_run and append_step write it."""
    conn.execute(
        "INSERT INTO execution_history (execution_id, workflow_id, workspace_id, inputs, status, started_at, trace_last_span_at)"
        " VALUES (%s, %s, %s, %s, 'running', now(), now())",
        (name, f"{name}-wf", workspace, json.dumps({"question": text})),
    )
    for number in range(steps):
        step(conn, name, number, text)


def step(conn, name: str, number: int, text: str) -> None:
    with conn.transaction():
        conn.execute(
            "INSERT INTO execution_history_steps VALUES (%s, %s, now() + %s * interval '1 ms', %s)",
            (name, number, number, json.dumps({"planner": {"n": number, "content": text}})),
        )
        conn.execute(
            "UPDATE execution_history SET trace_last_span_at = clock_timestamp() WHERE execution_id = %s", (name,)
        )


def message(conn, thread: str, name: str, text: str) -> None:
    """As the ChatKit store's save_item writes it."""
    item = json.dumps({"id": name, "type": "user_message", "content": [{"type": "input_text", "text": text}]})
    with conn.transaction():
        conn.execute(
            "INSERT INTO chat_messages VALUES (%s, %s, 0, 'user_message', %s, now())"
            " ON CONFLICT (id) DO UPDATE SET item_json = excluded.item_json",
            (name, thread, item),
        )
        conn.execute("UPDATE chat_threads SET updated_at = clock_timestamp() WHERE id = %s", (thread,))


def thread(conn, name: str) -> None:
    conn.execute(
        "INSERT INTO chat_threads VALUES (%s, 'A thread', NULL, NULL, NULL, '{}', '{}', now(), now())", (name,)
    )


def found(conn, query: str, **more: Any) -> list[tuple[str, str, int]]:
    answer = run.search(conn, Request(query, **more), fresh_seconds=PATIENCE)
    return [(row.hit.kind, row.hit.source, row.hit.part) for row in answer.rows]


def test_every_kind_is_found_with_its_text(db, mark):
    execution(db, f"{mark}-e", f"the {mark} sensor failed", 2)
    thread(db, f"{mark}-t")
    message(db, f"{mark}-t", f"{mark}-m", f"hello {mark}")
    db.execute(
        "INSERT INTO workflows (id, handle, payload, created_at, updated_at) VALUES (%s, %s, %s, now(), now())",
        (f"{mark}-w", f"{mark}-h", json.dumps({"name": f"Watch {mark}"})),
    )
    behind = run.search(db, Request(mark), fresh_seconds=0)
    assert not behind.complete and behind.pending and not behind.rows, "what can't be looked at in time is counted"
    answer = run.search(db, Request(mark), fresh_seconds=PATIENCE)
    assert {row.hit.kind for row in answer.rows} == {"run", "step", "message", "workflow"} and answer.complete
    assert all(f"{run.MARK}{mark}{run.UNMARK}" in row.snippet for row in answer.rows)
    assert found(db, mark, kinds=("message",)) == [("message", f"{mark}-m", 0)]
    assert found(db, f'"{mark} sensor"', kinds=("step",), filter='{"planner": {"n": 1}}') == [("step", f"{mark}-e", 1)]
    assert len(found(db, mark[:-3] + mark[-2:], similar=True)) == 5, "a letter missing"
    assert found(db, f"{mark} -sensor", kinds=("step",)) == []


def test_huge_and_deep_documents(db, mark):
    """ORCHEO.md: 5 MB and depth 200 occur. A tsvector holds 1 MB."""
    deep: Any = mark
    for _ in range(200):
        deep = {"n": [deep]}
    execution(db, f"{mark}-e", mark, 0)
    huge = {"first": mark, "words": [f"{number:x}word" for number in range(400_000)], "long": "y" * 3_000_000}
    for number, payload in enumerate((deep, huge, mark, [mark])):
        row = (f"{mark}-e", number, json.dumps(payload))
        db.execute("INSERT INTO execution_history_steps VALUES (%s, %s, now(), %s)", row)
    assert {part for _, _, part in found(db, mark, kinds=("step",))} == {0, 1, 2, 3}
    assert found(db, "", kinds=("step",), filter=json.dumps({"first": mark})) == [("step", f"{mark}-e", 1)]


def test_edited_and_deleted_rows(db, mark):
    thread(db, f"{mark}-t")
    message(db, f"{mark}-t", f"{mark}-m", f"{mark} before")
    assert found(db, f"{mark} before")
    message(db, f"{mark}-t", f"{mark}-m", f"{mark} afterwards")
    assert not found(db, f"{mark} before") and found(db, f"{mark} afterwards")
    execution(db, f"{mark}-e", mark, 3)
    assert len(found(db, mark, kinds=("step",))) == 3
    step(db, f"{mark}-e", 3, mark)
    assert len(found(db, mark, kinds=("step",))) == 4
    db.execute("DELETE FROM execution_history WHERE execution_id = %s", (f"{mark}-e",))
    assert found(db, mark, kinds=("step", "run")) == []
    assert run.refresh(db)["removed"] >= 5


def test_a_row_committed_late_is_not_missed(target, db, mark):
    with psycopg.connect(target.dsn()) as late:
        execution(late, f"{mark}-late", mark)
        execution(db, f"{mark}-e", mark)
        assert len(found(db, mark, kinds=("step",))) == 1
        late.commit()
    assert len(found(db, mark, kinds=("step",))) == 2


def test_several_at_once_and_one_cut_off(target, db, mark):
    execution(db, f"{mark}-e", mark, 60)
    victim = run.open_(target.dsn(direct=True))
    with victim.transaction(force_rollback=True):  # what the server does when a client is killed in the middle
        victim.execute("SELECT * FROM orcheo_search.index_executions('', 25, false)")
    victim.close()
    results: list[int] = []

    def one() -> None:
        with run.open_(target.dsn()) as conn:
            results.append(len(found(conn, mark, kinds=("step",), limit=100)))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert results == [60] * 4
    row = db.execute(
        "SELECT count(*), count(DISTINCT part) FROM orcheo_search.documents WHERE kind = 'step' AND source = %s",
        (f"{mark}-e",),
    )
    assert row.fetchone() == (60, 60)


def test_pages_are_complete_and_repeat_nothing_while_rows_come(db, mark):
    execution(db, f"{mark}-e", mark, 45)
    seen: list[tuple[str, int]] = []
    after = None
    for page in range(20):
        answer = run.search(db, Request(mark, kinds=("step",), limit=7, after=after), fresh_seconds=PATIENCE)
        seen += [(row.hit.source, row.hit.part) for row in answer.rows]
        execution(db, f"{mark}-new{page}", mark)
        if answer.next is None:
            break
        after = decode(answer.next)
    old = [part for source, part in seen if source == f"{mark}-e"]
    assert old == list(range(44, -1, -1)) and len(seen) == len(set(seen))


@pytest.mark.parametrize(
    ("request_", "name"), [(Request("x"), "documents_tsv"), (Request(filter='{"a": 1}'), "documents_doc")]
)
def test_explain_shows_the_index(db, request_, name):
    scope = run.resolve(db, request_)
    query, values = pages.statement(scope, None, 42)
    with db.transaction():
        db.execute("SET LOCAL enable_seqscan = off")  # on a few rows the planner is right to read them all
        db.execute("SET LOCAL enable_indexscan = off")
        plan = "\n".join(row[0] for row in db.execute(b"EXPLAIN " + query.as_bytes(db), values))
        assert name in plan, plan
        window = pages.statement(scope, None, 42, window=(0, pages.WINDOW))[0]
        db.execute("SET LOCAL enable_indexscan = on")
        assert "documents_at" in "\n".join(row[0] for row in db.execute(b"EXPLAIN " + window.as_bytes(db), values))


def test_the_apps_tables_have_nothing_of_ours(db):
    rows = db.execute(
        "SELECT c.relname FROM pg_depend d JOIN pg_class c ON c.oid = d.refobjid JOIN pg_class o ON o.oid = d.objid"
        " WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND c.relnamespace = 'public'::regnamespace"
        " AND o.relnamespace = 'orcheo_search'::regnamespace UNION ALL"
        " SELECT t.tgname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE p.pronamespace = 'orcheo_search'::regnamespace"
    ).fetchall()
    assert rows == []
    assert all(row[1] for row in db.execute(index.VALIDITY, (index.SCHEMA,)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("x", "--workspace", "nope"), "there is no workspace 'nope'"),
        (("x", "--workflow", "nope"), "there is no workflow 'nope'"),
        (("x", "--filter", "{"), "--filter is not JSON"),
        (('""',), "has no word"),
    ],
)
def test_wrong_words_are_one_line(installation: Installation, arguments, words):
    ran = installation.run("search", *arguments)
    assert ran.code == 2 and words in ran.message and ran.stdout == ""
