"""`psql` for a person: in a container of our image, so that the host needs none, with the password in a private file only."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from orcheo_db.handed import pgpass
from orcheo_db.targets.base import Target
from orcheo_db.targets.compose import ComposeTarget
from orcheo_db.targets.host import HostTarget
from orcheo_db.targets.kubernetes import KubernetesTarget


def open_psql(target: Target, role: str | None, *, direct: bool, arguments: Sequence[str]) -> int:
    """Run psql as `role` (default: the app's login); returns psql's exit code.

    Raises:
        UserError: the stack does not run, or the role's secret is missing.
    """
    role = role or target.app_login()
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if isinstance(target, (KubernetesTarget, HostTarget)):
        return target.psql(role, direct=direct, interactive=terminal, arguments=arguments)
    assert isinstance(target, ComposeTarget)
    endpoint = target.server() if direct else target.pooler()
    parts = [
        f"host={endpoint.host}",
        f"port={endpoint.port}",
        f"user={role}",
        f"dbname={target.spec.database.name}",
    ]
    clients = target.client_files(direct=direct)
    parts += [f"sslmode={target.sslmode(direct=direct)}", "sslrootcert=/psql/ca.crt", "passfile=/psql/pgpass"]
    parts += [f"{word}=/psql/{word}" for word in clients]
    if endpoint.address:
        parts.append(f"hostaddr={endpoint.address}")
    with tempfile.TemporaryDirectory(prefix="orcheo-db-psql-") as scratch:
        for name, content in (
            ("ca.crt", target.ca_file(direct=direct).read_bytes()),
            ("pgpass", pgpass(role, target.store.password(role))),
            *((word, file.read_bytes()) for word, file in clients.items()),
        ):
            file = Path(scratch, name)
            file.touch(mode=0o600)
            file.write_bytes(content)
        argv = [
            "docker",
            "run",
            "--rm",
            "--interactive",
            *(["--tty"] if terminal else []),
        ]
        # The host's network: the published port is on its loopback address, and an internal network has no other way in.
        argv += [
            "--network=host",
            f"--user={os.getuid()}:{os.getgid()}",
            "--read-only",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges:true",
        ]
        argv += [
            f"--volume={scratch}:/psql:ro",
            "--env=PSQL_HISTORY=/dev/null",
            "--env=PAGER",
            "--entrypoint=psql",
            target.helper_image,
        ]
        return subprocess.run([*argv, " ".join(parts), *arguments]).returncode
