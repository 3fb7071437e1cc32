"""From a size to settings with their reasons. Pure functions: no files, no network."""

from orcheo_db.tuning.machine import REDIS_MEMORY, ContainerLimits, app_limits, container_limits, machine_size
from orcheo_db.tuning.model import DDL_LOCK_TIMEOUT, Setting
from orcheo_db.tuning.overrides import check_overrides
from orcheo_db.tuning.pgbouncer import pgbouncer_settings, user_pools
from orcheo_db.tuning.pools import AUTH_CONNECTIONS, AUTH_POOL, PoolBudget, pool_arithmetic
from orcheo_db.tuning.postgresql import STANZA, postgresql_settings

__all__ = [
    "AUTH_CONNECTIONS",
    "AUTH_POOL",
    "DDL_LOCK_TIMEOUT",
    "REDIS_MEMORY",
    "STANZA",
    "ContainerLimits",
    "PoolBudget",
    "Setting",
    "app_limits",
    "check_overrides",
    "container_limits",
    "machine_size",
    "pgbouncer_settings",
    "pool_arithmetic",
    "postgresql_settings",
    "user_pools",
]
