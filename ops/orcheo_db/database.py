"""Connecting to PostgreSQL: retries, pools, the health query, facts about the server.

Nothing here knows what the connection is for. Every failure a user can cause is one line (`UserError`), and
no line, exception or log made here contains a password.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psycopg
from psycopg import conninfo
from psycopg_pool import ConnectionPool

from orcheo_db.errors import UserError

Connection = psycopg.Connection[Any]

APPLICATION_NAME = "orcheo-db"
ATTEMPT_TIMEOUT = (
    10.0  # seconds for one attempt; a host that drops packets would otherwise take the kernel's two minutes
)
LIBPQ_MIN_TIMEOUT = 2  # libpq treats a smaller connect_timeout as 2


class Refusal(StrEnum):
    """Why a connection was refused for good: retrying can't mend any of these."""

    PASSWORD = "password"  # noqa: S105  a reason, not a password
    ROLE = "role"
    DATABASE = "database"
    HBA = "pg_hba"
    PRIVILEGE = "privilege"
    CERTIFICATE = "certificate"
    TLS = "tls"
    CONNINFO = "conninfo"


class ConnectionRefused(UserError):
    """The server answered (or the DSN is wrong) and trying again can't help. `kind` says why."""

    def __init__(self, kind: Refusal, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Unreachable(UserError):
    """Nobody answered, or only "not now", until the time was up."""


# First match wins, so the more particular pattern stands first. The text is libpq's and the server's
# (English: a server with another lc_messages falls through to "retry until the limit", which is slower and
# still ends in one line with its words).
_REFUSALS: tuple[tuple[re.Pattern[str], Refusal, str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), kind, advice)
    for pattern, kind, advice in (
        (
            r"password authentication failed",
            Refusal.PASSWORD,
            "check the password (or the password file) of this role",
        ),
        (r"no password supplied", Refusal.PASSWORD, "give the password in the DSN or in a password file"),
        (r"role \"[^\"]*\" is not permitted to log in", Refusal.ROLE, "use a role that has LOGIN"),
        (r"role \"[^\"]*\" does not exist", Refusal.ROLE, "check the user name in the DSN"),
        (r"database \"[^\"]*\" does not exist", Refusal.DATABASE, "check the database name in the DSN"),
        (r"permission denied for database", Refusal.PRIVILEGE, "grant this role CONNECT on the database"),
        (
            r"no pg_hba\.conf entry|pg_hba\.conf rejects",
            Refusal.HBA,
            "the server's pg_hba.conf doesn't allow this user, database, address and encryption together",
        ),
        (
            r"certificate verify failed|certificate has expired|self[- ]signed certificate",
            Refusal.CERTIFICATE,
            "point sslrootcert at the certificate authority that signed the server's certificate",
        ),
        (
            r"server certificate for .* does not match host name|could not get server's host name",
            Refusal.CERTIFICATE,
            "use the host name that is in the server's certificate",
        ),
        (
            r"root certificate file .* does not exist|could not read root certificate file",
            Refusal.CERTIFICATE,
            "point sslrootcert at a readable certificate file",
        ),
        (
            r"requires a valid client certificate|alert (bad|unsupported|unknown|revoked|expired) ?(certificate|ca)?|alert certificate (required|unknown|expired|revoked)"
            r"|certificate file .* does not exist|could not load (certificate|private key)|private key file .* (does not exist|has group or world access)",
            Refusal.CERTIFICATE,
            "show a client's certificate that the server's authority issued: sslcert and sslkey (readable by its owner alone)",
        ),
        (r"does not support SSL, but SSL was required", Refusal.TLS, "turn ssl on at the server"),
        (r"invalid sslmode|sslmode value .* invalid|weak sslmode", Refusal.TLS, "use sslmode=verify-full"),
        (
            r"SSL error: .*(protocol|cipher|wrong version|handshake failure)|unsupported protocol",
            Refusal.TLS,
            "client and server share no TLS version or cipher",
        ),
        (
            r"authentication method .*not supported|channel binding (is )?required|requires? SCRAM"
            r"|unsupported frontend protocol",
            Refusal.TLS,
            "client and server share no authentication method",
        ),
    )
)


def refusal(reason: str) -> tuple[Refusal, str] | None:
    """What a connection error means for good, with what to do about it; None if a later attempt may
    succeed.
    """
    for pattern, kind, advice in _REFUSALS:
        if pattern.search(reason):
            return kind, advice
    return None


