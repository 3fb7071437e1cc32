"""What every managed service keeps for itself."""

from __future__ import annotations

# The clouds' price pages and API could not be read where this was written.
SOURCE = "the clouds' published on-demand lists as known to the authors; look the present one up before you decide"

NETWORK = {
    "listen_addresses": "the service's own: the network and its rules say who reaches the server",
    "unix_socket_directories": "there is no socket that a customer reaches",
    "unix_socket_permissions": "there is no socket that a customer reaches",
    "hba_file": "the service's own; TLS is demanded by its own switch",
    "ident_file": "the service's own",
    "ssl": "always on",
    "ssl_cert_file": "the service's own certificate",
    "ssl_key_file": "the service's own certificate",
}
ARCHIVE = {
    "archive_mode": "the service makes its own backups, and restores to any second of them",
    "archive_command": "the service makes its own backups",
    "archive_timeout": "the service archives by its own clock: about five minutes are what a lost server loses at most",
}
LOG = {
    "log_destination": "the service collects the log",
    "logging_collector": "the service collects the log",
    "log_timezone": "UTC already",
}
FILES = NETWORK | ARCHIVE | LOG
ALTER_SYSTEM = "nobody is a superuser there, so ALTER SYSTEM is refused anyway"
TEXT_SEARCH = "search names its configuration itself (orcheo_search), so the default does not matter"
MESSAGES = "the service's own; English, too"
NO_PLANS = (
    "auto_explain is not loaded: the services do not all let one keep bind values, which are credentials and conversations, out of its plans;"
    " Performance Insights, Query Insights and Query Store show plans without them"
)
PLANS = dict.fromkeys(
    (
        "auto_explain.log_min_duration",
        "auto_explain.log_analyze",
        "auto_explain.log_settings",
        "auto_explain.log_parameter_max_length",
    ),
    NO_PLANS,
)
# PostgreSQL's own (pg_settings.context = postmaster): no service can do without a restart here.
POSTMASTER = frozenset((
    "max_connections", "shared_buffers", "wal_buffers", "max_worker_processes", "max_locks_per_transaction", "max_wal_senders",
    "max_replication_slots", "autovacuum_max_workers", "shared_preload_libraries", "track_activity_query_size", "pg_stat_statements.max", "huge_pages",
))  # fmt: skip
