"""PgBouncer's settings for a size (PgBouncer 1.24's configuration reference, and the pool arithmetic)."""

from __future__ import annotations

from orcheo_db.spec import Size, Spec
from orcheo_db.tuning.fixed import SECRETS
from orcheo_db.tuning.model import Setting
from orcheo_db.tuning.pools import pool_arithmetic

AUTH_QUERY = "SELECT uname, phash FROM orcheo_pooler.user_lookup($1)"
_POOLS, _AUTH, _TLS = "Pools", "Who may log in", "TLS"
_NETWORK, _TIMES, _LOG = "Network", "Waiting and ageing (seconds)", "Logging"


def pgbouncer_settings(size: Size, spec: Spec) -> list[Setting]:
    """Every setting of the [pgbouncer] section for the stack's own server; times are in seconds.

    Raises:
        SpecError: an override that PostgreSQL or PgBouncer would refuse.
    """
    found = [*_pools(size, spec), *_AUTHENTICATION, *_FIXED]
    names = {setting.name for setting in found}
    found += [
        Setting(name, "", "", "Further settings of the spec") for name in sorted(spec.pgbouncer) if name not in names
    ]
    return [_chosen(setting, spec) for setting in found]


def _chosen(setting: Setting, spec: Spec) -> Setting:
    value = spec.pgbouncer.get(setting.name)
    if value is None:
        return setting
    value = {"on": "1", "off": "0"}.get(value, value)  # true and false in the spec; PgBouncer shows 1 and 0
    return Setting(setting.name, value, "set in the spec's [pgbouncer]", setting.group)


def _pools(size: Size, spec: Spec) -> list[Setting]:
    budget = pool_arithmetic(spec, size)
    return [
        Setting(
            "pool_mode",
            "transaction",
            "a server connection belongs to a client for one transaction; the app's locks are of that length too",
            _POOLS,
        ),
        Setting(
            "max_prepared_statements",
            "200",
            "the app prepares every statement; without this transaction pooling answers it with errors",
            _POOLS,
        ),
        Setting(
            "max_client_conn",
            str(budget.max_client_conn),
            f"{budget.backends} backend ({budget.clients_per_backend} connections each at most) and {budget.workers} worker"
            f" processes ({budget.clients_per_worker} each), a backend being replaced and {budget.other_clients} others, rounded up",
            _POOLS,
        ),
        Setting(
            "default_pool_size",
            str(budget.app_pool),
            "server connections of one app login: its share of max_connections, at most 16 a core",
            _POOLS,
        ),
        Setting(
            "max_db_connections",
            str(budget.max_db_connections),
            "two app logins (while a password rotates), read-only and monitoring: no pool can keep another"
            " out, and"
            f" {budget.direct} direct and {budget.reserved + budget.superuser_reserved} reserved"
            " connections stay free",
            _POOLS,
        ),
        Setting("min_pool_size", "0", "idle logins keep no server connections", _POOLS),
        Setting("reserve_pool_size", "0", "every connection is already somebody's in the arithmetic above", _POOLS),
    ]


_AUTHENTICATION = (
    Setting("auth_type", "scram-sha-256", "nothing weaker", _AUTH),
    Setting(
        "auth_file",
        f"{SECRETS}/userlist.txt",
        "PgBouncer's own login, or all where there is no auth_query",
        _AUTH,
    ),
    Setting("auth_user", "pgbouncer", "may call the lookup function and nothing else", _AUTH),
    Setting("auth_query", AUTH_QUERY, "new logins and passwords are valid at once", _AUTH),
    Setting("auth_dbname", "postgres", "where the lookup function is", _AUTH),
    Setting(
        "stats_users",
        "orcheo_monitor",
        "may read SHOW; changing needs the socket inside the container",
        _AUTH,
    ),
    Setting(
        "ignore_startup_parameters",
        "extra_float_digits",
        "sent by JDBC tools, harmless to drop. Not `options`: dropping what a client set there would be a lie",
        _AUTH,
    ),
)

