"""The app's environment, made inside its process from `app.json` and the secret files (standard library only)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from orcheo_db.errors import UserError

CONFIG = Path("/etc/orcheo-db/app.json")
SECRETS = Path("/run/orcheo-db/secrets")

# The app's variable -> the secret file that it comes from (`secrets.APP_SECRETS` of the toolkit makes them).
SECRET_VARIABLES = {
    "ORCHEO_VAULT_ENCRYPTION_KEY": "vault.key",
    "ORCHEO_AUTH_BOOTSTRAP_SERVICE_TOKEN": "bootstrap.token",
    "ORCHEO_AUTH_JWT_SECRET": "jwt.secret",
    "ORCHEO_CHATKIT_TOKEN_SIGNING_KEY": "chatkit.key",
}
REDIS_PASSWORD = "redis.password"  # noqa: S105 - a file's name


@dataclass(frozen=True)
class AppConfig:
    """`app.json`: everything about the app that is no secret.

    dsn: the database without a password; login: whose password file completes it; redis: host:port; environment: the app's
    variables; prepared_statements: false behind a pooler that can't take them.
    """

    dsn: str
    login: str
    redis: str
    backend_processes: int
    worker_processes: int
    prepared_statements: bool
    environment: Mapping[str, str]


def read_config(path: Path = CONFIG) -> AppConfig:
    """The mounted configuration.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return AppConfig(**document)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} can't be used ({error}): run `make up WITH=app`, which writes it") from None


def secret(name: str, directory: Path = SECRETS) -> str:
    """One secret's text.

    Raises:
        UserError: the file is missing, unreadable or empty.
    """
    try:
        text = (directory / name).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(
            f"can't read {directory / name} ({error.strerror}): run `make up WITH=app`, which mounts it"
        ) from None
    if not text:
        raise UserError(f"{directory / name} is empty: put it back from your copy of the state directory")
    return text


def complete_dsn(dsn: str, password: str) -> str:
    """The URI `dsn` (postgresql://LOGIN@HOST…) with its password."""
    parts = urlsplit(dsn)
    login, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{login}:{quote(password, safe='')}@{host}"))


def environment(config: AppConfig, directory: Path = SECRETS) -> dict[str, str]:
    """Every variable that the app gets, secrets among them.

    Raises:
        UserError: a secret is missing.
    """
    redis = f"redis://:{quote(secret(REDIS_PASSWORD, directory), safe='')}@{config.redis}/0"
    return {
        **config.environment,
        **{variable: secret(name, directory) for variable, name in SECRET_VARIABLES.items()},
        "ORCHEO_POSTGRES_DSN": complete_dsn(config.dsn, secret(f"{config.login}.password", directory)),
        "REDIS_URL": redis,  # Celery's, read from the environment
        "ORCHEO_REDIS_URL": redis,  # the backend's rate limits, read through its settings
    }


def apply(config: AppConfig, into: MutableMapping[str, str] = os.environ, directory: Path = SECRETS) -> None:
    """Put the app's environment into this process (os.environ: the one it was started with stays without secrets)."""
    into.update(environment(config, directory))
