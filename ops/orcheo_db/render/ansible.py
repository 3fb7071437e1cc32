"""ansible/roles/*/defaults/main/spec.yml: what the roles take from the spec. Everything else of their defaults is written by hand."""

from __future__ import annotations

from typing import Any

import yaml

from orcheo_db.render.backup import service
from orcheo_db.render.calendar import on_calendar
from orcheo_db.render.compose import HEADER, render_pg_hba
from orcheo_db.spec import Size, Spec, format_memory
from orcheo_db.tuning import STANZA, pgbouncer_settings, pool_arithmetic, postgresql_settings, user_pools
from orcheo_db.tuning.model import Setting

# Where a host's own layout decides (Debian's: one directory of configuration a cluster), or a variable of the role.
HOST = {
    "listen_addresses", "port", "unix_socket_directories", "unix_socket_permissions", "hba_file", "ident_file", "ssl_cert_file", "ssl_key_file",
    "log_destination", "logging_collector", "huge_pages",
}  # fmt: skip
POOLER_HOST = {
    "auth_file", "client_tls_cert_file", "client_tls_key_file", "client_tls_ca_file", "server_tls_ca_file", "listen_addr", "listen_port", "unix_socket_dir", "syslog",
}  # fmt: skip
# The first major version that knows it; the distributions that the roles are for have 14 to 17.
SINCE = {"reserved_connections": 16, "auto_explain.log_parameter_max_length": 16, "allow_alter_system": 17}
# An older version's value, where it has the setting and not the value.
OLDER = {"wal_compression": {"before": 15, "value": "on"}}
TIMERS = ("full", "differential", "incremental", "logical", "drill")


def render(spec: Spec) -> dict[str, str]:
    """The files: path relative to the repository -> text."""
    roles = {"postgres": _postgres(spec), "pgbouncer": _pgbouncer(spec), "pgbackrest": _pgbackrest(spec), "bootstrap": _bootstrap(spec)}  # fmt: skip
    return {f"ansible/roles/{name}/defaults/main/spec.yml": _text(found) for name, found in roles.items()}


def _text(found: dict[str, Any]) -> str:
    return f"{HEADER}---\n{yaml.dump(found, Dumper=_Dumper, sort_keys=False, width=150, allow_unicode=True)}"


class _Dumper(yaml.SafeDumper):
    """Lists a step in, as ansible-lint wants them."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        del indentless
        super().increase_indent(flow, indentless=False)


def _settings(settings: list[Setting], left_out: set[str]) -> list[dict[str, Any]]:
    found = []
    for setting in settings:
        if setting.name in left_out:
            continue
        entry: dict[str, Any] = {"name": setting.name, "value": setting.value, "why": setting.reason}
        if setting.name in SINCE:
            entry["since"] = SINCE[setting.name]
        if setting.name in OLDER:
            entry["older"] = dict(OLDER[setting.name])
        found.append(entry)
    return found


def _postgres(spec: Spec) -> dict[str, Any]:
    return {
        "postgres_spec_version": spec.versions.postgresql,
        "postgres_locale_provider": spec.cluster.locale_provider,
        "postgres_locale": spec.cluster.locale,
        "postgres_stanza": STANZA,
        "postgres_database": spec.database.name,
        "postgres_hba_lines": [line for line in render_pg_hba(spec).splitlines() if line and not line.startswith("#")],
        "postgres_sizes": {size.name: _size(size, spec) for size in spec.sizes.values()},
    }


def _size(size: Size, spec: Spec) -> dict[str, Any]:
    return {
        "memory": format_memory(size.memory),
        "cpus": size.cpus,
        "settings": _settings(postgresql_settings(size, spec), HOST),
    }


def _pgbouncer(spec: Spec) -> dict[str, Any]:
    sizes = {}
    for size in spec.sizes.values():
        budget = pool_arithmetic(spec, size)
        sizes[size.name] = {
            "about": str(budget),
            "files": 2 * (budget.max_client_conn + budget.max_db_connections),
            "users": dict(user_pools(size, spec).items()),
            "settings": _settings(pgbouncer_settings(size, spec), POOLER_HOST),
        }
    return {
        "pgbouncer_database": spec.database.name,
        "pgbouncer_sizes": sizes,
    }


def _pgbackrest(spec: Spec) -> dict[str, Any]:
    backup = spec.backup
    schedule = backup.schedule.model_dump()
    told = service(spec, "")
    del told["installation_id"]  # each installation's own: it lies with the secrets
    return {
        "pgbackrest_stanza": STANZA,
        "pgbackrest_processes": backup.processes,
        "pgbackrest_compress_level": backup.compress_level,
        "pgbackrest_wal_queue_max": format_memory(backup.wal_queue_max),
        "pgbackrest_retention_full": backup.retention.full,
        "pgbackrest_retention_differential": backup.retention.differential,
        "pgbackrest_timers": {name: on_calendar(schedule[name]) for name in TIMERS},
        "pgbackrest_service": told,  # backup.json; the role puts the host's PostgreSQL into it
    }


def _bootstrap(spec: Spec) -> dict[str, Any]:
    return {
        "bootstrap_database": spec.database.name,
        "bootstrap_extensions": list(spec.database.extensions),
        "bootstrap_orcheo_version": spec.versions.orcheo,
        "bootstrap_orcheo_backend_version": spec.versions.orcheo_backend,
        "bootstrap_uv_version": spec.versions.uv,
    }
