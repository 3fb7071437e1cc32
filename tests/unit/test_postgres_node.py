"""The postgres image's entry point (compose/images/postgres), without root and without Docker."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

IMAGES = Path(__file__).parents[2] / "compose" / "images"
OWN = "11111111-1111-1111-1111-111111111111"
OTHER = "22222222-2222-2222-2222-222222222222"
SCRAM = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$c3RvcmVk:c2VydmVy\n"
SQL = "digest"


def load(name: str, path: Path) -> ModuleType:
    """Import a file of an image, which is no package, by its path."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


volume = load("volume", IMAGES / "postgres" / "volume.py")  # node.py imports it by this name
node = load("postgres_node", IMAGES / "postgres" / "node.py")


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    """A complete set of mounts and an empty volume."""
    for name in ("volume", "secrets", "conf", "scratch"):
        (tmp_path / name).mkdir()
    for name in ("server.crt", "server.key", "ca.crt"):
        (tmp_path / "secrets" / name).write_text("pem")
    for role in volume.VERIFIER_ROLES:
        (tmp_path / "secrets" / f"{role}.scram").write_text(SCRAM)
    (tmp_path / "secrets" / "installation.json").write_text(json.dumps({"installation_id": OWN, "format": 1}))
    for name in ("postgresql.conf", "pg_hba.conf"):
        (tmp_path / "conf" / name).write_text("")
    paths = {name: tmp_path / name for name in ("volume", "secrets", "conf", "scratch")}
    return volume.Settings(major="17", uid=999, library=IMAGES / "postgres", **paths)


def make_cluster(settings: Any, **changes: Any) -> dict[str, Any]:
    """Put a complete cluster on the volume and return its marker."""
    settings.data.mkdir(parents=True)
    (settings.data / "PG_VERSION").write_text("17\n")
    marker: dict[str, Any] = {**node.new_marker(settings, OWN, "7"), **changes}
    node.write_marker(settings.data, marker)
    return marker


def decide(settings: Any, mounted_id: str = OWN, collation: str = "1", sql: str | None = None) -> str:
    digest = volume.superuser_digest(settings) if sql is None else sql
    return str(volume.decide(volume.look(settings), settings, mounted_id, collation, digest)[0])


def tree(root: Path) -> list[str]:
    """Everything below a directory, with contents: to show that nothing was changed."""
    return sorted(f"{p.relative_to(root)}:{p.read_bytes() if p.is_file() else ''!r}" for p in root.rglob("*"))


# --- what is there ---


def test_empty_volume(settings: Any) -> None:
    (settings.volume / "lost+found").mkdir()
    (settings.volume / volume.LOCK).touch()
    (settings.volume / "17").mkdir()  # what a killed or failed first boot may leave
    assert volume.look(settings).state == "empty"
    assert decide(settings) == "first-boot"


def test_half_made_volume_is_made_anew(settings: Any) -> None:
    settings.unfinished.mkdir(parents=True)
    (settings.unfinished / "PG_VERSION").write_text("17\n")
    assert volume.look(settings).state == "half-made"
    action, why = volume.decide(volume.look(settings), settings, OWN, "1", SQL)
    assert action == "redo"
    assert "interrupted" in why
    assert str(settings.unfinished) in why


def test_cluster(settings: Any) -> None:
    marker = make_cluster(settings)
    found = volume.look(settings)
    assert (found.state, found.majors, found.marker) == ("cluster", ("17",), marker)
    assert found.installation_id == OWN
    assert decide(settings) == "run"


def test_leftover_of_a_first_boot_beside_a_complete_cluster_is_harmless(settings: Any) -> None:
    make_cluster(settings)
    settings.unfinished.mkdir()
    assert decide(settings) == "run"
    assert settings.unfinished.exists()


def test_cluster_beside_the_previous_major(settings: Any) -> None:
    make_cluster(settings)
    (settings.volume / "16" / "main").mkdir(parents=True)
    assert volume.look(settings).majors == ("16", "17")
    assert decide(settings) == "run"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', "\x00"])
def test_unreadable_marker_is_no_marker(settings: Any, content: str) -> None:
    make_cluster(settings)
    (settings.data / volume.MARKER).write_text(content)
    assert volume.look(settings).state == "foreign"


# --- refusals: one line, what, where, what to do, and nothing written ---


def other_major(s: Any) -> None:
    (s.volume / "16" / "main").mkdir(parents=True)


def no_marker(s: Any) -> None:
    make_cluster(s)
    (s.data / volume.MARKER).unlink()


