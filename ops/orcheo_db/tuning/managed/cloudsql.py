"""Google Cloud SQL for PostgreSQL 17: database flags.

From Cloud SQL's "Configure database flags" as public validators repeat it; a real project was not at hand, so what is in none of them is left to the
service: Cloud SQL refuses an instance with one flag that it does not know. Each flag's unit is pg_settings', each boolean on or off.
"""

from __future__ import annotations

from decimal import Decimal

from orcheo_db.tuning.managed import common
from orcheo_db.tuning.managed.model import Machine, Prices, Service

VCPU, GIGABYTE = Decimal("0.0413"), Decimal("0.007")  # an hour, edition Enterprise, us-central1
NO_VALUES = (
    "off, because Cloud SQL has no flag log_parameter_max_length: the log of a slow statement would hold its bind values, which are credentials and"
    " conversations. Query Insights shows slow statements without them"
)


def _custom(cpus: int, mebibytes: int) -> Machine:
    """A machine of any shape: up to 6.5 GB a CPU, multiples of 256 MB, at least 3.75 GB; an even number of CPUs."""
    price = cpus * VCPU + Decimal(mebibytes) / 1024 * GIGABYTE
    return Machine(f"db-custom-{cpus}-{mebibytes}", mebibytes << 20, cpus, price)


CLOUDSQL = Service(
    key="cloudsql",
    title="Cloud SQL",
    on_off=("on", "off"),
    own={
        **common.FILES,
        **common.PLANS,
        "port": "always 5432",
        "superuser_reserved_connections": "Cloud SQL keeps 3 for itself",
        "reserved_connections": "Cloud SQL has no such flag",
        "huge_pages": "Cloud SQL uses huge pages where the machine has the memory for them",
        "wal_level": "replica by itself; logical by cloudsql.logical_decoding",
        "wal_keep_size": "Cloud SQL has no such flag",
        "max_slot_wal_keep_size": "Cloud SQL has no such flag: a replica that is gone is to be deleted before storage has grown",
        "maintenance_io_concurrency": "Cloud SQL has no such flag",
        "autovacuum_vacuum_insert_scale_factor": "Cloud SQL has no such flag: run history is frozen after a fifth more rows, not a twentieth",
        "client_connection_check_interval": "Cloud SQL has no such flag: a long query whose client has gone runs to its end",
        "allow_alter_system": common.ALTER_SYSTEM,
        "ssl_min_protocol_version": "TLSv1.2 already",
        "log_line_prefix": "Cloud SQL's own: time, process, database, user",
        "log_parameter_max_length": "Cloud SQL has no such flag: see log_min_duration_statement",
        "log_parameter_max_length_on_error": "0 already",
        "log_replication_commands": "replication is Cloud SQL's own affair",
        "shared_preload_libraries": "pg_stat_statements is always loaded; others are by cloudsql.enable_…",
        "compute_query_id": "auto: pg_stat_statements turns it on",
        "lc_messages": common.MESSAGES,
        "default_text_search_config": common.TEXT_SEARCH,
        "pg_stat_statements.save": "on already",
    },
    restart=common.POSTMASTER,
    reserved=3,
    instead={"log_min_duration_statement": ("-1", NO_VALUES)},
    limits={
        "max_worker_processes": (8, 262143),
        "max_wal_senders": (10, 262143),
        "max_replication_slots": (10, 262143),
    },
    shares={"effective_cache_size": 0.7},
    renamed={"TimeZone": "timezone"},
    machines=(
        _custom(2, 3840),
        _custom(2, 8192),
        _custom(4, 8192),
        _custom(4, 16384),
        _custom(8, 32768),
        _custom(16, 65536),
        _custom(32, 131072),
    ),
    # As on RDS; more gigabytes are more operations a second (30 each).
    storage_gb={"small": 50, "medium": 100, "large": 400},
    prices=Prices("us-central1", "2025-06", common.SOURCE, Decimal("0.17"), Decimal("0.08"), Decimal(2)),
)
