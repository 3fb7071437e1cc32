"""A size on RDS, Cloud SQL and Azure: units, limits, what can't be set, and that the same is meant everywhere."""

from __future__ import annotations

import json
import re
from decimal import Decimal

import pytest

from orcheo_db import render
from orcheo_db.effective import quantity
from orcheo_db.spec import Spec, SpecError, load_spec
from orcheo_db.tuning import catalogue, machine_size, pool_arithmetic, postgresql_settings
from orcheo_db.tuning.managed import SERVICES, Fitted, Service, fit, monthly
from orcheo_db.tuning.overrides import in_units
from tests.conftest import ROOT

SIZES = ("small", "medium", "large")
EVERY = [(service, size) for service in SERVICES.values() for size in SIZES]
IDS = [f"{service.key}-{size}" for service, size in EVERY]


@pytest.fixture(scope="module")
def spec() -> Spec:
    return load_spec(env={})


def fitted(service: Service, size: str, spec: Spec) -> Fitted:
    return fit(service, spec.size(size), spec)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("shared_buffers", "256MB", "32768"),
        ("effective_cache_size", "1GB", "131072"),
        ("work_mem", "4MB", "4096"),
        ("max_wal_size", "4GB", "4096"),
        ("checkpoint_timeout", "15min", "900"),
        ("idle_in_transaction_session_timeout", "5min", "300000"),
        ("autovacuum_naptime", "15s", "15"),
        ("autovacuum_vacuum_cost_delay", "2ms", "2"),
        ("track_activity_query_size", "4kB", "4096"),
        ("random_page_cost", "1.1", "1.1"),
        ("jit", "off", "off"),
        ("max_connections", "100", "100"),
    ],
)
def test_a_value_in_the_unit_of_pg_settings(name: str, value: str, expected: str) -> None:
    assert in_units(name, value) == expected


def test_what_postgresql_would_refuse_has_no_unit() -> None:
    with pytest.raises(ValueError, match="work_mem = 'much'"):
        in_units("work_mem", "much")


@pytest.mark.parametrize(("service", "size"), EVERY, ids=IDS)
def test_every_setting_is_set_or_said(service: Service, size: str, spec: Spec) -> None:
    """Nothing of the spec is lost on the way: it is a parameter, or in the list of what is not, with a reason."""
    found = fitted(service, size, spec)
    meant = {setting.name for setting in postgresql_settings(spec.size(size), spec)}
    put = {each.setting for each in found.parameters if each.setting}
    left = {each.setting for each in found.others if each.value is None}
    assert put | left == meant and not put & left
    assert all(each.reason for each in found.parameters) and all(each.why for each in found.others)
    assert len({each.name for each in found.parameters}) == len(found.parameters)


@pytest.mark.parametrize(("service", "size"), EVERY, ids=IDS)
def test_where_a_cloud_lets_one_the_value_is_the_stacks(service: Service, size: str, spec: Spec) -> None:
    """Parity: in whatever unit, each parameter means what postgresql.conf means, or stands in the list of differences."""
    found = fitted(service, size, spec)
    different = {each.setting for each in found.others}
    conf = {setting.name: setting.value for setting in postgresql_settings(spec.size(size), spec)}
    checked = 0
    for each in found.parameters:
        if each.setting is None or each.setting in different:
            continue
        meant = conf[each.setting]
        if each.setting in catalogue.BOOLEANS:
            assert each.value == service.on_off[0 if meant == "on" else 1], each
        elif each.setting in catalogue.NUMBERS:
            unit = catalogue.NUMBERS[each.setting][0] or None
            assert quantity(each.value, unit) == quantity(meant, unit), each
        else:
            assert each.value == meant, each
        checked += 1
    assert checked > 40


