"""What Orcheo's own services get on a Compose target: configuration, secrets, limits. The services stand in compose/app.yaml."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from orcheo_db import app_secrets, handed
from orcheo_db.render.app import app_environment, redis_conf
from orcheo_db.targets.mounts import File, secret

if TYPE_CHECKING:
    from orcheo_db.targets.compose import ComposeTarget

SERVICES = ("redis", "backend", "worker", "beat")  # in start order
VOLUMES = ("apphome", "redis")  # the app's files (attachments, plugins, SQLite), Redis' log of tasks
POSTGRES_ONLY = (0, 35)  # from this release of orcheo on there are no SQLite stores


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
        "environment": app_environment(target.spec),
    }
    return (json.dumps(document, indent=2) + "\n").encode()


def files(target: ComposeTarget) -> dict[str, list[File]]:
    """The files of the app's services and of Redis."""
    store = target.store
    return {
        "app": [
            *secret(handed.app(store, target.app_login())),
            *target.app_authorities(),
            File("conf/app.json", config(target)),
        ],
        "redis": [
            File("secrets/redis.conf", redis_conf(app_secrets.read(store, app_secrets.REDIS_PASSWORD))),
            *secret(handed.redis_password(store)),
        ],
    }
