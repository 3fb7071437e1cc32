"""Connecting: what is final, what is tried again and for how long, and that no text shows a password."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcheo_db import database
from orcheo_db.database import (
    Backoff,
    ConnectionRefused,
    Refusal,
    Unreachable,
    address,
    connect,
    redact,
    refusal,
)
from orcheo_db.errors import UserError

DSN = "postgresql://orcheo_admin:s3cret-pw@db.example:5433/postgres?sslmode=verify-full"


@dataclass
class Clock:
    """Time that passes only when somebody sleeps, plus a fixed cost of each attempt."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def backoff(clock: Clock, **fields: Any) -> Backoff:
    return Backoff(clock=clock, sleep=clock.sleep, **({"uniform": lambda _, high: high} | fields))


def failing(
    monkeypatch: pytest.MonkeyPatch, *outcomes: Any, clock: Clock | None = None, cost: float = 0.0
) -> list[Any]:
    """psycopg.connect gives each outcome in turn (the last one for ever); returns the list of its calls."""
    calls: list[Any] = []

    def fake(**parameters: Any) -> Any:
        calls.append(parameters)
        if clock:
            clock.now += cost
        outcome = outcomes[min(len(calls), len(outcomes)) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(psycopg, "connect", fake)
    return calls


def down() -> Exception:
    return psycopg.OperationalError("connection failed: Connection refused\n\tIs the server running on that host?")


@given(attempt=st.integers(0, 10_000), base=st.floats(0.001, 10), cap=st.floats(0.001, 60), dice=st.floats(0, 1))
def test_delay_is_full_jitter_below_the_cap(attempt: int, base: float, cap: float, dice: float) -> None:
    wait = Backoff(base=base, cap=cap, uniform=lambda low, high: low + (high - low) * dice).delay(attempt)
    assert 0 <= wait <= cap
    assert wait <= base * 2.0 ** min(attempt, 32)


def test_delays_double_up_to_the_cap() -> None:
    waits = [Backoff(base=0.1, cap=1.0, uniform=lambda _, high: high).delay(n) for n in range(6)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_a_server_that_comes_later_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, opened, seen = Clock(), object(), list[tuple[int, float, str]]()
    failing(monkeypatch, down(), psycopg.OperationalError("FATAL: the database system is starting up"), opened)
    conn = connect(DSN, timeout=30, backoff=backoff(clock), on_retry=lambda *given: seen.append(given))
    assert conn is opened
    assert clock.slept == pytest.approx([0.1, 0.2])
    assert [attempt for attempt, _, _ in seen] == [1, 2]
    assert "starting up" in seen[1][2]


@given(timeout=st.floats(0, 300), dice=st.floats(0, 1))
def test_the_limit_is_kept_and_used_up(timeout: float, dice: float) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        calls = failing(patch, down(), clock=clock, cost=0.01)
        with pytest.raises(Unreachable):
            connect(DSN, timeout=timeout, backoff=backoff(clock, uniform=lambda _, high: high * max(dice, 0.1)))
    assert 1000.0 + timeout <= clock.now <= 1000.0 + timeout + 0.02
    assert len(calls) >= 1


def test_unreachable_says_where_how_long_why_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    failing(monkeypatch, down())
    with pytest.raises(Unreachable) as caught:
        connect(DSN, timeout=12, backoff=backoff(clock))
    text = str(caught.value)
    assert "db.example:5433" in text
    assert "after 12 s" in text
    assert "Connection refused" in text
    assert "check that PostgreSQL runs there" in text
    assert "\n" not in text
    assert "s3cret-pw" not in text


def test_a_shared_deadline_wins_over_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    failing(monkeypatch, down())
    with pytest.raises(Unreachable):
        connect(DSN, timeout=1000, deadline=1003.0, backoff=backoff(clock))
    assert clock.now == pytest.approx(1003.0)


def test_zero_means_one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    calls = failing(monkeypatch, down())
    with pytest.raises(Unreachable, match="1 attempt "):
        connect(DSN, timeout=0, backoff=backoff(clock))
    assert len(calls) == 1


def test_one_attempt_never_waits_longer_than_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    calls = failing(monkeypatch, down(), clock=clock, cost=4.0)
    with pytest.raises(Unreachable):
        connect(DSN, timeout=15, backoff=backoff(clock))
    waits = [int(call["connect_timeout"]) for call in calls]
    assert waits[0] == 10
    assert waits == sorted(waits, reverse=True)
    assert min(waits) == 2  # libpq's smallest


# Messages as PostgreSQL 15 and 17 and libpq 17 give them.
FINAL = [
    ('FATAL:  password authentication failed for user "orcheo_admin"', Refusal.PASSWORD),
    ("fe_sendauth: no password supplied", Refusal.PASSWORD),
    ('FATAL:  role "nobody" does not exist', Refusal.ROLE),
    ('FATAL:  role "orcheo" is not permitted to log in', Refusal.ROLE),
    ('FATAL:  database "nope" does not exist', Refusal.DATABASE),
    ('FATAL:  permission denied for database "orcheo"', Refusal.PRIVILEGE),
    ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "x", database "y", no encryption', Refusal.HBA),
    ('FATAL:  pg_hba.conf rejects connection for host "10.0.0.1", user "x"', Refusal.HBA),
    ("SSL error: certificate verify failed", Refusal.CERTIFICATE),
    (
        'server certificate for "localhost" (and 2 other names) does not match host name "vm"',
        Refusal.CERTIFICATE,
    ),
    ('root certificate file "/nonexistent" does not exist', Refusal.CERTIFICATE),
    ("server does not support SSL, but SSL was required", Refusal.TLS),
    ('invalid sslmode value: "bogus"', Refusal.TLS),
    ("SSL error: tlsv1 alert protocol version", Refusal.TLS),
]
PASSING = [
    "Connection refused",
    "server closed the connection unexpectedly",
    "FATAL:  the database system is starting up",
    "FATAL:  the database system is shutting down",
    "FATAL:  the database system is not yet accepting connections",
    "FATAL:  sorry, too many clients already",
    'FATAL:  too many connections for role "orcheo_app_a"',
    "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
    "failed to resolve host 'postgres': [Errno -2] Name or service not known",
    "connection timeout expired",
]


@pytest.mark.parametrize(("message", "kind"), FINAL)
def test_what_retrying_cannot_mend_fails_at_once(monkeypatch: pytest.MonkeyPatch, message: str, kind: Refusal) -> None:
    clock = Clock()
    calls = failing(monkeypatch, psycopg.OperationalError(f'connection to server at "db", port 5432 failed: {message}'))
    with pytest.raises(ConnectionRefused) as caught:
        connect(DSN, timeout=300, backoff=backoff(clock))
    assert caught.value.kind is kind
    assert (len(calls), clock.slept) == (1, [])
    text = str(caught.value)
    assert "db.example:5433" in text
    assert "; " in text  # the advice
    assert "\n" not in text
    assert "s3cret-pw" not in text


@pytest.mark.parametrize("message", PASSING)
def test_what_may_pass_is_tried_again(message: str) -> None:
    assert refusal(message) is None


def test_parameters_replace_those_of_the_dsn(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = failing(monkeypatch, object())
    connect(DSN, user="orcheo_ro", password="other", dbname="orcheo")
    assert (calls[0]["user"], calls[0]["password"], calls[0]["dbname"]) == ("orcheo_ro", "other", "orcheo")
    assert calls[0]["sslmode"] == "verify-full"
    assert calls[0]["application_name"] == "orcheo-db"
    assert calls[0]["autocommit"] is True


def test_a_dsn_that_cannot_be_read_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = failing(monkeypatch, object())
    with pytest.raises(ConnectionRefused) as caught:
        connect("postgresql://u:sec ret@host:5/db bad=")
    assert caught.value.kind is Refusal.CONNINFO
    assert "sec" not in str(caught.value).replace("percent-encode", "")
    assert calls == []


def test_redact_hides_passwords_and_keeps_the_rest() -> None:
    text = redact(DSN + "&sslpassword=keypass")
    assert "s3cret-pw" not in text
    assert "keypass" not in text
    assert "host=db.example" in text
    assert redact("host='unfinished") == "<unreadable DSN>"


printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=40)


@given(password=printable)
def test_no_password_survives_redaction(password: str) -> None:
    dsn = psycopg.conninfo.make_conninfo("", host="h", user="u", password=password, dbname="d")
    assert redact(dsn) == "user=u password=*** dbname=d host=h"


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        (DSN, "db.example:5433"),
        ("host=a,b port=1,2", "a:1,b:2"),
        ("host=a,b port=7", "a:7,b:7"),
        ("host=/run/postgresql dbname=x", "/run/postgresql:5432"),
        ("hostaddr=10.1.2.3", "10.1.2.3:5432"),
        ("dbname=x", "local socket:5432"),
    ],
)
def test_address(monkeypatch: pytest.MonkeyPatch, dsn: str, expected: str) -> None:
    monkeypatch.delenv("PGHOST", raising=False)
    monkeypatch.delenv("PGPORT", raising=False)
    assert address(dsn) == expected


def test_pool_has_the_plans_sizes_and_is_closed_at_first() -> None:
    pool = database.make_pool(DSN)
    assert (pool.min_size, pool.max_size, pool.timeout, pool.max_idle) == (2, 20, 30.0, 300.0)
    assert pool.closed
    assert "s3cret-pw" not in repr(pool)


def test_errors_are_the_users() -> None:
    assert issubclass(ConnectionRefused, UserError)
    assert issubclass(Unreachable, UserError)
