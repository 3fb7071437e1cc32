"""Old releases of Orcheo in their own images: they make real SQLite data, read it back and run on it.

What runs in an image (`rows`, `bulk`, `reading`) comes from this folder by a read-only mount. A data directory is mounted at the
path that it has here, because the app keeps absolute paths of attachments in its rows.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

from orcheo_db.images import ensure_images
from orcheo_db.spec import Spec, load_spec
from tests.conftest import ROOT, free_port
from tests.e2e.api import Api, wait_until
from tests.migrate.inside import TOKEN, environment

HERE = Path(__file__).resolve().parent
MODULES = "/opt/tests-inside"  # where the image has the package `tests.migrate`
SECONDS = 600


@dataclass(frozen=True)
class Release:
    """A pair of packages, and the image that has them: the one that a spec with this pair names."""

    orcheo: str
    backend: str

    @property
    def spec(self) -> Spec:
        return load_spec(env={"ORCHEO_VERSION": self.orcheo, "ORCHEO_BACKEND_VERSION": self.backend})

    @property
    def image(self) -> str:
        return self.spec.image_tags()["orcheo"]


RELEASES = {
    "0.15.0": Release("0.15.0", "0.15.0"),  # knows SQLite only
    "0.34.0": Release("0.34.0", "0.30.0"),  # the last that knows SQLite and PostgreSQL
}


@cache
def image(name: str) -> str:
    """The release's image, built where it is missing or out of date."""
    release = RELEASES[name]
    with tempfile.TemporaryDirectory() as logs:
        ensure_images(release.spec, ROOT, Path(logs), names=["orcheo"])
    return release.image


def _docker(*arguments: str, input: str | None = None, seconds: float = 60) -> str:
    done = subprocess.run(["docker", *arguments], input=input, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"docker {arguments[0]} -> {done.returncode}\n{done.stderr[-5000:]}"
    return done.stdout


def _options(folder: Path, at: Path, *, read_only: bool = False) -> list[str]:
    """What every container of an old release gets: this user, this folder and these modules."""
    mode = ":ro" if read_only else ""
    return [
        f"--user={os.getuid()}:{os.getgid()}",  # the files belong to who runs the tests
        f"--volume={folder}:{at}{mode}",
        f"--volume={HERE}:{MODULES}/tests/migrate:ro",
        f"--env=PYTHONPATH={MODULES}",
        "--env=PYTHONWARNINGS=ignore",
        "--workdir=/tmp",
    ]


def _run(name: str, module: str, folder: Path, given: dict[str, Any], *, read_only: bool = False) -> Any:
    """Run a module of this package in the release's image; its answer."""
    container = f"orcheo-db-test-migrate-{uuid.uuid4().hex[:8]}"
    options = [*_options(folder, folder, read_only=read_only), "--network=none", f"--name={container}"]
    command = ["run", "--rm", "--interactive", *options, image(name), "python", "-m", f"tests.migrate.{module}"]
    try:
        return json.loads(_docker(*command, input=json.dumps(given), seconds=SECONDS))
    except BaseException:
        subprocess.run(["docker", "rm", "--force", container], capture_output=True)
        raise


def make_rows(
    name: str,
    directory: Path,
    *,
    label: str = "alpha",
    strange: bool = True,
    copies: int = 1,
    workspace_backend: str = "sqlite",
    vault_key: str | None = None,
) -> dict[str, Any]:
    """Rows in every store of the release, in files of `directory`; the ids and secrets of what was made.

    `copies`: how many runs that succeed, chat messages and store items. `workspace_backend`: the bridge's; with
    `inmemory`, its default, the rows name a workspace that no table knows. `vault_key`: the configured one; without, the release makes vault.key.
    """
    folder = directory.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    given = {"label": label, "strange": strange, "copies": copies}
    settings = environment(str(folder), vault_key=vault_key, workspaces=workspace_backend)
    made: dict[str, Any] = _run(name, "rows", folder, {**given, "environment": settings})
    return made


def fill(name: str, directory: Path, *, megabytes: int) -> dict[str, Any]:
    """Bulk data by the release's own stores, for benchmarks; how many rows of each kind and how many bytes the files have."""
    folder = directory.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    given = {"megabytes": megabytes, "environment": environment(str(folder))}
    made: dict[str, Any] = _run(name, "bulk", folder, given)
    made["bytes"] = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return made


def read_rows(name: str, directory: Path, *, vault_key: str | None = None) -> dict[str, Any]:
    """All that the release's own stores give back from a directory, which is only read: they work on a copy in the container."""
    folder = directory.resolve()
    given = {"source": str(folder), "environment": environment("/tmp/copy", vault_key=vault_key)}
    found: dict[str, Any] = _run(name, "reading", folder, given, read_only=True)
    return found


class OldApp:
    """The release's backend on a data directory, or on a copy of it; `api` speaks to it as the bootstrap token's owner."""

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        copy: bool = True,
        workspace_backend: str = "sqlite",
        vault_key: str | None = None,
    ) -> None:
        self.name, self.directory = name, directory.resolve()
        self.settings = environment(str(self.directory), vault_key=vault_key, workspaces=workspace_backend)
        self.folder = Path(tempfile.mkdtemp(prefix="orcheo-old-")) / "data" if copy else self.directory
        self.container = ""
        self.api = Api("", TOKEN)

    def __enter__(self) -> OldApp:
        if self.folder != self.directory:
            shutil.copytree(self.directory, self.folder)
        port = free_port()
        # A copy stands at the original's path, so that its attachments are its own.
        options = [*_options(self.folder, self.directory), f"--publish=127.0.0.1:{port}:8000"]
        options += [f"--env={key}={value}" for key, value in self.settings.items()]
        command = ["uvicorn", "orcheo_backend.app:app", "--host=0.0.0.0", "--port=8000"]
        self.container = _docker("run", "--detach", *options, image(self.name), *command).strip()
        self.api.url = f"http://127.0.0.1:{port}"
        try:
            wait_until(self._answers, f"Orcheo {self.name} to answer", 120)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _answers(self) -> bool:
        state = _docker("inspect", "--format={{.State.Running}}", self.container).strip()
        assert state == "true", self.logs()
        try:
            return self.api.send("GET", "/api/workflows", timeout=5).status_code < 500
        except requests.ConnectionError:
            return False

    def logs(self) -> str:
        """What the backend has printed."""
        done = subprocess.run(["docker", "logs", self.container], capture_output=True, text=True)
        return done.stdout + done.stderr

    def kill(self) -> None:
        """End it as a lost machine does."""
        _docker("kill", self.container)

    def end(self) -> None:
        """Stop it in good order and remove the container and the copy."""
        if self.container:
            subprocess.run(["docker", "stop", "--time=10", self.container], capture_output=True)
            subprocess.run(["docker", "rm", "--force", "--volumes", self.container], capture_output=True)
            self.container = ""
        if self.folder != self.directory:
            shutil.rmtree(self.folder.parent, ignore_errors=True)
