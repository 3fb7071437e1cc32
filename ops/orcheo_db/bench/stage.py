"""The bench's own server between two measurements: databases as they were after `up`, and quiet."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from orcheo_db.bench.backup import Bench
from orcheo_db.errors import CheckFailed

EMPTY = "orcheo_bench_empty"  # the app's database as after `up`, to make it anew from
OWNER = "orcheo"
QUIET_SECONDS = 300.0


@dataclass
class Stage:
    """The server of an installation that is all the bench's own. Its databases change under one name: pg_hba.conf knows no other."""

    own: Bench
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.own.target().spec.database.name
        self.sql(f'DROP DATABASE IF EXISTS "{EMPTY}"', *self._make(EMPTY, self.name))

    def _make(self, name: str, template: str) -> tuple[str, ...]:
        # The pooler, the monitor and the backup service look in now and then: a template must have no session.
        end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{template}'"  # noqa: S608 - a name of the spec
        return end, f'CREATE DATABASE "{name}" OWNER "{OWNER}" TEMPLATE "{template}"'

    def sql(self, *statements: str) -> str:
        """By the server's own socket, as its superuser; what the last one answers.

        Raises:
            CheckFailed: it was refused five times.
        """
        words = [word for statement in statements for word in ("-c", statement)]
        argv = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres", *words]
        for _ in range(5):
            done = self.own.target().run("postgres", argv)
            if done.code == 0:
                return done.stdout.strip()
            time.sleep(1)  # a session came between
        raise CheckFailed(f"psql: {(done.stderr.strip().splitlines() or ['?'])[-1]}")

    def fresh(self, template: str = EMPTY) -> None:
        """The app's database as after `up`, or as another template has it; then rest."""
        self.sql(f'DROP DATABASE IF EXISTS "{self.name}" WITH (FORCE)', *self._make(self.name, template))
        self.rest()

    def rest(self) -> None:
        """Have what was written on the disk and in the archive: the next measurement shall not pay for the last one."""
        self.sql("CHECKPOINT")
        deadline = time.monotonic() + QUIET_SECONDS
        waiting = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
        while self.sql(waiting) != "0" and time.monotonic() < deadline:
            time.sleep(1)

    def connect(self) -> psycopg.Connection[Any]:
        """As the tables' owner, by the way that the migration takes."""
        connection = psycopg.connect(self.own.target().dsn("orcheo_admin", direct=True), autocommit=True)
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(OWNER)))
        connection.execute("SET statement_timeout = 0")
        return connection
