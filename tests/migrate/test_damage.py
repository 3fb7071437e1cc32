"""What no store writes: damaged rows, kills, full disks, restarts, files that change or can't be read."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROGRAM, ROOT, Installation
from tests.migrate import sources
from tests.migrate.conftest import fingerprint, query, superuser

pytestmark = pytest.mark.disruptive
Watch = Callable[[Path], None]


def migrate(own: Installation, command: str, directory: Path, *arguments: str) -> Any:
    return own.ok("migrate", command, str(directory), *arguments, "--json").json


def reasons(own: Installation) -> dict[tuple[str, str], int]:
    found = query(own, "SELECT coalesce(col, tab), reason, count(*) FROM orcheo_archive.quarantine GROUP BY 1, 2")
    return {(column, reason): count for column, reason, count in found}


def started(own: Installation, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PROGRAM, *arguments],
        env=own.env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_damaged_rows_are_kept_and_come_back_byte_for_byte(own: Installation, tmp_path: Path, untouched: Watch):
    source = tmp_path / "data"
    keys = sources.history(source, 40)
    step = "UPDATE execution_history_steps SET {} WHERE execution_id = '{}' AND step_index = {}"
    sources.sql(
        source,
        f"DELETE FROM execution_history WHERE execution_id = '{keys[0]}'",  # its five steps are orphans
        step.format("payload = '{broken'", keys[1], 0),
        step.format("payload = '{\"a\": 1, \"a\": 2}'", keys[1], 1),
        step.format("payload = x'7b7d'", keys[1], 2),
        step.format("at = 1764547200", keys[1], 3),
        step.format("at = 'yesterday'", keys[1], 4),
        step.format("payload = '[1e400, 1e-5, -0.0, 123456789012345678901234567890, 1.10]'", keys[2], 0),
        step.format("payload = '\"' || char(0) || '\"'", keys[2], 1),
        f"UPDATE execution_history SET error = CAST(x'ff00fe' AS TEXT), run_name = x'00ff' WHERE execution_id = '{keys[3]}'",
        "UPDATE workflows SET payload = 'no json' WHERE rowid = 3",
        "CREATE TABLE extra (a TEXT, b BLOB, c REAL)",
        "INSERT INTO extra VALUES ('x', x'00ff', 1.5), (NULL, NULL, 9e999)",
        "ALTER TABLE execution_history ADD COLUMN own_note TEXT",
        f"UPDATE execution_history SET own_note = 'mine' WHERE execution_id = '{keys[4]}'",
    )  # fmt: skip
    untouched(source)
    plan = own.run("migrate", "plan", str(source), "--json")
    text = json.dumps(plan.json["hazards"])
    assert plan.code == 1
    for words in (
        "orphan",
        "invalid JSON",
        "duplicate keys",
        "epoch time",
        "no timestamp",
        "extra is of no release",
        "execution_history.own_note",
    ):
        assert words in text, words
    migrate(own, "run", source)
    found = reasons(own)
    assert found["execution_history_steps", "orphan"] == 5 and found["workflows", "invalid JSON"] == 1
    assert found["payload", "invalid JSON"] == 2 and found["payload", "bytes in a text column"] == 1
    assert found["own_note", "column that the release does not have"] == 1
    assert migrate(own, "verify", source)["ok"]
    assert query(
        own, "SELECT payload FROM execution_history_steps WHERE execution_id = %s AND step_index = 1", keys[1]
    ) == [({"a": 2},)]
    assert query(own, "SELECT count(*) FROM orcheo_archive.extra") == [(2,)]
    migrate(own, "cutover", source)
    back = tmp_path / "back"
    assert all(table["ok"] for table in migrate(own, "rollback", source, "--to", str(back))["tables"])
    for table in ("workflows", "execution_history", "execution_history_steps", "extra"):
        everything = f"SELECT * FROM {table} ORDER BY 1, 2"
        before, after = sources.rows(source, everything), sources.rows(back, everything)
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            for x, y in zip(one, other, strict=True):
                assert x == y or json.loads(x) == json.loads(y), (table, one[0])  # type: ignore[arg-type]


def test_a_row_that_an_index_refuses_is_kept_and_comes_back(own: Installation, tmp_path: Path, untouched: Watch):
    """The copy leaves indexes out that are made at its end: never one that could fail there, when nobody knows by which row."""
    source = tmp_path / "data"
    keys = sources.history(source, 10)
    noise = random.Random(1).randbytes(20_000).hex()  # beyond a B-tree's entry, however packed
    sources.sql(
        source,
        f"UPDATE execution_history SET workflow_id = '{noise}' WHERE execution_id = '{keys[3]}'",
        f"CREATE TEMP TABLE one AS SELECT * FROM execution_history WHERE execution_id = '{keys[4]}'",
        f"UPDATE one SET execution_id = '{noise}'",
        "INSERT INTO execution_history SELECT * FROM one",
    )
    words = " ".join(f"word{i:07d}" for i in range(120_000))
    with closing(sqlite3.connect(source / "chatkit.sqlite")) as file:
        file.executescript(sources.CHAT)
        stamp = sources.BEGIN.isoformat()
        status = '{"type": "active"}'
        file.execute("INSERT INTO chat_threads VALUES ('t', NULL, NULL, ?, '{}', ?, ?)", (status, stamp, stamp))
        for n, text in enumerate(("short", words, "short too")):
            content = [{"type": "input_text", "text": text}]
            item = json.dumps(
                {"id": f"m{n}", "thread_id": "t", "created_at": stamp, "type": "user_message", "content": content, "attachments": [], "quoted_text": None, "inference_options": {}}
            )  # fmt: skip
            file.execute(
                "INSERT INTO chat_messages VALUES (?, 't', ?, 'user_message', ?, ?)", (f"m{n}", n, item, stamp)
            )
        file.commit()
    untouched(source)
    plan = own.run("migrate", "plan", str(source), "--json")
    (told,) = [hazard for hazard in plan.json["hazards"] if "full-text index" in hazard["text"]]
    assert plan.code == 1 and told["where"] == {"chat_messages": 1} and "--strict" in told["option"]
    indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
    before = query(own, indexes)
    migrate(own, "run", source)
    assert query(own, indexes) == before
    found = query(own, "SELECT tab, key, reason FROM orcheo_archive.quarantine WHERE col IS NULL ORDER BY tab, key")
    kept = {(tab, *key) for tab, key, _ in found}
    assert kept == {
        ("chat_messages", "m1"), ("execution_history", keys[3]), ("execution_history", noise), *(("execution_history_steps", keys[3], str(i)) for i in range(5)),
    }  # fmt: skip
    why = {(tab, key[0]): reason for tab, key, reason in found}
    assert "too long for tsvector" in why["chat_messages", "m1"]
    assert all("index row" in why["execution_history", key] for key in (keys[3], noise))
    assert migrate(own, "verify", source)["ok"]
    superuser(own, "UPDATE orcheo_archive.migration SET report = report - 'marks'")  # as of an earlier version
    ran = own.run("migrate", "cutover", str(source))
    assert ran.code == 2 and "an earlier version of orcheo-db made this copy" in ran.message
    migrate(own, "run", source)
    migrate(own, "cutover", source)
    back = tmp_path / "back"
    assert all(table["ok"] for table in migrate(own, "rollback", source, "--to", str(back))["tables"])
    for file_, table in (("chatkit", "chat_messages"), ("workflows", "execution_history"), ("workflows", "execution_history_steps")):  # fmt: skip
        everything = f"SELECT * FROM {table} ORDER BY 1, 2"
        assert len(sources.rows(back, everything, f"{file_}.sqlite")) == len(
            sources.rows(source, everything, f"{file_}.sqlite")
        )
    item = "SELECT item_json FROM chat_messages WHERE id = 'm1'"
    assert sources.rows(back, item, "chatkit.sqlite") == sources.rows(source, item, "chatkit.sqlite")


def test_a_copy_that_an_earlier_version_began(own: Installation, tmp_path: Path):
    """It left the full-text index out, too, and made it at its end."""
    source = tmp_path / "data"
    sources.history(source, 5)
    migrate(own, "run", source)
    index = "idx_chat_messages_fts"
    (definition,) = query(own, "SELECT indexdef FROM pg_indexes WHERE indexname = %s", index)[0]

    def as_before() -> None:
        listed = json.dumps([definition]).replace("'", "''")
        superuser(
            own,
            f"UPDATE orcheo_archive.migration SET phase = 'copying', report = report - 'marks', indexes = '{listed}'; DROP INDEX {index}",
        )

    as_before()
    migrate(own, "run", source)
    assert query(own, "SELECT indexdef FROM pg_indexes WHERE indexname = %s", index) == [(definition,)]
    as_before()
    superuser(
        own,
        "INSERT INTO chat_threads (id, status_json, metadata_json, created_at, updated_at) VALUES ('t', '{\"type\": \"active\"}', '{}', now(), now());"
        "INSERT INTO chat_messages (id, thread_id, ordinal, item_json, created_at)"
        " SELECT 'm', 't', 0, jsonb_build_object('text', string_agg('word' || i, ' ')), now() FROM generate_series(1000000, 1120000) i",
    )
    ran = own.run("migrate", "run", str(source))
    assert ran.code == 1 and "too long for tsvector" in ran.message and "begin a new one" in ran.message, ran.stderr


def test_strict_stops_at_what_postgresql_cannot_hold(own: Installation, tmp_path: Path, untouched: Watch):
    source = tmp_path / "data"
    keys = sources.history(source, 5)
    sources.sql(source, f"UPDATE execution_history SET error = 'a' || char(0) WHERE execution_id = '{keys[2]}'")
    untouched(source)
    ran = own.run("migrate", "run", str(source), "--strict")
    assert ran.code == 1 and f"execution_history {keys[2]}, column error" in ran.message and "(NUL)" in ran.message
    assert query(own, "SELECT count(*) FROM execution_history") == [(0,)]
    assert migrate(own, "run", source)["rows"] == 5 + 25 + 3  # without it, the same migration goes on


@pytest.mark.parametrize("change", ["bit", "digit", "row", "surplus", "original", "time"])
def test_verify_finds_what_differs_and_run_brings_it_again(own: Installation, tmp_path: Path, change: str):
    source = tmp_path / "data"
    keys = sources.history(source, 60)
    sources.sql(
        source,
        f"UPDATE execution_history SET error = 'a' || char(0), metadata = '{{\"n\": 12345678901234567890.125}}' WHERE execution_id = '{keys[7]}'",
    )
    migrate(own, "run", source)
    key, table = keys[7], "execution_history"
    statement = {
        "bit": f"UPDATE execution_history_steps SET payload = jsonb_set(payload, '{{text}}', to_jsonb('B' || substr(payload->>'text', 2))) WHERE execution_id = '{key}' AND step_index = 3",
        "digit": f"UPDATE execution_history SET metadata = '{{\"n\": 12345678901234567890.126}}' WHERE execution_id = '{key}'",
        "row": f"DELETE FROM execution_history_steps WHERE execution_id = '{key}' AND step_index = 3",
        "surplus": f"INSERT INTO execution_history_steps VALUES ('{key}', 77, now(), '{{}}')",
        "original": "UPDATE orcheo_archive.quarantine SET original = '\\x61'",
        "time": f"UPDATE execution_history SET started_at = started_at + interval '1 microsecond' WHERE execution_id = '{key}'",
    }[change]  # fmt: skip
    superuser(own, statement)
    ran = own.run("migrate", "verify", str(source), "--json")
    assert ran.code == 1 and key in ran.message, ran.stderr
    bad = [row for row in ran.json["tables"] if not row["ok"]]
    assert [row["table"] for row in bad] == [table + ("_steps" if change in ("bit", "row", "surplus") else "")]
    assert len(bad[0]["wrong"]) == 1
    migrate(own, "run", source)
    assert migrate(own, "verify", source)["ok"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_killed_copy_goes_on_where_it_was(own: Installation, tmp_path: Path, seed: int):
    source = tmp_path / "data"
    sources.history(source, 3000)
    indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
    before = query(own, indexes)
    wait = random.Random(seed)
    kills = 0
    for _ in range(3):
        process = started(own, "migrate", "run", str(source))
        time.sleep(0.8 + wait.random() * 2.2)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)  # the workers are not told
        process.wait()
    assert kills
    assert migrate(own, "run", source)["rows"] == 3000 * 6 + 3
    assert migrate(own, "verify", source)["ok"]
    assert query(own, indexes) == before  # those that were dropped for the copy are there again


def test_postgresql_restarts_during_the_copy(own: Installation, tmp_path: Path):
    source = tmp_path / "data"
    sources.history(source, 6000)
    process = started(own, "migrate", "run", str(source), "--json")
    time.sleep(1.5)
    own.target().kill("postgres")
    out, err = process.communicate(timeout=300)
    if process.returncode:  # the main process' own connection was cut: one line, and again
        assert "Traceback" not in err, err
        assert migrate(own, "run", source)["rows"] == 36003
    else:
        assert json.loads(out)["rows"] == 36003
    assert migrate(own, "verify", source)["ok"]


def test_a_full_disk_ends_in_one_line_and_the_copy_goes_on_afterwards(own: Installation, tmp_path: Path):
    source = tmp_path / "data"
    sources.history(source, 3000, size=4000)
    target = own.target()
    # The container's /dev/shm is a file system of its own; some 20 MB of it are left.
    script = "mkdir -m 700 /dev/shm/small && head -c $(( ($(df --output=avail /dev/shm | tail -1) - 20000) * 1024 )) /dev/zero > /dev/shm/full"
    assert target.run("postgres", ["sh", "-c", script]).code == 0
    superuser(own, "CREATE TABLESPACE small LOCATION '/dev/shm/small'")
    superuser(
        own,
        "ALTER TABLE execution_history_steps ALTER payload SET STORAGE EXTERNAL",
        "ALTER TABLE execution_history_steps SET TABLESPACE small",
    )
    ran = own.run("migrate", "run", str(source))
    superuser(
        own,
        "ALTER TABLE execution_history_steps SET TABLESPACE pg_default",
        "ALTER TABLE execution_history_steps ALTER payload SET STORAGE EXTENDED",
    )
    superuser(own, "DROP TABLESPACE small")
    assert target.run("postgres", ["rm", "-r", "/dev/shm/full", "/dev/shm/small"]).code == 0
    assert ran.code == 1 and "No space left on device" in ran.message and "it goes on where it was" in ran.message, (
        ran.stderr
    )
    assert migrate(own, "run", source)["rows"] == 3000 * 6 + 3
    assert migrate(own, "verify", source)["ok"]


def test_a_snapshot_without_room_is_refused(own: Installation, tmp_path: Path, untouched: Watch):
    source, small = tmp_path / "data", tmp_path / "small"
    sources.history(source, 500)
    untouched(source)
    small.mkdir()
    if (
        os.getuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True).returncode
    ):
        pytest.skip("a small file system can't be mounted here")
    try:
        ran = own.run("migrate", "run", str(source), "--work", str(small))
    finally:
        subprocess.run(["umount", small], check=True)
    assert ran.code == 2 and "a snapshot of" in ran.message and "make room" in ran.message
    assert query(own, "SELECT count(*) FROM workflows") == [(0,)]


def test_a_file_that_changes_meanwhile_is_copied_as_it_was_at_one_moment(own: Installation, tmp_path: Path):
    source = tmp_path / "data"
    sources.history(source, 3000)
    with closing(sqlite3.connect(source / "workflows.sqlite", isolation_level=None)) as writing:
        process = started(own, "migrate", "run", str(source), "--json")
        number = 0
        while process.poll() is None:  # an execution and its step come and go together
            writing.execute("BEGIN IMMEDIATE")
            writing.execute(
                "INSERT INTO execution_history (execution_id, workflow_id, inputs, status, started_at) VALUES (?, 'w', '{}', 'x', '2026-01-01T00:00:00+00:00')",
                (f"live-{number}",),
            )
            writing.execute(
                "INSERT INTO execution_history_steps VALUES (?, 0, '2026-01-01T00:00:00+00:00', '{}')",
                (f"live-{number}",),
            )
            writing.execute("COMMIT")
            number += 1
            time.sleep(0.005)
        assert process.returncode == 0, process.communicate()[1]
        assert migrate(own, "verify", source)["ok"]
        pairs = query(
            own,
            "SELECT (SELECT count(*) FROM execution_history WHERE execution_id LIKE 'live-%%'),"
            " (SELECT count(*) FROM execution_history_steps WHERE execution_id LIKE 'live-%%')",
        )
        assert pairs[0][0] == pairs[0][1] < number
        writing.execute(
            "DELETE FROM execution_history_steps WHERE execution_id = (SELECT min(execution_id) FROM execution_history)"
        )
        writing.execute(
            "DELETE FROM execution_history WHERE execution_id = (SELECT min(execution_id) FROM execution_history)"
        )
        ran = own.run("migrate", "cutover", str(source))
        assert ran.code == 2 and f"process {os.getpid()}" in ran.message
    found = migrate(own, "cutover", source)
    assert set(found["changed"]) == {"execution_history", "execution_history_steps"}
    assert query(own, "SELECT count(*) FROM execution_history") == [(3000 + number - 1,)]


def test_a_damaged_page_is_one_line(own: Installation, tmp_path: Path, untouched: Watch):
    source = tmp_path / "data"
    sources.history(source, 2000)
    file = source / "workflows.sqlite"
    sources.sql(source, "VACUUM")
    content = bytearray(file.read_bytes())
    for page in range(10, len(content) // 4096, 7):
        content[page * 4096 : page * 4096 + 100] = os.urandom(100)
    file.write_bytes(content)
    untouched(source)
    ran = own.run("migrate", "run", str(source))
    assert ran.code in (1, 2) and "Traceback" not in ran.stderr and "integrity_check" in ran.message, ran.stderr
    assert own.run("migrate", "plan", str(source)).code in (1, 2)


def test_wrong_input_is_one_line_and_changes_nothing(own: Installation, tmp_path: Path, untouched: Watch):
    source = tmp_path / "data"
    sources.history(source, 3)
    other = tmp_path / "other"
    shutil.copytree(source, other)
    (tmp_path / "file").write_text("x")
    empty = tmp_path / "empty"
    empty.mkdir()
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "workflows.sqlite").write_bytes(os.urandom(8192))
    for directory in (source, other, secret):
        untouched(directory)
    for place, words in (
        (tmp_path / "nowhere", "does not exist"), (tmp_path / "file", "is no directory"), (empty, "holds no SQLite file"),
        (secret, "is encrypted or no SQLite file"),
    ):  # fmt: skip
        for command in ("plan", "run", "verify", "cutover"):
            ran = own.run("migrate", command, str(place))
            assert ran.code == 2 and words in ran.message and "Traceback" not in ran.stderr, (
                place,
                command,
                ran.stderr,
            )
    ran = own.run("migrate", "run", str(source), "--naive-timestamps", "Mars/Base")
    assert ran.code == 2 and "no such time zone" in ran.message
    ran = own.run("migrate", "run", str(source), "--workspace", "nowhere")
    assert ran.code == 2 and "there is no workspace 'nowhere'" in ran.message
    assert own.run("migrate", "verify", str(source)).code == 2
    migrate(own, "run", source)
    ran = own.run("migrate", "run", str(other))
    assert ran.code == 2 and "the target holds the migration of" in ran.message


def test_a_target_with_an_apps_rows_is_refused(own: Installation, tmp_path: Path, untouched: Watch):
    source = tmp_path / "data"
    sources.history(source, 3)
    untouched(source)
    superuser(own, "INSERT INTO webhook_triggers VALUES ('w', '{}')")
    ran = own.run("migrate", "run", str(source))
    assert ran.code == 2 and "the target is not empty (webhook_triggers" in ran.message
    assert query(own, "SELECT count(*) FROM workflows") == [(0,)]


def test_a_read_only_source_and_one_left_by_a_crash(own: Installation, tmp_path: Path):
    source, crashed = tmp_path / "data", tmp_path / "crashed"
    sources.history(source, 50)
    with closing(sqlite3.connect(source / "workflows.sqlite", isolation_level=None)) as writing:
        writing.execute("PRAGMA wal_autocheckpoint = 0")
        writing.execute("DELETE FROM execution_history_steps WHERE step_index = 4")  # in the WAL alone
        shutil.copytree(source, crashed)
    (crashed / "workflows.sqlite-shm").unlink()
    assert (crashed / "workflows.sqlite-wal").stat().st_size
    place = str(crashed)
    commands = (["mount", "--bind", place, place], ["mount", "-o", "remount,bind,ro", place])
    mounted = os.getuid() == 0 and all(subprocess.run(words, capture_output=True).returncode == 0 for words in commands)
    if mounted:
        with pytest.raises(OSError, match="Read-only"):
            (crashed / "x").write_text("x")
    before = fingerprint(crashed)
    try:
        assert own.run("migrate", "plan", str(crashed), "--json").json["tables"][1]["rows"] == 200
        migrate(own, "run", crashed)
        assert migrate(own, "verify", crashed)["ok"]
        assert query(own, "SELECT count(*) FROM execution_history_steps") == [(200,)]
        assert migrate(own, "cutover", crashed)["read_directly"] is False
    finally:
        if mounted:
            subprocess.run(["umount", crashed], check=True)
    assert fingerprint(crashed) == before


def test_two_keys_that_become_one_and_children_that_outlive_their_parent(own: Installation, tmp_path: Path):
    source = tmp_path / "data"
    keys = sources.history(source, 30)
    sources.sql(
        source,
        "INSERT INTO workflows VALUES ('same', '{\"id\": \"text\"}', '2025-12-01T00:00:00+00:00', '2025-12-01T00:00:00+00:00')",
        "INSERT INTO workflows VALUES (x'73616d65', '{\"id\": \"blob\"}', '2025-12-01T00:00:00+00:00', '2025-12-01T00:00:00+00:00')",
    )
    migrate(own, "run", source)
    assert query(own, "SELECT payload ->> 'id' FROM workflows WHERE id = 'same'") == [("text",)]
    assert query(own, "SELECT reason FROM orcheo_archive.quarantine WHERE tab = 'workflows' AND col IS NULL") == [
        ("refused by PostgreSQL: another row has the same key",)
    ]
    sources.sql(
        source, f"DELETE FROM execution_history WHERE execution_id = '{keys[9]}'"
    )  # its steps stay, in an unchanged chunk
    found = migrate(own, "cutover", source)
    assert found["changed"]["execution_history_steps"] == 150
    assert reasons(own)["execution_history_steps", "orphan"] == 5
    assert query(own, "SELECT count(*) FROM execution_history_steps") == [(145,)]


def test_a_second_pass_writes_the_rows_that_changed_and_no_others(own: Installation, tmp_path: Path):
    source = tmp_path / "data"
    keys = sources.history(source, 60)
    step = "UPDATE execution_history_steps SET payload = {} WHERE execution_id = '{}' AND step_index = 2"
    nul = '\'{"a": "\\u0000"}\''
    sources.sql(source, step.format(nul, keys[1]), step.format(nul, keys[2]), step.format(nul, keys[3]))
    migrate(own, "run", source)
    versions = "SELECT execution_id, step_index, xmin::text FROM execution_history_steps"
    before = set(query(own, versions))
    sources.sql(
        source,
        step.format("'{\"a\": 1}'", keys[1]),  # its original is kept no longer
        step.format(nul.replace("a", "b"), keys[2]),
        f"DELETE FROM execution_history_steps WHERE execution_id = '{keys[3]}' AND step_index = 2",  # nor this one
        step.format("'{broken'", keys[4]),
        f"INSERT INTO execution_history_steps SELECT execution_id, 9, at, payload FROM execution_history_steps WHERE execution_id = '{keys[5]}' AND step_index = 0",
        "UPDATE workflows SET payload = 'no json' WHERE rowid = 2",  # leaves the target
    )
    found = migrate(own, "run", source)
    assert found["changed"] == {"execution_history_steps": 4, "workflows": 1}
    now = set(query(own, versions))
    assert {row[:2] for row in now - before} == {(keys[1], 2), (keys[2], 2), (keys[4], 2), (keys[5], 9)}
    assert {row[:2] for row in before} - {row[:2] for row in now} == {(keys[3], 2)}
    assert query(own, "SELECT count(*) FROM workflows") == [(2,)]
    assert reasons(own) == {("payload", "NUL"): 1, ("payload", "invalid JSON"): 1, ("workflows", "invalid JSON"): 1}
    assert migrate(own, "verify", source)["ok"]
    assert migrate(own, "run", source)["changed"] == {}
    sources.sql(source, step.format("'{\"a\": 2}'", keys[6]))
    found = migrate(own, "cutover", source)
    assert found["changed"] == {"execution_history_steps": 1} and found["rows_compared"] == 1


def test_names_that_change_hands_between_two_passes(own: Installation, tmp_path: Path):
    """A handle is unique in PostgreSQL: its new owner comes before the former one has given it up."""
    source = tmp_path / "data"
    sources.history(source, 4)
    new = "ffffffff-0000-4000-8000-000000000000"
    name = "UPDATE workflows SET payload = json_set(payload, '$.handle', '{}') WHERE rowid = {}"
    sources.sql(source, *(name.format(f"h{i}", i) for i in (1, 2, 3)))
    migrate(own, "run", source)
    assert query(own, "SELECT handle FROM workflows ORDER BY id") == [("h1",), ("h2",), ("h3",)]
    sources.sql(
        source,
        name.format("h2", 1),
        name.format("h1", 2),
        f"INSERT INTO workflows SELECT '{new}', json_set(payload, '$.id', '{new}'), created_at, updated_at FROM workflows WHERE rowid = 3",
        "DELETE FROM workflows WHERE rowid = 3",
    )
    migrate(own, "run", source)
    assert query(own, "SELECT handle FROM workflows ORDER BY id") == [("h2",), ("h1",), ("h3",)]
    assert reasons(own) == {} and migrate(own, "verify", source)["ok"]


def test_an_orphan_comes_back_when_its_parent_does(own: Installation, tmp_path: Path):
    source = tmp_path / "data"
    keys = sources.history(source, 20)
    parent = f"FROM execution_history WHERE execution_id = '{keys[3]}'"
    sources.sql(source, f"CREATE TABLE aside AS SELECT * {parent}", f"DELETE {parent}")
    migrate(own, "run", source)
    assert reasons(own) == {("execution_history_steps", "orphan"): 5}
    sources.sql(source, "INSERT INTO execution_history SELECT * FROM aside")
    assert migrate(own, "cutover", source)["changed"]["execution_history_steps"] == 100
    assert reasons(own) == {} and query(own, "SELECT count(*) FROM execution_history_steps") == [(100,)]
