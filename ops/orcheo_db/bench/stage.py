"""The bench's own server between two measurements: databases as they were after `up`, and quiet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from orcheo_db.bench.backup import Bench

EMPTY = "orcheo_bench_empty"  # the app's database as after `up`, to make it anew from
OWNER = "orcheo"


@dataclass
class Stage:
    """The server of an installation that is all the bench's own. Its databases change under one name: pg_hba.conf knows no other."""

    own: Bench
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.own.target().spec.database.name
        self.own.sql(f'DROP DATABASE IF EXISTS "{EMPTY}"', *self._make(EMPTY, self.name))

    def _make(self, name: str, template: str) -> tuple[str, ...]:
        # The pooler, the monitor and the backup service look in now and then: a template must have no session.
        end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{template}'"  # noqa: S608 - a name of the spec
        return end, f'CREATE DATABASE "{name}" OWNER "{OWNER}" TEMPLATE "{template}"'

    def fresh(self, template: str = EMPTY) -> None:
        """The app's database as after `up`, or as another template has it; then rest."""
        self.own.sql(f'DROP DATABASE IF EXISTS "{self.name}" WITH (FORCE)', *self._make(self.name, template))
        self.own.rest()

    @property
    def dsn(self) -> str:
        """The way that the migration takes."""
        return self.own.target().dsn("orcheo_admin", direct=True)

    def connect(self) -> psycopg.Connection[Any]:
        """As the tables' owner, by the way that the migration takes."""
        connection = psycopg.connect(self.dsn, autocommit=True)
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(OWNER)))
        connection.execute("SET statement_timeout = 0")
        return connection
