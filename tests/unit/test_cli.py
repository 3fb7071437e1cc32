"""The command line as its user meets it: exit codes, one line for each mistake, and nothing but JSON on stdout with --json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).with_name("orcheo-db")


@pytest.fixture
def run(tmp_path):
    """Run the command for a project that does not exist, with a state directory that must stay empty."""
    state = tmp_path / "state"
    env = {**os.environ, "ORCHEO_DB_PROJECT": "no-such-project", "ORCHEO_DB_STATE_DIR": str(state)}
    env.pop("ORCHEO_DB_ADMIN_DSN", None)

    def call(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([PROGRAM, *arguments], env=env | extra, cwd=ROOT, capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    yield call
    assert not list(state.glob("*/installation.json")), "a refused command made secrets"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "gigantic", "up"], ["gigantic", "small", "medium", "large"]),
        (["--target", "mars", "status"], ["mars", "compose", "external"]),
        (["fly"], ["fly"]),
        (["up", "--install-docker", "perhaps"], ["perhaps", "yes", "no"]),
        (["up", "--new-secrets"], ["replaces every password", "--confirm no-such-project"]),
        (["--target", "external", "up"], ["ORCHEO_DB_ADMIN_DSN is not set"]),
        (["tune", "--memory", "16GB"], ["--memory and --cpus"]),
        (["tune", "--memory", "banana", "--cpus", "2"], ["banana"]),
        (["tune", "--memory", "64TB", "--cpus", "2"], ["64TB", "at most 16TB"]),
        (["tune", "--memory", "16GB", "--cpus", "0"], ["--cpus"]),
        (["tune", "--memory", "16GB", "--cpus", "4", "--storage", "tape"], ["tape", "hdd", "ssd"]),
        (["dsn"], ["no installation", "make up"]),
        (["dsn", "--role", "root"], ["root", "orcheo_ro"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_mistakes_are_one_line_with_exit_code_2(run, arguments, words):
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("orcheo-db: "), done.stderr
    assert all(word in lines[0] for word in words), lines[0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("port = 6432", "port = 70000", ["port", "70000"]),
        ("port = 6432", "prot = 6432", ["prot", "port"]),
        ('storage = "ssd"', 'storage = "tape"', ["storage", "tape", "ssd"]),
        ("postgresql = 17", "postgresql = 9", ["postgresql", "9"]),
        ('memory = "8GB"', 'memory = "8 parsecs"', ["memory", "8 parsecs"]),
        ("[settings]", '[settings]\nshared_bufers = "1GB"', ["shared_bufers", "shared_buffers"]),
        ("[stack]", "[stack", ["spec.toml"]),
    ],
)
def test_a_wrong_spec_names_the_key_and_what_is_accepted(run, tmp_path, old, new, words):
    text = (ROOT / "ops" / "spec.toml").read_text()
    assert old in text
    (tmp_path / "spec.toml").write_text(text.replace(old, new, 1))
    for arguments in (["spec", "check"], ["up"]):
        done = run(*arguments, ORCHEO_DB_SPEC=str(tmp_path / "spec.toml"))
        assert done.returncode == 2, done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1 and all(word in lines[0] for word in words), done.stderr


def test_pools_that_do_not_fit_are_said_with_the_numbers(run, tmp_path):
    text = (ROOT / "ops" / "spec.toml").read_text().replace("[pgbouncer]", "[pgbouncer]\nmax_client_conn = 100", 1)
    (tmp_path / "spec.toml").write_text(text)
    done = run("up", ORCHEO_DB_SPEC=str(tmp_path / "spec.toml"))
    assert done.returncode == 2 and "100 clients" in done.stderr and "220 connections each" in done.stderr


def test_json_is_all_there_is_on_stdout(run):
    for arguments, code in (
        (["tune", "--json"], 0),
        (["--json", "tune", "--memory", "16GB", "--cpus", "6"], 0),
        (["spec", "check", "--json"], 0),
    ):
        done = run(*arguments)
        assert done.returncode == code, done.stderr
        assert json.loads(done.stdout)


def test_errors_are_json_too(run):
    done = run("dsn", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout) == {
        "ok": False,
        "error": done.stderr.removeprefix("orcheo-db: ").strip(),
        "exit_code": 2,
    }


@pytest.mark.parametrize("command", ["status", "down", "destroy", "doctor", "bootstrap", "psql"])
def test_no_docker_and_no_installation_are_one_line(run, command):
    """No daemon at all: whatever a command needs first, its user gets one line and no traceback."""
    done = run(command, DOCKER_HOST="tcp://127.0.0.1:1")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_path_that_compose_cannot_mount_is_refused(run, tmp_path):
    done = run("up", ORCHEO_DB_STATE_DIR=str(tmp_path / "a:b$c"))
    assert done.returncode == 2 and "which Compose can't mount" in done.stderr


def test_without_arguments_the_help_is_shown(run):
    done = run()
    assert done.returncode == 2 and "Usage: orcheo-db" in done.stdout and len(done.stdout.splitlines()) > 10


def test_every_tuned_setting_has_a_reason(run):
    document = json.loads(run("tune", "--memory", "24GB", "--cpus", "12", "--storage", "hdd", "--json").stdout)
    settings = document["postgresql"] + document["pgbouncer"]
    assert len(settings) > 100 and all(len(setting["reason"]) > 3 for setting in settings)


def test_tune_prints_lines_that_can_be_pasted(run):
    lines = run("tune", "--memory", "16GB", "--cpus", "8").stdout.splitlines()
    assert any(line.startswith("shared_buffers = 4GB") and "#" in line for line in lines)


def test_every_make_target_has_help(run):
    shown = subprocess.run(["make", "--silent", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in ("up", "down", "destroy", "status", "dsn", "psql", "test", "lint", "render", "images"):
        assert f"make {name} " in shown
