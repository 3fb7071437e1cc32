"""Machines: a size that is in no spec, and the limits of the containers of a size."""

from __future__ import annotations

from dataclasses import dataclass

from orcheo_db.spec import Size, Spec, format_memory, validated
from orcheo_db.tuning.pools import pool_arithmetic

MB, GB = 1 << 20, 1 << 30


def machine_size(
    memory: str | int, cpus: int, storage: str, max_connections: int | None = None, name: str = "custom"
) -> Size:
    """A size for a machine: `memory` is text such as "16GB" or bytes, `storage` one of ssd, hdd, san.

    Without `max_connections`: 100 below 8 GB, 200 below 32 GB, else 400 (PgBouncer serves many more clients).

    Raises:
        SpecError: a value is not accepted; the line names it.
    """
    text = format_memory(memory) if isinstance(memory, int) else memory
    data = {
        "name": name,
        "memory": text,
        "cpus": cpus,
        "storage": storage,
        "max_connections": max_connections,
    }
    if max_connections is None:
        # Any number passes validation here; the real one follows from the memory that was understood.
        known = validated(Size, data | {"max_connections": 100}, "machine")
        return known.model_copy(update={"max_connections": _connections(known.memory)})
    return validated(Size, data, "machine")


def _connections(memory: int) -> int:
    return 100 if memory < 8 * GB else 200 if memory < 32 * GB else 400


@dataclass(frozen=True)
class ContainerLimits:
    """Memory limits of a size's containers, in bytes. `shm` is a part of PostgreSQL's, not an addition."""

    postgres: int
    shm: int
    pgbouncer: int
    init: int


REDIS_MEMORY = 256 * MB  # its data is bounded to half of it: the log's rewrite and the health check need room too
BEAT_MEMORY = 512 * MB  # imports Celery and the tasks' module (270 MB) and runs nothing


def app_limits(spec: Spec) -> dict[str, int]:
    """Memory limits in bytes of the app's services: each process the spec's `process_memory`; Celery's parent is as large as one."""
    each = spec.app.process_memory
    return {
        "BACKEND_MEMORY": each * spec.app.backend_processes,
        "WORKER_MEMORY": each * (spec.app.worker_processes + 1),
        "BEAT_MEMORY": BEAT_MEMORY,
        "REDIS_MEMORY": REDIS_MEMORY,
    }


def container_limits(size: Size, spec: Spec) -> ContainerLimits:
    """The limits of `size`.

    PostgreSQL: the size's memory. /dev/shm: 1/8 of that, at least 256 MB; parallel queries share hash tables
    there (Docker's 64 MB fail them). PgBouncer: 64 MB and 64 kB for each connection, most of which is TLS, in
    steps of 64 MB (33 MB measured with 600 clients over TLS). Init job: 1 GB, for it imports all of the app.
    """
    budget = pool_arithmetic(spec, size)
    connections = budget.max_client_conn + budget.max_db_connections
    pgbouncer = 64 * MB + connections * 64 * 1024
    return ContainerLimits(
        postgres=size.memory,
        shm=max(256 * MB, size.memory // 8 // MB * MB),
        pgbouncer=-(-pgbouncer // (64 * MB)) * 64 * MB,
        init=GB,
    )