@pytest.mark.parametrize(("service", "size"), EVERY, ids=IDS)
def test_values_are_plain_and_within_limits(service: Service, size: str, spec: Spec) -> None:
    """No unit goes to a cloud's API, and nothing outside of what it, and PostgreSQL, take."""
    for each in fitted(service, size, spec).parameters:
        if each.setting in catalogue.NUMBERS:
            _, low, high = catalogue.NUMBERS[each.setting]
            low, high = service.limits.get(each.setting, (low, high))
            assert low <= Decimal(each.value) <= high, each
        if each.setting in catalogue.BOOLEANS:
            assert each.value in service.on_off


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_a_service_knows_only_settings_that_there_are(service: Service, spec: Spec) -> None:
    """A misspelt name would leave a setting in that the cloud refuses."""
    ours = {setting.name for setting in postgresql_settings(spec.size("small"), spec)}
    for names in (service.own, service.instead, service.limits, service.shares, service.renamed):
        assert set(names) <= ours
    assert not set(service.own) & (set(service.instead) | set(service.limits) | set(service.renamed))


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_forbidden_settings_are_not_asked_for(service: Service, spec: Spec) -> None:
    """What no managed service lets a customer set."""
    names = {each.name for each in fitted(service, "small", spec).parameters}
    forbidden = {
        "listen_addresses", "port", "hba_file", "ident_file", "ssl_cert_file", "ssl_key_file", "archive_mode", "archive_command", "logging_collector",
        "unix_socket_directories", "allow_alter_system", "superuser_reserved_connections",
    }  # fmt: skip
    assert not names & forbidden


def test_azure_is_not_asked_for_what_is_read_only_there(spec: Spec) -> None:
    """azure-databases-docs, param-17-*.md: ParameterType read-only, of what the spec sets elsewhere."""
    read_only = {
        "client_connection_check_interval", "maintenance_io_concurrency", "wal_keep_size", "synchronous_commit", "wal_level", "huge_pages",
        "max_slot_wal_keep_size", "superuser_reserved_connections", "reserved_connections", "log_line_prefix",
    }  # fmt: skip
    for size in SIZES:
        assert not read_only & {each.name for each in fitted(SERVICES["azure"], size, spec).parameters}


def test_cloud_sql_takes_a_share_of_the_machines_memory(spec: Spec) -> None:
    """effective_cache_size: at most 70 % (Cloud SQL's "Configure database flags"); small is below that and stays as it is."""
    for size in SIZES:
        found = fitted(SERVICES["cloudsql"], size, spec)
        given = {each.name: each.value for each in found.parameters}
        assert int(given["effective_cache_size"]) * 8192 <= 0.7 * found.machine.memory
        differs = any(each.setting == "effective_cache_size" for each in found.others)
        assert differs == (size != "small"), size


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_no_bind_value_comes_into_a_log(service: Service, spec: Spec) -> None:
    """They hold credentials, tokens and conversations: cut to nothing, or no statement is logged at all; and no plan has them."""
    given = {each.name: each.value for each in fitted(service, "small", spec).parameters}
    assert given.get("log_parameter_max_length") == "0" or given["log_min_duration_statement"] == "-1"
    assert "auto_explain" not in given.get("shared_preload_libraries", "") and not any(
        name.startswith("auto_explain.") for name in given
    )
    assert given["log_statement"] == "none"


def test_each_service_demands_tls_and_scram_or_does_so_by_itself(spec: Spec) -> None:
    rds = {each.name: each.value for each in fitted(SERVICES["rds"], "small", spec).parameters}
    assert rds["rds.force_ssl"] == "1" and rds["rds.accepted_password_auth_method"] == "scram"
    azure = {each.name: each.value for each in fitted(SERVICES["azure"], "small", spec).parameters}
    assert azure["require_secure_transport"] == "on"
    assert azure["azure.extensions"] == "PGCRYPTO,PG_STAT_STATEMENTS,PG_TRGM,UUID-OSSP"
    for service in SERVICES.values():
        given = {each.name: each.value for each in fitted(service, "small", spec).parameters}
        assert given["password_encryption"] == "scram-sha-256"


@pytest.mark.parametrize(("service", "size"), EVERY, ids=IDS)
def test_the_pools_fit_beside_what_the_service_reserves(service: Service, size: str, spec: Spec) -> None:
    given = {each.name: each.value for each in fitted(service, size, spec).parameters}
    budget = pool_arithmetic(spec, spec.size(size))
    assert budget.max_db_connections + budget.direct + service.reserved <= int(given["max_connections"])


