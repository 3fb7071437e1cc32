"""Checking the spec's own values of settings: known, of the right kind, not owned by another key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from orcheo_db.spec import Size, Spec, SpecError
from orcheo_db.tuning import catalogue

# What other parts of the product rely on; an override here would break them while looking like tuning.
_SECURITY = "is fixed: TLS, SCRAM and the files that the containers mount are not settings"
_BACKUP = "is the backups' own: see [backup]"
_OWNED = {
    "archive_command": _BACKUP,
    "archive_library": _BACKUP,
    "archive_mode": _BACKUP,
    "archive_timeout": "is the backups' own: set backup.archive_timeout instead",
    "config_file": _SECURITY,
    "data_directory": _SECURITY,
    "hba_file": _SECURITY,
    "ident_file": _SECURITY,
    "listen_addresses": _SECURITY,
    "password_encryption": _SECURITY,
    "port": "is fixed; the port for clients is stack.port",
    "ssl": _SECURITY,
    "ssl_ca_file": _SECURITY,
    "ssl_cert_file": _SECURITY,
    "ssl_key_file": _SECURITY,
    "unix_socket_directories": _SECURITY,
}
_OWNED_PGBOUNCER = {
    "auth_dbname": _SECURITY,
    "auth_file": _SECURITY,
    "auth_query": _SECURITY,
    "auth_type": _SECURITY,
    "auth_user": _SECURITY,
    "client_tls_ca_file": _SECURITY,
    "client_tls_cert_file": _SECURITY,
    "client_tls_key_file": _SECURITY,
    "client_tls_sslmode": _SECURITY,
    "listen_addr": _SECURITY,
    "listen_port": "is fixed; the port for clients is stack.port",
    "pool_mode": "is fixed: the pool arithmetic and the app's schema are for transaction pooling",
    "server_tls_ca_file": _SECURITY,
    "server_tls_sslmode": _SECURITY,
    "unix_socket_dir": _SECURITY,
}

# PostgreSQL 17, guc.c: memory_unit_conversion_table and time_unit_conversion_table; in bytes and in
# microseconds.
_MEMORY = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_TIME = {"us": 1, "ms": 1000, "s": 10**6, "min": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6}
_WORDS = ("on", "off", "true", "false", "yes", "no", "1", "0")
_NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*([A-Za-z]*)\s*", re.ASCII)

# PgBouncer settings whose value the pool arithmetic and other code read as a whole number.
_PGBOUNCER_COUNTS = re.compile(r"max_(?!packet).*|(?:default_|min_|reserve_)?pool_size|.*_timeout|.*_lifetime|.*_retry")


def check_overrides(size: Size, spec: Spec) -> None:
    """Check every setting that `size` and the spec give themselves.

    Raises:
        SpecError: the first one that PostgreSQL or PgBouncer would refuse or that is not the spec's to set.
    """
    _check(spec, f"sizes.{size.name}.settings", size.settings, allowed={"max_connections"})
    _check(spec, "settings", spec.settings)
    for name, value in spec.pgbouncer.items():
        key = f"{spec.source}: pgbouncer.{name}"
        if name not in catalogue.PGBOUNCER:
            raise SpecError(f"{key}: PgBouncer has no such setting; did you mean {_near(name, catalogue.PGBOUNCER)}?")
        if name in _OWNED_PGBOUNCER:
            raise SpecError(f"{key}: {_OWNED_PGBOUNCER[name]}")
        if _PGBOUNCER_COUNTS.fullmatch(name) and not re.fullmatch(r"[0-9]{1,9}", value):
            raise SpecError(f"{key} = {value!r}: expected a whole number")
        if name == "max_prepared_statements" and int(value) == 0 and spec.app.prepared_statements:
            raise SpecError(
                f"{key} = {value!r}: expected at least 1, because the app prepares its statements, or app.prepared_statements = false"
            )


def _check(
    spec: Spec, table: str, settings: Mapping[str, str], allowed: frozenset[str] | set[str] = frozenset()
) -> None:
    for name, value in settings.items():
        key = f"{spec.source}: {table}.{name}"
        if name not in catalogue.POSTGRESQL:
            near = _near(name, catalogue.POSTGRESQL)
            raise SpecError(f"{key}: PostgreSQL has no such setting; did you mean {near}?")
        if name in _OWNED:
            raise SpecError(f"{key}: {_OWNED[name]}")
        if name == "max_connections" and name not in allowed:
            raise SpecError(f"{key}: is a size's own key; set sizes.NAME.max_connections")
        if accepted := problem(name, value):
            raise SpecError(f"{key} = {value!r}: expected {accepted}")


def _near(name: str, names: frozenset[str]) -> str:
    """The name that was probably meant; letter case counts least (pg_settings says TimeZone)."""
    lower = {known.lower(): known for known in sorted(names)}
    return lower[difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.0)[0]]


def problem(name: str, value: str) -> str | None:
    """What PostgreSQL accepts for the setting `name` if `value` is not it, else None."""
    if name in catalogue.BOOLEANS:
        return None if value.lower() in _WORDS else "on or off"
    if name in catalogue.ENUMS:
        words = catalogue.ENUMS[name].split(",")
        # Hidden synonyms of on and off are accepted wherever both are among the words.
        accepted = {*(word.lower() for word in words), *(_WORDS if {"on", "off"} <= set(words) else ())}
        return None if value.lower() in accepted else f"one of {', '.join(words)}"
    if name in catalogue.NUMBERS:
        return _number_problem(name, value)
    return None


def _number_problem(name: str, value: str) -> str | None:
    unit, low, high = catalogue.NUMBERS[name]
    limits = f"from {low:.16g} to {high:.16g}" + (f" in units of {unit}" if unit else "")
    units = [each for table in (_MEMORY, _TIME) if _base(unit) in table for each in table]
    accepted = f"a number {limits}" + (f"; units: {', '.join(units)}" if units else "")
    if name not in catalogue.REALS and re.fullmatch(r"0[0-7]+", value):  # octal as in C: file modes
        return None if low <= int(value, 8) <= high else accepted
    match = _NUMBER.fullmatch(value)
    if match is None or (match[2] and match[2] not in units):
        return accepted
    number = float(match[1]) * _factor(match[2], unit)
    if name not in catalogue.REALS and not match[2] and number != int(number):
        return f"a whole number {limits}"
    return None if low <= round(number, 6) <= high else accepted


def in_units(name: str, value: str) -> str:
    """A setting's value in the unit that pg_settings has for it: shared_buffers 256MB is 32768 (pages of 8kB).

    What is no number stays as it is, and so does what has no unit.

    Raises:
        ValueError: the value is not one that PostgreSQL takes for it.
    """
    if name not in catalogue.NUMBERS:
        return value
    unit = catalogue.NUMBERS[name][0]
    match = _NUMBER.fullmatch(value)
    if match is None or problem(name, value):
        raise ValueError(f"{name} = {value!r}: not a value that PostgreSQL takes")
    if not match[2]:
        return value
    number = float(match[1]) * _factor(match[2], unit)
    return f"{number:.15g}"


def _base(unit: str) -> str:
    return unit.lstrip("0123456789")


def _factor(written: str, unit: str) -> float:
    """How many of the setting's units one of the written units is (none written: 1)."""
    if not written:
        return 1.0
    table = _MEMORY if written in _MEMORY else _TIME
    multiple = unit.removesuffix(_base(unit)) or "1"
    return table[written] / (int(multiple) * table[_base(unit)])
