"""The peer: the migration tool that Orcheo's bridge releases came with, in their image, on the same files and the same server."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

from psycopg.conninfo import make_conninfo

from orcheo_db.bench.stage import OWNER, Stage
from orcheo_db.errors import CheckFailed

PROGRAM = Path(__file__).with_name("bridge_tool.py")


def run(stage: Stage, releases: Any, data: Path, out: Path) -> dict[str, Any]:
    """Its seconds, rows and memory. The app's database is made anew with the bridge's own schema.

    Args:
        releases: the module tests.migrate.releases. data: the files; out: a directory for what it exports.

    Raises:
        CheckFailed: it did not finish.
    """
    schema = releases.ROOT / "tests" / "compose" / "bridge-0.34.0.sql"
    stage.fresh("template1")
    with stage.connect() as connection:
        connection.execute(schema.read_text(encoding="utf-8").encode())
    stage.own.rest()
    out.mkdir()
    target = stage.own.target()
    dsn = make_conninfo(
        host="postgres", port=5432, dbname=stage.name, user="orcheo_admin", password=target.store.password("orcheo_admin"),
        sslmode="verify-full", sslrootcert="/ca.crt", options=f"-c role={OWNER} -c statement_timeout=0",
    )  # fmt: skip
    given = {"data": "/data", "out": "/out", "dsn": dsn, "environment": releases.environment("/data")}
    name = f"{stage.own.project}-peer-{uuid.uuid4().hex[:8]}"
    argv = [
        "docker", "run", "--rm", "--interactive", f"--name={name}", f"--network={stage.own.project}_database",
        f"--user={os.getuid()}:{os.getgid()}", f"--volume={data}:/data", f"--volume={out}:/out", f"--volume={PROGRAM}:/tool.py:ro",
        f"--volume={target.store.ca_file}:/ca.crt:ro", "--env=PYTHONWARNINGS=ignore", "--workdir=/tmp",
        "--entrypoint=python", releases.image("0.34.0"), "/tool.py",
    ]  # fmt: skip
    try:
        done = subprocess.run(argv, input=json.dumps(given), capture_output=True, text=True)
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True)
    if done.returncode != 0:
        raise CheckFailed(f"Orcheo's own tool failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    if not found["valid"]:
        raise CheckFailed("Orcheo's own tool did not find its rows again")
    return found | {"seconds": round(found["export_seconds"] + found["import_seconds"], 2)}
