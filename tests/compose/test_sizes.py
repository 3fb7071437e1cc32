"""Each size's files on a real server and a real PgBouncer: what the program reports is what was meant."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from orcheo_db import effective
from orcheo_db.spec import load_spec
from orcheo_db.targets.base import Result
from orcheo_db.targets.mounts import File, archive, clear, install
from orcheo_db.tuning import machine_size, postgresql_settings
from tests.conftest import Installation

SIZES = ("small", "medium", "large", "tuned for 3 GB and a slow disk")


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest, installation: Installation):
    spec = load_spec(env=installation.env)
    if request.param.startswith("tuned"):
        return machine_size("3GB", 1, "hdd", 60)
    return spec.size(request.param)


@pytest.fixture
def server(installation: Installation, size, tmp_path: Path) -> Iterator[str]:
    """A container of the postgres image with this size's postgresql.conf, secrets of the test installation, a volume of its own."""
    from orcheo_db.render.compose import render_postgresql  # noqa: PLC0415

    target = installation.target()
    name = f"orcheo-db-test-size-{uuid.uuid4().hex[:6]}"
    files = [file for file in target.mounts()["postgres"] if file.path != "conf/postgresql.conf"]
    files.append(File("conf/postgresql.conf", render_postgresql(target.spec, size).encode()))
    assert archive({"postgres": files})
    install({"postgres": files}, tmp_path / "mounts", target.helper_image)
    docker("volume", "create", name)
    # The memory limit of `large` may be beyond this machine; the server maps its shared memory without touching it.
    docker(
        "run", "--detach", f"--name={name}", "--user=999:999", "--read-only", "--cap-drop=ALL", "--network=none", "--shm-size=256m",
        f"--volume={name}:/var/lib/postgresql", f"--volume={tmp_path}/mounts/postgres/conf:/etc/orcheo-db:ro",
        f"--volume={tmp_path}/mounts/postgres/secrets:/run/orcheo-db/secrets:ro", "--tmpfs=/tmp", "--tmpfs=/run/postgresql:uid=999,gid=999",
        "--tmpfs=/run/orcheo-db/sockets:uid=999,gid=999",
        target.tags["postgres"],
    )  # fmt: skip
    yield name
    docker("rm", "--force", name)
    docker("volume", "rm", name)
    clear(tmp_path / "mounts", target.helper_image)


def test_a_server_boots_with_every_setting_as_meant(installation: Installation, size, server: str):
    def run(_service: str, argv) -> Result:
        done = subprocess.run(["docker", "exec", server, *argv], capture_output=True, text=True)
        return Result(done.returncode, done.stdout, done.stderr)

    deadline = time.monotonic() + 90
    # The real server has TCP; the first boot's temporary one has not.
    while run("", ["pg_isready", "-q", "-h", "127.0.0.1"]).code != 0:
        running = docker("inspect", "--format", "{{.State.Running}}", server)
        logs = subprocess.run(["docker", "logs", "--tail", "5", server], capture_output=True, text=True)
        assert running == "true", logs.stdout + logs.stderr
        assert time.monotonic() < deadline, logs.stdout + logs.stderr
        time.sleep(0.3)
    spec = load_spec(env=installation.env)
    meant = [(setting.name, setting.value) for setting in postgresql_settings(size, spec)]
    assert effective.compare(meant, effective.read(run)) == []
    errors = run(
        "",
        ["psql", "-XAtqc", "SELECT name, error FROM pg_file_settings WHERE error IS NOT NULL OR NOT applied"],
    )
    assert errors.stdout.strip() == ""
    # Nothing that the file says is left over: each line is one that postgresql_settings gave, and the other way round.
    written = run("", ["psql", "-XAtqc", "SELECT count(*) FROM pg_file_settings"]).stdout.strip()
    assert int(written) == len(meant)
