"""What the steps share: the connections, what had to be left out, and how a step is run and timed."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources

import psycopg
from psycopg import errors, sql

from orcheo_db.bootstrap.job import OWNER, Job
from orcheo_db.database import Connection, ServerFacts
from orcheo_db.errors import CheckFailed

# What a killed predecessor's last statement, or an app that is running, can cause and a second try mends.
PASSING = (
    errors.DeadlockDetected,
    errors.DuplicateObject,
    errors.DuplicateTable,
    errors.DuplicateDatabase,
    errors.LockNotAvailable,
    errors.ObjectInUse,  # CREATE DATABASE while someone is connected to the template
    errors.SerializationFailure,
    errors.UniqueViolation,  # two CREATE ... IF NOT EXISTS of one name at the same moment
)
TRIES = 5


def say(text: str) -> None:
    """One line of progress on stderr (stdout is for the result)."""
    print(f"bootstrap: {text}", file=sys.stderr, flush=True)


def statement(name: str, **parts: sql.Composable) -> sql.Composed:
    """The SQL file `sql/NAME.sql` with its {placeholders} filled in (identifiers and literals, never plain
    text).
    """
    text: str = (resources.files("orcheo_db.bootstrap") / "sql" / f"{name}.sql").read_text(encoding="utf-8")
    return sql.SQL(text).format(**parts)


@dataclass
class StepResult:
    """One step: what it changed (nothing: it was as it should be) and how long it took in seconds."""

    name: str
    changes: list[str]
    seconds: float


@dataclass
class Session:
    """The running job: its connections and its findings."""

    job: Job
    maintenance: Connection  # holds the lock
    facts: ServerFacts
    left_out: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    steps: list[StepResult] = field(default_factory=list)
    pooler_auth: str = "auth_file"
    _app: Connection | None = None

    @property
    def app(self) -> Connection:
        """The administrator's connection to the app's database."""
        if self._app is None:
            raise RuntimeError("the app's database isn't open yet")
        return self._app

    @app.setter
    def app(self, conn: Connection) -> None:
        self._app = conn

    def close(self) -> None:
        """Close the connection to the app's database; the maintenance one belongs to the caller."""
        if self._app is not None:
            self._app.close()

    @property
    def may_read_verifiers(self) -> bool:
        """Whether this administrator can make PgBouncer's lookup function (needs pg_authid)."""
        return self.facts.superuser or self.facts.reads_passwords

    def leave_out(self, what: str, why: str) -> None:
        """Note a part of the wanted state that this administrator or server can't have."""
        if all(entry["what"] != what for entry in self.left_out):
            self.left_out.append({"what": what, "why": why})

    def as_owner(self, query: sql.SQL | sql.Composed) -> None:
        """Run one statement in the app's database as the role that owns it."""
        self.app.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(OWNER)))
        try:
            self.app.execute(query)
        finally:
            if not self.app.closed:
                self.app.execute("RESET ROLE")

    def run(self, name: str, action: Callable[[list[str]], None]) -> None:
        """Run one idempotent step, again if something passing got in its way, and record it.

        `action` appends to the list what it changes as it changes it, so a second try doesn't forget the
        first one's work.

        Raises:
            CheckFailed: the server refused; one line with the step, the reason and what to do.
        """
        start, changes = time.monotonic(), list[str]()
        for attempt in range(1, TRIES + 1):
            try:
                action(changes)
                break
            except psycopg.Error as error:
                if attempt == TRIES or not passing(error):
                    raise CheckFailed(self._stopped(name, error)) from error
                say(f"{name}: {_primary(error)}; trying again ({attempt} of {TRIES - 1})")
                time.sleep(0.5 * attempt)
        result = StepResult(name, changes, time.monotonic() - start)
        self.steps.append(result)
        say(f"{name}: {_summary(changes)} ({result.seconds:.2f} s)")

    def _stopped(self, name: str, error: psycopg.Error) -> str:
        what = f"step {name!r} stopped at {self.job.address}: {_primary(error)}"
        if isinstance(error, errors.InsufficientPrivilege):
            who = self.facts.user
            return f"{what}; give role {who!r} that privilege or use another administrator, then run again"
        if isinstance(error, errors.LockNotAvailable):
            return f"{what}; a long transaction holds a table: end it (see pg_stat_activity), then run again"
        return f"{what}; mend the cause and run again, finished steps are kept"


def passing(error: psycopg.Error) -> bool:
    """Whether trying the same again may succeed."""
    return isinstance(error, PASSING) or "concurrently updated" in str(error)


def _primary(error: psycopg.Error) -> str:
    text = error.diag.message_primary or " ".join(str(error).split()) or type(error).__name__
    return f"{text} (SQLSTATE {error.sqlstate})" if error.sqlstate else text


def _summary(changes: list[str]) -> str:
    if not changes:
        return "unchanged"
    if len(changes) <= 3:
        return ", ".join(changes)
    kinds = Counter(change.split()[0] for change in changes)
    if set(kinds) <= {"table", "index", "sequence", "column"}:
        return ", ".join(
            f"{count} {kind}{'' if count == 1 else 'es' if kind == 'index' else 's'}" for kind, count in kinds.items()
        )
    return f"{', '.join(changes[:3])} and {len(changes) - 3} more"
