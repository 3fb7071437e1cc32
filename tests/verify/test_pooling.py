"""PgBouncer: mode, limits, prepared statements, and data that survives whatever happens to the services."""

from __future__ import annotations

import threading
import time
import uuid

import psycopg
import pytest

from orcheo_db.targets.base import Target
from orcheo_db.tuning import pgbouncer_settings, pool_arithmetic


@pytest.fixture
def table(connect):
    """A table of the suite's own, in a schema of its own, made through PgBouncer."""
    name = f"verify_{uuid.uuid4().hex[:8]}"
    connect().execute(f"CREATE SCHEMA {name}; CREATE TABLE {name}.probe (id uuid PRIMARY KEY, note text)")
    yield f"{name}.probe"
    connect().execute(f"DROP SCHEMA {name} CASCADE")


def console(target: Target) -> dict[str, str]:
    with psycopg.connect(
        target.dsn("orcheo_monitor", database="pgbouncer"), autocommit=True, prepare_threshold=None
    ) as connection:
        cursor = psycopg.ClientCursor(connection)
        cursor.execute("SHOW CONFIG")
        return {row[0]: row[1] for row in cursor.fetchall()}


def test_pool_mode_and_limits(target: Target):
    shown, budget = console(target), pool_arithmetic(target.spec, target.size)
    assert shown["pool_mode"] == "transaction"
    assert int(shown["max_prepared_statements"]) > 0
    assert int(shown["max_client_conn"]) >= budget.app_client_connections
    mine = {setting.name: setting.value for setting in pgbouncer_settings(target.size, target.pooler_spec)}
    assert shown["max_db_connections"] == mine["max_db_connections"]
    assert int(shown["max_db_connections"]) <= budget.max_db_connections
    assert shown["auth_type"] == "scram-sha-256"
    assert shown["client_tls_sslmode"] == "require"
    assert shown["server_tls_sslmode"] == "verify-full"


def test_every_rendered_setting_is_in_force(target: Target):
    shown, managed = console(target), target.facts().managed_server
    meant = target.meant_pooler_settings()
    if not managed:  # how a server that is not ours is reached and asked differs
        for name in ("auth_query", "auth_dbname", "auth_user", "server_tls_ca_file"):
            meant.pop(name)
    assert len(meant) > 40
    assert {name: shown.get(name) for name in meant} == meant


def test_transactions_share_server_connections(connect):
    """Thirty clients that are idle between transactions need few server connections."""
    clients = [connect() for _ in range(30)]
    pids = {client.execute("SELECT pg_backend_pid()").fetchone()[0] for client in clients}
    assert len(pids) < 30


@pytest.mark.parametrize("threshold", [0, 1, 5])
def test_prepared_statements_across_transactions(target: Target, table, threshold):
    """Each client prepares (0 = at first use), and its statements meet whichever server connection is free."""
    errors: list[Exception] = []

    def client(number: int) -> None:
        try:
            with psycopg.connect(target.dsn(), prepare_threshold=threshold) as connection:
                for turn in range(25):
                    key = uuid.uuid4()
                    connection.execute(f"INSERT INTO {table} VALUES (%s, %s)", (key, f"{number}-{turn}"))
                    connection.commit()
                    found = connection.execute(f"SELECT note FROM {table} WHERE id = %s", (key,)).fetchone()
                    connection.commit()
                    assert found == (f"{number}-{turn}",)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with psycopg.connect(target.dsn()) as connection:
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (200,)


def wait_until_served(target: Target, seconds: float = 60) -> float:
    """Seconds until an app is served again."""
    started = time.monotonic()
    while True:
        try:
            with psycopg.connect(target.dsn(), connect_timeout=3) as connection:
                connection.execute("SELECT 1")
            return time.monotonic() - started
        except psycopg.OperationalError:
            assert time.monotonic() - started < seconds, "not served again in time"
            time.sleep(0.3)


def acknowledged_writes(target: Target, table: str, stop: threading.Event, keys: list[uuid.UUID]) -> None:
    """Write until told to stop; only keys whose commit was acknowledged are noted. Broken connections are replaced."""
    while not stop.is_set():
        try:
            with psycopg.connect(target.dsn(), connect_timeout=3) as connection:
                while not stop.is_set():
                    key = uuid.uuid4()
                    connection.execute(f"INSERT INTO {table} VALUES (%s, 'load')", (key,))
                    connection.commit()
                    keys.append(key)
        except psycopg.Error:  # a cut in mid-BEGIN is an InternalError ("received 2 results"); nothing was acknowledged
            time.sleep(0.1)


def fault(target: Target, kind: str) -> None:
    """Inflict a fault as the world does. `kind` names what happens."""
    if kind == "kill -9 of the server":
        target.kill("postgres")
    elif kind == "kill -9 of a backend":
        query = "SELECT pid FROM pg_stat_activity WHERE usename = 'orcheo_app_a' LIMIT 1"
        pid = target.run("postgres", ["psql", "-XAtqc", query]).stdout.strip()
        assert pid, "no backend of the load to kill"
        assert target.run("postgres", ["bash", "-c", f"kill -9 {pid}"]).code == 0
    elif kind == "restart of the server":
        target.restart("postgres")
    elif kind == "restart of PgBouncer":
        target.restart("pgbouncer")
    else:
        raise AssertionError(kind)


@pytest.mark.disruptive
@pytest.mark.parametrize(
    "kind", ["kill -9 of the server", "kill -9 of a backend", "restart of the server", "restart of PgBouncer"]
)
def test_no_acknowledged_write_is_lost(target: Target, table, kind):
    if not target.facts().managed_server and "PgBouncer" not in kind:
        pytest.skip("the server is not ours to kill")
    stop = threading.Event()
    keys: list[uuid.UUID] = []
    writer = threading.Thread(target=acknowledged_writes, args=(target, table, stop, keys))
    writer.start()
    try:
        while len(keys) < 50:
            time.sleep(0.05)
        fault(target, kind)
        wait_until_served(target)
        at_return = len(keys)
        deadline = time.monotonic() + 30
        while len(keys) < at_return + 50 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(keys) >= at_return + 50, "the load did not go on after the fault"
    finally:
        stop.set()
        writer.join()
    with psycopg.connect(target.dsn()) as connection:
        stored = {row[0] for row in connection.execute(f"SELECT id FROM {table}")}
    assert set(keys) <= stored, f"{len(set(keys) - stored)} acknowledged writes are missing"
