"""Health checks, light enough to run every few seconds (no import of the app).

The app's own /api/system/health never touches the database and says "ok" while every request fails, so the backend's check is
an authenticated call that reads from it.
"""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

from orcheo_db.errors import CheckFailed
from orcheo_db.runtime import processes, settings

# Lists the token's own workspaces: authenticated, answered from the database, and not under the per-workspace rate limit.
READINESS_PATH = "/api/workspaces/me"
TIMEOUT = 8.0  # seconds; Docker gives the whole check ten
HEARTBEAT_AGE = 30.0  # seconds; the worker beats every 2, and one that restores tasks may skip a few
BEAT_INTERVALS = 3.0  # beat publishes once an interval


def backend() -> str:
    """The API answers an authenticated call from the database.

    Raises:
        CheckFailed: it doesn't; with its own words.
    """
    token = settings.secret("bootstrap.token")
    request = urllib.request.Request(
        f"http://127.0.0.1:{processes.PORT}{READINESS_PATH}", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310
            document = json.load(response)
    except urllib.error.HTTPError as error:
        raise CheckFailed(f"the API answers {error.code} to {READINESS_PATH}") from None
    except (OSError, ValueError) as error:
        raise CheckFailed(f"the API does not answer: {error}") from None
    if "memberships" not in document:
        raise CheckFailed(f"the API answers {READINESS_PATH} with something else")
    return "the API answers from the database"


def _age(sign: Path) -> float:
    try:
        return time.time() - sign.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def worker() -> str:
    """The worker holds its broker connection, and the database answers.

    Raises:
        CheckFailed: one of them doesn't.
    """
    age = _age(processes.WORKER_SIGN)
    if age > HEARTBEAT_AGE:
        raise CheckFailed(f"no heartbeat of the worker for {age:.0f} s (is Redis there?)")
    return f"the worker beats; {database()}"


def database() -> str:
    """The app's login gets an answer from the database the way that the app goes.

    Raises:
        CheckFailed: it doesn't.
    """
    import psycopg  # noqa: PLC0415 - a fifth of a second that the other checks need not spend

    config = settings.read_config()
    dsn = settings.complete_dsn(config.dsn, settings.secret(f"{config.login}.password"))
    try:
        with psycopg.connect(dsn, connect_timeout=5, prepare_threshold=None) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise CheckFailed(f"the database does not answer: {' '.join(str(error).split())}") from None
    return "the database answers"


def beat() -> str:
    """Beat has handed out its task lately.

    Raises:
        CheckFailed: it hasn't.
    """
    # From the file: this is another process than beat, whose environment was made inside it.
    interval = float(settings.read_config().environment.get("ORCHEO_CRON_DISPATCH_INTERVAL", "60"))
    age = _age(processes.BEAT_SIGN)
    if age > BEAT_INTERVALS * interval:
        raise CheckFailed(f"beat has published nothing for {age:.0f} s (is Redis there?)")
    return f"beat published {age:.0f} s ago"


def redis() -> str:
    """Redis answers a client with the password, has its data loaded and can write its log.

    Raises:
        CheckFailed: it doesn't.
    """
    password = settings.secret(settings.REDIS_PASSWORD)
    try:
        with socket.create_connection(("127.0.0.1", 6379), timeout=5) as connection:
            connection.sendall(f"AUTH {password}\r\nINFO persistence\r\nQUIT\r\n".encode())
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
    except OSError as error:
        raise CheckFailed(f"Redis does not answer: {error}") from None
    text = answer.decode(errors="replace")
    for wanted in ("+OK", "loading:0", "aof_enabled:1", "aof_last_write_status:ok"):
        if wanted not in text:
            raise CheckFailed(f"Redis is not ready: no {wanted!r} in its answer")
    return "Redis answers and writes its log"


CHECKS = {"backend": backend, "worker": worker, "beat": beat, "redis": redis}
