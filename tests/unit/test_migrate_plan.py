"""`orcheo-db migrate plan`: every hazard of a directory, without a target and without a trace."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import psycopg
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from orcheo_db.cli import cli
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.migrate import plan as module
from orcheo_db.migrate import vault
from orcheo_db.migrate.convert import Options
from orcheo_db.migrate.home import Home
from orcheo_db.migrate.layout import COUNTERS
from orcheo_db.migrate.plan import Hazard, Scan, places, plan
from orcheo_db.migrate.source import Source, look
from tests.unit.migrate_files import BRIDGE, OLD, Rows, change, fingerprint, install

DEAD, LIVE = (f"{digit * 8}-0000-0000-0000-000000000000" for digit in "ab")
CHECKPOINT = msgpack.packb({"channel_values": {}, "channel_versions": {}})
NOW = "2126-01-01T00:00:00+00:00"
RICH: dict[str, list[dict[str, Any]]] = {
    "workspaces": [{"id": LIVE, "slug": "default", "created_at": "2026-01-01 00:00:00"}],
    "workflows": [{"id": "w", "workspace_id": LIVE, "handle": "flow"}, {"id": "x", "workspace_id": DEAD, "handle": "flow", "payload": '{"n": NaN, "big": 9007199254740993}'}],
    "workflow_versions": [{"id": "v", "workspace_id": LIVE}, {"id": "lost", "workflow_id": "gone", "workspace_id": LIVE}],
    "workflow_runs": [{"id": "r", "workspace_id": LIVE, "payload": '{"s": "\\u0000"}'}, {"id": "broken", "workspace_id": LIVE, "payload": "{"}],
    "workflow_run_remediations": [{"id": "old"}],
    "execution_history": [{"execution_id": "e", "workspace_id": LIVE, "inputs": '{"s": "\\ud800", "n": -12345678901234567890}', "run_name": "a\x00b"}],
    "execution_history_steps": [{"step_index": 0, "at": "2026-01-01 00:00:00"}, {"execution_id": "gone", "step_index": 1}],
    "plugin_installations": [{"plugin_name": "p", "workspace_id": LIVE}, {"plugin_name": "p", "workspace_id": DEAD}],
    "chat_threads": [{"id": "t", "workspace_id": LIVE}, {"id": "new", "workspace_id": LIVE, "updated_at": NOW}],
    "chat_messages": [{"id": "m"}, {"id": "orphan", "thread_id": "gone"}, {"id": "bad", "item_json": "{"}],
    "chat_attachments": [{"id": "f"}],
    "credentials": [{"id": "c", "workspace_id": LIVE}, {"id": "d", "workspace_id": LIVE, "name": "other"}],
    "checkpoints": [{"checkpoint": CHECKPOINT}, {"checkpoint_id": "d", "checkpoint": b"\xc1"}],
}  # fmt: skip


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key from outside, no target, no state of a stack."""
    for name in ("ORCHEO_VAULT_ENCRYPTION_KEY", "ORCHEO_VAULT_ENCRYPTION_KEY_FILE", "ORCHEO_DB_ADMIN_DSN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ORCHEO_DB_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")

    def connect(*_: Any, **__: Any) -> None:
        raise AssertionError("a plan needs no target")

    monkeypatch.setattr(psycopg, "connect", connect)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan in this process, chunk by chunk: its workers are other processes, which take a second to start."""

    def scan(source: Source, decided: Home, options: Options) -> Iterator[tuple[str, Scan]]:
        module._converters.clear()
        module._initialise(source, decided, options, frozenset())
        for table in source.tables:
            if table.name not in COUNTERS:
                for lo in (-(2**61), 0, 2, 4):
                    yield module._one((table.name, lo, 2**61 if lo < 0 else 2))

    monkeypatch.setattr(module, "_scan", scan)
    monkeypatch.setattr(module, "_converters", {})
    monkeypatch.setattr(module, "_given", None)


def rich(directory: Path) -> Path:
    install(directory, RICH)
    change(
        directory,
        "workflows.sqlite",
        "CREATE TABLE mine (a); INSERT INTO mine VALUES (1), (x'00'); ALTER TABLE workflows ADD COLUMN colour; UPDATE workflows SET colour = 'red' WHERE id = 'w'",
    )
    change(directory, "vault.sqlite", "PRAGMA journal_mode = WAL")
    return directory


def made(directory: Path, days: int = 30, **options: Any) -> dict[str, Any]:
    return plan(directory, Options(moment=NOW, **options), None, days, lambda done, total: None)


FOUND = [
    ("2 x NUL (execution_history.run_name 1, workflow_runs.payload 1): replaced by a rule that can be undone, the original is kept", "--strict"),
    ("1 x NaN or Infinity (workflows.payload 1): replaced by a rule", "--strict"),
    ("1 x checkpoint of another form (checkpoints 1): these rows are kept in the quarantine and nowhere else", "--strict"),
    ("2 x invalid JSON (chat_messages 1, workflow_runs 1): these rows are kept in the quarantine and nowhere else", "--strict"),
    ("1 x lone surrogate (execution_history.inputs 1): replaced by a rule", "--strict"),
    ("2 x orphan (chat_messages 1, execution_history_steps 1): they refer to a row that isn't there", "--strict"),
    ("1 x attachment without its file (chat_attachments.storage_path 1): the row is migrated", "--attachments DIR"),
    ("1 x plugin state of another workspace (plugin_installations 1)", ""),
    ("2 x timestamp without zone (execution_history_steps.at 1, workspaces.created_at 1): the value is equal", "--naive-timestamps ZONE; default: UTC"),
    ("2 JSON documents hold integers beyond 2^53 (execution_history.inputs 1, workflows.payload 1)", ""),
    ("mine is of no release that is known: it goes to orcheo_archive.mine", "move it out of the directory"),
    ("workflows.colour is of no release that is known: it goes to the quarantine", "move it out of the directory"),
    ("the newest release has no workflow_run_remediations: its rows go to orcheo_archive.workflow_run_remediations", ""),
    ("1 rows of workflow_versions have a workflow_id that no row of workflows has", ""),
    (f"2 rows have no workspace or one that doesn't exist ({DEAD}) and would be invisible", "--workspace SLUG; default: default"),
    ("workflows x: its name is taken in the workspace, it becomes 'flow-2'", ""),
    (f"plugin p has a state of workspace {DEAD} and of another: this one is kept in the quarantine", ""),
    ("2 credentials and no vault key (no vault.key beside them)", "ORCHEO_VAULT_ENCRYPTION_KEY_FILE=FILE"),
    ("1 chat threads are older than 30 days: the new app deletes them at its first start", "chatkit_retention_days"),
]  # fmt: skip


def tidy(directory: Path, rows: Rows) -> Path:
    """An installation without the table that the newest release does not have."""
    install(
        directory,
        {"workspaces": [{"id": LIVE, "slug": "default"}], "workflows": [{"id": "w", "workspace_id": LIVE}], **rows},
    )
    change(directory, "workflows.sqlite", "DROP TABLE workflow_run_remediations")
    return directory


def check(found: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    for hazard, (text, option) in zip(found["hazards"], expected, strict=True):
        assert hazard["text"].startswith(text)
        assert (hazard["option"] or "").startswith(option) or option in hazard["option"]
        assert bool(hazard["option"]) == bool(option)
    assert found["decisions"] == sum(bool(option) for _, option in expected)


def test_every_hazard_is_found_beside_the_old_app_at_work_and_nothing_is_changed(tmp_path: Path) -> None:
    """With the scan's own processes."""
    directory = rich(tmp_path / "orcheo")
    progress: list[int] = []
    with closing(sqlite3.connect(directory / "vault.sqlite")) as writer:
        writer.execute("UPDATE credentials SET provider = 'written in the WAL'")
        writer.commit()
        writer.execute("DELETE FROM credentials")  # not committed
        before = fingerprint(directory)
        found = plan(directory, Options(moment=NOW), None, 30, lambda done, total: progress.append(done.rows))
        assert fingerprint(directory) == before
    check(found, FOUND)
    assert (found["release"], found["source"], found["files"]) == ("0.34", str(directory), sorted(BRIDGE))
    rows = {table["table"]: table["rows"] for table in found["tables"]}
    assert rows == dict.fromkeys(rows, 0) | {name: len(added) for name, added in RICH.items()} | {"mine": 2}
    assert found["rows"] == sum(rows.values()) == progress[-1] and progress == sorted(progress)
    assert "store_migrations" not in rows
    into = {table["table"]: (table["into"], table["subsystem"], table["file"]) for table in found["tables"]}
    assert into["writes"] == ("checkpoint_writes", "LangGraph checkpoints", "checkpoints.sqlite")
    assert into["mine"] == ("orcheo_archive.mine", None, "workflows.sqlite")
    assert found["estimated_seconds"] >= 1 and found["bytes"] > 7 * 4096


