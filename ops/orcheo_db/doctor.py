"""`doctor`: is the running tier what the spec means? Each check says what it found and, where it fails, what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from docker.errors import DockerException

from orcheo_db import backup_secrets, effective
from orcheo_db.backup_lifecycle import ask
from orcheo_db.bootstrap import expected
from orcheo_db.bootstrap import search as search_index
from orcheo_db.checks import Check
from orcheo_db.database import connect
from orcheo_db.doctor_app import app_checks
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.lifecycle import probe
from orcheo_db.search import run as searching
from orcheo_db.secrets import RENEW_BEFORE_DAYS, SERVER_NAMES, days_left_of
from orcheo_db.targets.base import Target
from orcheo_db.tuning import pool_arithmetic

WAITING_SEGMENTS = 16  # 256 MB that a busy moment may leave for some seconds
FREE_SHARE = 0.10  # below a tenth free, the next max_wal_size or VACUUM may fill the volume
# login, superuser, createdb, createrole, replication (design decision 3)
ROLE_ATTRIBUTES = {
    "orcheo": (False, False, False, False, False),
    "orcheo_admin": (True, False, True, True, False),
    "orcheo_app_a": (True, False, False, False, False),
    "orcheo_app_b": (True, False, False, False, False),
    "orcheo_ro": (True, False, False, False, False),
    "orcheo_backup": (True, False, False, False, False),
    "orcheo_monitor": (True, False, False, False, False),
    "pgbouncer": (True, False, False, False, False),
    "replicator": (True, False, False, False, True),
}


def diagnose(target: Target) -> list[Check]:
    """Run every check; one that can't be made counts as failed, with the reason.

    Raises:
        UserError: there is no installation to check.
    """
    target.store.installation_id()
    checks = [_guard("services running", _services, target), _guard("certificates", _certificates, target)]
    checks += [
        _guard("reachable through PgBouncer", _reachable, target),
        _guard("plaintext refused", _plaintext, target),
    ]
    checks.append(_guard("pool arithmetic", _arithmetic, target))
    try:
        with connect(target.dsn("orcheo_monitor", direct=True), timeout=10) as connection:
            for name, check in _server_checks(target):
                checks.append(_guard(name, check, target, connection))
    except (UserError, CheckFailed, psycopg.Error) as error:
        checks.append(
            Check(
                "PostgreSQL reachable directly",
                False,
                _one_line(error),
                "see `make status` and the container's log",
            )
        )
    if target.with_backup:
        checks.append(_guard("backups", _backups, target))
    if target.with_second:
        checks.append(_guard("second repository", _second, target))
    if target.with_app:
        checks += [_guard(name, check, target) for name, check in app_checks()]
    return checks


def _server_checks(target: Target) -> Iterator[tuple[str, Callable[..., Check]]]:
    yield "TLS verified", _tls
    if target.managed_server:
        yield "settings as meant", _settings
        yield "data checksums", _checksums
        yield "disk space", _disk
    if target.with_backup:
        yield "WAL archived", _archived
    yield "connections fit", _live_connections
    yield "collation versions", _collation
    yield "roles", _roles
    yield "app schema", _schema
    yield "search index", _search_index


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _guard(name: str, check: Callable[..., Check], *arguments: Any) -> Check:
    try:
        return check(name, *arguments)
    except (UserError, CheckFailed, psycopg.Error, DockerException, OSError, ValueError, IndexError) as error:
        return Check(name, False, _one_line(error), "mend what the message says, then run doctor again")


def _archived(name: str, target: Target, connection: psycopg.Connection[Any]) -> Check:
    del target
    row = connection.execute(
        "SELECT a.last_failed_time > coalesce(a.last_archived_time, '-infinity'), a.last_failed_wal, a.last_failed_time::text,"
        " (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') FROM pg_stat_archiver a"
    ).fetchone()
    assert row is not None
    failed, segment, when, waiting = row
    late = waiting > 1 + WAITING_SEGMENTS
    found = f"{waiting} segments wait" + (f", the last try of {segment} failed at {when[:19]}" if failed else "")
    return Check(name, not (failed or late), found, "see ops/runbooks/archive-stuck.md")


def _backups(name: str, target: Target) -> Check:
    found = ask(target, "list")
    if not found["backups"]:
        return Check(name, False, "there is none", "run `orcheo-db backup run --type full`")
    newest, drill = found["backups"][-1], found["last_drill"]
    proven = "not drilled yet" if drill is None else f"last drill {drill['result']} at {drill['finished_at'][:16]}"
    good = drill is None or drill["result"] == "pass"
    return Check(
        name,
        good,
        f"{len(found['backups'])}, the newest of {newest['stop'][:16]}; {proven}",
        "see `orcheo-db backup check` and `make drill`",
    )


def _second(name: str, target: Target) -> Check:
    found = ask(target, "check", repository="second")
    failed = [f"{check['name']}: {check['found']}" for check in found["checks"] if not check["ok"]]
    said = "; ".join(failed) or "; ".join(f"{check['name']}: {check['found']}" for check in found["checks"][:2])
    return Check(name, found["ok"], said, "see ops/runbooks/second-repository.md; local backups go on")


def _services(name: str, target: Target) -> Check:
    states = target.services()
    bad = [f"{state.name} is {state.state} ({state.health})" for state in states if not state.ok]
    return Check(
        name, not bad, "; ".join(bad) or ", ".join(f"{s.name} {s.health}" for s in states), f"run `{target.up_command}`"
    )


def _certificates(name: str, target: Target) -> Check:
    names = [server for server in SERVER_NAMES if server in target.service_names]
    left = {server: target.store.days_left(server) for server in ("ca", *names)}
    if target.with_backup:
        left |= {
            f"{party} (backups)": days_left_of(backup_secrets.path(target.store, f"tls/{party}.crt"))
            for party in backup_secrets.PARTIES
        }
    soon = min(left.values())
    found = ", ".join(f"{server} {days:.0f} days left" for server, days in left.items())
    return Check(name, soon > RENEW_BEFORE_DAYS, found, "run `make up`: it renews what is due")


def _reachable(name: str, target: Target) -> Check:
    seen = probe(target)
    ok = seen["acts_as"] == "orcheo"
    return Check(
        name,
        ok,
        f"PostgreSQL {seen['server_version']}, acting as {seen['acts_as']}, {seen['tables']} tables",
        "run `orcheo-db bootstrap`",
    )


def _plaintext(name: str, target: Target) -> Check:
    weak = target.dsn().replace("sslmode=verify-full", "sslmode=disable")
    try:
        psycopg.connect(weak, connect_timeout=5).close()
    except psycopg.OperationalError as error:
        words = _one_line(error)
        return Check(
            name,
            "SSL required" in words,
            f"PgBouncer says: {words.rpartition('FATAL:')[2].strip()}",
            "set client_tls_sslmode=require",
        )
    return Check(
        name,
        False,
        "PgBouncer accepted a connection without TLS",
        "set client_tls_sslmode=require in ops/spec.toml, `make render up`",
    )


def _arithmetic(name: str, target: Target) -> Check:
    budget = pool_arithmetic(target.spec, target.size)
    return Check(
        name,
        not budget.problems,
        "; ".join(budget.problems) or str(budget),
        "change the sizes in ops/spec.toml",
    )


def _tls(name: str, target: Target, connection: psycopg.Connection[Any]) -> Check:
    del target  # the connection was made with its DSN, sslmode=verify-full
    row = connection.execute("SELECT ssl, version, cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
    assert row is not None
    ok = bool(row[0]) and row[1] in ("TLSv1.2", "TLSv1.3")
    return Check(
        name,
        ok,
        f"{row[1]}, {row[2]}, certificate and name verified",
        "set ssl_min_protocol_version to TLSv1.2",
    )


def _settings(name: str, target: Target, connection: psycopg.Connection[Any]) -> Check:
    del connection  # its role has settings of its own
    meant = target.meant_settings()
    different = effective.compare(meant, effective.read(target.run))
    found = "; ".join(map(str, different)) or f"{len(meant)} settings as in size {target.size.name}"
    return Check(
        name,
        not different,
        found,
        f"run `{target.up_command}`; what somebody set with ALTER DATABASE or ALTER ROLE goes by its RESET",
    )


def _checksums(name: str, target: Target, connection: psycopg.Connection[Any]) -> Check:
    del target
    row = connection.execute("SHOW data_checksums").fetchone()
    assert row is not None
    return Check(name, row[0] == "on", f"data_checksums = {row[0]}", "stop the server and run pg_checksums --enable")


def _disk(name: str, target: Target, connection: psycopg.Connection[Any]) -> Check:
    """Room for data, and for the WAL that may wait while the archive is away: a full volume stops PostgreSQL."""
    del connection
    text = target.run("postgres", ["df", "--output=size,avail", "-B1", target.pgdata]).stdout.split()
    total, free = int(text[-2]), int(text[-1])
    queue = target.spec.backup.wal_queue_max if target.with_backup else 0
    found = f"{free / 2**30:.1f} GB of {total / 2**30:.1f} GB free"
    if free <= queue:
        found += f", and up to {queue / 2**30:.1f} GB of WAL may wait for the archive"
    return Check(
        name,
        free > total * FREE_SHARE and free > queue,
        found,
        "free space or enlarge the volume" if free > queue else "lower [backup] wal_queue_max, or enlarge the volume",
    )


def _live_connections(name: str, target: Target, connection: psycopg.Connection[Any]) -> Check:
    budget = pool_arithmetic(target.spec, target.size)
    row = connection.execute(
        "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        " - coalesce(current_setting('reserved_connections', true)::int, 0)"
    ).fetchone()
    assert row is not None
    found = f"PgBouncer may open {budget.max_db_connections} of the {row[0]} connections that PostgreSQL gives ordinary roles"
    return Check(
        name,
        budget.max_db_connections + budget.direct <= row[0],
        found,
        "raise max_connections or choose a smaller size for PgBouncer",
    )


def _collation(name: str, target: Target, connection: psycopg.Connection[Any]) -> Check:
    del target
    if connection.info.server_version < 150000:
        return Check(name, True, "not recorded before PostgreSQL 15")
    rows = connection.execute(
        "SELECT datname FROM pg_database WHERE datallowconn AND datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid)"
    ).fetchall()
    found = f"differ in database {', '.join(row[0] for row in rows)}" if rows else "match the library in every database"
    return Check(name, not rows, found, "REINDEX DATABASE …, then ALTER DATABASE … REFRESH COLLATION VERSION")


def _roles(name: str, target: Target, connection: psycopg.Connection[Any]) -> Check:
    rows = connection.execute(
        "SELECT rolname, rolcanlogin, rolsuper, rolcreatedb, rolcreaterole, rolreplication FROM pg_roles"
    ).fetchall()
    actual = {row[0]: tuple(row[1:]) for row in rows}
    ours = dict(ROLE_ATTRIBUTES)
    if not target.managed_server:  # the server's own administrator replaces orcheo_admin; the provider replicates
        for role in ("orcheo_admin", "orcheo_backup", "replicator", "pgbouncer"):
            ours.pop(role)
    wrong = [
        f"{role} {'is missing' if role not in actual else 'has other attributes than meant'}"
        for role, meant in ours.items()
        if actual.get(role) != meant
    ]
    return Check(
        name,
        not wrong,
        "; ".join(wrong) or f"{len(ours)} roles with the attributes meant",
        "run `orcheo-db bootstrap`",
    )


def _schema(name: str, target: Target, connection: psycopg.Connection[Any]) -> Check:
    del connection  # that one is to the same database, but the check is the bootstrap's own
    versions = target.spec.versions
    with connect(target.dsn("orcheo_monitor", direct=True), timeout=10) as database:
        row = database.execute("SELECT orcheo_version, backend_version, tables FROM orcheo_db.installation").fetchone()
        present = expected.present(database)
    if row is None:
        return Check(name, False, "the init job has not finished", "run `orcheo-db bootstrap`")
    wanted = expected.load(versions.orcheo, versions.orcheo_backend)
    missing = sorted(set(wanted.tables) - set(present)) if wanted else []
    ok = (row[0], row[1]) == (versions.orcheo, versions.orcheo_backend) and not missing and len(present) >= row[2]
    found = f"orcheo {row[0]}, backend {row[1]}: {len(present)} tables"
    return Check(name, ok, found + (f", missing {', '.join(missing)}" if missing else ""), "run `orcheo-db bootstrap`")


def _search_index(name: str, target: Target, connection: psycopg.Connection[Any]) -> Check:
    del connection  # the monitor may not read the app's tables
    with searching.open_(target.dsn()) as conn:
        rows = conn.execute(search_index.VALIDITY, (search_index.SCHEMA,)).fetchall()
        behind = searching.pending(conn)
    valid = {row[0] for row in rows if row[1]}
    lacking = sorted({*search_index.INDEXES} - valid | {row[0] for row in rows if not row[1]})
    found = f"{len(valid)} indexes valid, {behind} runs, threads and workflows newer than the index"
    wrong = f"missing or invalid: {', '.join(lacking)}"
    return Check(name, not lacking, wrong if lacking else found, "run `orcheo-db bootstrap`")
