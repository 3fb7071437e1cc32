"""Host preparation: what is found is used, what is missing is installed only where it may be, and each refusal is one line."""

from __future__ import annotations

import subprocess

import pytest

from orcheo_db import base_image, host
from orcheo_db.base_image import Mirrors, host_mirrors
from orcheo_db.errors import UserError

DEBIAN = {"ID": "debian", "PRETTY_NAME": "Debian GNU/Linux 12"}
FEDORA = {"ID": "fedora", "PRETTY_NAME": "Fedora Linux 43"}


@pytest.fixture
def no_daemon(monkeypatch):
    """No Docker daemon answers, and nothing may be installed or started for real."""
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(host, "daemon_error", lambda: FileNotFoundError("no such socket"))
    monkeypatch.setattr("orcheo_db.host.shutil.which", lambda name: None)
    monkeypatch.setattr(host, "apt_install", lambda *names: pytest.fail(f"would install {names}"))
    monkeypatch.setattr(host, "start_daemon", lambda: pytest.fail("would start a daemon"))


def test_where_docker_answers_nothing_is_done(monkeypatch):
    monkeypatch.setattr(host, "daemon_error", lambda: None)
    monkeypatch.setattr(host, "apt_install", lambda *names: pytest.fail("would install"))
    assert host.ensure_docker(install=True, is_root=False, release={}) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"install": True, "is_root": False, "release": DEBIAN},
            "no Docker daemon answers on this machine: install it",
        ),
        ({"install": False, "is_root": True, "release": DEBIAN}, "INSTALL_DOCKER=no forbids it"),
        (
            {"install": True, "is_root": True, "release": FEDORA},
            "on Debian and Ubuntu only, not on Fedora Linux 43",
        ),
    ],
)
def test_refusals_are_one_line_and_change_nothing(no_daemon, arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        host.ensure_docker(**arguments)
    assert "\n" not in str(caught.value)


def test_a_docker_host_elsewhere_is_not_replaced(no_daemon, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(UserError, match=r"DOCKER_HOST=tcp://127\.0\.0\.1:1"):
        host.ensure_docker(install=True, is_root=True, release=DEBIAN)


def test_a_socket_that_refuses_the_user_is_said(no_daemon, monkeypatch):
    monkeypatch.setattr(host, "daemon_error", lambda: PermissionError("Permission denied"))
    with pytest.raises(UserError, match="join the group `docker`"):
        host.ensure_docker(install=True, is_root=False, release=DEBIAN)


def test_root_on_debian_installs_and_starts(no_daemon, monkeypatch):
    done = []
    monkeypatch.setattr(host, "apt_install", lambda *names: done.append(names))
    monkeypatch.setattr(host, "start_daemon", lambda: done.append("started"))
    steps = host.ensure_docker(install=True, is_root=True, release=DEBIAN)
    assert done == [host.DOCKER_PACKAGES, "started"]
    assert steps == ["Docker Engine installed from the distribution", "Docker daemon started"]


def test_a_failing_command_is_one_line_with_its_last_words():
    with pytest.raises(UserError, match=r"`sh -c echo first >&2; .*failed: second$"):
        host.run(["sh", "-c", "echo first >&2; echo second >&2; exit 3"])


@pytest.mark.parametrize(
    ("text", "codename", "found"),
    [
        (
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\n"
            "Types: deb\nURIs: http://mirror.example/debian-security/\nSuites: bookworm-security\n",
            "bookworm",
            Mirrors("http://mirror.example/debian", "http://mirror.example/debian-security"),
        ),
        (
            "deb [signed-by=/k.gpg] https://m.example/d/ trixie main\n",
            "trixie",
            Mirrors("https://m.example/d", None),
        ),
        ("# deb http://m.example/d trixie main\ndeb http://other.example/x stable main\n", "trixie", None),
        ("deb http://m.example/ubuntu noble main\n", "trixie", None),
    ],
)
def test_mirrors_are_read_from_the_hosts_own_sources(text, codename, found):
    assert host_mirrors(text, codename) == found


@pytest.fixture
def no_registry(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail(f"would run {a}"))


@pytest.mark.parametrize(
    ("image", "root", "release", "words"),
    [
        ("alpine:3", 0, DEBIAN, "is not Debian trixie"),
        ("debian:trixie-slim", 1000, DEBIAN, "needs root"),
        ("debian:trixie-slim", 0, {"ID": "ubuntu"}, "ORCHEO_DB_DEBIAN_MIRROR"),
    ],
)
def test_base_image_refusals(no_registry, monkeypatch, image, root, release, words):
    monkeypatch.setattr("orcheo_db.base_image.os.geteuid", lambda: root)
    monkeypatch.setattr(base_image, "os_release", lambda: release)
    monkeypatch.delenv("ORCHEO_DB_DEBIAN_MIRROR", raising=False)
    with pytest.raises(UserError, match=words):
        base_image.make(image, "trixie")


def test_packages_that_no_source_offers_are_said(monkeypatch):
    monkeypatch.setattr(host, "available", lambda names: [])
    with pytest.raises(UserError, match="do not offer docker.io"):
        host.apt_install("docker.io")


def test_apt_is_read_in_one_language(monkeypatch):
    seen = []
    policy = (
        "docker.io:\n  Installed: (none)\n  Candidate: 1\ndocker-buildx:\n  Installed: (none)\n  Candidate: (none)\n"
    )

    def run(argv: list[str], env: dict[str, str]) -> str:
        seen.append(env["LC_ALL"])
        return policy

    monkeypatch.setattr(host, "run", run)
    assert host.available(["docker.io", "docker-buildx", "nonsense"]) == ["docker.io"]
    assert seen == ["C", "C"]


@pytest.mark.parametrize(("comm", "kept"), [("dockerd", True), ("bash", False), (None, False)])
def test_a_pid_file_is_removed_only_if_its_daemon_is_gone(tmp_path, comm, kept):
    file = tmp_path / "docker.pid"
    file.write_text("4711")
    if comm:
        (tmp_path / "4711").mkdir()
        (tmp_path / "4711" / "comm").write_text(f"{comm}\n")
    host.forget_stale_pid(file, tmp_path)
    assert file.exists() is kept
    host.forget_stale_pid(tmp_path / "no such file", tmp_path)
