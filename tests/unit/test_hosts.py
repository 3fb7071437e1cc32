"""What hosts are given: secrets by service, the toolkit, the part of the lock that they need."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from orcheo_db.errors import UserError
from orcheo_db.hosts import prepare as hosts
from orcheo_db.secrets import Store
from orcheo_db.spec import load_spec
from orcheo_db.targets.host import HostTarget
from tests.conftest import ROOT

SSH = {"host": "192.0.2.1", "port": 22, "user": "operator", "key": "/k", "options": "-o StrictHostKeyChecking=no"}
HOST = {"name": "db1", "address": "10.0.0.5", "ssh": SSH}


def document(state: Path, **more: object) -> dict[str, object]:
    return {"state": str(state), "project": "p", "hosts": {part: [HOST] for part in hosts.PARTS}, "check": False} | more


def test_each_service_gets_its_own_and_again_nothing_changes(tmp_path):
    state, found, check = hosts.told(document(tmp_path))
    first = hosts.prepare(state, found, check=check)
    assert first["changed"] and first["exists"]
    directory = Path(first["directory"])
    given = {str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()}
    assert {
        "postgres/server.key",
        "pgbouncer/userlist.txt",
        "backup/cipher.key",
        "archive/repository.conf",
        "init/orcheo_admin.password",
    } <= given
    assert not [
        name
        for name in given
        if name.startswith(("postgres/", "pgbouncer/", "exporters/"))
        and ("cipher" in name or "repository.conf" in name)
    ]
    assert not [
        name for name in given if name.startswith("exporters/") and "monitor" not in name and name != "exporters/ca.crt"
    ]
    assert all(file.stat().st_mode & 0o077 == 0 for file in directory.rglob("*"))
    assert hosts.prepare(state, found, check=False) == first | {"changed": False}
    (directory / "stale").write_text("")
    assert hosts.prepare(state, found, check=False)["changed"] and not (directory / "stale").exists()


def test_check_makes_nothing(tmp_path):
    state, found, check = hosts.told(document(tmp_path, check=True))
    assert hosts.prepare(state, found, check=check) == {
        "changed": False,
        "exists": False,
        "directory": str(state / "hosts"),
    }
    assert not state.exists()


@pytest.mark.parametrize("count", [0, 2])
def test_a_part_has_one_host(tmp_path, count):
    told = document(tmp_path)
    told["hosts"] = {part: [HOST] for part in hosts.PARTS} | {"repository": [HOST] * count}
    with pytest.raises(UserError, match=f"group repository has {count} hosts: put one into it"):
        hosts.told(told)


def test_the_toolkits_archive_is_the_same_as_long_as_it_is(tmp_path):
    packed = hosts.toolkit()
    assert packed == hosts.toolkit()
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(tmp_path, filter="data")
    done = subprocess.run(
        [sys.executable, "-m", "orcheo_db.backup", "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "job NAME" in done.stdout


def test_the_part_of_the_lock_is_whole_and_no_more(tmp_path):
    """pip resolves it with nothing to fetch beside it: every requirement of its entries is among them."""
    text = hosts.requirements(hosts.LOCK.read_text())
    names = [line.partition("==")[0].partition("[")[0] for line in text.splitlines() if line and line[0] not in " #"]
    assert set(hosts.NEEDED) <= set(names) and "typing-extensions" in names
    assert not {"pytest", "mypy", "ruff", "docker"} & set(names)
    assert text.count("--hash=sha256:") > len(names)
    with pytest.raises(UserError, match=r"requirements\.lock has no rich: run `make lock`"):
        hosts.requirements("")


def test_the_playbooks_document_is_checked():
    argv = [sys.executable, "-m", "orcheo_db.hosts"]
    for told in ("{}", "nonsense", json.dumps({"state": "/x", "project": "p", "hosts": []})):
        done = subprocess.run(argv, input=told, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2 and done.stderr.startswith("orcheo-db hosts: ") and done.stderr.count("\n") == 1


def test_a_command_reaches_the_other_side_as_it_was_given(tmp_path):
    state, found, _ = hosts.told(document(tmp_path))
    spec = load_spec(env={})
    with pytest.raises(UserError, match=r"there is no .*hosts\.json: run `ansible-playbook playbooks/site\.yml`"):
        HostTarget(spec, spec.size(None), Store(state))
    hosts.prepare(state, found, check=False)
    target = HostTarget(spec, spec.size(None), Store(state))
    words = target.command("postgres", ["psql", "-c", "SELECT 'a b' || $$;$$"])
    at = words.index("192.0.2.1")
    assert words[:at] == [
        "ssh",
        "-o",
        "BatchMode=yes",
        "-o",
        "ConnectTimeout=10",
        "-o",
        "StrictHostKeyChecking=no",
        "-i",
        "/k",
        "-l",
        "operator",
        "-p",
        "22",
        "-n",
    ]
    there = subprocess.run(
        ["sh", "-c", " ".join(words[at + 2 :]).replace("sudo -n -u postgres --", "printf '%s\\n'")],
        capture_output=True,
        text=True,
    )
    assert there.stdout.splitlines() == ["psql", "-c", "SELECT 'a b' || $$;$$"]
    assert target.dsn("orcheo_ro", direct=True).endswith("&hostaddr=10.0.0.5")