def old_mount_point(s: Any) -> None:
    (s.volume / "PG_VERSION").write_text("17\n")
    (s.volume / "base").mkdir()


def other_installation(s: Any) -> None:
    make_cluster(s, installation_id=OTHER)


def other_collation(s: Any) -> None:
    make_cluster(s, locale_provider="libc", collation_version="1.0")


def no_secrets(s: Any) -> None:
    (s.secrets / "installation.json").unlink()


def broken_installation(s: Any) -> None:
    (s.secrets / "installation.json").write_text("{")


def no_key(s: Any) -> None:
    (s.secrets / "server.key").unlink()


def no_verifier(s: Any) -> None:
    (s.secrets / "replicator.scram").unlink()


def clear_password(s: Any) -> None:
    (s.secrets / "pgbouncer.scram").write_text("hunter2\n")


def no_configuration(s: Any) -> None:
    (s.conf / "pg_hba.conf").unlink()


REFUSALS = [
    (other_major, ("PostgreSQL 16 and none of 17", "volume", "pg_upgrade")),
    (no_marker, ("orcheo-db.json", "17/main", "restore a backup")),
    (old_mount_point, ("PG_VERSION, base", "volume", "empty volume")),
    (other_installation, (f"installation {OTHER}", "17/main", "--new-secrets")),
    (other_collation, ("libc 1.0", "17/main", "ORCHEO_DB_ACCEPT_COLLATION=")),
    (no_secrets, ("installation.json", "secrets", "--new-secrets")),
    (broken_installation, ("installation.json", "secrets", "--new-secrets")),
    (no_key, ("server.key", "secrets", "put it back")),
    (no_verifier, ("replicator.scram", "secrets", "put it back")),
    (clear_password, ("pgbouncer.scram", "secrets", "put it back")),
    (no_configuration, ("pg_hba.conf", "conf", "orcheo-db up")),
]


@pytest.mark.parametrize(("damage", "line_parts"), REFUSALS, ids=[damage.__name__ for damage, _ in REFUSALS])
def test_refusal(
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Any], None],
    line_parts: tuple[str, str, str],
) -> None:
    what, where, way = line_parts
    monkeypatch.setattr(node, "become_server", None)  # must not be reached
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    damage(settings)
    before = tree(settings.volume)
    with pytest.raises(volume.Refusal) as caught:
        node.start(settings, [])
    line = str(caught.value)
    assert what in line
    assert f" in {settings.volume.parent}" in line
    assert where in line
    assert way in line.rpartition(": ")[2]
    assert "\n" not in line
    assert "hunter2" not in line
    assert tree(settings.volume) == before
    found = node.inspect(settings)
    assert (found["action"], found["problem"]) == ("refuse", line)


