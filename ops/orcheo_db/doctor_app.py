"""`doctor`'s checks of Orcheo itself, where it runs beside its database."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import psycopg
from psycopg.rows import dict_row

from orcheo_db import app_lifecycle, app_secrets
from orcheo_db.checks import Check
from orcheo_db.database import connect
from orcheo_db.targets.base import Target
from orcheo_db.tuning import pool_arithmetic

LONGEST_WAIT = 10  # seconds; the app gives up after its pool_timeout of 30
RUNNING_HOURS = 24  # Orcheo has no limit of its own; a run that was cut off stays so for ever
WAITING_MINUTES = 10  # a task that a killed worker held comes back after five; what waits longer has lost its task


def app_checks() -> Iterator[tuple[str, Callable[[str, Target], Check]]]:
    """Every check: its name and the function that makes it."""
    yield "app answers from the database", _api
    yield "app's connections", _connections
    yield "vault key", _vault
    yield "runs waiting", _waiting


def _api(name: str, target: Target) -> Check:
    url = f"{target.app_url()}/api/workspaces/me"
    token = app_secrets.read(target.store, app_secrets.BOOTSTRAP_TOKEN)
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - http on loopback
    remedy = f"run `{target.up_command} WITH=app`, look into `docker logs {target.project}-backend-1`"
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - a fixed http URL on loopback
            count = len(json.load(response)["memberships"])
    except urllib.error.HTTPError as error:
        return Check(name, False, f"{url} answers {error.code}", remedy)
    except (OSError, ValueError, KeyError) as error:
        return Check(name, False, f"{url} does not answer as it should: {error}", remedy)
    return Check(name, True, f"{url}: {count} workspace{'' if count == 1 else 's'} of the bootstrap token")


def _connections(name: str, target: Target) -> Check:
    """The app's connections as they are now: clients that PgBouncer lets wait, or its share of PostgreSQL's."""
    budget, app = pool_arithmetic(target.spec, target.size), target.spec.app
    may = (
        f"{app.backend_processes} backend ({budget.clients_per_backend} each) and {app.worker_processes} worker processes"
        f" ({budget.clients_per_worker} each) may open {budget.app_client_connections}"
    )
    remedy = "lower the processes or pool sizes of [app] in ops/spec.toml, or take a larger size; `make render up`"
    if app.via == "postgres":
        with connect(target.dsn("orcheo_monitor", direct=True), timeout=10) as connection:
            row = connection.execute(
                "SELECT count(*), current_setting('max_connections')::int FROM pg_stat_activity"
            ).fetchone()
        assert row is not None
        free = row[1] - budget.reserved - budget.superuser_reserved
        return Check(name, row[0] < free, f"{row[0]} of {free} connections of PostgreSQL in use; {may}", remedy)
    with psycopg.connect(
        target.dsn("orcheo_monitor", database="pgbouncer"), autocommit=True, prepare_threshold=None, connect_timeout=10
    ) as connection:
        cursor = psycopg.ClientCursor(connection, row_factory=dict_row)
        pools = cursor.execute("SHOW POOLS").fetchall()
    clients = sum(pool["cl_active"] + pool["cl_waiting"] for pool in pools)
    longest = max((pool["maxwait"] for pool in pools), default=0)
    found = (
        f"{clients} of {budget.max_client_conn} clients at PgBouncer, the longest wait for a server {longest} s; {may}"
    )
    return Check(name, clients < budget.max_client_conn and longest < LONGEST_WAIT, found, remedy)


def _vault(name: str, target: Target) -> Check:
    found = app_lifecycle.count_credentials(target, app_secrets.read(target.store, app_secrets.VAULT_KEY))
    opened = found["credentials"] - found["unreadable"]
    return Check(
        name,
        not found["unreadable"],
        f"opens {opened} of {found['credentials']} credentials",
        f"give the key that they were made with: {app_secrets.KEY_VARIABLE}=… {target.up_command} WITH=app",
    )


def _waiting(name: str, target: Target) -> Check:
    with connect(target.dsn(), timeout=10) as connection:
        row = connection.execute(
            "SELECT count(*) FILTER (WHERE status = 'pending' AND created_at < now() - make_interval(mins => %s)),"
            " count(*) FILTER (WHERE status = 'running' AND updated_at < now() - make_interval(hours => %s))"
            " FROM workflow_runs WHERE status IN ('pending', 'running')",
            (WAITING_MINUTES, RUNNING_HOURS),
        ).fetchone()
    assert row is not None
    return Check(
        name,
        row[0] == row[1] == 0,
        f"{row[0]} runs pending for more than {WAITING_MINUTES} minutes, {row[1]} running for more than {RUNNING_HOURS} hours",
        "pending: the task never reached Redis, dispatch it again; running: its worker was killed in the middle, mark it by"
        " POST /api/runs/ID/fail and dispatch it again",
    )
