"""Tuning: the plan's values to the letter, sane numbers for any machine, sums that hold, overrides."""

from __future__ import annotations

import dataclasses
import math
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcheo_db.spec import Size, Spec, SpecError, load_spec, parse_memory
from orcheo_db.tuning import (
    DDL_LOCK_TIMEOUT,
    catalogue,
    container_limits,
    machine_size,
    pgbouncer_settings,
    pool_arithmetic,
    postgresql_settings,
)
from orcheo_db.tuning.overrides import problem

SPEC = load_spec(env={})
MB, GB = 1 << 20, 1 << 30

# The migration plan's section 4.2, to the letter.
PLAN = """
max_connections = 100
shared_buffers = 256MB
effective_cache_size = 1GB
maintenance_work_mem = 64MB
checkpoint_completion_target = 0.9
wal_buffers = 16MB
default_statistics_target = 100
random_page_cost = 1.1
effective_io_concurrency = 200
work_mem = 4MB
min_wal_size = 1GB
max_wal_size = 4GB
max_worker_processes = 4
max_parallel_workers_per_gather = 2
max_parallel_workers = 4
"""

machines = st.builds(
    Size,
    name=st.just("any"),
    memory=st.integers(min_value=512, max_value=2 << 20).map(lambda mb: f"{mb}MB"),
    cpus=st.integers(min_value=1, max_value=256),
    storage=st.sampled_from(["ssd", "hdd", "san"]),
    max_connections=st.integers(min_value=20, max_value=2000),
)


def values(size: Size, spec: Spec = SPEC) -> dict[str, str]:
    return {setting.name: setting.value for setting in postgresql_settings(size, spec)}


def changed(**tables: Any) -> Spec:
    """The committed spec with other [app], [stack], [settings] or [pgbouncer] values."""
    own = {name: getattr(SPEC, name).model_copy(update=tables.pop(name, {})) for name in ("app", "stack")}
    return SPEC.model_copy(update={**own, **tables})


def sized(name: str, **settings: str) -> Size:
    return SPEC.size(name).model_copy(update={"settings": settings})


# --- PostgreSQL ---


def test_small_is_the_plan_to_the_letter() -> None:
    plan = dict(line.split(" = ") for line in PLAN.split("\n") if line)
    assert len(plan) == 15
    assert {name: value for name, value in values(SPEC.size("small")).items() if name in plan} == plan
    assert SPEC.size("small").settings == plan


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "medium",
            {
                "shared_buffers": "2GB",
                "effective_cache_size": "6GB",
                "maintenance_work_mem": "512MB",
                "work_mem": "9MB",
                "max_wal_size": "8GB",
                "min_wal_size": "2GB",
                "max_parallel_workers": "4",
                "max_worker_processes": "8",
            },
        ),
        (
            "large",
            {
                "shared_buffers": "8GB",
                "effective_cache_size": "24GB",
                "maintenance_work_mem": "2GB",
                "work_mem": "19MB",
                "max_wal_size": "16GB",
                "min_wal_size": "4GB",
                "max_parallel_workers": "8",
                "max_worker_processes": "12",
            },
        ),
    ],
)
def test_computed_sizes(name: str, wanted: dict[str, str]) -> None:
    found = values(SPEC.size(name))
    assert {key: found[key] for key in wanted} == wanted


def test_storage_decides_the_disk_costs() -> None:
    found = {kind: values(machine_size("16GB", 8, kind)) for kind in ("ssd", "hdd", "san")}
    assert [found[kind]["random_page_cost"] for kind in found] == ["1.1", "4", "1.1"]
    assert [found[kind]["effective_io_concurrency"] for kind in found] == ["200", "2", "300"]


@given(machines)
def test_every_setting_is_one_postgresql_accepts_and_has_a_reason(size: Size) -> None:
    settings = postgresql_settings(size, SPEC)
    names = [setting.name for setting in settings]
    assert len(set(names)) == len(names)
    assert set(names) <= catalogue.POSTGRESQL
    for setting in settings:
        assert setting.reason, setting.name
        assert problem(setting.name, setting.value) is None, setting
    groups = [group for group, _ in groupby(settings, key=lambda setting: setting.group)]
    assert len(set(groups)) == len(groups), "a group is in one place"


