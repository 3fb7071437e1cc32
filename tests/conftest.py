"""One stack for the whole session, of its own project, port and state directory: nothing of the user's is touched."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orcheo_db.command import Context
from orcheo_db.host import ensure_docker
from orcheo_db.preflight import state_directory
from orcheo_db.secrets import Store
from orcheo_db.spec import load_spec
from orcheo_db.targets.base import Target
from orcheo_db.targets.compose import ComposeTarget
from orcheo_db.targets.external import ExternalTarget

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = Path(sys.executable).with_name("orcheo-db")
LANE = os.environ.get("ORCHEO_DB_TEST_LANE", "")  # lanes.py runs two at once, under its own lock
TEST_PROJECT = f"orcheo-db-test{LANE and f'-{LANE}'}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--existing",
        action="store_true",
        help="verify the running stack of the spec; no disruptive tests, nothing is started",
    )
    parser.addoption(
        "--verify-target",
        choices=["compose", "external", "kubernetes", "host"],
        default="compose",
        help="the target of --existing",
    )
    parser.addoption("--faults", action="store_true", help="run the long fault matrix of the backups, and nothing else")
    parser.addoption(
        "--live",
        nargs="?",
        const="cluster",
        choices=["cluster", "pods"],
        help="run the tests of a live Kubernetes cluster (the current context), and nothing else; pods: rehearse them on"
        " containers of this machine",
    )
    parser.addoption(
        "--slow", action="store_true", help="run what takes minutes of Terraform and Ansible, and nothing else"
    )
    parser.addoption("--keep", action="store_true", help="leave the test stack running at the end")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker in ("faults", "live", "slow"):
        wanted = bool(config.getoption(f"--{marker}"))
        other = {item for item in items if (item.get_closest_marker(marker) is not None) != wanted}
        if other:
            config.hook.pytest_deselected(items=list(other))
            items[:] = [item for item in items if item not in other]
    # Unit tests first: a wrong constant should not cost a stack. Disruptive ones last: the others may share the stack.
    # The app last, because it joins the session's stack; all of one way to the database before the other.
    order = {"unit": 0, "verify": 1, "compose": 2, "external": 3}
    items.sort(
        key=lambda item: (
            order.get(Path(item.path).parent.name, 9),
            str(item.callspec.params.get("app", ""))
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else "",
            item.get_closest_marker("disruptive") is not None,
        )
    )
    if config.getoption("--existing"):
        for item in items:
            if item.get_closest_marker("disruptive"):
                item.add_marker(pytest.mark.skip(reason="disruptive, and --existing names somebody's running stack"))


def spec_with_second(directory: Path, **values: str) -> Path:
    """The spec with values of [backup.second], as a file in the directory."""
    head, _, rest = (ROOT / "ops" / "spec.toml").read_text().partition("[backup.second]\n")
    for name, value in values.items():
        rest, count = re.subn(rf"(?m)^{name} = .*$", f'{name} = "{value}"', rest, count=1)
        assert count == 1, name
    file = directory / "spec.toml"
    file.write_text(head + "[backup.second]\n" + rest)
    return file


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@dataclass
class Ran:
    """What a command line gave its user."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    @property
    def message(self) -> str:
        """The last line of stderr: where a refusal stands."""
        lines = self.stderr.strip().splitlines()
        return lines[-1] if lines else ""


