"""PostgreSQL settings that are the same for every size."""

from __future__ import annotations

from orcheo_db.tuning.model import Setting

SECRETS = "/run/orcheo-db/secrets"
CONF = "/etc/orcheo-db"
BACKUP_SOCKETS = "/run/orcheo-db/sockets"  # a directory that PostgreSQL and its pgBackRest share

_TIMEOUTS = "Timeouts"
_NETWORK = "Network"
_SECURITY = "Security"
_LOG = "Logging"
_STATISTICS = "Statistics"
_LOCALE = "Locale and time"

FIXED: tuple[Setting, ...] = (
    Setting(
        "max_locks_per_transaction",
        "128",
        "pg_dump and migrations lock 59 tables and 167 indexes at once",
        "Locks",
    ),
    Setting(
        "deadlock_timeout",
        "1s",
        "PostgreSQL's default; log_lock_waits reports waits longer than this",
        "Locks",
    ),
    Setting(
        "idle_in_transaction_session_timeout",
        "5min",
        "an abandoned transaction holds locks, stops vacuum and blocks CREATE INDEX CONCURRENTLY; no step takes 5min",
        _TIMEOUTS,
    ),
    Setting(
        "statement_timeout",
        "0",
        "none: backups, migrations and index builds are long; set it by role",
        _TIMEOUTS,
    ),
    Setting("lock_timeout", "0", "none for the app; the bootstrap sets one for its own DDL", _TIMEOUTS),
    Setting("idle_session_timeout", "0", "none: PgBouncer keeps sessions open to reuse them", _TIMEOUTS),
    Setting(
        "listen_addresses",
        "*",
        "the container's network is internal; pg_hba.conf says who may come",
        _NETWORK,
    ),
    Setting("port", "5432", "not published; clients come through PgBouncer", _NETWORK),
    Setting(
        "unix_socket_directories",
        "/run/postgresql",
        "where psql looks; the superuser's only way in",
        _NETWORK,
    ),
    Setting("unix_socket_permissions", "0700", "only the server's own operating-system user", _NETWORK),
    Setting("tcp_keepalives_idle", "60", "seconds (the system's 2 hours are too long): find dead peers", _NETWORK),
    Setting("tcp_keepalives_interval", "10", "seconds between probes", _NETWORK),
    Setting("tcp_keepalives_count", "6", "lost probes until a peer is dead: 2 minutes in all", _NETWORK),
    Setting("client_connection_check_interval", "10s", "ends a long query whose client has gone", _NETWORK),
    Setting("hba_file", f"{CONF}/pg_hba.conf", "rendered, mounted read-only", _SECURITY),
    Setting(
        "ident_file", f"{CONF}/pg_ident.conf", "rendered; who may log in as orcheo_backup by the socket", _SECURITY
    ),
    Setting("password_encryption", "scram-sha-256", "the only kind that pg_hba.conf accepts", _SECURITY),
    Setting("ssl", "on", "pg_hba.conf refuses every TCP connection without it", _SECURITY),
    Setting("ssl_cert_file", f"{SECRETS}/server.crt", "issued by the installation's own authority", _SECURITY),
    Setting("ssl_key_file", f"{SECRETS}/server.key", "mode 0400", _SECURITY),
    Setting("ssl_min_protocol_version", "TLSv1.2", "older versions are broken", _SECURITY),
    Setting(
        "allow_alter_system",
        "off",
        "the spec is the one place for settings; what ALTER SYSTEM wrote would be lost or win unseen",
        _SECURITY,
    ),
    Setting("log_destination", "stderr", "the container's log; Docker or Kubernetes rotates and ships it", _LOG),
    Setting("logging_collector", "off", "no log files inside a read-only container", _LOG),
    Setting(
        "log_line_prefix",
        "%m [%p] session=%c %quser=%u db=%d app=%a client=%h ",
        "time, process, session, then user, database, application and host where there is a client",
        _LOG,
    ),
    Setting("log_timezone", "UTC", "one time zone in every log", _LOG),
    Setting("log_min_duration_statement", "500ms", "slow for an app whose queries are by key", _LOG),
    Setting(
        "log_parameter_max_length",
        "0",
        "no bind values with slow statements: they hold credentials, tokens and conversations",
        _LOG,
    ),
    Setting("log_parameter_max_length_on_error", "0", "nor with failed ones", _LOG),
    Setting(
        "log_statement",
        "none",
        "`ddl` would log ALTER ROLE with its password, and the app's DDL at each start",
        _LOG,
    ),
    Setting("log_checkpoints", "on", "shows checkpoints forced by size, and how long they write", _LOG),
    Setting("log_lock_waits", "on", "who waits longer than deadlock_timeout, and for whom", _LOG),
    Setting("log_autovacuum_min_duration", "5s", "shows tables that vacuum can't keep up with", _LOG),
    Setting("log_connections", "on", "who came, from where, with which TLS", _LOG),
    Setting("log_disconnections", "on", "and for how long", _LOG),
    Setting("log_temp_files", "10MB", "sorts and hashes that outgrew work_mem", _LOG),
    Setting("log_replication_commands", "on", "base backups and standbys: rare, and worth knowing", _LOG),
    Setting(
        "shared_preload_libraries",
        "pg_stat_statements,auto_explain",
        "statistics by statement, plans of slow statements",
        _STATISTICS,
    ),
    Setting(
        "compute_query_id",
        "on",
        "pg_stat_statements, pg_stat_activity and logs name the same statement",
        _STATISTICS,
    ),
    Setting(
        "track_io_timing",
        "on",
        "time spent on reads and writes; cheap with a modern clock source",
        _STATISTICS,
    ),
    Setting("track_functions", "pl", "the app has one trigger function", _STATISTICS),
    Setting("track_activity_query_size", "4kB", "1kB cuts the app's longer statements", _STATISTICS),
    Setting("pg_stat_statements.max", "5000", "the default; the app has a few hundred", _STATISTICS),
    Setting("pg_stat_statements.track", "top", "what clients sent", _STATISTICS),
    Setting(
        "pg_stat_statements.track_utility",
        "off",
        "utility statements keep their literals: passwords too",
        _STATISTICS,
    ),
    Setting("pg_stat_statements.save", "on", "survives a restart", _STATISTICS),
    Setting(
        "auto_explain.log_min_duration",
        "2s",
        "plans of what is much too slow, not of all that is logged",
        _STATISTICS,
    ),
    Setting(
        "auto_explain.log_analyze",
        "off",
        "would time every statement to log a few; the plan says most",
        _STATISTICS,
    ),
    Setting("auto_explain.log_settings", "on", "planner settings that a session changed", _STATISTICS),
    Setting("auto_explain.log_parameter_max_length", "0", "no bind values in the log, as above", _STATISTICS),
    Setting("TimeZone", "UTC", "the app stores and compares UTC", _LOCALE),
    Setting("lc_messages", "C", "messages in English, so that alerts can match them", _LOCALE),
    Setting(
        "default_text_search_config",
        "pg_catalog.english",
        "as initdb would choose; this file replaces its own",
        _LOCALE,
    ),
)