@given(machines)
def test_memory_is_not_promised_twice(size: Size) -> None:
    found = values(size)
    shared, work = parse_memory(found["shared_buffers"]), parse_memory(found["work_mem"])
    workers = int(found["max_worker_processes"])
    autovacuum = int(found["autovacuum_max_workers"]) * parse_memory(found["autovacuum_work_mem"])
    assert shared <= size.memory // 4
    assert parse_memory(found["effective_cache_size"]) <= size.memory * 3 // 4
    assert parse_memory(found["maintenance_work_mem"]) <= size.memory // 16
    assert work >= 64 * 1024
    if work > 64 * 1024:  # PostgreSQL's least; where it is too much, the arithmetic of the pools says so
        assert work * (size.max_connections + workers) * 3 <= size.memory - shared
    assert autovacuum <= max(size.memory // 8, int(found["autovacuum_max_workers"]) * 16 * MB)
    assert parse_memory(found["wal_buffers"]) <= 16 * MB


@given(machines)
def test_counts_fit_into_each_other(size: Size) -> None:
    found = {name: value for name, value in values(size).items() if value.isdigit()}
    count = {name: int(value) for name, value in found.items()}
    assert count["max_parallel_workers_per_gather"] <= count["max_parallel_workers"] < count["max_worker_processes"]
    assert count["max_parallel_maintenance_workers"] <= count["max_parallel_workers"]
    assert count["superuser_reserved_connections"] + count["reserved_connections"] < count["max_connections"]


@given(machines, st.integers(min_value=0, max_value=1 << 20))
def test_more_memory_never_gives_less(size: Size, more: int) -> None:
    bigger = size.model_copy(update={"memory": size.memory + more * MB})
    small, big = values(size), values(bigger)
    memory = [
        name for name in small if name.endswith(("_mem", "_buffers", "_cache_size", "_wal_size", "wal_keep_size"))
    ]
    assert len(memory) >= 9
    for name in memory:
        assert parse_memory(small[name]) <= parse_memory(big[name]), name


@given(machines, st.integers(min_value=1, max_value=100))
def test_more_connections_never_give_more_work_mem(size: Size, more: int) -> None:
    busier = size.model_copy(update={"max_connections": size.max_connections + more})
    assert parse_memory(values(busier)["work_mem"]) <= parse_memory(values(size)["work_mem"])


def test_nothing_that_logs_or_keeps_passwords() -> None:
    found = values(SPEC.size())
    assert found["log_statement"] == "none"
    assert found["pg_stat_statements.track_utility"] == "off"
    for name in (
        "log_parameter_max_length",
        "log_parameter_max_length_on_error",
        "auto_explain.log_parameter_max_length",
    ):
        assert found[name] == "0"


@pytest.mark.parametrize("name", ["small", "medium", "large"])
def test_security_is_the_same_in_every_size(name: str) -> None:
    found = values(SPEC.size(name))
    assert (found["ssl"], found["ssl_min_protocol_version"], found["password_encryption"]) == (
        "on",
        "TLSv1.2",
        "scram-sha-256",
    )
    assert found["hba_file"] == "/etc/orcheo-db/pg_hba.conf"
    assert found["shared_preload_libraries"] == "pg_stat_statements,auto_explain"
    assert (found["wal_level"], found["synchronous_commit"], found["wal_compression"]) == (
        "replica",
        "on",
        "lz4",
    )
    assert (found["lock_timeout"], found["statement_timeout"], found["huge_pages"], found["jit"]) == (
        "0",
        "0",
        "off",
        "off",
    )
    assert "fsync" not in found
    assert "full_page_writes" not in found


def test_ddl_lock_timeout_is_a_time_postgresql_understands() -> None:
    assert problem("lock_timeout", DDL_LOCK_TIMEOUT) is None


# --- Overrides ---


def test_a_sizes_own_value_wins_over_the_specs_which_wins_over_the_computed() -> None:
    spec = changed(settings={"work_mem": "8MB", "geqo": "off"})
    by_name = {setting.name: setting for setting in postgresql_settings(sized("medium"), spec)}
    assert (by_name["work_mem"].value, by_name["work_mem"].reason) == (
        "8MB",
        "set in the spec's [settings] (else 9MB)",
    )
    assert (by_name["geqo"].value, by_name["geqo"].reason) == ("off", "set in the spec's [settings]")
    by_name = {setting.name: setting for setting in postgresql_settings(sized("medium", work_mem="16MB"), spec)}
    reason = "set for size medium (else 9MB); wins over the spec's [settings], which say 8MB"
    assert (by_name["work_mem"].value, by_name["work_mem"].reason) == ("16MB", reason)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "max_conections",
            "9",
            "settings.max_conections: PostgreSQL has no such setting; did you mean max_connections?",
        ),
        (
            "work_mem",
            "4 gallons",
            "settings.work_mem = '4 gallons': expected a number from 64 to 2147483647 in units of kB; unit",
        ),
        ("work_mem", "4mb", "settings.work_mem = '4mb': expected a number from 64"),
        ("work_mem", "1kB", "settings.work_mem = '1kB': expected a number from 64"),
        ("work_mem", "1.5", "settings.work_mem = '1.5': expected a whole number"),
        (
            "checkpoint_timeout",
            "10s",
            "settings.checkpoint_timeout = '10s': expected a number from 30 to 86400 in units of s",
        ),
        ("random_page_cost", "cheap", "settings.random_page_cost = 'cheap': expected a number from 0"),
        ("log_checkpoints", "maybe", "settings.log_checkpoints = 'maybe': expected on or off"),
        ("wal_level", "full", "settings.wal_level = 'full': expected one of minimal, replica, logical"),
        (
            "unix_socket_permissions",
            "7777",
            "settings.unix_socket_permissions = '7777': expected a number from 0 to 511",
        ),
        ("ssl", "off", "settings.ssl: is fixed"),
        ("port", "5433", "settings.port: is fixed; the port for clients is stack.port"),
        (
            "max_connections",
            "50",
            "settings.max_connections: is a size's own key; set sizes.NAME.max_connections",
        ),
        ("timezone", "UTC", "settings.timezone: PostgreSQL has no such setting; did you mean TimeZone?"),
    ],
)
def test_a_setting_that_postgresql_would_refuse(name: str, value: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        postgresql_settings(SPEC.size("medium"), changed(settings={name: value}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_setting_of_a_size_names_the_size() -> None:
    with pytest.raises(SpecError, match=r"^ops/spec\.toml: sizes\.medium\.settings\.shared_buffers = 'big': expected"):
        postgresql_settings(sized("medium", shared_buffers="big"), SPEC)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("work_mem", "0.5MB"),
        ("work_mem", "4096"),
        ("wal_buffers", "-1"),
        ("log_temp_files", "-1"),
        ("checkpoint_timeout", "1h"),
        ("autovacuum_vacuum_cost_delay", "0.5ms"),
        ("autovacuum_vacuum_cost_delay", "500us"),
        ("huge_pages", "try"),
        ("wal_compression", "true"),
        ("unix_socket_permissions", "0770"),
        ("max_wal_size", "1TB"),
        ("seq_page_cost", ".5"),
        ("jit", "yes"),
        ("search_path", "anything, goes"),
    ],
)
def test_values_that_postgresql_accepts(name: str, value: str) -> None:
    assert problem(name, value) is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "max_client_con",
            "9",
            "pgbouncer.max_client_con: PgBouncer has no such setting; did you mean max_client_conn?",
        ),
        ("max_client_conn", "many", "pgbouncer.max_client_conn = 'many': expected a whole number"),
        ("query_wait_timeout", "1min", "pgbouncer.query_wait_timeout = '1min': expected a whole number"),
        ("auth_type", "trust", "pgbouncer.auth_type: is fixed"),
        ("client_tls_sslmode", "allow", "pgbouncer.client_tls_sslmode: is fixed"),
        ("pool_mode", "session", "pgbouncer.pool_mode: is fixed"),
        ("max_prepared_statements", "0", "pgbouncer.max_prepared_statements = '0': expected at least 1"),
    ],
)
def test_a_setting_that_pgbouncer_would_refuse(name: str, value: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        pgbouncer_settings(SPEC.size(), changed(pgbouncer={name: value}))
    assert str(caught.value).startswith(f"ops/spec.toml: {message}")


# --- Pools ---


def test_the_apps_pools_of_the_default_release() -> None:
    budget = pool_arithmetic(SPEC, SPEC.size())
    assert len(budget.clients_by_store) == 14
    assert budget.clients_per_backend == 8 * 20 + 6 * 10 == 220
    assert budget.clients_per_worker == 5 * 20 + 10
    assert (budget.backends, budget.workers, budget.app_client_connections) == (1, 2, 220 + 2 * 110)


def test_past_the_pooler_the_apps_pools_must_fit_into_max_connections() -> None:
    direct = changed(app={"via": "postgres"}, stack={"parts": ["app"]})
    problems = pool_arithmetic(direct, SPEC.size()).problems
    assert len(problems) == 1 and "may open 440 connections" in problems[0] and "max_connections 100" in problems[0]
    assert (
        pool_arithmetic(direct, SPEC.size().model_copy(update={"max_connections": 600, "memory": 8 << 30})).problems
        == []
    )
    assert pool_arithmetic(changed(app={"via": "postgres"}), SPEC.size()).problems == []  # no app of ours


@pytest.mark.parametrize(("name", "app", "pooled"), [("small", 32, 70), ("medium", 64, 134), ("large", 128, 262)])
def test_the_pools_of_each_size(name: str, app: int, pooled: int) -> None:
    budget = pool_arithmetic(SPEC, SPEC.size(name))
    assert budget.problems == []
    assert (budget.max_client_conn, budget.app_pool, budget.max_db_connections) == (700, app, pooled)


@given(
    machines,
    st.integers(min_value=0, max_value=50),
    st.integers(min_value=0, max_value=50),
    st.integers(min_value=1, max_value=100),
)
def test_sums_hold_or_the_problem_is_named(size: Size, backends: int, workers: int, pool: int) -> None:
    spec = changed(app={"backend_processes": backends, "worker_processes": workers, "pool_max_size": pool})
    budget = pool_arithmetic(spec, size)
    clients = backends * (8 * pool + 60) + workers * (5 * pool + 10)
    assert budget.app_client_connections == clients
    assert budget.max_client_conn >= clients + (8 * pool + 60) + budget.other_clients
    assert budget.direct == sum(budget.direct_by_use.values())
    assert budget.max_db_connections == 2 * budget.app_pool + budget.read_only_pool + budget.monitor_pool
    servers = budget.max_db_connections + budget.direct + budget.reserved + budget.superuser_reserved
    if not budget.problems:
        assert servers <= size.max_connections
        assert budget.app_pool >= 14
        assert size.memory * 3 // 4 >= size.max_connections * 2 * MB
    assert all("\n" not in line for line in budget.problems)
    assert (servers > size.max_connections) == any("more than max_connections" in line for line in budget.problems)
    found = values(size, spec)
    assert int(found["reserved_connections"]) == budget.reserved
    assert int(found["superuser_reserved_connections"]) == budget.superuser_reserved


@given(machines)
def test_pgbouncer_takes_the_budgets_numbers(size: Size) -> None:
    budget, settings = pool_arithmetic(SPEC, size), pgbouncer_settings(size, SPEC)
    found = {setting.name: setting.value for setting in settings}
    assert len(found) == len(settings)
    assert set(found) <= catalogue.PGBOUNCER
    assert all(setting.reason for setting in settings)
    assert found["max_client_conn"] == str(budget.max_client_conn)
    assert found["default_pool_size"] == str(budget.app_pool)
    assert found["max_db_connections"] == str(budget.max_db_connections)


@pytest.mark.parametrize(
    ("change", "size", "words"),
    [
        (
            {"pgbouncer": {"max_client_conn": "600"}},
            "small",
            ["takes 600 clients", "220 connections each", "110 each", "may be 700"],
        ),
        (
            {"pgbouncer": {"max_db_connections": "90"}},
            "small",
            ["open 90 server", "22 direct, 3 reserved and 3", "max_connections 100"],
        ),
        ({"pgbouncer": {"max_db_connections": "0"}}, "small", ["any number of server connections"]),
        (
            {"pgbouncer": {"default_pool_size": "60"}},
            "small",
            ["open 126 server connections", "max_connections 100"],
        ),
        (
            {"pgbouncer": {"default_pool_size": "40", "max_db_connections": "60"}},
            "small",
            ["are 86, more than max_db_connections 60"],
        ),
        (
            {"pgbouncer": {"default_pool_size": "10"}},
            "small",
            ["10 server connections of max_connections 100", "14 stores"],
        ),
        ({"settings": {"reserved_connections": "50"}}, "small", ["9 server connections"]),
    ],
)
def test_each_problem_says_its_numbers(change: dict[str, Any], size: str, words: list[str]) -> None:
    (problem_line,) = pool_arithmetic(changed(**change), SPEC.size(size)).problems
    assert all(word in problem_line for word in words), problem_line


def test_more_connections_than_memory_are_named() -> None:
    budget = pool_arithmetic(SPEC, machine_size("512MB", 1, "ssd", 500))
    assert budget.problems == [
        "512MB of memory less a quarter for shared_buffers is under 2MB for each of 500 connections:"
        " lower max_connections or give more memory"
    ]


def test_a_budget_can_be_printed_and_made_json() -> None:
    budget = pool_arithmetic(SPEC, SPEC.size())
    assert str(budget).startswith(
        "440 client connections of 1 backend (220 each) and 2 worker processes (110 each) within 700; 70 pooled + 22 direct"
    )
    assert dataclasses.asdict(budget)["direct_by_use"] == budget.direct_by_use


# --- Machines ---


@pytest.mark.parametrize(
    ("memory", "connections"), [("2GB", 100), ("8GB", 200), ("31GB", 200), ("32GB", 400), (16 * GB, 200)]
)
def test_a_machine_gets_connections_by_its_memory(memory: str | int, connections: int) -> None:
    size = machine_size(memory, 4, "ssd")
    assert (size.name, size.max_connections) == ("custom", connections)
    assert pool_arithmetic(SPEC, size).problems == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("16", 8, "ssd"), "machine: memory = '16': expected a size such as 512MB"),
        (("1MB", 8, "ssd"), "machine: memory = '1MB': expected"),
        (("16GB", 0, "ssd"), "machine: cpus = 0: expected a whole number of cores from 1 to 1024"),
        (("16GB", 8, "tape"), "machine: storage = 'tape': expected one of ssd, hdd, san"),
        (
            ("16GB", 8, "ssd", 3),
            "machine: max_connections = 3: expected a whole number of connections from 20 to 10000",
        ),
    ],
)
def test_a_bad_machine(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        machine_size(*arguments)
    assert str(caught.value).startswith(message)


@given(machines)
def test_container_limits(size: Size) -> None:
    limits, budget = container_limits(size, SPEC), pool_arithmetic(SPEC, size)
    assert limits.postgres == size.memory
    assert 256 * MB <= limits.shm <= max(256 * MB, size.memory // 8)
    assert limits.pgbouncer >= 64 * MB + 64 * 1024 * (budget.max_client_conn + budget.max_db_connections)
    assert math.gcd(limits.pgbouncer, 64 * MB) == 64 * MB
