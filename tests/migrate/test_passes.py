"""Passes that are cut off or fail, and what changes outside of the rows: nothing is taken for equal that was not compared."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests.conftest import Installation
from tests.migrate import sources
from tests.migrate.conftest import query, superuser
from tests.migrate.test_damage import migrate, reasons, started
from tests.unit.migrate_files import OLD, add, install

pytestmark = pytest.mark.disruptive
STEP = "UPDATE execution_history_steps SET payload = '{}' WHERE execution_id = '{}' AND step_index = 2"
DAMAGES = """
    CREATE FUNCTION public.damages() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN NEW.payload := '{"n": "another"}'; RETURN NEW; END $$;
    CREATE TRIGGER damages BEFORE INSERT OR UPDATE ON execution_history_steps FOR EACH ROW EXECUTE FUNCTION public.damages()
"""
REFUSES = """
    CREATE FUNCTION public.refuses() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now' USING ERRCODE = 'P0001'; END $$;
    CREATE TRIGGER refuses BEFORE DELETE ON execution_history FOR EACH ROW EXECUTE FUNCTION public.refuses()
"""


def drop(own: Installation, name: str) -> None:
    superuser(own, "SET client_min_messages = error", f"DROP FUNCTION public.{name}() CASCADE")


def test_what_a_failed_cutover_brought_is_compared_by_the_next_one(own: Installation, tmp_path: Path):
    source = tmp_path / "data"
    keys = sources.history(source, 20)
    migrate(own, "run", source)
    assert migrate(own, "verify", source)["ok"]
    sources.sql(source, STEP.format('{"n": 1}', keys[7]))
    superuser(own, DAMAGES)
    try:
        first = own.run("migrate", "cutover", str(source))
        assert first.code == 1 and "execution_history_steps differs after the last pass" in first.stderr, first
    finally:
        drop(own, "damages")
    second = own.run("migrate", "cutover", str(source))
    assert (
        second.code == 1
        and f"{keys[7]}, 2: differs in payload" in second.stderr
        and "nothing was cut over" in second.stderr
    ), second
    assert own.run("migrate", "verify", str(source), "--json").code == 2  # its snapshot is older than what was brought
    migrate(own, "run", source)
    assert own.run("migrate", "verify", str(source), "--json").code == 1
    migrate(own, "run", source)
    assert migrate(own, "verify", source)["ok"]
    found = migrate(own, "cutover", source)
    assert found["fully_verified"] and found["rows_compared"] == 0


def test_a_cutover_without_a_verify_compares_everything(own: Installation, tmp_path: Path):
    source = tmp_path / "data"
    keys = sources.history(source, 20)
    migrate(own, "run", source)
    superuser(
        own, f"UPDATE execution_history_steps SET payload = '{{}}' WHERE execution_id = '{keys[3]}' AND step_index = 0"
    )
    refused = own.run("migrate", "cutover", str(source))
    assert refused.code == 1 and f"{keys[3]}, 0: differs in payload" in refused.stderr, refused


def test_rows_that_a_failed_pass_did_not_delete_are_deleted_by_the_next(own: Installation, tmp_path: Path):
    """And their children, which SQLite has left where they are."""
    source = tmp_path / "data"
    keys = sources.history(source, 30)
    migrate(own, "run", source)
    sources.sql(source, f"DELETE FROM execution_history WHERE execution_id IN ('{keys[4]}', '{keys[5]}')")
    superuser(own, REFUSES)
    try:
        failed = own.run("migrate", "run", str(source))
        assert failed.code == 1 and "not now" in failed.stderr and "Traceback" not in failed.stderr, failed
    finally:
        drop(own, "refuses")
    assert query(own, "SELECT count(*) FROM execution_history") == [(30,)]
    migrate(own, "run", source)
    assert query(own, "SELECT count(*) FROM execution_history") == [(28,)]
    assert reasons(own) == {("execution_history_steps", "orphan"): 10} and migrate(own, "verify", source)["ok"]
    assert query(own, "SELECT count(*) FROM orcheo_archive.chunk WHERE pending OR NOT compared") == [(0,)]


@pytest.mark.parametrize("seed", [1])
def test_a_killed_second_pass_goes_on_where_it_was(own: Installation, tmp_path: Path, seed: int):
    source = tmp_path / "data"
    keys = sources.history(source, 1500)
    migrate(own, "run", source)
    wait = random.Random(seed)
    kills = 0
    for i in range(4):
        gone = ", ".join(f"'{key}'" for key in keys[i::10])
        sources.sql(
            source,
            f"DELETE FROM execution_history WHERE execution_id IN ({gone})",
            f"DELETE FROM execution_history_steps WHERE execution_id IN ({gone}) AND step_index > 2",
            f"UPDATE execution_history_steps SET payload = '{{\"pass\": {i}}}' WHERE step_index = 1",
        )
        process = started(own, "migrate", "run", str(source))
        time.sleep(0.7 + wait.random() * 2)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills
    migrate(own, "run", source)
    assert query(own, "SELECT count(*) FROM execution_history") == [(900,)]
    assert migrate(own, "verify", source)["ok"]


def test_a_number_that_jsonb_takes_for_equal(own: Installation, tmp_path: Path):
    source = tmp_path / "data"
    keys = sources.history(source, 5)
    sources.sql(source, STEP.format('{"n": 1}', keys[0]))
    migrate(own, "run", source)
    superuser(
        own,
        f"UPDATE execution_history_steps SET payload = '{{\"n\": 1.0}}' WHERE execution_id = '{keys[0]}' AND step_index = 2",
    )
    assert own.run("migrate", "verify", str(source), "--json").code == 1
    migrate(own, "run", source)
    assert query(
        own, f"SELECT payload::text FROM execution_history_steps WHERE execution_id = '{keys[0]}' AND step_index = 2"
    ) == [('{"n": 1}',)]
    assert migrate(own, "verify", source)["ok"]


def test_attachments_that_are_found_later_and_only_there(own: Installation, tmp_path: Path):
    noted = "/another/machine/.orcheo/chatkit/f_notes.txt"
    rows = {
        "chat_threads": [{"id": "t"}],
        "chat_attachments": [{"id": "f", "storage_path": noted}, {"id": "g", "name": "x" * 250 + ".txt"}],
    }
    source = install(tmp_path / "data", rows)
    migrate(own, "run", source)
    assert reasons(own)["storage_path", "attachment without its file"] == 2
    files = tmp_path / "files"
    files.mkdir()
    (files / "f_notes.txt").write_bytes(b"half")
    assert migrate(own, "run", source, "--attachments", str(files))["changed"] == {"chat_attachments": 1}
    hidden = files.rename(tmp_path / "elsewhere")
    refused = own.run("migrate", "run", str(source))  # a mount that is missing is not taken for deleted files
    assert refused.code == 2 and f"{files}, where attachments' files were looked for before" in refused.stderr, refused
    hidden.rename(files)
    (files / "f_notes.txt").unlink()
    assert migrate(own, "run", source)["changed"] == {"chat_attachments": 1}
    assert (
        query(own, "SELECT count(*) FROM chat_attachment_blobs") == [(0,)]
        and reasons(own)["storage_path", "attachment without its file"] == 2
    )
    (files / "f_notes.txt").write_bytes(b"whole of it")
    (files / "g_short.txt").write_bytes(b"g")
    assert migrate(own, "run", source)["changed"] == {"chat_attachments": 2}  # the directory is known from before
    content = "SELECT attachment_id, convert_from(content, 'UTF8') FROM chat_attachment_blobs ORDER BY 1"
    assert query(own, content) == [("f", "whole of it"), ("g", "g")] and (
        "storage_path",
        "attachment without its file",
    ) not in reasons(own)
    sources.sql(source, "UPDATE chat_attachments SET mime_type = 'text/plain'", file="chatkit.sqlite")
    migrate(own, "cutover", source)
    assert query(own, content) == [("f", "whole of it"), ("g", "g")]
    new = "size_bytes = 22, sha256 = encode(sha256('the app has changed it'), 'hex')"
    files.rename(tmp_path / "elsewhere")
    refused = own.run("migrate", "rollback", str(source), "--to", str(tmp_path / "never"), "--attachments", str(files))
    assert refused.code == 2 and not (tmp_path / "never").exists()
    superuser(
        own,
        f"UPDATE chat_attachment_blobs SET content = 'the app has changed it', {new} WHERE attachment_id = 'f'",
        f"UPDATE chat_attachments SET {new} WHERE id = 'f'",
    )
    to = tmp_path / "back"
    assert migrate(own, "rollback", source, "--to", str(to))["rows"]["chat_attachments"] == 2
    (first, second) = sorted((to / "chatkit").iterdir())
    assert first.read_bytes() == b"the app has changed it" and second.read_bytes() == b"g"
    assert second.name.startswith("g_xxx") and second.name.endswith(".txt") and len(second.name) == 255


def test_a_release_between_keeps_what_its_models_know(own: Installation, tmp_path: Path):
    """0.24 to 0.33 have no workspaces, but keys that 0.15 refuses."""
    payload = {
        "id": "w",
        "name": "n",
        "handle": "mine",
        "draft_access": "team",
        "share_url": None,
        "chatkit": {"a": 1.0},
    }
    source = install(tmp_path / "data", {"workflows": [{"id": "w", "payload": json.dumps(payload)}]}, OLD)
    migrate(own, "run", source)
    migrate(own, "cutover", source)
    superuser(own, 'UPDATE workflows SET payload = payload || \'{"name": "new", "of_the_newest": 1}\'')
    to = tmp_path / "back"
    found = migrate(own, "rollback", source, "--to", str(to))
    assert found["left_behind"].get("workflows.payload.of_the_newest") == 1
    ((document,),) = sources.rows(to, "SELECT payload FROM workflows")
    assert json.loads(document) == payload | {"name": "new"}  # type: ignore[arg-type]


def test_texts_of_the_newest_app_that_look_like_escapes_go_back_as_they_are(own: Installation, tmp_path: Path):
    mark = "\ufdd0"
    source = tmp_path / "data"
    sources.history(source, 4)
    with closing(sqlite3.connect(source / "workflows.sqlite")) as file:
        file.execute("UPDATE execution_history SET run_name = ? WHERE rowid = 1", (f"a\x00{mark}",))
        file.execute("UPDATE execution_history SET run_name = ? WHERE rowid = 2", (f"{mark}\u2400",))
        file.commit()
    migrate(own, "run", source)
    assert migrate(own, "verify", source)["ok"]
    migrate(own, "cutover", source)
    texts = [f"hi {mark}", f"{mark}{mark}", f"{mark}\u2400", f'{mark}#1, "x": 2']
    with psycopg.connect(own.target().dsn("orcheo_admin", direct=True)) as connection:
        connection.execute("SET ROLE orcheo")
        (ids,) = zip(
            *connection.execute("SELECT execution_id FROM execution_history ORDER BY execution_id"), strict=True
        )
        connection.execute("UPDATE execution_history SET run_name = %s WHERE execution_id = %s", (texts[0], ids[2]))
        connection.execute("UPDATE execution_history SET run_name = %s WHERE execution_id = %s", (texts[1], ids[3]))
        for i, key in enumerate(ids):
            connection.execute(
                "UPDATE execution_history SET inputs = %s::jsonb WHERE execution_id = %s",
                (json.dumps({"a": texts[i], texts[i]: 1}, ensure_ascii=False), key),
            )
        connection.execute(
            "INSERT INTO execution_history (execution_id, workflow_id, workspace_id, inputs, status, started_at, run_name)"
            " SELECT %s, workflow_id, workspace_id, '{}', status, now(), 'key' FROM execution_history LIMIT 1",
            (f"z{mark}",),
        )
    to = tmp_path / "back"
    migrate(own, "rollback", source, "--to", str(to))
    found = sources.rows(to, "SELECT run_name, inputs FROM execution_history ORDER BY execution_id")
    names = [name.decode() for name, _ in found]  # type: ignore[attr-defined]
    assert names == [f"a\x00{mark}", f"{mark}\u2400", texts[0], texts[1], "key"]
    assert [json.loads(inputs) for _, inputs in found] == [*({"a": text, text: 1} for text in texts), {}]  # type: ignore[arg-type]
    assert sources.rows(to, "SELECT execution_id FROM execution_history WHERE run_name = 'key'") == [
        (f"z{mark}".encode(),)
    ]


def test_an_app_that_writes_during_a_rollback_is_noticed(own: Installation, tmp_path: Path):
    source = tmp_path / "data"
    sources.history(source, 400)
    migrate(own, "run", source)
    migrate(own, "cutover", source)
    stop = threading.Event()

    def app() -> None:
        while not stop.wait(0.2):
            with psycopg.connect(own.target().dsn("orcheo_app_a", direct=True)) as connection:
                connection.execute("UPDATE workflows SET updated_at = now()")

    writer = threading.Thread(target=app)
    writer.start()
    to = tmp_path / "back"
    try:
        found = own.run("migrate", "rollback", str(source), "--to", str(to))
    finally:
        stop.set()
        writer.join()
    assert found.code == 2 and "stop it" in found.stderr and not to.exists(), found
    assert migrate(own, "rollback", source, "--to", str(to))["rows"]["execution_history"] == 400


def test_a_source_that_is_written_to_just_after_the_cutover(own: Installation, tmp_path: Path):
    """The old app opens its files for each write: no process has to be seen that has one open."""
    source = install(tmp_path / "data", {"workflows": [{"id": "w"}]}, OLD)
    migrate(own, "run", source)
    seen = threading.Event()

    def app() -> None:
        while not query(own, "SELECT 1 FROM orcheo_archive.migration WHERE phase = 'cut over'"):
            time.sleep(0.05)
        with closing(sqlite3.connect(source / "workflows.sqlite")) as file:
            add(file, "workflows", {"id": "late"})
            file.commit()
        seen.set()

    writer = threading.Thread(target=app)
    writer.start()
    found = own.run("migrate", "cutover", str(source))
    writer.join()
    assert seen.is_set() and found.code == 1 and "the old app still writes. Nothing was cut over" in found.stderr, found
    assert query(own, "SELECT phase FROM orcheo_archive.migration") == [("copied",)]
    assert migrate(own, "cutover", source)["changed"] == {"workflows": 1}
    assert query(own, "SELECT id FROM workflows ORDER BY 1") == [("late",), ("w",)]


def test_a_source_that_was_moved(own: Installation, tmp_path: Path):
    source = tmp_path / "data"
    sources.history(source, 4)
    migrate(own, "run", source)
    ((name,),) = query(own, "SELECT source FROM orcheo_archive.migration")
    moved = source.rename(tmp_path / "moved")
    refused = own.run("migrate", "cutover", str(moved))
    assert refused.code == 2 and f"--source {name}" in refused.stderr, refused
    assert migrate(own, "cutover", moved, "--source", name)["changed"] == {}


@pytest.mark.parametrize("snapshot", ["as it was", "another row in it", "no file"])
def test_rows_that_go_before_the_cutover(own: Installation, tmp_path: Path, snapshot: str):
    """By the keys that the snapshot has of them; where it is not what was copied, by all keys."""
    source, work = tmp_path / "data", tmp_path / "work"
    keys = sources.history(source, 30)
    migrate(own, "run", source, "--work", str(work))
    sources.sql(
        source,
        f"DELETE FROM execution_history_steps WHERE execution_id = '{keys[1]}' AND step_index = 3",
        f"DELETE FROM execution_history_steps WHERE execution_id = '{keys[2]}'",
        f"DELETE FROM execution_history WHERE execution_id = '{keys[2]}'",
        # A row of another name, its steps with it; two that change names; one that goes and comes again, as another row.
        f"UPDATE execution_history SET execution_id = 'renamed' WHERE execution_id = '{keys[3]}'",
        f"UPDATE execution_history_steps SET execution_id = 'renamed' WHERE execution_id = '{keys[3]}'",
        *(
            f"UPDATE execution_history_steps SET execution_id = '{to}' WHERE execution_id = '{of}'"
            for of, to in ((keys[4], "aside"), (keys[5], keys[4]), ("aside", keys[5]))
        ),
        f"CREATE TEMP TABLE one AS SELECT * FROM execution_history_steps WHERE execution_id = '{keys[6]}' AND step_index = 0",
        f"DELETE FROM execution_history_steps WHERE execution_id = '{keys[6]}' AND step_index = 0",
        "INSERT INTO execution_history_steps SELECT * FROM one",
    )
    copied = work / "snapshot"
    if snapshot == "another row in it":
        sources.sql(copied, "UPDATE execution_history_steps SET payload = '{}', at = at || ' '")
    elif snapshot == "no file":
        for file in copied.glob("workflows.sqlite*"):
            file.unlink()
    assert migrate(own, "cutover", source, "--work", str(work))["changed"]["execution_history_steps"] > 0
    for table, key in (
        ("execution_history", "execution_id"),
        ("execution_history_steps", "execution_id || ' ' || step_index"),
    ):
        question = f"SELECT {key} FROM {table}"
        there = [name.decode() for (name,) in sources.rows(source, question) if isinstance(name, bytes)]
        assert sorted(name for (name,) in query(own, question)) == sorted(there) and there
    payloads = "SELECT payload ->> 'node' FROM execution_history_steps WHERE execution_id = %s AND step_index = 1"
    assert query(own, payloads, keys[4]) == [("n1",)]