@dataclass
class Installation:
    """An installation under test, driven as its user would: by the command line."""

    project: str
    port: int
    state: Path
    kind: str = "compose"
    extra: dict[str, str] = field(default_factory=dict)
    _place: Target | None = None

    @property
    def env(self) -> dict[str, str]:
        own = {
            "ORCHEO_DB_PROJECT": self.project,
            "ORCHEO_DB_PORT": str(self.port),
            "ORCHEO_DB_STATE_DIR": str(self.state.parent),
        }
        return {**os.environ, **own, **self.extra}

    def run(self, *arguments: str, timeout: float = 1500) -> Ran:
        argv = [str(PROGRAM), "--target", self.kind, *arguments]
        done = subprocess.run(
            argv,
            env=self.env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str) -> Ran:
        ran = self.run(*arguments)
        assert ran.code == 0, f"orcheo-db {' '.join(arguments)} -> {ran.code}\n{ran.stderr}"
        return ran

    def target(self) -> ComposeTarget:
        spec = load_spec(env={**self.env, **Store(self.state).choices(), **{k: v for k, v in self.extra.items() if v}})
        kind = ComposeTarget if self.kind == "compose" else ExternalTarget
        return kind(spec, spec.size(None), Store(self.state))

    def place(self) -> Target:
        """The target, whatever it is."""
        if self.kind not in ("kubernetes", "host"):
            return self.target()
        if self._place is not None:  # it has forwarded ports
            return self._place
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.env.items():
                patch.setenv(name, value)
            self._place = Context(self.kind, None, as_json=False).target()
        return self._place

    def verify(self, *options: str, timeout: float = 900) -> None:
        """The same suite as for every target, on what runs here.

        Raises:
            AssertionError: a test fails, or none ran.
        """
        argv = [sys.executable, "-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider", "--existing"]
        argv += [f"--verify-target={self.kind}", "tests/verify", *options]
        env = {key: value for key, value in self.env.items() if key != "PYTEST_ADDOPTS"}  # the outer run's own
        done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, done.stdout[-6000:]
        assert " passed" in done.stdout

    def destroy(self) -> None:
        assert self.run("destroy", "--confirm", "yes").code == 0


_held: list[str] = []


@contextmanager
def only_run_on_this_machine() -> Iterator[None]:
    """Two runs share a Docker daemon and the suite's project names: the second is told so, and removes nothing."""
    if _held or LANE:  # by this run itself, for another stack of it
        yield
        return
    with (Path(tempfile.gettempdir()) / "orcheo-db-test.lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pytest.exit(f"another run of this suite holds {held.name} on this machine: wait for its end", 2)
        _held.append(held.name)
        try:
            yield
        finally:
            _held.clear()


def remove_leftovers(own: Installation) -> None:
    """Containers, networks and volumes of one of the suite's own projects, whatever state a test left it in."""
    label = f"label=com.docker.compose.project={own.project}"
    for kind, options in (("container", ["--all"]), ("network", []), ("volume", [])):
        for left in (*range(9, 0, -1), 0):
            listed = ["docker", kind, "ls", "--quiet", *options, "--filter", label]
            names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
            if not names:
                break
            words = ["docker", kind, "rm", *(["--force"] if kind != "network" else []), *names]
            done = subprocess.run(words, capture_output=True, text=True)
            # The daemon lets go of a removed container's place in a network a moment later.
            assert done.returncode == 0 or left, f"{' '.join(words)}: {done.stderr}"
            if done.returncode:
                time.sleep(1)


@pytest.fixture(scope="session")
def docker_ready() -> None:
    """Docker answers, installed and started if need be: as `make up` does it."""
    ensure_docker(install=os.environ.get("INSTALL_DOCKER", "yes") != "no")


@pytest.fixture(scope="session")
def installation(
    request: pytest.FixtureRequest, docker_ready: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """The session's stack, up and served."""
    if request.config.getoption("--existing"):
        spec, kind = load_spec(env=os.environ), request.config.getoption("--verify-target")
        project = spec.stack.project if kind in ("compose", "host") else f"{spec.stack.project}-{kind}"
        # A cluster's state directory is found by its context and namespace.
        yield Installation(spec.stack.project, spec.stack.port, state_directory(ROOT, project), kind=kind)
        return
    own = Installation(TEST_PROJECT, free_port(), ROOT / "compose" / ".state" / TEST_PROJECT)
    with only_run_on_this_machine():
        # Left by a run that was killed, perhaps from a clone that is gone: the project is this suite's own.
        remove_leftovers(own)
        if own.state.exists():
            shutil.rmtree(own.state)
        own.ok("up")
        yield own
        if not request.config.getoption("--keep"):
            own.destroy()


@pytest.fixture
def target(installation: Installation) -> Target:
    return installation.place()