_FIXED = (
    Setting("client_tls_sslmode", "require", "no plain connection; clients verify the name themselves", _TLS),
    Setting("client_tls_cert_file", f"{SECRETS}/server.crt", "issued by the installation's own authority", _TLS),
    Setting("client_tls_key_file", f"{SECRETS}/server.key", "mode 0400", _TLS),
    Setting(
        "client_tls_ca_file",
        f"{SECRETS}/ca.crt",
        "clients need no certificate, but one that is sent must be from this authority; unset, PgBouncer"
        " does not start without the system's bundle",
        _TLS,
    ),
    Setting("client_tls_protocols", "tlsv1.2,tlsv1.3", "older versions are broken", _TLS),
    Setting("server_tls_sslmode", "verify-full", "PostgreSQL's certificate and name are verified", _TLS),
    Setting("server_tls_ca_file", f"{SECRETS}/ca.crt", "the installation's own authority", _TLS),
    Setting("server_tls_protocols", "tlsv1.2,tlsv1.3", "as above", _TLS),
    Setting("listen_addr", "*", "inside the container; Docker publishes it where the spec says", _NETWORK),
    Setting("listen_port", "6432", "PgBouncer's usual port", _NETWORK),
    Setting(
        "unix_socket_dir",
        "/run/pgbouncer",
        "the administration console, for PgBouncer's own user only",
        _NETWORK,
    ),
    Setting("tcp_keepalive", "1", "finds dead peers", _NETWORK),
    Setting("tcp_keepidle", "60", "seconds of silence, as PostgreSQL's", _NETWORK),
    Setting("tcp_keepintvl", "10", "seconds between probes", _NETWORK),
    Setting("tcp_keepcnt", "6", "lost probes until a peer is dead", _NETWORK),
    Setting(
        "tcp_user_timeout",
        "60000",
        "milliseconds: a server that vanished in the middle of a query is given up",
        _NETWORK,
    ),
    Setting("dns_max_ttl", "5", "seconds: follows a server that moved to another address", _NETWORK),
    Setting("dns_nxdomain_ttl", "1", "second: a restarting container has no name for a moment", _NETWORK),
    Setting(
        "max_packet_size",
        "2147483647",
        "the default: large documents pass through and are never held whole",
        _NETWORK,
    ),
    Setting("query_wait_timeout", "60", "a client outlasts a restart or failover, but not for ever", _TIMES),
    Setting("client_login_timeout", "15", "half-open logins do not pile up", _TIMES),
    Setting("client_idle_timeout", "0", "none: the app's pools close idle connections themselves", _TIMES),
    Setting("server_connect_timeout", "5", "PostgreSQL is on the same network", _TIMES),
    Setting("server_login_retry", "1", "after a restart try again at once; meanwhile clients get errors", _TIMES),
    Setting(
        "server_idle_timeout",
        "300",
        "as the app's pools: after a rotation the old login's connections go",
        _TIMES,
    ),
    Setting(
        "server_lifetime",
        "3600",
        "long-lived sessions gather memory (caches of 59 tables); renewed hourly",
        _TIMES,
    ),
    Setting("server_check_delay", "10", "a server connection idle for longer is tested before it is used", _TIMES),
    Setting("query_timeout", "0", "none: PostgreSQL's and the roles' own timeouts decide", _TIMES),
    Setting(
        "idle_transaction_timeout",
        "0",
        "none: idle_in_transaction_session_timeout is PostgreSQL's to enforce",
        _TIMES,
    ),
    Setting("syslog", "0", "to stderr, the container's log", _LOG),
    Setting("log_connections", "1", "who came", _LOG),
    Setting("log_disconnections", "1", "and why they left", _LOG),
    Setting("log_pooler_errors", "1", "what clients were told", _LOG),
    Setting("log_stats", "1", "one line of totals a period", _LOG),
    Setting("stats_period", "60", "seconds", _LOG),
    Setting(
        "application_name_add_host",
        "0",
        "a name for each client would cost a SET at every change of hands of a server connection",
        _LOG,
    ),
)


def user_pools(size: Size, spec: Spec) -> dict[str, int]:
    """Server connections of logins that need fewer than the app: PgBouncer's [users] section."""
    budget = pool_arithmetic(spec, size)
    return {"orcheo_ro": budget.read_only_pool, "orcheo_monitor": budget.monitor_pool}
