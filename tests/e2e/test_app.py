"""`make up WITH=app` as its user meets it: what is kept, what is told, what is refused, and that secrets stay secret."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from orcheo_db import app_secrets
from orcheo_db.targets.app import SERVICES
from orcheo_db.targets.compose import ComposeTarget
from tests.conftest import PROGRAM, ROOT, Installation
from tests.e2e.api import Api, wait_until

pytestmark = pytest.mark.parametrize("app", ["pgbouncer"], indirect=True)


def containers(target: ComposeTarget) -> dict[str, str]:
    return {
        name: f"{container.id} {container.attrs['State']['StartedAt']}"
        for name in (*target.tier, *SERVICES)
        if (container := target.container(name)) is not None
    }


def test_with_is_remembered_and_a_second_up_changes_nothing(app: Installation):
    before, secrets = containers(app.target()), snapshot(app)
    ran = app.ok("up")  # without --with
    assert "Nothing changed." in ran.stderr and "ORCHEO_DB_WITH=app" in ran.stderr
    assert containers(app.target()) == before and snapshot(app) == secrets
    assert set(before) == {"postgres", "init", "pgbouncer", *SERVICES}


def snapshot(app: Installation) -> dict[str, str]:
    store = app.target().store
    return {name: app_secrets.read(store, name) for name in app_secrets.APP_SECRETS}


def test_status_tells_how_to_call_the_api_and_that_works(app: Installation):
    document = app.ok("status", "--json").json
    assert document["ok"] and [each["name"] for each in document["services"]][-4:] == list(SERVICES)
    assert document["app"]["url"] == f"http://127.0.0.1:{app.target().spec.app.port}"
    words = app.ok("status").stderr
    (command,) = [line.strip() for line in words.splitlines() if line.strip().startswith("curl ")]
    assert command == document["app"]["try"] and snapshot(app)[app_secrets.BOOTSTRAP_TOKEN] not in command
    done = subprocess.run(["bash", "-c", f"{command} --silent --fail"], capture_output=True, text=True)
    assert done.returncode == 0 and "memberships" in json.loads(done.stdout)


def test_all_came_after_the_init_job_and_from_one_image(app: Installation):
    target = app.target()
    init = target.container("init")
    assert init is not None
    finished = init.attrs["State"]["FinishedAt"]
    for name in SERVICES:
        container = target.container(name)
        assert container is not None
        assert container.attrs["Created"] > finished or name == "redis"
        assert container.attrs["Image"] == target.image_id("orcheo")


def test_only_the_api_is_published_and_on_loopback(app: Installation):
    target = app.target()
    published = {}
    for name in SERVICES:
        container = target.container(name)
        assert container is not None
        ports = container.attrs["NetworkSettings"]["Ports"] or {}
        published[name] = [(item["HostIp"], int(item["HostPort"])) for items in ports.values() for item in items or []]
    assert published == {"redis": [], "backend": [("127.0.0.1", target.spec.app.port)], "worker": [], "beat": []}


def test_redis_wants_its_password_and_keeps_tasks_on_disk(app: Installation):
    target = app.target()
    told = target.run("backend", ["python", "-c", "import redis; redis.Redis('redis').ping()"])
    assert told.code != 0 and "authenticat" in told.stderr.lower(), told.stderr
    script = """
