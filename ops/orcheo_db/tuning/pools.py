"""Pool arithmetic: the app's pools, PgBouncer's clients and server connections, PostgreSQL's connections."""

from __future__ import annotations

from dataclasses import dataclass, field

from orcheo_db.spec import Size, Spec, format_memory
from orcheo_db.tuning.overrides import check_overrides
from orcheo_db.tuning.postgresql import reserved_connections

# The pools of one backend process (orcheo 0.46.1, orcheo-backend 0.39.0; another release may differ), each opened by one of its stores, as
# `python -m orcheo_db.runtime pools` lists them in the image (tests/e2e/test_connections.py compares).
TUNABLE_STORES = (
    "workflow repository",
    "run history",
    "agentensor checkpoints",
    "plugins",
    "chatkit",
    "vault",
    "langgraph checkpointer",
    "langgraph store",
)  # these take ORCHEO_POSTGRES_POOL_MAX_SIZE
FIXED_STORES = (
    "service tokens",
    "workspaces and identities",
    "hosted apps: store",
    "hosted apps: runtime",
    "hosted apps: auth",
    "hosted apps: bundles",
)  # these ignore it
FIXED_POOL_SIZE = 10
# The pools of one Celery process: what executing a run opens, and dispatching cron triggers. (Celery's parent and beat open none.)
WORKER_STORES = (
    "workflow repository",
    "run history",
    "vault",
    "langgraph checkpointer",
    "langgraph store",
    "workspaces and identities",
)

APP_LOGINS = 2  # orcheo_app_a and orcheo_app_b: while a password rotates, both have connections
READ_ONLY_POOL = 4
MONITOR_POOL = 2
OTHER_CLIENTS = 40  # people, dashboards, health checks

# Connections that do not come through the app's database in PgBouncer.
DIRECT = {
    "init job": 12,  # the app's twelve stores in turn, its lock and administrator, waiting ones
    "monitoring": 3,  # health check and exporters
    "administration": 3,  # psql, doctor
    "PgBouncer's auth_query and monitoring through it": 4,
}
# Two for each of the two roles that may connect there, so that monitoring can never keep a login from being looked up.
AUTH_POOL = 2
AUTH_CONNECTIONS = DIRECT["PgBouncer's auth_query and monitoring through it"]

# A request may hold a connection of each store at once; with fewer server connections it would wait for
# itself.
LEAST_APP_POOL = len(TUNABLE_STORES) + len(FIXED_STORES)
# More active backends than this only queue for the same cores inside PostgreSQL, holding snapshots and locks.
MOST_PER_CPU = 16
# What an idle backend keeps to itself (catalogue and plan caches); less and the kernel kills PostgreSQL.
LEAST_MEMORY_PER_CONNECTION = 2 << 20


@dataclass(frozen=True)
class PoolBudget:
    """All the numbers, and the problems: one line each, none when it works.

    Clients: backends x clients_per_backend (by store) + workers x clients_per_worker = app_client_connections;
    with one process being replaced and other_clients they must fit into max_client_conn. Servers: app_pool for each app login,
    read_only_pool and monitor_pool are max_db_connections; with the direct ones and the reserved ones they
    must fit into max_connections.
    """

    backends: int
    workers: int
    clients_by_store: dict[str, int]
    clients_per_backend: int
    clients_per_worker: int
    app_client_connections: int
    other_clients: int
    max_client_conn: int
    app_pool: int
    read_only_pool: int
    monitor_pool: int
    max_db_connections: int
    direct_by_use: dict[str, int]
    direct: int
    reserved: int
    superuser_reserved: int
    max_connections: int
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.app_client_connections} client connections of {self.backends} backend ({self.clients_per_backend} each)"
            f" and {self.workers} worker processes ({self.clients_per_worker} each) within {self.max_client_conn}; {self.max_db_connections} pooled + {self.direct} direct +"
            f" {self.reserved} reserved"
            f" + {self.superuser_reserved} for the superuser within {self.max_connections}"
        )