def parse(dsn: str) -> dict[str, str]:
    """The DSN's parameters (URI or key=value form).

    Raises:
        ConnectionRefused: it isn't a DSN. libpq's own words would repeat parts of it, so they aren't shown.
    """
    try:
        return {key: str(value) for key, value in conninfo.conninfo_to_dict(dsn).items() if value is not None}
    except psycopg.Error:
        raise ConnectionRefused(
            Refusal.CONNINFO,
            "the DSN can't be read: write"
            " postgresql://USER@HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=FILE"
            " (percent-encode special characters) or key=value pairs",
        ) from None


def redact(dsn: str) -> str:
    """The DSN as key=value pairs without its secrets, fit for a log; a fixed text if it can't be read."""
    try:
        parameters = parse(dsn)
    except UserError:
        return "<unreadable DSN>"
    secret = {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
    return conninfo.make_conninfo("", **{k: "***" if k in secret else v for k, v in parameters.items()})


def address(dsn: str) -> str:
    """host:port of the DSN as a person names it (several, if it lists several; a directory for a Unix
    socket).
    """
    parameters = parse(dsn)
    host = parameters.get("host") or parameters.get("hostaddr") or os.environ.get("PGHOST") or "local socket"
    port = parameters.get("port") or os.environ.get("PGPORT") or "5432"
    hosts, ports = host.split(","), port.split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    return ",".join(f"{h}:{p}" for h, p in zip(hosts, ports, strict=False))


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff with full jitter: attempt n waits a random time between 0 and min(cap, base * 2**n)
    seconds.

    Full jitter spreads clients that lost the same server at the same moment
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). The clock and the dice are
    fields, so that a test needs neither time nor luck.
    """

    base: float = 0.1
    cap: float = 5.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform

    def delay(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number `attempt` (from 0)."""
        ceiling = min(self.cap, self.base * 2.0 ** min(attempt, 32))
        return self.uniform(0.0, ceiling)


def _one_line(error: BaseException, password: str | None) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^connection failed: ", "", text)
    text = re.sub(r" (Is the server running|Either provide the file).*", "", text)  # libpq's hints; ours follow
    if password and len(password) >= 4:
        text = text.replace(password, "***")
    return text if len(text) <= 400 else text[:397] + "..."


def connect(
    dsn: str,
    *,
    timeout: float = 60.0,
    deadline: float | None = None,
    on_retry: Callable[[int, float, str], None] | None = None,
    backoff: Backoff = Backoff(),
    **parameters: str,
) -> Connection:
    """An open autocommit connection, tried again with backoff until it stands.

    Args:
        dsn: URI or key=value connection string.
        timeout: seconds for all attempts together; 0 tries exactly once.
        deadline: the same as a moment of `backoff.clock` (several calls can share one); wins over `timeout`.
        on_retry: called after each failed attempt with (attempt from 1, seconds since the start, reason).
        parameters: connection parameters that replace the DSN's, e.g. `user`, `dbname`, `options`.

    Raises:
        ConnectionRefused: an answer that retrying can't mend (wrong password, unknown role or database,
            certificate, pg_hba). Unreachable: no connection before the time was up.
    """
    known = parse(dsn) | parameters
    known.setdefault("application_name", APPLICATION_NAME)
    where, start = address(conninfo.make_conninfo("", **known)), backoff.clock()
    limit = start + timeout if deadline is None else deadline
    attempt = 0
    while True:
        left = min(ATTEMPT_TIMEOUT, limit - backoff.clock())
        try:
            return _attempt(known, max(LIBPQ_MIN_TIMEOUT, int(left)))
        except psycopg.Error as error:
            reason = _one_line(error, known.get("password"))
            _raise_if_final(error, reason, known, where)
        attempt += 1
        now = backoff.clock()
        if now >= limit:
            tries = "1 attempt" if attempt == 1 else f"{attempt} attempts"
            raise Unreachable(
                f"no connection to {where} after {now - start:.0f} s and {tries} (last: {reason});"
                " check that PostgreSQL runs there and that host and port are right"
            )
        if on_retry:
            on_retry(attempt, now - start, reason)
        backoff.sleep(min(backoff.delay(attempt - 1), limit - now))


