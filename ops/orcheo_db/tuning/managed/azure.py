"""Azure Database for PostgreSQL 17, flexible server: server parameters.

From Azure's list of server parameters (azure-databases-docs, param-17-*.md); a real subscription was not at hand, so what is read-only there, or may
be, is left to the service. Each parameter's unit is pg_settings', each boolean on or off.
"""

from __future__ import annotations

from decimal import Decimal

from orcheo_db.tuning.managed import common
from orcheo_db.tuning.managed.model import GB, Machine, Prices, Service

AZURE = Service(
    key="azure",
    title="Azure",
    on_off=("on", "off"),
    own={
        **common.FILES,
        **common.PLANS,
        "port": "always 5432 (6432 is Azure's own PgBouncer, which is not used: it has no pools by login)",
        "superuser_reserved_connections": "Azure keeps 10 for itself, and counts them in max_connections",
        "reserved_connections": "Azure's own, 5",
        "huge_pages": "Azure's own, try",
        "wal_level": "replica by itself",
        "max_wal_senders": "Azure's own are as many",
        "max_replication_slots": "Azure's own are as many",
        "wal_keep_size": "read-only, 400 MB",
        "synchronous_commit": "read-only, on",
        "client_connection_check_interval": "read-only, 0: a long query whose client has gone runs to its end",
        "maintenance_io_concurrency": "read-only, 10",
        "max_slot_wal_keep_size": "Azure's own: it drops a slot before storage is full",
        "allow_alter_system": common.ALTER_SYSTEM,
        "ssl_min_protocol_version": "TLSv1.2 already",
        "log_line_prefix": "Azure's own: time, process, and the columns of Log Analytics",
        "lc_messages": common.MESSAGES,
        "default_text_search_config": common.TEXT_SEARCH,
        "compute_query_id": "auto: pg_stat_statements turns it on",
        "pg_stat_statements.save": "on already",
        "log_replication_commands": "replication is Azure's own affair",
        "shared_preload_libraries": "pg_stat_statements is loaded already, beside what Azure itself needs",
    },
    restart=common.POSTMASTER,
    reserved=15,
    limits={"max_wal_size": (32, 65536), "maintenance_work_mem": (1024, 2097151), "max_worker_processes": (0, 262143)},
    renamed={"TimeZone": "timezone"},
    extra={
        "require_secure_transport": ("on", "a connection without TLS is refused", False),
        "azure.accepted_password_auth_method": ("SCRAM-SHA-256", "an MD5 verifier is refused", False),
    },
    extensions="azure.extensions",
    # Pay as you go, East US.
    machines=(
        Machine("B_Standard_B2s", 4 * GB, 2, Decimal("0.068"), burstable=True),
        Machine("GP_Standard_D2ds_v5", 8 * GB, 2, Decimal("0.178")),
        Machine("GP_Standard_D4ds_v5", 16 * GB, 4, Decimal("0.356")),
        Machine("GP_Standard_D8ds_v5", 32 * GB, 8, Decimal("0.712")),
        Machine("GP_Standard_D16ds_v5", 64 * GB, 16, Decimal("1.424")),
        Machine("GP_Standard_D32ds_v5", 128 * GB, 32, Decimal("2.848")),
    ),
    # Azure sells powers of two.
    storage_gb={"small": 64, "medium": 128, "large": 512},
    prices=Prices("eastus", "2025-06", common.SOURCE, Decimal("0.115"), Decimal("0.095"), Decimal(2)),
)
