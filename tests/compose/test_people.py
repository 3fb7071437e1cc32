"""Export and import for people on the running server, in a database of their own that stands in the app's place meanwhile."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orcheo_db.errors import CheckFailed
from orcheo_db.migrate import people_import, people_tables
from tests.conftest import PROGRAM, ROOT, Installation

pytestmark = pytest.mark.disruptive  # the app's connections are cut
TEMPLATE, KEPT = "people_template", "orcheo_kept"
STRANGE = Path(__file__).with_name("people_strange.sql").read_text(encoding="utf-8")
TYPES = """
SET ROLE orcheo;
CREATE TYPE mood AS ENUM ('ok', 'so "so"');
CREATE TABLE strange_types (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, parent bigint REFERENCES strange_types, "Odd ""name" text, num numeric, real4 real, float8 float8,
    ints int[], texts text[], raws bytea[], docs jsonb[], uuids uuid[], doc json, span interval, addr inet, feeling mood, padded char(5), at timestamp,
    bits varbit, counted smallint, twice int GENERATED ALWAYS AS (counted * 2) STORED);
CREATE TABLE strange_json (doc json);
CREATE TABLE strange_alone (only_column text);
CREATE TABLE strange_parts (n int PRIMARY KEY, t text) PARTITION BY RANGE (n);
CREATE TABLE strange_parts_low PARTITION OF strange_parts FOR VALUES FROM (0) TO (100);
CREATE TABLE strange_parts_rest PARTITION OF strange_parts DEFAULT;
"""


def psql(own: Installation, text: str, database: str = "orcheo") -> str:
    """SQL as the superuser, by the socket; what it prints."""
    argv = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-"]
    result = own.target().run("postgres", argv, input=text)
    assert result.code == 0, result.stderr
    return result.stdout


def rename(own: Installation, name: str, to: str) -> None:
    psql(own, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false", "postgres")
    psql(
        own,
        f"SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE datname = '{name}'",
        "postgres",
    )
    psql(own, f"ALTER DATABASE {name} RENAME TO {to}; ALTER DATABASE {to} ALLOW_CONNECTIONS true", "postgres")


@pytest.fixture(scope="module")
def borrowed(installation: Installation) -> Iterator[Installation]:
    """The session's installation; its database stands aside, untouched, and comes back at the end."""
    psql(installation, f"SET ROLE orcheo_admin; CREATE DATABASE {TEMPLATE} OWNER orcheo TEMPLATE template0", "postgres")
    script = f"pg_dump --schema-only -d orcheo | psql -Xq -v ON_ERROR_STOP=1 -o /dev/null -d {TEMPLATE}; pg_dump --data-only -t orcheo_db.installation -d orcheo | psql -Xq -o /dev/null -d {TEMPLATE}"
    result = installation.target().run("postgres", ["bash", "-euo", "pipefail", "-c", script])
    assert result.code == 0, result.stderr
    # As the app's bootstrap leaves it.
    psql(installation, "INSERT INTO hosted_app_runtime_state (singleton) VALUES (true)", TEMPLATE)
    psql(installation, TYPES, TEMPLATE)
    rename(installation, "orcheo", KEPT)
    try:
        yield installation
    finally:
        psql(installation, "DROP DATABASE IF EXISTS orcheo WITH (FORCE)", "postgres")
        rename(installation, KEPT, "orcheo")
        psql(installation, f"DROP DATABASE {TEMPLATE}", "postgres")


def empty(own: Installation) -> None:
    psql(own, "DROP DATABASE IF EXISTS orcheo WITH (FORCE)", "postgres")
    psql(own, f"CREATE DATABASE orcheo OWNER orcheo TEMPLATE {TEMPLATE}", "postgres")


@pytest.fixture
def own(borrowed: Installation) -> Installation:
    """With the schema of the installed release and no rows."""
    empty(borrowed)
    return borrowed


def names(own: Installation) -> list[str]:
    return psql(
        own,
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1",
    ).split()


def content(own: Installation) -> dict[str, str]:
    """Every row of every table as PostgreSQL's text (cut, with its checksum), and what its sequences gave last."""
    parts = [
        f"SELECT '### {name}'; SELECT md5(t::text), left(t::text, 1000) FROM public.{name} t ORDER BY 1"
        for name in names(own)
    ]
    parts += [
        f"SELECT '### {name}'; SELECT last_value, is_called FROM {name}"
        for name in ("service_token_audit_log_id_seq", "strange_types_id_seq")
    ]
    text = psql(own, "SET TimeZone = UTC; " + ";\n".join(parts))
    return dict(part.split("\n", 1) for part in text.split("### ")[1:])


