"""Handing each service its own files: configuration and those secrets that it needs, owned by its user, readable by no other.

The copies are put in place by a container, not by this process: so the owner is right for root, for a member of the group
`docker`, and where the daemon maps users.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orcheo_db.errors import UserError

UIDS = {
    "postgres": 999, "pgbouncer": 998, "init": 10001, "app": 10001, "redis": 10001, "pgbackrest": 999, "archive": 999, "backup": 999, "second": 999,
}  # as the images make them  # fmt: skip


@dataclass(frozen=True)
class File:
    """A file for one service: `path` is relative to its mounts, for example secrets/server.key."""

    path: str
    content: bytes

    @property
    def mode(self) -> int:
        return 0o400 if self.path.startswith("secrets/") else 0o444


def secret(files: Mapping[str, bytes]) -> list[File]:
    """Secrets by name (`handed`), as files."""
    return [File(f"secrets/{name}", content) for name, content in files.items()]


def fingerprint(files: list[File]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        digest.update(f"{file.path}:{file.mode:o}:{len(file.content)}:".encode() + file.content)
    return digest.hexdigest()


def archive(services: Mapping[str, list[File]]) -> bytes:
    """A tar of every service's files with the owners and modes that they shall have."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for service, files in services.items():
            uid = UIDS[service]
            parents = {str(parent) for file in files for parent in PurePosixPath(service, file.path).parents}
            for directory in sorted(parents - {"."}):
                entry = tarfile.TarInfo(directory)
                entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, 0o500, uid, uid
                tar.addfile(entry)
            for file in files:
                entry = tarfile.TarInfo(f"{service}/{file.path}")
                entry.size, entry.mode, entry.uid, entry.gid = len(file.content), file.mode, uid, uid
                tar.addfile(entry, io.BytesIO(file.content))
    return buffer.getvalue()


def install(services: Mapping[str, list[File]], directory: Path, image: str) -> bool:
    """Put the files in place if they are not there as wanted; returns whether anything changed.

    Files are replaced one by one inside directories that stay, because running containers have those mounted.

    Raises:
        UserError: the container that does it fails (for example the disk is full).
    """
    stamp = directory.with_name(f"{directory.name}.json")
    there = _read_stamp(stamp) if directory.is_dir() else {}
    wanted = {name: fingerprint(files) for name, files in services.items()}
    if there | wanted == there:
        return False
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    extract = [
        "--extract",
        "--same-owner",
        "--same-permissions",
        "--numeric-owner",
        "--directory=/mounts",
        "--file=-",
    ]
    _as_root(directory, image, "tar", extract, archive(services))
    stamp.write_text(json.dumps(there | wanted))
    return True


def _read_stamp(stamp: Path) -> dict[str, str]:
    """What is in place, service -> fingerprint; nothing where the note is missing or was cut off."""
    with suppress(OSError, ValueError):
        found: dict[str, str] = json.loads(stamp.read_text())
        return found
    return {}


def clear(directory: Path, image: str) -> None:
    """Remove the services' files (they belong to other users, so a container does it)."""
    _as_root(directory, image, "find", ["/mounts", "-mindepth", "1", "-delete"], b"")


def _as_root(directory: Path, image: str, program: str, arguments: list[str], given: bytes) -> None:
    """Run a program of `image` as root on `directory` alone: no network, and only the capabilities that owning files takes."""
    argv = [
        "docker",
        "run",
        "--rm",
        "--interactive",
        "--network=none",
        "--user=0:0",
        "--read-only",
        "--cap-drop=ALL",
    ]
    argv += [
        "--cap-add=CHOWN",
        "--cap-add=DAC_OVERRIDE",
        "--cap-add=FOWNER",
        "--security-opt=no-new-privileges:true",
    ]
    argv += [f"--volume={directory}:/mounts", f"--entrypoint={program}", image, *arguments]
    done = subprocess.run(argv, input=given, capture_output=True)
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(f"{directory} could not be changed: {(words or ['no reason given'])[-1]}")
