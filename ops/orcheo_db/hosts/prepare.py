"""Secrets and certificates of an installation on hosts, made by the code that every target uses, as one directory for each service.

<state>/<project>/                 the installation's state: secrets, authority (secrets.Store)
<state>/<project>/hosts.json       which host is what, and how it is reached by SSH
<state>/<project>/hosts/SERVICE/   what that service alone may read, for Ansible to copy
<state>/<project>/hosts/toolkit.tar.gz   the toolkit itself
"""

from __future__ import annotations

import gzip
import io
import json
import re
import shlex
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from orcheo_db import backup_secrets, handed
from orcheo_db.errors import UserError
from orcheo_db.secrets import Store, write_private

PARTS = ("postgres", "repository", "pgbouncer", "bootstrap")
HOSTS_FILE, SSH_CONFIG = "hosts.json", "ssh_config"
SERVICES: dict[str, Callable[[Store], handed.Files]] = {
    "postgres": handed.postgres,
    "pgbackrest": handed.pgbackrest,
    "archive": handed.archive,
    "backup": handed.backup,
    "init": handed.init,
    "pgbouncer": handed.pgbouncer,
    "exporters": handed.exporter,
}
TOOLKIT, REQUIREMENTS = "toolkit.tar.gz", "requirements.txt"
LOCK = Path(__file__).resolve().parents[3] / "requirements.lock"
NEEDED = (
    "click",
    "croniter",
    "cryptography",
    "psycopg",
    "psycopg-binary",
    "psycopg-pool",
    "pydantic",
    "rich",
)  # what a host's part of the toolkit imports
# One requirement, its hashes and the comment on whose it is.
ENTRY = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[[a-z,]+\])?==[^\n]*\n(?:    [^\n]*\n)*", re.MULTILINE)
PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Host:
    """One host: its name, its address for the others, and how SSH reaches it (host, port, user, key, options)."""

    name: str
    address: str
    ssh: Mapping[str, Any]


def told(document: Any) -> tuple[Path, dict[str, Host], bool]:
    """The state directory, the hosts by part, and whether only to look, of the playbook's document.

    Raises:
        UserError: a part has no host, or more than one.
    """
    try:
        state = Path(document["state"]) / str(document["project"])
        given = {part: [Host(**each) for each in document["hosts"].get(part, [])] for part in PARTS}
        check = bool(document.get("check"))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the playbook's document is damaged ({error})") from None
    for part, hosts in given.items():
        if len(hosts) != 1:
            raise UserError(
                f"group {part} has {len(hosts)} hosts: put one into it (the same host may be in all groups)"
            )
    return state, {part: hosts[0] for part, hosts in given.items()}, check


def prepare(state: Path, hosts: Mapping[str, Host], *, check: bool) -> dict[str, Any]:
    """Make what is missing; says whether anything changed.

    Args:
        check: make nothing, only say whether there are secrets.

    Raises:
        UserError: secrets that were made are gone.
    """
    store, directory = Store(state), state / "hosts"
    if check:
        exists = store.exists() and directory.is_dir()
        found = {"changed": False, "exists": exists, "directory": str(directory)}
        return found | ({"installation_id": store.installation_id()} if exists else {})
    before = store.exists()
    store.create()
    changed = bool(store.renew()) or not before
    changed |= bool(backup_secrets.create(store))
    files = {
        f"{service}/{name}": content for service, made in SERVICES.items() for name, content in made(store).items()
    }
    files |= {TOOLKIT: toolkit(), REQUIREMENTS: requirements(LOCK.read_text(encoding="utf-8")).encode()}
    for name, content in files.items():
        changed |= _write(directory / name, content)
    for stale in sorted(path for path in directory.rglob("*") if path.is_file()):
        if str(stale.relative_to(directory)) not in files:
            stale.unlink()
            changed = True
    changed |= _list(state, hosts)
    changed |= _write(state / SSH_CONFIG, ssh_config(hosts).encode())
    return {"changed": changed, "exists": True, "directory": str(directory), "installation_id": store.installation_id()}


def _list(state: Path, hosts: Mapping[str, Host]) -> bool:
    """hosts.json, with what an earlier run has found out about the same hosts."""
    file = state / HOSTS_FILE
    before = json.loads(file.read_bytes()) if file.is_file() else {}
    listed = {}
    for part, host in hosts.items():
        known = before.get(part, {})
        listed[part] = asdict(host) | (
            {"installed": known["installed"]} if known.get("name") == host.name and "installed" in known else {}
        )
    return _write(file, _spell(listed))


def note(state: Path, installed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Keep what the roles have installed, by part, for target `host`.

    Raises:
        UserError: there is no hosts.json yet.
    """
    file = state / HOSTS_FILE
    if not file.is_file():
        raise UserError(f"there is no {file}: the whole playbook writes it first")
    listed = json.loads(file.read_bytes())
    for part, found in installed.items():
        listed[part]["installed"] = dict(found)
    return {"changed": _write(file, _spell(listed))}


def _spell(listed: Mapping[str, Any]) -> bytes:
    return (json.dumps(listed, indent=1, sort_keys=True) + "\n").encode()


def ssh_config(hosts: Mapping[str, Host]) -> str:
    """The parts as hosts of OpenSSH's configuration: `ssh -F ssh_config postgres`."""
    lines = ["# Generated by orcheo-db from the inventory; do not edit."]
    for part, host in hosts.items():
        ssh = host.ssh
        lines += [f"Host {part}", f"  HostName {ssh['host']}", f"  Port {ssh['port']}"]
        lines += [f"  User {ssh['user']}"] if ssh["user"] else []
        lines += [f"  IdentityFile {ssh['key']}"] if ssh["key"] else []
        words = shlex.split(str(ssh["options"]))
        given = [after for word, after in pairwise(words) if word == "-o"]
        lines += [f"  {' '.join(option.split('=', 1))}" for option in given]
    return "\n".join(lines) + "\n"


def _write(path: Path, content: bytes) -> bool:
    if path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, content)
    return True


def requirements(lock: str) -> str:
    """The part of the lock that a host needs, with its hashes: NEEDED and what these need.

    Raises:
        UserError: the lock lacks one of them.
    """
    entries = {match[1].lower(): match[0] for match in ENTRY.finditer(lock)}
    found, todo = dict[str, str](), list(NEEDED)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        if name not in entries:
            raise UserError(f"requirements.lock has no {name}: run `make lock`")
        found[name] = entries[name]
        todo += [
            other
            for other, entry in entries.items()
            if re.search(rf"^    # +via +{re.escape(name)}$|^    # +{re.escape(name)}$", entry, re.MULTILINE)
        ]
    return "".join(found[name] for name in sorted(found))


def toolkit() -> bytes:
    """The package as an archive that is the same as long as its files are."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as archive,
    ):
        for file in sorted(PACKAGE.rglob("*")):
            if not file.is_file() or "__pycache__" in file.parts or file.suffix == ".pyc":
                continue
            entry = tarfile.TarInfo(f"orcheo_db/{file.relative_to(PACKAGE)}")
            entry.size, entry.mode = file.stat().st_size, 0o644
            with file.open("rb") as content:
                archive.addfile(entry, content)
    return packed.getvalue()