def counts(own: Installation) -> dict[str, int]:
    """Rows a table, without LangGraph's counters."""
    listed = [name for name in names(own) if not name.endswith("_migrations")]
    text = psql(own, ";".join(f"SELECT '{name}', count(*) FROM public.{name}" for name in listed))
    return {name: int(found) for name, found in (line.split("|") for line in text.splitlines())}


def rows(own: Installation) -> int:
    return sum(counts(own).values())


@pytest.fixture
def filled(own: Installation) -> dict[str, str]:
    psql(own, "SET ROLE orcheo;\n" + STRANGE)
    return content(own)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_every_row_comes_back_in_both_formats(own: Installation, filled: dict[str, str], tmp_path: Path, form: str):
    out = tmp_path / "out"
    made = own.ok("migrate", "export", "--to", str(out), "--format", form, "--json").json
    assert stat.S_IMODE(out.stat().st_mode) == 0o700 and not (tmp_path / "out.part").exists()
    assert {stat.S_IMODE(file.stat().st_mode) for file in out.iterdir()} == {0o600}
    manifest = json.loads((out / "manifest.json").read_text())
    there = counts(own)
    assert sorted(manifest["tables"]) == sorted(there) == sorted(table["table"] for table in made["tables"])
    assert manifest["releases"]["orcheo-backend"] and manifest["lsn"] and manifest["database"] == "orcheo"
    for name, table in manifest["tables"].items():
        raw = (out / table["file"]).read_bytes()
        assert (len(raw), hashlib.sha256(raw).hexdigest()) == (table["bytes"], table["sha256"])
        assert table["rows"] == count(raw.decode(), form) == there[name], name
    order = manifest["order"]
    at = order.index
    assert at("hosted_apps") < at("hosted_app_releases") and at("chat_threads") < at("chat_messages")
    empty(own)
    done = own.ok("migrate", "import", str(out), "--json").json
    assert (done["rows"], len(done["tables"])) == (made["rows"], len(order))
    after = content(own)
    if form == "jsonl":  # a line is a row: a line feed between two words of a json (not jsonb) becomes a space
        assert '{ ""a"" : 1.10,   ""a"": null }' in after[
            "strange_json"
        ] and '{ ""a"" : 1.10,\n ""a"": null }' in filled.pop("strange_json")
        after.pop("strange_json")
    assert {name: text for name, text in after.items() if text != filled[name]} == {}
    assert after.keys() == filled.keys()
    assert psql(own, "SELECT tgenabled FROM pg_trigger WHERE tgname = 'hosted_app_release_ready'").strip() == "O"
    more = "SET ROLE orcheo; INSERT INTO service_token_audit_log (token_id, action, timestamp) VALUES ('t', 'x', now()) RETURNING id"
    assert psql(own, more).strip() == "51"
    # What is there once more gives the same files: nothing depends on where the rows came from.
    psql(own, "DELETE FROM service_token_audit_log WHERE id = 51")
    own.ok("migrate", "export", "--to", str(tmp_path / "again"), "--format", form)
    for table in manifest["tables"].values():
        assert sorted((tmp_path / "again" / table["file"]).read_bytes()) == sorted(
            (out / table["file"]).read_bytes()
        ), table["file"]


def count(text: str, form: str) -> int:
    """Rows, as another program reads them: each line is JSON, each record has the header's fields."""
    if form == "jsonl":
        lines = text.split("\n")[:-1]
        for line in lines:
            if "[[[[" not in line and '{"a": {"a": {"a"' not in line:  # Python's reader gives up at a depth of 1000
                assert isinstance(json.loads(line), dict)
        return len(lines)
    csv.field_size_limit(2**30)
    read = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert all(len(row) in (len(read[0]), 0) for row in read)
    return len(read) - 1