def _attempt(known: Mapping[str, str], seconds: int) -> Connection:
    merged: dict[str, Any] = {"connect_timeout": str(seconds), **known}
    return psycopg.connect(autocommit=True, **merged)


def _raise_if_final(error: psycopg.Error, reason: str, known: Mapping[str, str], where: str) -> None:
    found = refusal(reason)
    if found is None and isinstance(error, psycopg.ProgrammingError):
        found = (Refusal.CONNINFO, "check the DSN's parameters")
    if found is None:
        return
    kind, advice = found
    who = f"as {known['user']} " if known.get("user") else ""
    raise ConnectionRefused(kind, f"{where} refuses the connection {who}({reason}); {advice}") from None


def health(conn: Connection) -> float:
    """Round trip of the health query `SELECT 1`, in seconds.

    Raises:
        psycopg.Error: the connection or the server is gone.
    """
    start = time.perf_counter()
    conn.execute("SELECT 1").fetchone()
    return time.perf_counter() - start


@dataclass(frozen=True)
class ServerFacts:
    """What a connection can know about its server and about itself."""

    version: str  # e.g. "17.6"
    version_num: int  # e.g. 170006, server_version_num
    in_recovery: bool  # True on a standby
    database: str
    user: str  # current_user
    session_user: str
    superuser: bool
    createrole: bool
    createdb: bool
    replication: bool
    reads_passwords: bool  # may read pg_authid
    tls: bool
    tls_version: str | None  # e.g. "TLSv1.3"
    tls_cipher: str | None
    pooled: bool  # the session goes through a pooler such as PgBouncer
    settings: Mapping[str, str]

    @property
    def major(self) -> int:
        """Major version, e.g. 17."""
        return self.version_num // 10000


_FACTS = """
SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), current_database()::text,
       current_user::text, session_user::text, r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolreplication,
       has_table_privilege('pg_catalog.pg_authid', 'SELECT'), coalesce(s.ssl, false), s.version, s.cipher,
       pg_backend_pid()
  FROM pg_roles r LEFT JOIN pg_stat_ssl s ON s.pid = pg_backend_pid()
 WHERE r.rolname = current_user
"""
FACT_SETTINGS = (
    "data_checksums", "lc_messages", "max_connections", "password_encryption", "reserved_connections",
    "server_encoding", "shared_buffers", "superuser_reserved_connections", "wal_level",
)  # fmt: skip


def server_facts(conn: Connection, settings: tuple[str, ...] = FACT_SETTINGS) -> ServerFacts:
    """Facts about the server behind `conn`, with those of the named `settings` that the role may see."""
    row = conn.execute(_FACTS).fetchone()
    if row is None:
        raise UserError("the server doesn't list the connected role in pg_roles; connect as an ordinary role")
    number = int(row[0])
    # The pid that the login announced is the pooler's own invention when there is one.
    pooled = conn.info.backend_pid != int(row[13])
    # SHOW-able text with its unit, as an administrator writes it.
    found = conn.execute(
        "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)", (list(settings),)
    ).fetchall()
    values = {str(k): str(v) for k, v in found}
    facts: list[Any] = [f"{number // 10000}.{number % 10000}", *row[:13], pooled, values]
    return ServerFacts(*facts)


@dataclass(frozen=True)
class PoolSizes:
    """Sizes of a client-side pool; the defaults are the plan's."""

    min_size: int = 2
    max_size: int = 20
    timeout: float = 30.0  # seconds to wait for a free connection
    max_idle: float = 300.0  # seconds after which a connection beyond min_size is closed


def make_pool(dsn: str, sizes: PoolSizes = PoolSizes(), **parameters: str) -> ConnectionPool[Connection]:
    """A pool that isn't open yet (`with make_pool(...) as pool:` opens and closes it).

    Connections are checked at checkout, so a restarted server costs a reconnect and not a failed query.
        Prepared statements stay off: the same pool must work behind a transaction pooler that doesn't track
        them.
    """
    known: dict[str, Any] = {"application_name": APPLICATION_NAME, **parse(dsn), **parameters}
    return ConnectionPool(
        "",
        min_size=sizes.min_size,
        max_size=sizes.max_size,
        timeout=sizes.timeout,
        max_idle=sizes.max_idle,
        open=False,
        check=ConnectionPool.check_connection,
        kwargs={"autocommit": True, "prepare_threshold": None, **known},
        name=APPLICATION_NAME,
    )
