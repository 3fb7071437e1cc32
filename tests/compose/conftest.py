"""A second installation for the tests that lose secrets, break volumes or start from nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.compose.outside_server import Outside, outside_server
from tests.conftest import ROOT, Installation, free_port, remove_leftovers

# What RDS's and Cloud SQL's administrators have in common: no superuser, but roles and databases; on PostgreSQL 15 that is all
# that the bootstrap needs.
STATE = "orcheo-db-test-second-external"
ADMINS = {"superuser": "SUPERUSER", "cloud": "NOSUPERUSER CREATEROLE CREATEDB"}


@pytest.fixture
def second(docker_ready: None, installation: Installation, tmp_path: Path) -> Iterator[Installation]:
    """A fresh installation beside the session's one (whose images it shares), removed at the end."""
    own = Installation("orcheo-db-test-second", free_port(), tmp_path / "state" / "orcheo-db-test-second")
    remove_leftovers(own)
    yield own
    remove_leftovers(own)


@pytest.fixture
def in_volume() -> Callable[[Installation, str], str]:
    """Run a shell script as the server's user on an installation's data volume, as damage or a person's hand would."""

    def run(own: Installation, script: str) -> str:
        target = own.target()
        argv = [
            "docker",
            "run",
            "--rm",
            "--network=none",
            "--user=999:999",
            f"--volume={target.volume}:/var/lib/postgresql",
        ]
        done = subprocess.run(
            [*argv, "--entrypoint=sh", target.tags["postgres"], "-euc", script],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def containers(project: str) -> list[str]:
    argv = ["docker", "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={project}"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()


__all__ = ["ROOT", "containers"]


@pytest.fixture(scope="module")
def outside(installation: Installation):
    with outside_server() as server:
        for name, attributes in ADMINS.items():
            server.sql(f"CREATE ROLE {name}_admin LOGIN {attributes} PASSWORD 'probe-only'")
        yield server


@pytest.fixture
def external(outside: Outside, tmp_path):
    own = Installation("orcheo-db-test-second", free_port(), tmp_path / "state" / STATE, kind="external")
    shown = Installation(f"{own.project}-external", own.port, own.state)
    remove_leftovers(shown)
    yield own
    remove_leftovers(shown)
    # The next administrator starts from an empty server again.
    outside.sql("DROP DATABASE IF EXISTS orcheo WITH (FORCE)")
    outside.sql("DROP SCHEMA IF EXISTS orcheo_pooler CASCADE")
    for role in (
        "orcheo_app_a",
        "orcheo_app_b",
        "orcheo_ro",
        "orcheo_monitor",
        "pgbouncer",
        "replicator",
        "orcheo",
    ):
        if outside.sql(f"SELECT 1 FROM pg_roles WHERE rolname = '{role}'"):
            outside.sql(f"DROP OWNED BY {role}")
            outside.sql(f"DROP ROLE {role}")