def test_some_tables_of_one_moment_while_others_write(own: Installation, tmp_path: Path):
    psql(own, "SET ROLE orcheo; INSERT INTO execution_history (execution_id, workflow_id, inputs, status, started_at)"
              " SELECT g::text, 'w', jsonb_build_object('t', repeat(md5(g::text), 30)), 'done', now() FROM generate_series(1, 30000) g")  # fmt: skip
    end = threading.Event()
    pairs = 0

    def write() -> None:
        nonlocal pairs
        with psycopg.connect(own.target().dsn(direct=True)) as connection:
            while not end.is_set():
                for table in ("cron_triggers", "webhook_triggers"):
                    connection.execute(
                        f"INSERT INTO {table} (workflow_id, config) VALUES (%s, '{{}}')".encode(), (str(pairs),)
                    )
                connection.commit()
                pairs += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        chosen = ["cron_triggers", "execution_history", "webhook_triggers"]
        options = [word for name in chosen for word in ("--table", name)]
        made = own.ok("migrate", "export", "--to", str(tmp_path / "out"), *options, "--json").json
    finally:
        end.set()
        writer.join()
    assert [table["table"] for table in made["tables"]] == chosen
    ids = [
        {json.loads(line)["workflow_id"] for line in (tmp_path / "out" / f"{name}_triggers.jsonl").open()}
        for name in ("cron", "webhook")
    ]
    assert ids[0] == ids[1] and 0 < len(ids[0]) < pairs
    # One of them goes into a table that is empty; the others have rows, and are not asked for.
    psql(own, "TRUNCATE cron_triggers")
    own.ok("migrate", "import", str(tmp_path / "out"), "--table", "cron_triggers")
    assert psql(own, "SELECT count(*) FROM cron_triggers").strip() == str(len(ids[0]))


@pytest.fixture
def exported(own: Installation, filled: dict[str, str], tmp_path: Path) -> Path:
    own.ok("migrate", "export", "--to", str(tmp_path / "out"))
    empty(own)
    return tmp_path / "out"


def truncate(directory: Path) -> None:
    with (directory / "users.jsonl").open("r+b") as file:
        file.truncate(100)


def flip(directory: Path) -> None:
    path = directory / "workspaces.jsonl"
    raw = bytearray(path.read_bytes())
    raw[40] ^= 4
    path.write_bytes(raw)


def rewrite(directory: Path, old: str, new: str) -> None:
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace(old, new, 1))


