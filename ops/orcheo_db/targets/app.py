"""What Orcheo's own services get on a Compose target: configuration, secrets, limits. The services stand in compose/app.yaml."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from orcheo_db import app_secrets
from orcheo_db.spec import Spec, parse_memory
from orcheo_db.targets.mounts import File

if TYPE_CHECKING:
    from orcheo_db.targets.compose import ComposeTarget

SERVICES = ("redis", "backend", "worker", "beat")  # in start order
VOLUMES = ("apphome", "redis")  # the app's files (attachments, plugins, SQLite), Redis' log of tasks
BACKENDS = ("CHECKPOINT", "GRAPH_STORE", "REPOSITORY", "WORKSPACE", "CHATKIT", "VAULT", "AUTH_SERVICE_TOKEN")
# What the bridge releases call otherwise, or keep nowhere unless told: the vault's SQLite file, the service tokens'.
SQLITE = {
    "ORCHEO_VAULT_BACKEND": "file",
    "ORCHEO_AUTH_SERVICE_TOKEN_DB_PATH": "/home/orcheo/.orcheo/service_tokens.sqlite",
}
POSTGRES_ONLY = (0, 35)  # from this release of orcheo on there are no SQLite stores
REDIS_MEMORY = (
    "256MB"  # of which Redis uses three quarters: some 100,000 waiting tasks of 1 kB, and its rewrite's copies
)
BEAT_MEMORY = "512MB"  # imports Celery and the tasks' module, runs nothing


def environment(spec: Spec) -> dict[str, str]:
    """The app's variables that are no secrets: the spec's keys, then its [app.environment]."""
    app = spec.app
    return {
        **{f"ORCHEO_{name}_BACKEND": app.storage for name in BACKENDS},
        **(SQLITE if app.storage == "sqlite" else {}),
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
        # Studio's address for links; the API's own address where none is given.
        "ORCHEO_API_URL": f"http://127.0.0.1:{app.port}",
        **app.environment,
    }


def config(target: ComposeTarget) -> bytes:
    """`app.json`, what `orcheo_db.runtime.settings.AppConfig` reads."""
    app = target.spec.app
    document = {
        "dsn": target.app_dsn(),
        "login": target.app_login(),
        "redis": "redis:6379",
        "backend_processes": app.backend_processes,
        "worker_processes": app.worker_processes,
        "prepared_statements": app.prepared_statements,
        "environment": environment(target.spec),
    }
    return (json.dumps(document, indent=2) + "\n").encode()


def redis_conf(password: str) -> bytes:
    """Redis' configuration: only for the app's network, with a password, every task on disk before it is acknowledged."""
    memory = parse_memory(REDIS_MEMORY) * 3 // 4
    lines = [
        "bind * -::*",  # inside the container: its only network is the app's own
        "protected-mode yes",
        f"requirepass {password}",
        "dir /var/lib/orcheo-redis",
        # A task that was acknowledged outlives a power cut: a run whose task is lost stays pending for ever.
        "appendonly yes",
        "appendfsync always",
        'save ""',  # the append-only file is the persistence; snapshots would only repeat it
        # Full means an error that the app reports, never a task thrown away.
        f"maxmemory {memory}",
        "maxmemory-policy noeviction",
        "tcp-keepalive 60",
        "loglevel notice",
        'logfile ""',
    ]
    return ("\n".join(lines) + "\n").encode()


def files(target: ComposeTarget) -> dict[str, list[File]]:
    """The files of the app's services and of Redis."""
    store = target.store
    secrets = [
        File(f"secrets/{name}", f"{app_secrets.read(store, name)}\n".encode()) for name in app_secrets.APP_SECRETS
    ]
    login = target.app_login()
    password = f"{store.password(login)}\n".encode()
    return {
        "app": [
            *secrets,
            File(f"secrets/{login}.password", password),
            *target.app_authorities(),
            File("conf/app.json", config(target)),
        ],
        "redis": [
            File("secrets/redis.conf", redis_conf(app_secrets.read(store, app_secrets.REDIS_PASSWORD))),
            File(
                f"secrets/{app_secrets.REDIS_PASSWORD}",
                f"{app_secrets.read(store, app_secrets.REDIS_PASSWORD)}\n".encode(),
            ),
        ],
    }


def limits(spec: Spec) -> dict[str, int]:
    """Memory limits in bytes: a process of the spec's `process_memory` each, and Celery's parent, which is as large as one."""
    each = spec.app.process_memory
    return {
        "BACKEND_MEMORY": each * max(1, spec.app.backend_processes),
        "WORKER_MEMORY": each * (spec.app.worker_processes + 1),
        "BEAT_MEMORY": parse_memory(BEAT_MEMORY),
        "REDIS_MEMORY": parse_memory(REDIS_MEMORY),
    }
