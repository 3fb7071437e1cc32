"""PostgreSQL's volume in a cluster, which a StatefulSet knows by one name only: what restores made lies in directories of it.

    17/main                    the cluster in use
    restored-20261126T101500Z  a restore, not in use: 17/main and its own marks
    former-20261126T102000Z    what was in use before a restore was put in place

Putting one in place is two renames on one file system, under the lock that a running server holds (`hold_volume` of the postgres image).

A host that Ansible runs has the same in /var/lib/postgresql (ORCHEO_DB_VOLUME), where other clusters may lie beside the tier's own, which
is ORCHEO_DB_CLUSTER ("17/main"): nothing else is moved. Its server holds no lock: its postmaster.pid says whether it runs.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.secrets import write_private

VOLUME = Path(os.environ.get("ORCHEO_DB_VOLUME", "/volume"))  # where pod `restore` has all of it
CLUSTER = os.environ.get("ORCHEO_DB_CLUSTER", "")  # VERSION/NAME on a host; in a cluster the volume is the tier's alone
LOCK = ".orcheo-db.lock"  # as the postgres image's volume.py
MARKER = "orcheo-db.json"  # likewise, in PGDATA
RESTORED, RESTORING = ".restored.json", ".restoring"  # as backup/restore.py
JOURNAL = ".placing.json"  # what a `place` that was cut off was about
ASIDE = re.compile(r"(restored|former)-\d{8}T\d{6}Z")
LOCK_SECONDS = 30.0  # a server that was told to stop lets go of it with its last process


def stamp() -> str:
    """The moment, as part of a directory's name."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def look(volume: Path = VOLUME) -> dict[str, Any]:
    """What lies aside: by name its installation (None: no whole cluster), whether its restore was cut off, and the timeline that it claims."""
    aside = {path.name: path for path in sorted(volume.iterdir()) if ASIDE.fullmatch(path.name) and path.is_dir()}
    return {
        "in_use": _majors(volume),
        "placing": _json(volume / JOURNAL),
        "aside": {name: _facts(path) for name, path in aside.items()},
    }


def place(name: str, volume: Path = VOLUME, seconds: float = LOCK_SECONDS) -> dict[str, Any]:
    """Put one of those in the place of the cluster in use, which is kept aside; a call that was cut off is finished by the next.

    Raises:
        UserError: there is none of that name, or another's call was cut off. CheckFailed: a server runs on the volume.
    """
    with _held(volume, seconds):
        journal = _json(volume / JOURNAL)
        if journal and journal["name"] != name:
            raise UserError(
                f"{journal['name']} was being put in place when that was cut off: finish that first (restore --use {journal['name']})"
            )
        if not journal:
            if name not in look(volume)["aside"] or not _majors(volume / name):
                raise UserError(
                    f"there is no {name} with a cluster on the volume; there are: {', '.join(look(volume)['aside']) or 'none'}"
                )
            journal = {"name": name, "former": _former(volume) if _majors(volume) else None, "phase": "aside"}
            _write(volume / JOURNAL, journal)
        if journal["phase"] == "aside":
            if journal["former"]:
                former = volume / journal["former"]
                former.mkdir(mode=0o700, exist_ok=True)
                _move(volume, former)
            journal["phase"] = "in"
            _write(volume / JOURNAL, journal)
        if (volume / name).is_dir():
            _move(volume / name, volume)
            if not any((volume / name).iterdir()):
                (volume / name).rmdir()
        (volume / JOURNAL).unlink()
        _sync(volume)
    return {"in_place": name, "kept": journal["former"]}


def _former(volume: Path) -> str:
    """A name for what was in use; each moment's is given once."""
    while (volume / (name := f"former-{stamp()}")).exists():
        time.sleep(0.1)
    return name


def _move(source: Path, target: Path) -> None:
    """A cluster and its marks; what was moved already is not there any more."""
    for entry in (*_majors(source), RESTORED):
        if (source / entry).exists():
            (target / entry).parent.mkdir(mode=0o700, exist_ok=True)
            (source / entry).rename(target / entry)
            for parent in {(source / entry).parent, (target / entry).parent} - {source, target}:
                _sync(parent)
    if CLUSTER and ASIDE.fullmatch(source.name):  # 17/ of 17/main
        (source / CLUSTER).parent.rmdir()
    _sync(target)
    _sync(source)


def remove(name: str, volume: Path = VOLUME) -> dict[str, Any]:
    """Remove one of those for ever; the caller has a confirmation that names it.

    Raises:
        UserError: there is none of that name, or it is being put in place.
    """
    found = look(volume)
    if name not in found["aside"]:
        raise UserError(
            f"there is no {name} on the volume; there are: {', '.join(found['aside']) or 'none'} (the cluster in use is none of them)"
        )
    if found["placing"]:
        raise UserError(f"{found['placing']['name']} is being put in place: finish that first")
    shutil.rmtree(volume / name)
    return {"removed": name}


@contextmanager
def _held(volume: Path, seconds: float) -> Iterator[None]:
    descriptor = os.open(volume / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if CLUSTER and _serves(volume / CLUSTER):
            raise CheckFailed(f"a server runs on {volume / CLUSTER}: nothing was changed; stop it first")
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise CheckFailed(
                        f"a server runs on the volume at {volume}: nothing was changed; scale StatefulSet postgres to 0 first"
                    ) from None
                time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)


def _serves(data: Path) -> bool:
    """Whether the process that postmaster.pid names is there and works in that directory: one that was killed has left the file."""
    try:
        pid = int((data / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
        return Path(f"/proc/{pid}/cwd").resolve() == data.resolve()
    except (OSError, ValueError):
        return False


def _majors(directory: Path) -> list[str]:
    """The clusters of a directory: of each major version all (17), or the tier's own (17/main)."""
    if CLUSTER:
        return [CLUSTER] if (directory / CLUSTER).is_dir() else []
    return (
        sorted(path.name for path in directory.iterdir() if path.name.isdigit() and path.is_dir())
        if directory.is_dir()
        else []
    )


def _facts(directory: Path) -> dict[str, Any]:
    places = [directory / (found if CLUSTER else f"{found}/main") for found in _majors(directory)]
    markers = [_json(place / MARKER) for place in places]
    owner = next((marker["installation_id"] for marker in markers if marker), None)
    return {"installation_id": owner, "cut_off": (directory / RESTORING).exists(), "claim": _json(directory / RESTORED)}


def _json(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def _write(file: Path, document: dict[str, Any]) -> None:
    write_private(file, json.dumps(document).encode())
    _sync(file.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
