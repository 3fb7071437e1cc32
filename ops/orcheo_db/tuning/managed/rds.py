"""Amazon RDS for PostgreSQL 17: parameters of family postgres17.

From RDS' user guide ("Working with parameters on your RDS for PostgreSQL DB instance") and public parameter groups; a real account was not at hand, so
what is not surely modifiable there and has our value or a better one by default is left to RDS: a parameter group with one name that RDS refuses
is refused as a whole.
"""

from __future__ import annotations

from decimal import Decimal

from orcheo_db.tuning.managed import common
from orcheo_db.tuning.managed.model import GB, Machine, Prices, Service

RDS = Service(
    key="rds",
    title="RDS",
    on_off=("1", "0"),
    own={
        **common.FILES,
        **common.PLANS,
        "port": "the module's variable port",
        "superuser_reserved_connections": "RDS keeps 3 for itself",
        "reserved_connections": "RDS has its own kind, rds.rds_superuser_reserved_connections (2)",
        "huge_pages": "RDS uses huge pages where the class has the memory for them",
        "wal_level": "replica by itself; logical by rds.logical_replication (the module's blue_green_ready)",
        "wal_compression": "RDS compresses full pages, with zstd",
        "max_wal_senders": "RDS' own are more than ours",
        "max_replication_slots": "RDS' own are more than ours",
        "wal_keep_size": "RDS' own is larger than ours",
        "allow_alter_system": common.ALTER_SYSTEM,
        "ssl_min_protocol_version": "TLSv1.2 already",
        "log_line_prefix": "RDS' own: time, host, user, database, process",
        "lc_messages": common.MESSAGES,
        "default_text_search_config": common.TEXT_SEARCH,
        "compute_query_id": "auto: pg_stat_statements turns it on",
        "pg_stat_statements.save": "on already",
        "log_replication_commands": "replication is RDS' own affair",
    },
    # Of a parameter that has the family's own value RDS keeps apply_method pending-reboot, whatever it is told: each plan would change it again.
    restart=common.POSTMASTER | {"TimeZone", "checkpoint_completion_target"},
    reserved=5,
    instead={
        "shared_preload_libraries": ("pg_stat_statements", common.NO_PLANS),
    },
    renamed={"TimeZone": "timezone"},
    extra={
        "rds.force_ssl": ("1", "a connection without TLS is refused", True),
        "rds.accepted_password_auth_method": ("scram", "an MD5 verifier is refused", True),
    },
    # On-demand, one instance, us-east-1.
    machines=(
        Machine("db.t4g.small", 2 * GB, 2, Decimal("0.032"), burstable=True),
        Machine("db.t4g.medium", 4 * GB, 2, Decimal("0.065"), burstable=True),
        Machine("db.m7g.large", 8 * GB, 2, Decimal("0.168")),
        Machine("db.m7g.xlarge", 16 * GB, 4, Decimal("0.337")),
        Machine("db.m7g.2xlarge", 32 * GB, 8, Decimal("0.674")),
        Machine("db.m7g.4xlarge", 64 * GB, 16, Decimal("1.348")),
        Machine("db.m7g.8xlarge", 128 * GB, 32, Decimal("2.696")),
    ),
    # At least what WAL may take (max_wal_size, max_slot_wal_keep_size) twice over; from 400 GiB on gp3 is striped: 12,000 operations a second.
    storage_gb={"small": 50, "medium": 100, "large": 400},
    prices=Prices("us-east-1", "2025-06", common.SOURCE, Decimal("0.115"), Decimal("0.095"), Decimal(2)),
)