REFUSALS: dict[str, tuple[Callable[[Path], Any], str, list[str]]] = {
    "cut off": (truncate, "", ["users.jsonl was cut off"]),
    "flipped": (flip, "", ["workspaces.jsonl was changed or damaged"]),
    "missing": (lambda d: (d / "users.jsonl").unlink(), "", ["users.jsonl is missing"]),
    "manifest": (lambda d: rewrite(d, '"rows": 6', '"rows": 7'), "", ["manifest.json was changed or damaged"]),
    "newer": (lambda d: rewrite(d, '"format": 1', '"format": 9'), "", ["format 9", "reads up to 1"]),
    "no table": (lambda d: None, "DROP TABLE cron_triggers", ["has no table cron_triggers"]),
    "no column": (lambda d: None, "ALTER TABLE users DROP COLUMN name", ["users", "has no column name"]),
    "a row": (lambda d: None, "INSERT INTO cron_triggers (workflow_id, config) VALUES ('x', '{}')", ["not empty (cron_triggers hold rows)"]),
    "a chosen state": (lambda d: None, "UPDATE hosted_app_runtime_state SET generation = 1, enabled = true, updated_by = 'u'", ["hosted_app_runtime_state hold rows"]),
    "demanded": (lambda d: None, "ALTER TABLE users ADD COLUMN must text NOT NULL", ["users.must", "must have a value"]),
    "constraint": (lambda d: None, "ALTER TABLE users ADD CONSTRAINT full_name CHECK (name <> ' ')", ["users.jsonl, line 3", "full_name"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_wrong_is_one_line_and_changes_nothing(own: Installation, exported: Path, case: str):
    spoil, statement, words = REFUSALS[case]
    spoil(exported)
    psql(own, statement)
    before = content(own)
    ran = own.run("migrate", "import", str(exported), "--json")
    assert ran.code == (1 if case == "constraint" else 2), ran.stderr
    assert all(word in ran.message for word in words), ran.message
    assert "Traceback" not in ran.stderr and ran.json["ok"] is False
    assert content(own) == before


def test_tables_without_those_that_they_name(own: Installation, exported: Path):
    ran = own.run("migrate", "import", str(exported), "--table", "chat_attachment_blobs")
    assert ran.code == 1 and "foreign key" in ran.message and rows(own) == 1
    ran = own.run("migrate", "import", str(exported), "--table", "no_such")
    assert ran.code == 2 and "--table no_such" in ran.message


def test_an_export_refuses_what_is_there_and_what_is_not(own: Installation, tmp_path: Path):
    ran = own.run("migrate", "export", "--to", str(tmp_path))
    assert ran.code == 2 and "exists" in ran.message
    ran = own.run("migrate", "export", "--to", str(tmp_path / "out"), "--table", "store_migrations")
    assert ran.code == 2 and "--table store_migrations" in ran.message and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "words"),
    [("NEW.config = '{\"x\": 1.1}'; RETURN NEW", "other values"), ("RETURN NULL", "but 0 rows instead of 15")],
)
def test_what_the_table_took_otherwise_is_found(own: Installation, exported: Path, monkeypatch, body: str, words: str):
    """A trigger, which an import turns off, left on: so that the table holds something else than the file."""
    psql(own, f"SET ROLE orcheo; CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body}; END$$;"
              " CREATE TRIGGER spoil BEFORE INSERT ON cron_triggers FOR EACH ROW EXECUTE FUNCTION spoil()")  # fmt: skip
    dsn = own.target().dsn("orcheo_admin", direct=True)
    with monkeypatch.context() as patched:
        patched.setattr(people_tables, "triggers", lambda *_: [])
        with pytest.raises(CheckFailed, match=words):
            people_import.load(dsn, exported, ["cron_triggers"])
    assert rows(own) == 1
    people_import.load(dsn, exported, ["cron_triggers"])
    assert rows(own) == 16


# --- kills -------------------------------------------------------------------------------------------------------------------------


def start(own: Installation, *arguments: str) -> subprocess.Popen[str]:
    argv = [str(PROGRAM), "migrate", *arguments]
    return subprocess.Popen(argv, env=own.env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def until(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def large(own: Installation) -> Installation:
    """Some 100 MB, so that there is a middle."""
    psql(own, "SET ROLE orcheo; INSERT INTO users (id, email, created_at) SELECT gen_random_uuid(), g::text, now() FROM generate_series(1, 100) g;"
              " INSERT INTO execution_history (execution_id, workflow_id, inputs, status, started_at) SELECT g::text, 'w',"
              " jsonb_build_object('t', repeat(md5(g::text), 100)), 'done', now() FROM generate_series(1, 30000) g")  # fmt: skip
    return own


def test_a_killed_export_leaves_the_part_and_the_next_one_begins_anew(large: Installation, tmp_path: Path):
    out, part = tmp_path / "out", tmp_path / "out.part"
    process = start(large, "export", "--to", str(out))
    middle = part / "execution_history.jsonl"
    until(process, lambda: middle.exists() and middle.stat().st_size > 0)
    process.send_signal(signal.SIGSTOP)
    again = large.run("migrate", "export", "--to", str(out))
    assert again.code == 2 and "is at work" in again.message
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert part.is_dir() and not out.exists() and not (part / "manifest.json").exists()
    refused = large.run("migrate", "import", str(part))
    assert refused.code == 2 and "was cut off" in refused.message
    large.ok("migrate", "export", "--to", str(out))
    assert (
        not part.exists()
        and json.loads((out / "manifest.json").read_text())["tables"]["execution_history"]["rows"] == 30000
    )


def test_an_export_whose_server_goes_leaves_nothing(large: Installation, tmp_path: Path):
    process = start(large, "export", "--to", str(tmp_path / "out"))
    middle = tmp_path / "out.part" / "execution_history.jsonl"
    until(process, lambda: middle.exists() and middle.stat().st_size > 0)
    process.send_signal(signal.SIGSTOP)
    cut(large, "orcheo-db export")
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate()
    assert process.returncode == 1 and said.strip().splitlines()[-1].startswith("orcheo-db: the export failed"), said
    assert list(tmp_path.iterdir()) == []


def cut(own: Installation, application: str) -> None:
    psql(own, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{application}'")


@pytest.mark.parametrize("how", ["kill", "server"])
def test_an_import_that_is_cut_off_leaves_empty_tables(large: Installation, tmp_path: Path, how: str):
    large.ok("migrate", "export", "--to", str(tmp_path / "out"))
    before = content(large)
    empty(large)
    process = start(large, "import", str(tmp_path / "out"))
    until(
        process,
        lambda: (
            "t"
            in psql(
                large,
                "SELECT tuples_processed > 100 FROM pg_stat_progress_copy WHERE relid = 'execution_history'::regclass",
            )
        ),
    )
    if how == "kill":
        process.send_signal(signal.SIGKILL)
        process.communicate()
    else:
        cut(large, "orcheo-db import")
        _, said = process.communicate()
        last = said.strip().splitlines()[-1]
        assert process.returncode == 1 and "nothing was changed" in last and "Traceback" not in said, said
    assert rows(large) == 1, "the app's own row alone"
    large.ok("migrate", "import", str(tmp_path / "out"))
    assert content(large) == before
    shutil.rmtree(tmp_path / "out")
