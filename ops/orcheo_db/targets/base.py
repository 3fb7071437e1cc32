"""What every target can do, so that an operation is written once and works on all of them."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from orcheo_db.secrets import Store
from orcheo_db.spec import Size, Spec
from orcheo_db.tuning import pgbouncer_settings, postgresql_settings

APP_LOGINS = ("orcheo_app_a", "orcheo_app_b")  # two, so that passwords rotate without a failed query


@dataclass(frozen=True)
class Result:
    """What a command on the target gave."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens, as a client on this machine sees it.

    `host` is the name that the certificate is verified against; `address` the address to connect to when the name does not
    resolve here (libpq's hostaddr).
    """

    host: str
    port: int
    address: str | None = None


@dataclass(frozen=True)
class ServiceState:
    """One service's state in the target's own words, plus what a person asks first."""

    name: str
    state: str  # running, exited, missing, …
    health: str  # healthy, starting, unhealthy, done (a finished job), none
    image: str = ""
    since: str = ""
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.health in ("healthy", "done") or (self.state == "running" and self.health == "none")


@dataclass(frozen=True)
class Facts:
    """What the verify suite needs to know about a target: nothing in it says how the target works."""

    target: str
    hosts: dict[str, str]  # role -> testinfra host specification
    users: dict[str, str]  # role -> operating-system user that the service runs as
    packages: dict[str, list[str]]  # role -> packages that must be installed
    private_files: dict[str, list[str]]  # role -> files that only the service may read
    listening: dict[str, list[str]]  # role -> sockets, testinfra's notation
    secrets_dir: str = ""
    data_dir: str = ""
    managed_server: bool = True  # whether PostgreSQL itself is ours (its settings, its files, its superuser)
    whole_hosts: bool = False  # a role's host runs other things, too
    postgres_program: str = "postgres"
    extra: dict[str, Any] = field(default_factory=dict)


class Target(ABC):
    """A place where the tier runs. Operations speak to this class alone."""

    name: str
    project: str  # the installation's name here: what a person confirms by
    up_command: str  # what brings it up, for messages
    managed_server: bool = True  # PostgreSQL itself is ours: its volume, settings and superuser
    backup_program: tuple[str, ...] = (
        "python",
        "-m",
        "orcheo_db.backup",
    )  # the backups' commands, where the repository is

    def __init__(self, spec: Spec, size: Size, store: Store) -> None:
        self.spec, self.size, self.store = spec, size, store
        self.pgdata = f"/var/lib/postgresql/{spec.versions.postgresql}/main"

    @property
    def with_app(self) -> bool:
        """Whether Orcheo itself runs beside its database."""
        return "app" in self.spec.stack.parts

    @property
    def with_backup(self) -> bool:
        """Whether this toolkit backs the server up."""
        return self.managed_server and self.spec.backup.enabled

    @property
    def with_second(self) -> bool:
        """Whether backups also go into a bucket."""
        return self.with_backup and self.spec.backup.has_second

    @property
    def pooler_spec(self) -> Spec:
        """The spec as one PgBouncer is configured by it; where there are several, each has its share of the connections."""
        return self.spec

    @property
    @abstractmethod
    def volume(self) -> str:
        """The name of PostgreSQL's volume."""

    @property
    @abstractmethod
    def service_names(self) -> tuple[str, ...]:
        """The services that are wanted, in start order."""

    @abstractmethod
    def inside(self, service: str, *, interactive: bool = False, tty: bool = False) -> list[str]:
        """The words on this machine before a command that is to run where `service` runs, as the service's user.

        Args:
            interactive: its standard input is this one's. tty: a terminal.

        Raises:
            UserError: the service does not run.
        """

    def command(self, service: str, argv: Sequence[str], *, interactive: bool = False) -> list[str]:
        """A command that is to run where `service` runs, as the words to start here.

        Raises:
            UserError: the service does not run.
        """
        return [*self.inside(service, interactive=interactive), *argv]

    def run(self, service: str, argv: Sequence[str], *, input: str | None = None) -> Result:
        """Run a command where `service` runs, as the service's user.

        Raises:
            UserError: the service does not run.
        """
        command = self.command(service, argv, interactive=input is not None)
        told: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(command, capture_output=True, text=True, **told)
        return Result(done.returncode, done.stdout, done.stderr)

    @abstractmethod
    def one_off(self, argv: Sequence[str], told: str) -> Result:
        """Run a command in a throw-away container of the `orcheo` image that reaches PgBouncer and nothing else.

        What it is told comes on stdin: no secret is in its command line, environment or files.
        """

    @abstractmethod
    def restart(self, service: str) -> None:
        """Stop a service as the platform does (gracefully) and start it again."""

    @abstractmethod
    def kill(self, service: str) -> None:
        """End a service with SIGKILL, as a crash would, and let it start again as the platform does. For fault tests."""

    @abstractmethod
    def services(self) -> list[ServiceState]:
        """The state of every service of this target, in start order."""

    @abstractmethod
    def pooler(self) -> Endpoint:
        """Where PgBouncer answers."""

    @abstractmethod
    def server(self) -> Endpoint:
        """Where PostgreSQL itself answers (bootstrap, migrations, backups)."""

    def meant_settings(self) -> list[tuple[str, str]]:
        """PostgreSQL's settings as this target should have them."""
        return [(setting.name, setting.value) for setting in postgresql_settings(self.size, self.spec)]

    def meant_pooler_settings(self) -> dict[str, str]:
        """PgBouncer's settings as this target should have them."""
        return {setting.name: setting.value for setting in pgbouncer_settings(self.size, self.pooler_spec)}

    def app_url(self) -> str:
        """Where Orcheo's API answers, as a client on this machine sees it."""
        return f"http://127.0.0.1:{self.spec.app.port}"

    def app_told(self) -> tuple[str, str]:
        """Where a person finds Orcheo's API, and what has to stand before a command that calls it."""
        return self.app_url(), ""

    @abstractmethod
    def facts(self) -> Facts:
        """What the verify suite needs to know."""

    def ca_file(self, *, direct: bool = False) -> Path:
        """The certificate authority to verify against, as a file on this machine."""
        del direct  # one authority signs both; a target whose server is someone else's overrides this
        return self.store.ca_file

    def sslmode(self, *, direct: bool) -> str:
        """How the server's certificate is verified."""
        del direct
        return "verify-full"

    def client_files(self, *, direct: bool) -> dict[str, Path]:
        """This machine's own certificate and its key, where the server wants to see one: libpq's `sslcert` and `sslkey`."""
        del direct
        return {}

    def client_dsn(self, role: str | None = None, *, direct: bool = False) -> str:
        """The DSN for somebody else's use: an app's, mostly."""
        return self.dsn(role, direct=direct)

    def app_login(self) -> str:
        """The app login in use; rotation switches to the other one."""
        file = self.store.path / "active-login"
        return file.read_text().strip() if file.is_file() else APP_LOGINS[0]

    def dsn(self, role: str | None = None, *, direct: bool = False, database: str | None = None) -> str:
        """The DSN of a role: through PgBouncer, or direct; the server's certificate and name are always verified.

        Raises:
            UserError: no such role, or its secret is missing.
        """
        self.store.installation_id()  # says so where there is no installation
        role = role or self.app_login()
        endpoint = self.server() if direct else self.pooler()
        query = {"sslmode": self.sslmode(direct=direct), "sslrootcert": str(self.ca_file(direct=direct))}
        query |= {name: str(file) for name, file in self.client_files(direct=direct).items()}
        if endpoint.address:
            query["hostaddr"] = endpoint.address
        name = database or self.spec.database.name
        login = f"{quote(role, safe='')}:{quote(self.store.password(role), safe='')}"
        return (
            f"postgresql://{login}@{endpoint.host}:{endpoint.port}/{quote(name, safe='')}?{urlencode(query, safe='/')}"
        )