def pool_arithmetic(spec: Spec, size: Size) -> PoolBudget:
    """The pools of `size`; overrides of the spec count, and problems are the budget's, not exceptions.

    Raises:
        SpecError: an override that PostgreSQL or PgBouncer would refuse.
    """
    check_overrides(size, spec)
    by_store = dict.fromkeys(TUNABLE_STORES, spec.app.pool_max_size) | dict.fromkeys(FIXED_STORES, FIXED_POOL_SIZE)
    backend, worker = sum(by_store.values()), sum(by_store[name] for name in WORKER_STORES)
    clients = spec.app.backend_processes * backend + spec.app.worker_processes * worker
    reserved = int(_setting(size, spec, "reserved_connections", reserved_connections(size)))
    superuser = int(_setting(size, spec, "superuser_reserved_connections", 3))
    direct = sum(DIRECT.values())
    free = size.max_connections - reserved - superuser - direct
    share = (free - READ_ONLY_POOL - MONITOR_POOL) // APP_LOGINS
    computed_pool = max(1, min(share, max(20, MOST_PER_CPU * size.cpus)))
    app_pool = int(spec.pgbouncer.get("default_pool_size", computed_pool))
    pooled = APP_LOGINS * app_pool + READ_ONLY_POOL + MONITOR_POOL
    wanted = clients + backend + OTHER_CLIENTS
    budget = PoolBudget(
        backends=spec.app.backend_processes,
        workers=spec.app.worker_processes,
        clients_by_store=by_store,
        clients_per_backend=backend,
        clients_per_worker=worker,
        app_client_connections=clients,
        other_clients=OTHER_CLIENTS,
        max_client_conn=int(spec.pgbouncer.get("max_client_conn", -(-wanted // 100) * 100)),
        app_pool=app_pool,
        read_only_pool=READ_ONLY_POOL,
        monitor_pool=MONITOR_POOL,
        max_db_connections=int(spec.pgbouncer.get("max_db_connections", pooled)),
        direct_by_use=dict(DIRECT),
        direct=direct,
        reserved=reserved,
        superuser_reserved=superuser,
        max_connections=size.max_connections,
    )
    budget.problems.extend(_problems(budget, wanted))
    if spec.app.via == "postgres" and "app" in spec.stack.parts and clients + READ_ONLY_POOL + MONITOR_POOL > free:
        budget.problems.append(
            f"app.via = 'postgres' takes the app past the pooler, and its {spec.app.backend_processes} backend ({backend} connections each)"
            f" and {spec.app.worker_processes} worker processes ({worker} each) may open {clients} connections, but max_connections"
            f" {size.max_connections} leaves them {free - READ_ONLY_POOL - MONITOR_POOL}: lower app.pool_max_size or the number of"
            " processes, raise max_connections, or go through pgbouncer"
        )
    if size.memory * 3 // 4 < size.max_connections * LEAST_MEMORY_PER_CONNECTION:
        budget.problems.append(
            f"{format_memory(size.memory)} of memory less a quarter for shared_buffers is under 2MB for each"
            f" of {size.max_connections} connections: lower max_connections or give more memory"
        )
    return budget


def _setting(size: Size, spec: Spec, name: str, default: int) -> str:
    return size.settings.get(name) or spec.settings.get(name) or str(default)


def _problems(budget: PoolBudget, wanted: int) -> list[str]:
    found = []
    outside = budget.direct + budget.reserved + budget.superuser_reserved
    pools = APP_LOGINS * budget.app_pool + budget.read_only_pool + budget.monitor_pool
    if budget.max_client_conn < wanted:
        found.append(
            f"PgBouncer takes {budget.max_client_conn} clients (max_client_conn), but {budget.backends} backend"
            f" ({budget.clients_per_backend} connections each) and {budget.workers} worker processes"
            f" ({budget.clients_per_worker} each), a backend being replaced and {budget.other_clients} others may be"
            f" {wanted}: raise it, or lower app.pool_max_size or the number of processes"
        )
    if budget.max_db_connections == 0 or budget.max_db_connections + outside > budget.max_connections:
        pooled = str(budget.max_db_connections) if budget.max_db_connections else "any number of"
        found.append(
            f"PgBouncer may open {pooled} server connections (max_db_connections); with"
            f" {budget.direct} direct, {budget.reserved} reserved and {budget.superuser_reserved} for the"
            " superuser that is"
            f" more than max_connections {budget.max_connections}: raise max_connections or lower the pools"
        )
    elif pools > budget.max_db_connections:
        found.append(
            f"the pools of {APP_LOGINS} app logins ({budget.app_pool} each), {budget.read_only_pool}"
            " read-only and"
            f" {budget.monitor_pool} monitoring connections are {pools}, more than max_db_connections"
            f" {budget.max_db_connections}: one login could keep the other out during a rotation"
        )
    if budget.app_pool < LEAST_APP_POOL:
        found.append(
            f"each app login gets {budget.app_pool} server connections of max_connections"
            f" {budget.max_connections}, but a"
            f" process has {LEAST_APP_POOL} stores that may each hold one: raise max_connections"
        )
    return found