@pytest.mark.usefixtures("here")
def test_an_installation_in_order_has_no_hazard(tmp_path: Path) -> None:
    found = made(tidy(tmp_path, {"workflow_versions": [{"id": "v", "workspace_id": LIVE}]}))
    assert found["hazards"] == [] and found["decisions"] == 0 and found["rows"] == 3


@pytest.mark.usefixtures("here")
def test_a_release_before_workspaces(tmp_path: Path) -> None:
    found = made(install(tmp_path, {"workflows": [{"id": "w"}, {"id": "x"}]}, OLD))
    (hazard,) = found["hazards"]
    assert found["release"] == "0.15"
    assert (
        hazard["text"]
        == "2 rows have no workspace and would be invisible: they follow their workflow, else go to workspace 'default' (made for it)"
    )


@pytest.mark.usefixtures("here")
def test_chats_that_are_kept_are_no_hazard(tmp_path: Path) -> None:
    tidy(tmp_path, {"chat_threads": [{"id": "t", "workspace_id": LIVE}]})
    assert made(tmp_path, 36500)["hazards"] == [] == made(tmp_path, 10**9)["hazards"]
    (hazard,) = made(tmp_path, 1)["hazards"]
    assert hazard["text"].startswith("1 chat threads are older than 1 days")


@pytest.mark.parametrize(
    ("payload", "big"),
    [
        ('{"a": 9007199254740992}', 0), ('{"a": 9007199254740993}', 1), ('{"a": -9007199254740993}', 1), ('[12345678901234567890, 1]', 1),
        ('{"a": "9007199254740993"}', 0), ('{"a": 9007199254740993.5}', 0), ('{"a": 1234567890123456}', 0), (f'[{"9" * 500}]', 0), ('{"a": 0.9007199254740993}', 0),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("here")
def test_integers_that_a_browser_rounds(tmp_path: Path, payload: str, big: int) -> None:
    rows = {"execution_history": [{"execution_id": "e", "workspace_id": LIVE, "inputs": payload}]}
    where = [hazard["where"] for hazard in made(tidy(tmp_path, rows))["hazards"]]
    assert where == ([{"execution_history.inputs": 1}] if big else [])


def test_the_columns_with_the_most_come_first() -> None:
    assert places({"a": 1, "b": 3, "c": 2}) == "b 3, c 2, a 1"
    assert places(dict.fromkeys("abcdef", 1)) == "a 1, b 1, c 1, d 1 and 2 more"
    assert Hazard("text").document() == {"text": "text", "option": None, "where": {}}


# --- the vault ----------------------------------------------------------------------------------------------------------------


def sealed(key: str, secret: bytes = b"secret") -> str:
    nonce = bytes(vault.NONCE)
    content = nonce + AESGCM(hashlib.sha256(key.encode()).digest()).encrypt(nonce, secret, None)
    envelope = {"algorithm": vault.ALGORITHM, "key_id": "k", "ciphertext": base64.b64encode(content).decode()}
    return json.dumps({"encryption": envelope, "oauth_tokens": {"access": envelope}, "workspace_id": LIVE})


@pytest.fixture
def vaulted(tmp_path: Path) -> Path:
    payloads = [
        sealed("right"),
        sealed("right"),
        sealed("wrong"),
        json.dumps({"workspace_id": LIVE}),
        "{",
        sealed("right").replace("v1", "v2"),
    ]
    rows = {
        "workspaces": [{"id": LIVE, "slug": "default"}],
        "credentials": [
            {"id": f"c{i}", "name": f"n{i}", "workspace_id": LIVE, "payload": p} for i, p in enumerate(payloads)
        ],
    }
    return install(tmp_path / "orcheo", rows)


def test_how_many_credentials_a_key_opens(vaulted: Path) -> None:
    source = look(vaulted)
    assert (
        vault.count(source, "right") == (6, 3)
        and vault.count(source, "wrong") == (6, 4)
        and vault.count(source, None) == (6, 6)
    )
    assert vault.key(source) is None and vault.check(source) is None
    (vaulted / "vault.key").write_text("right\n")
    assert vault.key(source) == "right"
    with pytest.raises(
        UserError, match=r"the vault key opens 3 of 6 credentials in .*: give the one that they were made with"
    ) as caught:
        vault.check(source)
    assert "\n" not in str(caught.value) and "right" not in str(caught.value)


def test_a_key_that_is_given_stands_before_the_file(vaulted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (vaulted / "vault.key").write_text("right")
    monkeypatch.setenv("ORCHEO_VAULT_ENCRYPTION_KEY", "wrong")
    assert vault.key(look(vaulted)) == "wrong"
    change(vaulted, "vault.sqlite", "DELETE FROM credentials WHERE id <> 'c2' AND id <> 'c3'")
    assert vault.check(look(vaulted)) == "wrong" and vault.count(look(vaulted), "wrong") == (2, 0)


@pytest.mark.usefixtures("here")
def test_a_key_that_does_not_fit_is_a_hazard(vaulted: Path) -> None:
    (vaulted / "vault.key").write_text("right")
    hazards = [hazard["text"] for hazard in made(vaulted)["hazards"]]
    assert "the vault key opens 3 of 6 credentials" in hazards


def test_messages_weigh_more_in_the_estimate() -> None:
    """By the full-text index, which costs more than the rows."""
    steps, messages = (module._seconds({name: 2**30}) for name in ("execution_history_steps", "chat_messages"))
    assert 5 < steps < messages and module._seconds({}) == 5


@pytest.mark.parametrize(
    ("document", "refused"),
    [
        (json.dumps({"text": " ".join(f"word{i:07d}" for i in range(120_000))}), True),
        (json.dumps({"text": " ".join(f"word{i:07d}" for i in range(60_000))}), False),  # 840 KB of a vector
        (json.dumps({"text": "alpha beta gamma " * 200_000}), False),  # 3 MB of three words
        (json.dumps({"text": random.Random(1).randbytes(1_500_000).hex()}), False),  # no word is as long
        (
            json.dumps({"text": " ".join(f"word{i % 2200:05d}" for i in range(550_000))}),
            False,
        ),  # the later places are not noted
        (json.dumps({"text": " ".join(f"one{i:06d}-two{i:06d}" for i in range(34_000))}), True),  # three words each
        (json.dumps({"text": "\n".join(f"wörter{i:07d}" for i in range(90_000))}), True),
        (
            json.dumps({"text": "\n".join(f"wörter{i:07d}" for i in range(50_000))}),
            False,
        ),  # less than it seems by its escapes
        ("[" * 500_000, False),
        ("{" + "x" * 1_000_000, False),  # no JSON: counted as that
    ],
)
def test_more_words_than_the_full_text_index_takes(document: str, refused: bool) -> None:
    assert module.too_many_words(document) is refused


# --- the command ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_the_command_prints_one_document_and_says_that_something_wants_a_decision(tmp_path: Path) -> None:
    directory = rich(tmp_path / "orcheo")
    before = fingerprint(directory)
    done = CliRunner().invoke(cli, ["migrate", "plan", "--json", str(directory)])
    assert fingerprint(directory) == before and not (tmp_path / "state").exists()
    assert isinstance(done.exception, CheckFailed) and done.exception.exit_code == 1
    assert str(done.exception).startswith(
        f"{len([o for _, o in FOUND[:-1] if o])} of the points above want a decision; each has a default"
    )
    check(json.loads(done.stdout), FOUND[:-1])  # the spec keeps chats for longer


@pytest.mark.usefixtures("here")
def test_the_command_for_a_person(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["migrate", "plan", str(tidy(tmp_path / "good", {}))])
    assert done.exit_code == 0, done.output
    assert "made by a bridge release, 0.16 to 0.34" in done.stdout and "nothing out of the ordinary" in done.stdout
    done = CliRunner().invoke(cli, ["migrate", "plan", str(rich(tmp_path / "rich"))])
    assert isinstance(done.exception, CheckFailed)
    lines = [line for line in done.stdout.splitlines() if line.startswith("  ? ")]
    assert len(lines) == len([option for _, option in FOUND[:-1] if option])
    assert any(line.endswith("[--naive-timestamps ZONE; default: UTC]") for line in lines)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "holds no SQLite file of Orcheo"), (["--naive-timestamps", "Mars"], "--naive-timestamps Mars: no such time zone"),
        (["--attachments", "/none"], "--attachments /none is no directory"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(tmp_path: Path, options: list[str], words: str) -> None:
    directory = tmp_path / "orcheo"
    directory.mkdir()
    done = CliRunner().invoke(cli, ["migrate", "plan", *options, str(directory)])
    assert isinstance(done.exception, UserError) and words in str(done.exception) and "\n" not in str(done.exception)
    assert os.listdir(directory) == []


def test_a_workspace_that_is_not_there(tmp_path: Path) -> None:
    directory = install(tmp_path / "orcheo", {"workflows": [{"id": "w"}]})
    done = CliRunner().invoke(cli, ["migrate", "plan", "--workspace", "mars", str(directory)])
    assert isinstance(done.exception, UserError) and "there is no workspace 'mars'" in str(done.exception)