@pytest.mark.parametrize(("service", "size"), EVERY, ids=IDS)
def test_the_machine_is_large_enough_and_none_is_cheaper(service: Service, size: str, spec: Spec) -> None:
    found, wanted = fitted(service, size, spec), spec.size(size)
    assert found.machine.memory >= wanted.memory and found.machine.cpus >= wanted.cpus
    for other in service.machines:
        if other.memory >= wanted.memory and other.cpus >= wanted.cpus:
            assert found.machine.price <= other.price


@pytest.mark.parametrize(("service", "size"), EVERY, ids=IDS)
def test_storage_holds_what_wal_may_take(service: Service, size: str, spec: Spec) -> None:
    conf = {setting.name: setting.value for setting in postgresql_settings(spec.size(size), spec)}
    wal = quantity(conf["max_wal_size"], None) + quantity(conf["max_slot_wal_keep_size"], None)
    assert wal * 2 <= fitted(service, size, spec).storage_gb << 30


def test_no_machine_is_large_enough(spec: Spec) -> None:
    with pytest.raises(SpecError, match="RDS has no class with that memory and 512 CPUs"):
        fit(SERVICES["rds"], machine_size("1TB", 512, "ssd"), spec)


def test_restart_is_what_postgresql_says(spec: Spec) -> None:
    """pg_settings.context = postmaster, of PostgreSQL 17.12 (catalogue.py's source), for the settings that are given to a cloud."""
    at_start = {
        "max_connections", "shared_buffers", "wal_buffers", "max_worker_processes", "max_locks_per_transaction", "autovacuum_max_workers",
        "shared_preload_libraries", "track_activity_query_size", "pg_stat_statements.max", "max_wal_senders", "max_replication_slots",
    }  # fmt: skip
    for service in SERVICES.values():
        for each in fitted(service, "medium", spec).parameters:
            if each.setting:
                # rds.py says why; a restart would change nothing, since the value is what it was.
                kept = service.key == "rds" and each.setting in {"TimeZone", "checkpoint_completion_target"}
                assert each.restart == (each.setting in at_start or kept), each


def test_the_cost_is_the_formula(spec: Spec) -> None:
    found = fitted(SERVICES["rds"], "small", spec)
    cost = monthly(found)
    assert cost.alone == 730 * found.machine.price + found.storage_gb * cost.prices.storage
    assert cost.highly_available == 2 * cost.alone
    assert cost.document()["date"] and "730 h" in cost.document()["formula"]


def test_the_modules_have_the_rendered_sizes(spec: Spec) -> None:
    files = {path: text for path, text in render.render(spec).items() if path.startswith("terraform/")}
    assert len(files) == 6
    for path, text in files.items():
        assert (ROOT / path).read_text() == text
        if path.endswith(".json"):
            assert set(json.loads(text)["sizes"]) == set(spec.sizes)


@pytest.mark.parametrize("module", ["aws-rds", "azure-flexible", "gcp-cloudsql"])
def test_a_modules_reference_has_all_of_it(module: str, spec: Spec) -> None:
    """Every variable, output, size and parameter has its line, and every setting that differs."""
    place = ROOT / "terraform" / "modules" / module
    text = render.render(spec)[f"terraform/modules/{module}/REFERENCE.md"]
    lines = [line.split(" | ")[0].removeprefix("| ").strip("`*") for line in text.splitlines() if line.startswith("| ")]
    named = {
        name
        for file in ("variables.tf", "outputs.tf")
        for name in re.findall(r'^(?:variable|output) "(\w+)"', (place / file).read_text(), re.M)
    }
    sizes = json.loads((place / "sizes.json").read_text())["sizes"]
    parameters = {name for size in sizes.values() for name in size["parameters"]}
    assert len(named) > 30 and len(parameters) > 40
    assert named | parameters | set(sizes) <= set(lines)
    settings = {setting.name for setting in postgresql_settings(spec.size("small"), spec)}
    assert settings - {"TimeZone"} <= set(lines), "what is no parameter is in the list of what differs"
