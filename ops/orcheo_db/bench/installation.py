"""A throw-away installation for a benchmark: its own project, port, state directory and volume, gone at the end."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orcheo_db import lifecycle, removal
from orcheo_db.errors import CheckFailed
from orcheo_db.secrets import Store
from orcheo_db.spec import Spec
from orcheo_db.targets.compose import ComposeTarget


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def installation(spec: Spec, name: str) -> Iterator[ComposeTarget]:
    """The spec's stack (without the app) as project PROJECT-bench-NAME; removed with its data when the block ends."""
    stack = spec.stack.model_copy(
        update={"project": f"{spec.stack.project}-bench-{name}", "port": _free_port(), "parts": ()}
    )
    own = spec.model_copy(update={"stack": stack})
    with tempfile.TemporaryDirectory(prefix="orcheo-db-bench-") as directory:
        target = ComposeTarget(own, own.size(None), Store(Path(directory) / stack.project))
        if target.volume_exists():
            raise CheckFailed(
                f"volume {target.volume} of an interrupted benchmark is there: `docker volume rm {target.volume}` first"
            )
        try:
            lifecycle.up(target)
            yield target
        finally:
            removal.destroy(target)


def superuser(target: ComposeTarget, sql: str) -> str:
    """SQL in the app's database as the superuser, by the local socket.

    Raises:
        CheckFailed: the server refuses it.
    """
    argv = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", target.spec.database.name]
    result = target.run("postgres", argv, input=sql)
    if result.code != 0:
        raise CheckFailed(f"the benchmark's SQL failed: {' '.join(result.stderr.split())[:300]}")
    return result.stdout.strip()
