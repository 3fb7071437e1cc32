"""What `up` checks before it changes anything: each refusal is one line, and nothing has happened by then."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any

import docker

from orcheo_db.errors import UserError
from orcheo_db.targets import backup
from orcheo_db.targets.app import POSTGRES_ONLY
from orcheo_db.targets.compose import ComposeTarget
from orcheo_db.tuning import app_limits, pool_arithmetic

MEMORY_TOLERANCE = 1.1  # a machine sold as 2 GB reports about 1.9: the kernel and the firmware keep some


def state_directory(root: Path, project: str) -> Path:
    """Where an installation keeps its secrets: <project> in $ORCHEO_DB_STATE_DIR, else in compose/.state (git-ignored).

    Raises:
        UserError: the path has a character that Compose would read as something else.
    """
    own = os.environ.get("ORCHEO_DB_STATE_DIR")
    path = (Path(own).expanduser().resolve() if own else root / "compose" / ".state") / project
    if match := re.search(r"[:$#'\"\\\n,]", str(path)):
        raise UserError(
            f"the state directory {path} has {match[0]!r} in its path, which Compose can't mount: choose another with ORCHEO_DB_STATE_DIR"
        )
    return path


def check_arithmetic(target: ComposeTarget) -> None:
    problems = pool_arithmetic(target.spec, target.size).problems
    if problems:
        raise UserError(f"ops/spec.toml, size {target.size.name}: {'; '.join(problems)}")


def check_memory(target: ComposeTarget) -> None:
    """A size that the machine can't hold would be killed by the kernel in the middle of work; the app's limits come on top."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    server = target.size.memory if target.managed_server else 0
    own = sum(app_limits(target.spec).values()) if target.with_app else 0
    if server + own > total * MEMORY_TOLERANCE:
        app = f", the app {own / 2**30:.1f} GB (app.process_memory and its processes)" if own else ""
        raise UserError(
            f"size {target.size.name} needs {server / 2**30:.1f} GB of memory{app}, and this machine has {total / 2**30:.1f} GB:"
            " choose a smaller SIZE or fewer processes, or `orcheo-db tune --memory …` for this machine"
        )


def check_ports(target: ComposeTarget) -> None:
    """Say that a port is taken before anything is started; our own running service may have it."""
    stack, api = target.spec.stack, target.spec.app.port
    _check_port(target, "pgbouncer", stack.bind_address, stack.port, "ORCHEO_DB_PORT=… or [stack] port")
    if target.with_app:
        _check_port(target, "backend", "127.0.0.1", api, "ORCHEO_DB_APP_PORT=… or [app] port")


def _check_port(target: ComposeTarget, service: str, address: str, port: int, how: str) -> None:
    own = target.container(service)
    if own is not None and own.status == "running" and _publishes(own.attrs, port):
        return
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except PermissionError:
            return  # a port below 1024: this user may not listen there, the Docker daemon may
        except OSError as error:
            running = docker.from_env().containers.list(ignore_removed=True)  # one that ends meanwhile holds nothing
            holders = [c.name for c in running if _publishes(c.attrs, port)]
            by = f" by container {holders[0]}" if holders else ""
            raise UserError(
                f"port {address}:{port} can't be used ({error.strerror}{by}): free it, or choose another with {how} in ops/spec.toml"
            ) from None


def _publishes(attrs: dict[str, Any], port: int) -> bool:
    ports = attrs.get("NetworkSettings", {}).get("Ports") or {}
    return any(int(binding["HostPort"]) == port for bindings in ports.values() for binding in bindings or [])


def check_storage(target: ComposeTarget) -> None:
    """SQLite stores went away with orcheo 0.35: only a bridge release can be rolled back to them by configuration."""
    release = target.spec.versions.orcheo
    numbers = tuple(int(part) for part in re.findall(r"\d+", release))
    if target.with_app and target.spec.app.storage == "sqlite" and numbers >= POSTGRES_ONLY:
        raise UserError(
            f"app.storage = 'sqlite' needs a bridge release (orcheo 0.16 to 0.34), and [versions] has {release}, which knows PostgreSQL alone:"
            " see ops/runbooks/configuration-rollback.md"
        )


def check_second(target: ComposeTarget) -> None:
    """The second repository's credentials, before anything is made that would lack them."""
    if target.with_second:
        backup.bucket(target)


def check_secrets(target: ComposeTarget, *, new_secrets: bool) -> None:
    """A volume with a cluster but no secrets: making new ones would lock everybody out, so it is said instead."""
    if not target.managed_server or target.store.exists() or new_secrets or not target.volume_exists():
        return
    found = target.inspect_volume()
    if found["state"] != "empty":
        raise UserError(
            f"volume {target.volume} holds a PostgreSQL cluster, but its secrets are gone from {target.store.path}: put that directory back from your copy,"
            " or run `orcheo-db up --new-secrets` to keep the data and replace every password (ops/runbooks/lost-secrets.md)"
        )