def test_refusals_exit_with_78(
    settings: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other_major(settings)
    monkeypatch.setattr(node, "settings_from", lambda _: settings)
    for command in ([], ["start"], ["preflight"]):
        assert node.main(command, {}) == 78
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(r"orcheo-db postgres: .+ in .+: .+\n", err)
    assert node.main(["inspect"], {}) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "foreign"
    assert node.main(["strat"], {}) == 64


def test_root_is_refused(settings: Any) -> None:
    with pytest.raises(volume.Refusal, match="999:999"):
        volume.preflight(replace(settings, uid=0))


def test_unwritable_volume_is_refused(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, _mode: path != settings.volume)
    with pytest.raises(volume.Refusal, match="no permission to write"):
        volume.preflight(settings)
    assert volume.preflight(settings, writes=False)[0] == "first-boot"


def test_missing_volume_is_refused(settings: Any) -> None:
    with pytest.raises(volume.Refusal, match="cannot read the volume"):
        volume.preflight(replace(settings, volume=settings.volume / "absent"))


# --- decisions on an existing cluster ---


def test_adoption_needs_the_mounted_installation_id(settings: Any) -> None:
    make_cluster(settings, installation_id=OTHER)
    for wrong in ("", "yes", OTHER):
        with pytest.raises(volume.Refusal):
            decide(replace(settings, adopt=wrong))
    assert decide(replace(settings, adopt=OWN)) == "adopt"


def test_adoption_set_is_nothing_for_the_own_cluster(settings: Any) -> None:
    make_cluster(settings)
    assert decide(replace(settings, adopt=OWN)) == "run"


def test_adoption_does_not_excuse_a_missing_marker(settings: Any) -> None:
    no_marker(settings)
    with pytest.raises(volume.Refusal):
        decide(replace(settings, adopt=OWN))


@pytest.mark.parametrize("name", ["standby.signal", "recovery.signal"])
def test_standby_is_neither_adopted_nor_refreshed(settings: Any, name: str) -> None:
    make_cluster(settings)
    (settings.data / name).touch()
    assert decide(settings, sql="newer") == "run"
    with pytest.raises(volume.Refusal, match="primary"):
        decide(replace(settings, adopt=OTHER), mounted_id=OTHER)


def test_newer_superuser_sql_is_applied(settings: Any) -> None:
    make_cluster(settings)
    assert decide(settings, sql="newer") == "refresh"


def test_collation_versions() -> None:
    assert volume.collation_version("builtin", "C.UTF-8") == "1"
    assert volume.collation_version("libc", "C") == "1"
    assert re.fullmatch(r"\d+\.\d+", volume.collation_version("libc", "en_US.UTF-8"))


def test_accepted_collation_is_recorded(settings: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    make_cluster(settings, collation_version="0")
    monkeypatch.setattr(node, "apply_superuser_sql", None)  # must not be called
    with pytest.raises(volume.Refusal):
        node.prepare(settings)
    node.prepare(replace(settings, accept_collation="1"))
    assert "REINDEX" in capsys.readouterr().err
    node.prepare(settings)
    assert capsys.readouterr().err == ""


# --- the work, with the server's programs replaced ---


class Killed(BaseException):
    """What kill -9 looks like to the code before it: nothing after it runs."""


@pytest.fixture
def programs(settings: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """initdb, pg_controldata and the temporary server as stubs that record their calls."""
    calls: list[str] = []

    def run(command: list[str], _what: str) -> str:
        calls.append(command[0])
        if command[0] == "initdb":
            settings.unfinished.mkdir()
            (settings.unfinished / "PG_VERSION").write_text("17\n")
        return "Database system identifier:           42\n"

    monkeypatch.setattr(node, "run", run)
    monkeypatch.setattr(node, "apply_superuser_sql", lambda _settings, data: calls.append(f"sql {data.name}"))
    return calls


def test_first_boot(settings: Any, programs: list[str]) -> None:
    node.prepare(settings)
    assert programs == ["initdb", "sql main.init", "pg_controldata"]
    marker = json.loads((settings.data / volume.MARKER).read_text())
    digest = hashlib.sha256((IMAGES / "postgres" / "superuser.sql").read_bytes()).hexdigest()[:16]
    assert marker.pop("created_at")
    assert marker == {
        "format": 1,
        "installation_id": OWN,
        "system_identifier": "42",
        "major": 17,
        "locale_provider": "builtin",
        "locale": "C.UTF-8",
        "collation_version": "1",
        "glibc": volume.glibc_version(),
        "superuser_sql": digest,
    }
    assert not settings.unfinished.exists()
    node.prepare(settings)
    assert len(programs) == 3  # a second start has nothing to do


@pytest.mark.parametrize("step", ["run", "apply_superuser_sql", "new_marker", "write_marker", "sync_directory"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_first_boot_killed_at_any_step_is_redone(
    settings: Any, programs: list[str], monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    real = getattr(node, step)

    def killed(*args: Any, **kwargs: Any) -> None:
        if when == "after":
            real(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(node, step, killed)
        with pytest.raises(Killed):
            node.prepare(settings)
    assert volume.look(settings).state in ("empty", "half-made", "cluster")
    node.prepare(settings)
    assert decide(settings) == "run"
    assert (settings.data / "PG_VERSION").is_file()
    assert not settings.unfinished.exists()


def test_adoption_killed_before_the_marker_is_repeated(
    settings: Any, programs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_cluster(settings, installation_id=OTHER)
    adopting = replace(settings, adopt=OWN)

    def killed(*_args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(node, "write_marker", killed)
        with pytest.raises(Killed):
            node.prepare(adopting)
    assert volume.look(settings).marker == before
    node.prepare(adopting)
    assert programs == ["sql main", "sql main"]
    assert volume.look(settings).marker == {**before, "installation_id": OWN}
    node.prepare(settings)  # the variable is no longer needed


def test_failed_program_is_one_line() -> None:
    with pytest.raises(volume.Refusal) as caught:
        node.run(
            [sys.executable, "-c", "import sys; sys.exit('initdb: error: no space left\\nhint: a hint')"],
            "initdb",
        )
    assert str(caught.value) == "initdb failed: initdb: error: no space left"


def test_temporary_server_is_reachable_by_its_socket_alone(tmp_path: Path) -> None:
    command = node.server_command(tmp_path / "main.init", tmp_path / "scratch")
    assert "listen_addresses=" in command
    assert f"unix_socket_directories={tmp_path / 'scratch'}" in command
    assert {"log_statement=none", "log_min_error_statement=panic", "ssl=off"} <= set(command)


@pytest.mark.parametrize(
    ("provider", "locale", "expected"),
    [
        ("builtin", "C.UTF-8", ["--builtin-locale=C.UTF-8", "--locale=C.UTF-8"]),
        ("icu", "de-DE", ["--icu-locale=de-DE", "--locale=C.UTF-8"]),
        ("libc", "C.UTF-8", ["--locale=C.UTF-8"]),
    ],
)
def test_initdb_options(settings: Any, provider: str, locale: str, expected: list[str]) -> None:
    chosen = replace(settings, locale_provider=provider, locale=locale)
    command = node.initdb_command(chosen, chosen.unfinished)
    assert command[-len(expected) - 1 :] == [f"--locale-provider={provider}", *expected]
    assert {"--data-checksums", "--encoding=UTF8", "--auth-local=peer", "--auth-host=reject"} <= set(command)


def test_environment() -> None:
    found = volume.settings_from({"PG_MAJOR": "18", "ORCHEO_DB_INITDB_LOCALE": "", "ORCHEO_DB_ADOPT": OWN})
    assert (found.major, found.locale_provider, found.locale, found.adopt) == (
        "18",
        "builtin",
        "C.UTF-8",
        OWN,
    )
    assert str(found.data) == "/var/lib/postgresql/18/main"


# --- one server a volume ---


@pytest.fixture
def held(settings: Any) -> Iterator[None]:
    """Another process that holds the volume."""
    program = "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX);"
    program += " print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", program, str(settings.volume / volume.LOCK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        yield
        other.send_signal(signal.SIGKILL)


@pytest.mark.usefixtures("held")
def test_volume_of_a_running_server_is_refused(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cluster(settings)
    monkeypatch.setattr(node, "LOCK_LIMIT", 0.2)
    monkeypatch.setattr(node, "settings_from", lambda _: settings)
    with pytest.raises(volume.Refusal, match="another container"):
        node.hold_volume(settings)
    assert node.main(["preflight"], {}) == 78
    assert node.inspect(settings)["running"] is True


def test_lock_ends_with_its_holder_and_survives_exec(settings: Any) -> None:
    assert node.is_held(settings) is False
    assert not (settings.volume / volume.LOCK).exists()
    descriptor = node.hold_volume(settings)
    assert node.is_held(settings) is True
    os.set_inheritable(descriptor, True)
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        os.close(descriptor)
        assert node.is_held(settings) is True
        child.kill()
    assert node.is_held(settings) is False


def test_file_system_without_locks_is_said(settings: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def unsupported(*_args: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    os.close(node.hold_volume(settings))
    assert "No locks available" in capsys.readouterr().err


def test_pid_file_of_a_killed_server_is_removed_under_the_lock(
    settings: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    make_cluster(settings)
    file = settings.data / "postmaster.pid"
    lock = node.hold_volume(settings)
    node.clear_stale_pid(settings, lock)
    assert capsys.readouterr().err == ""  # nothing to say
    file.write_text(f"{os.getppid()}\n")  # a process that lives
    node.clear_stale_pid(settings, lock)
    assert not file.exists()
    assert str(file) in capsys.readouterr().err

    def unsupported(*_args: Any) -> None:
        raise OSError(37, "No locks available")

    file.write_text("1\n")
    monkeypatch.setattr(fcntl, "flock", unsupported)
    node.clear_stale_pid(settings, lock)
    assert file.exists()
    os.close(lock)


# --- inspect ---


def test_inspect_of_a_cluster(settings: Any) -> None:
    marker = make_cluster(settings)
    before = tree(settings.volume)
    found = node.inspect(settings)
    assert found.pop("free_bytes") > 0
    assert found == {
        "state": "cluster",
        "majors": ("17",),
        "marker": marker,
        "strangers": (),
        "volume": str(settings.volume),
        "major": "17",
        "installation_id": OWN,
        "mounted_installation_id": OWN,
        "running": False,
        "postmaster_pid_file": False,
        "action": "run",
        "problem": None,
    }
    assert tree(settings.volume) == before


def test_inspect_without_secrets_judges_the_volume_alone(settings: Any) -> None:
    alone = replace(settings, secrets=settings.secrets / "absent")
    found = node.inspect(alone)
    assert (found["state"], found["action"], found["problem"]) == ("empty", None, None)
    other_major(settings)
    assert node.inspect(alone)["problem"]
