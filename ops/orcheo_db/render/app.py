"""The configuration of Orcheo's own services: the app's variables and redis.conf."""

from __future__ import annotations

from orcheo_db.spec import BACKENDS, Spec
from orcheo_db.tuning import REDIS_MEMORY

# What the bridge releases call otherwise, or keep nowhere unless told: the vault's SQLite file, the service tokens'.
_SQLITE = {
    "ORCHEO_VAULT_BACKEND": "file",
    "ORCHEO_AUTH_SERVICE_TOKEN_DB_PATH": "/home/orcheo/.orcheo/service_tokens.sqlite",
}


def app_environment(spec: Spec) -> dict[str, str]:
    """The app's variables that are no secrets: the spec's keys, then its [app.environment]."""
    app = spec.app
    return {
        **{f"ORCHEO_{name}_BACKEND": app.storage for name in BACKENDS},
        **(_SQLITE if app.storage == "sqlite" else {}),
        "ORCHEO_POSTGRES_POOL_MIN_SIZE": str(app.pool_min_size),
        "ORCHEO_POSTGRES_POOL_MAX_SIZE": str(app.pool_max_size),
        "ORCHEO_POSTGRES_POOL_TIMEOUT": str(app.pool_timeout),
        "ORCHEO_POSTGRES_POOL_MAX_IDLE": str(app.pool_max_idle),
        "ORCHEO_AUTH_MODE": "required",
        "ORCHEO_WORKFLOW_TRUST_MODE": app.workflow_trust_mode,
        "ORCHEO_CHATKIT_RETENTION_DAYS": str(app.chatkit_retention_days),
        "ORCHEO_TRACE_RETENTION_DAYS": str(app.trace_retention_days),
        # Workers execute runs and beat starts the cron triggers; in-process they would be lost with a restart of the backend.
        "ORCHEO_INPROCESS_EXECUTION": "false",
        "ORCHEO_INPROCESS_CRON": "false",
        # For the links that the app makes.
        "ORCHEO_API_URL": f"http://127.0.0.1:{app.port}",
        **app.environment,
    }


def redis_conf(password: str) -> bytes:
    """Redis' configuration: only for the app's network, with a password, every task on disk before it is acknowledged."""
    return ("\n".join([*redis_lines(), f"requirepass {password}"]) + "\n").encode()


def redis_lines() -> list[str]:
    """Redis' configuration without its password."""
    return [
        "bind * -::*",  # inside the container: its only network is the app's own
        "protected-mode yes",
        "dir /var/lib/orcheo-redis",
        # A task that was acknowledged outlives a power cut: a run whose task is lost stays pending for ever.
        "appendonly yes",
        "appendfsync always",
        'save ""',  # the append-only file is the persistence; snapshots would only repeat it
        # Full means an error that the app reports, never a task thrown away: some 60,000 waiting tasks of 2 kB.
        f"maxmemory {REDIS_MEMORY // 2}",
        "maxmemory-policy noeviction",
        "tcp-keepalive 60",
        "loglevel notice",
        'logfile ""',
    ]