from orcheo_db.runtime import settings
import redis
client = redis.Redis("redis", password=settings.secret("redis.password"), decode_responses=True)
print([client.config_get(name)[name] for name in ("appendonly", "appendfsync", "maxmemory-policy")])
"""
    done = target.run("backend", ["python", "-c", script])
    assert done.stdout.strip() == "['yes', 'always', 'noeviction']", done.stderr


def test_no_secret_is_in_inspect_logs_or_the_process_list(app: Installation):
    target = app.target()
    values = {*snapshot(app).values(), target.store.password(target.app_login())}
    read = 0
    for name in SERVICES:
        container = target.container(name)
        assert container is not None
        places = [json.dumps(container.attrs), container.logs().decode(errors="replace")]
        for pid in [row[1] for row in container.top(ps_args="-eo user,pid,args")["Processes"]]:
            for kind in ("cmdline", "environ"):
                file = Path("/proc", pid, kind)
                if text := _read(file):
                    places.append(text)
                    read += kind == "environ"
        assert not [value[:4] for value in values for place in places if value in place], name
    assert read >= 5 or os.geteuid() != 0  # redis, backend, worker and its two processes, beat
    for file in (target.store.path / app_secrets.DIRECTORY).iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
    assert not any(value in (target.store.path / "compose.env").read_text() for value in values)


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except (
        PermissionError,
        FileNotFoundError,
    ):  # ended in the meantime; or another user's process and we are not root: then nobody but root reads it
        return ""


@pytest.mark.disruptive
def test_the_apps_own_health_url_lies_and_ours_does_not(app: Installation, owner: Api):
    """PostgreSQL stands still: the app says it is well, the readiness check and `status` say that it is not."""
    target = app.target()
    server = target.container("postgres")
    assert server is not None
    server.stop()
    try:
        with urllib.request.urlopen(f"{owner.url}/api/system/health", timeout=10) as answer:
            assert json.load(answer) == {"status": "ok"}
        check = target.run("backend", ["python", "-m", "orcheo_db.runtime", "ready", "backend"])
        assert check.code == 1 and "Traceback" not in check.stderr, check.stderr
        assert app.run("status").code == 1
    finally:
        server.start()
    wait_until(lambda: owner.send("GET", "/api/workspaces/me").ok, "the API to serve again")
    wait_until(lambda: app.run("status").code == 0, "every service to be healthy again", 120, pause=3)


def store_credential(owner: Api) -> str:
    from tests.e2e.test_subsystems import enter  # noqa: PLC0415

    enter(owner)
    name = f"kept-{time.monotonic_ns()}"
    body = {"name": name, "provider": "p", "secret": "sesame", "actor": "e2e", "scopes": [], "access": "shared"}
    return str(owner.call("POST", "/api/credentials", body)["id"])


@pytest.mark.disruptive
def test_a_vault_key_that_does_not_open_the_vault(app: Installation, owner: Api):
    """Given in the environment or put into the file: one line, and nothing is restarted or replaced."""
    credential = store_credential(owner)
    target = app.target()
    before, key, file = containers(target), snapshot(app), app_secrets.path(target.store, app_secrets.VAULT_KEY)
    wrong = "another-key"
    app.extra[app_secrets.KEY_VARIABLE] = wrong
    try:
        ran = app.run("up")
    finally:
        del app.extra[app_secrets.KEY_VARIABLE]
    assert ran.code == 2 and re.search(r"does not open \d+ of \d+ credentials", ran.message), ran.stderr
    assert wrong not in ran.stderr and snapshot(app) == key
    file.write_text(f"{wrong}\n")
    ran = app.run("up")
    assert ran.code == 2 and str(file) in ran.message and "left as it is" in ran.message
    file.unlink()
    ran = app.run("up")
    assert ran.code == 2 and "vault.key is gone" in ran.message
    file.write_text(f"{key[app_secrets.VAULT_KEY]}\n")
    file.chmod(0o600)
    assert containers(target) == before
    app.ok("up")
    assert owner.call("GET", f"/api/credentials/{credential}/secret")["secret"] == "sesame"
    app.extra[app_secrets.KEY_VARIABLE] = key[app_secrets.VAULT_KEY]  # the right one, named again
    try:
        assert "Nothing changed." in app.ok("up").stderr
    finally:
        del app.extra[app_secrets.KEY_VARIABLE]


@pytest.mark.disruptive
def test_without_the_app_its_data_stays_and_kills_on_its_way_back_lose_nothing(app: Installation, owner: Api):
    """Without the app, then kill -9 of `up` while its services come, and of the next one later: the third finishes."""
    credential, secrets = store_credential(owner), snapshot(app)
    changed = app.ok("up", "--with", "none", "--json").json["changed"]
    assert any("backend stopped and removed" in line for line in changed)
    target = app.target()
    assert set(containers(target)) == {"postgres", "init", "pgbouncer"} and not target.with_app
    assert [name.removeprefix(target.project) for name in target.volumes()] == [
        "_pgdata", "_archive", "_backup", "_scratch", "_sockets", "_apphome", "_redis",
    ]  # fmt: skip
    assert "app" not in app.ok("status", "--json").json
    ran = app.run("destroy")
    assert ran.code == 2 and all(f"volume {name} (" in ran.message for name in target.volumes())
    # The second is without the option: the first one has remembered it before it was done.
    for moment, options in (("Waiting for redis", ["--with", "app"]), ("Waiting for backend", [])):
        process = subprocess.Popen(
            [PROGRAM, "up", *options],
            env=app.env,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert process.stderr is not None
        assert any(moment in line for line in process.stderr), f"it ended before {moment!r}"
        process.kill()
        process.wait()
    assert "ORCHEO_DB_WITH=app" in app.ok("up").stderr  # remembered before it was done
    assert snapshot(app) == secrets
    assert owner.call("GET", f"/api/credentials/{credential}/secret")["secret"] == "sesame"


def test_a_taken_port_is_one_line(app: Installation):
    kept = app.extra["ORCHEO_DB_APP_PORT"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        app.extra["ORCHEO_DB_APP_PORT"] = str(taken.getsockname()[1])
        ran = app.run("up")
        app.extra["ORCHEO_DB_APP_PORT"] = kept
    assert ran.code == 2 and "ORCHEO_DB_APP_PORT" in ran.message and "can't be used" in ran.message


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ORCHEO_DB_APP_STORAGE", "sqlite", "needs a bridge release"),
        ("ORCHEO_DB_WITH", "monitring", "expected app (Orcheo itself), or none"),
        ("ORCHEO_VERSION", "9.9.9", "the package index has no orcheo 9.9.9: name a release that exists"),
        ("ORCHEO_BACKEND_VERSION", "9.9.9", "the package index has no orcheo-backend 9.9.9"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(app: Installation, variable: str, value: str, words: str):
    before = containers(app.target())
    app.extra[variable] = value
    try:
        ran = app.run("up")
    finally:
        del app.extra[variable]
    assert ran.code == 2 and words in ran.message, ran.stderr
    assert containers(app.target()) == before
