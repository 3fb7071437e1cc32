"""`doctor`'s checks of Orcheo itself, where it runs beside its database."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

from orcheo_db import app_lifecycle, app_secrets
from orcheo_db.checks import Check
from orcheo_db.database import connect
from orcheo_db.targets.compose import ComposeTarget
from orcheo_db.tuning import pool_arithmetic

WAITING_MINUTES = 10  # a task that a killed worker held comes back after five; what waits longer has lost its task


def app_checks() -> Iterator[tuple[str, Callable[[str, ComposeTarget], Check]]]:
    """Every check: its name and the function that makes it."""
    yield "app answers from the database", _api
    yield "app's connections", _connections
    yield "vault key", _vault
    yield "runs waiting", _waiting


def _api(name: str, target: ComposeTarget) -> Check:
    url = f"{app_lifecycle.access(target)['url']}/api/workspaces/me"
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


def _connections(name: str, target: ComposeTarget) -> Check:
    """The app's connections that are open now, against what its pools may open."""
    budget = pool_arithmetic(target.spec, target.size)
    with connect(target.dsn("orcheo_monitor", direct=True), timeout=10) as connection:
        row = connection.execute(
            "SELECT count(*), current_setting('max_connections')::int FROM pg_stat_activity WHERE usename LIKE 'orcheo\\_app\\__'"
        ).fetchone()
    assert row is not None
    most = budget.max_db_connections if target.spec.app.via == "pgbouncer" else budget.app_client_connections
    found = (
        f"{row[0]} server connections open of at most {most}, max_connections {row[1]}; {target.spec.app.backend_processes} backend"
        f" ({budget.clients_per_backend} each) and {target.spec.app.worker_processes} worker processes ({budget.clients_per_worker}"
        f" each) may open {budget.app_client_connections} to {target.spec.app.via}"
    )
    return Check(
        name, row[0] <= most, found, "lower the processes or pool sizes of [app] in ops/spec.toml, `make render up`"
    )


def _vault(name: str, target: ComposeTarget) -> Check:
    found = app_lifecycle.count_credentials(target, app_secrets.read(target.store, app_secrets.VAULT_KEY))
    opened = found["credentials"] - found["unreadable"]
    return Check(
        name,
        not found["unreadable"],
        f"opens {opened} of {found['credentials']} credentials",
        f"give the key that they were made with: {app_secrets.KEY_VARIABLE}=… {target.up_command} WITH=app",
    )


def _waiting(name: str, target: ComposeTarget) -> Check:
    with connect(target.dsn(), timeout=10) as connection:
        row = connection.execute(
            "SELECT count(*) FROM workflow_runs WHERE status = 'pending' AND created_at < now() - make_interval(mins => %s)",
            (WAITING_MINUTES,),
        ).fetchone()
    assert row is not None
    return Check(
        name,
        row[0] == 0,
        f"{row[0]} runs pending for more than {WAITING_MINUTES} minutes",
        "their tasks never reached Redis (it was away when they were dispatched): dispatch those runs again",
    )
