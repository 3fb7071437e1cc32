"""The tier on hosts that Ansible runs (ansible/README.md), reached over SSH as the playbook reached them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.handed import pgpass
from orcheo_db.render.ansible import HOST, OLDER, POOLER_HOST, SINCE
from orcheo_db.secrets import Store
from orcheo_db.spec import Size, Spec
from orcheo_db.targets.base import Endpoint, Facts, Result, ServiceState, Target
from orcheo_db.tuning import postgresql_settings

HOSTS_FILE, SSH_CONFIG = "hosts.json", "ssh_config"  # written by the playbook (hosts/prepare.py)
CONNECT_SECONDS = 10
INIT = "/opt/orcheo-db/bin/orcheo-db-init"  # roles/bootstrap
OWN_SECRETS = "/etc/orcheo-db/postgres"  # roles/postgres


@dataclass(frozen=True)
class Service:
    """A service of the tier: the group whose host runs it, its systemd unit and its operating-system user."""

    name: str
    part: str
    unit: str
    user: str


class HostTarget(Target):
    """PostgreSQL, PgBouncer and the repository on hosts of one's own."""

    name = "host"
    up_command = "ansible-playbook playbooks/site.yml"
    backup_program = ("/opt/orcheo-db/bin/orcheo-db-backup",)

    def __init__(self, spec: Spec, size: Size, store: Store) -> None:
        self.hosts = read_hosts(store)
        self.told: Mapping[str, Any] = self.hosts["postgres"].get("installed", {})
        self.version = int(self.told.get("version", spec.versions.postgresql))
        # Of the distribution's version, and with what the inventory says.
        versions = spec.versions.model_copy(update={"postgresql": self.version})
        stack = spec.stack.model_copy(
            update={"port": int(self.hosts["pgbouncer"].get("installed", {}).get("port", spec.stack.port))}
        )
        super().__init__(spec.model_copy(update={"versions": versions, "stack": stack}), size, store)
        self.project = spec.stack.project
        self.pgdata = str(self.told.get("data", self.pgdata))
        self.units = {
            service.name: service
            for service in (
                Service(
                    "postgres", "postgres", str(self.told.get("unit", f"postgresql@{self.version}-main")), "postgres"
                ),
                Service("pgbackrest", "postgres", "orcheo-db-pgbackrest", "postgres"),
                Service("pgbouncer", "pgbouncer", "pgbouncer", "pgbouncer"),
                Service("archive", "repository", "orcheo-db-archive", "postgres"),
                Service("backup", "repository", "orcheo-db-job@full.timer", "postgres"),
            )
        }

    @property
    def volume(self) -> str:
        return self.pgdata

    @property
    def with_app(self) -> bool:
        return False  # Orcheo runs where its owner has it run

    @property
    def with_second(self) -> bool:
        return False  # roles/pgbackrest has one repository

    @property
    def service_names(self) -> tuple[str, ...]:
        return tuple(self.units)

    # --- commands ---------------------------------------------------------------------------------------------------------

    def ssh(self, part: str, *options: str) -> list[str]:
        """The words before a command line (one word, for the other side's shell) that is to run on a part's host."""
        ssh = self.hosts[part]["ssh"]
        words = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", *shlex.split(ssh["options"])]
        words += [
            *(["-i", ssh["key"]] if ssh["key"] else []),
            *(["-l", ssh["user"]] if ssh["user"] else []),
            "-p",
            str(ssh["port"]),
        ]
        return [*words, *options, ssh["host"], "--"]

    def inside(self, service: str, *, interactive: bool = False, tty: bool = False) -> list[str]:
        known = self.units[service]
        options = [*(["-tt"] if tty else []), *([] if interactive or tty else ["-n"])]
        return [*self.ssh(known.part, *options), "sudo", "-n", "-u", known.user, "--"]

    def command(self, service: str, argv: Sequence[str], *, interactive: bool = False) -> list[str]:
        return [*self.inside(service, interactive=interactive), *(shlex.quote(word) for word in argv)]

    def one_off(self, argv: Sequence[str], told: str) -> Result:
        del argv, told
        raise UserError("target host has no container to run that in: it is for Compose and Kubernetes")

    def _systemctl(self, service: str, *words: str) -> Result:
        known = self.units[service]
        command = shlex.join(["sudo", "-n", "systemctl", *words, known.unit])
        return run(self.ssh(known.part, "-n"), command)

    def restart(self, service: str) -> None:
        self._change(service, "restart")

    def kill(self, service: str) -> None:
        for words in (("kill", "--signal=KILL"), ("restart",)):
            done = self._systemctl(service, *words)
            if done.code != 0:
                raise CheckFailed(f"{service}: systemctl {words[0]}: {last_line(done.stderr)}")

    def stop(self, service: str) -> None:
        """Stop a service's unit; it starts again with the host.

        Raises:
            CheckFailed: systemd says why not.
        """
        self._change(service, "stop")

    def start(self, service: str) -> None:
        """Start a service's unit, which is there when this returns.

        Raises:
            CheckFailed: systemd says why not.
        """
        self._change(service, "start")

    def _change(self, service: str, word: str) -> None:
        done = self._systemctl(service, word)
        if done.code != 0:
            raise CheckFailed(f"{service} did not {word}: {last_line(done.stderr)}")

    def initialize(self) -> Result:
        """Run the init job, on the host of group `bootstrap`, as its user."""
        return self._init((), "", {})

    def as_init(self, argv: Sequence[str], told: str, environment: Mapping[str, str]) -> Result:
        """Run a command of the toolkit (python -m …) as the init job runs: its user, Orcheo's packages, its secrets and environment (and this one)."""
        if tuple(argv[:2]) != ("python", "-m"):
            raise ValueError(f"not a module of the toolkit: {argv[0]}")
        return self._init(argv[2:], told, environment)

    def _init(self, arguments: Sequence[str], told: str, environment: Mapping[str, str]) -> Result:
        given = (f"{key}={value}" for key, value in environment.items())
        words = ["sudo", "-n", "-u", "orcheo-db", "--", "env", *given, INIT, *arguments]
        return run(self.ssh("bootstrap"), shlex.join(words), told)

    def psql(self, role: str, *, direct: bool, interactive: bool, arguments: Sequence[str]) -> int:
        """psql on the database's host, as user postgres, with the password in a file of its own for as long as it runs; its exit code.

        Raises:
            CheckFailed: that host does not answer, or refuses.
        """
        endpoint = self.server() if direct else self.pooler()
        begin = 'umask 077; d=$(mktemp -d /tmp/orcheo-db-psql.XXXXXXXX); cat > "$d/pgpass"; echo "$d"'
        who = ["sudo", "-n", "-u", "postgres", "--"]
        # On its standard input: no password is in a command line.
        told = pgpass(role, self.store.password(role)).decode()
        made = run(self.ssh("postgres"), shlex.join([*who, "sh", "-c", begin]), told)
        place = made.stdout.strip()
        if made.code != 0 or not place:
            raise CheckFailed(f"psql can't be run on {self.hosts['postgres']['name']}: {last_line(made.stderr)}")
        where = (
            f"host={endpoint.host} port={endpoint.port} user={role} dbname={self.spec.database.name} sslmode=verify-full"
            f" sslrootcert={OWN_SECRETS}/ca.crt passfile={place}/pgpass"
        )
        command = shlex.join([*who, "env", "--chdir=/tmp", "PSQL_HISTORY=/dev/null", "psql", where, *arguments])
        try:
            return subprocess.run([*self.ssh("postgres", *(["-tt"] if interactive else [])), command]).returncode
        finally:
            run(self.ssh("postgres"), shlex.join([*who, "rm", "-rf", place]))

    def services(self) -> list[ServiceState]:
        return [self._state(service) for service in self.units.values()]

    def _state(self, service: Service) -> ServiceState:
        done = self._systemctl(service.name, "show", "--property=ActiveState,SubState,ActiveEnterTimestamp")
        if done.code != 0:
            return ServiceState(
                service.name, "unknown", "unhealthy", detail=last_line(done.stderr) or "its host does not answer"
            )
        found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
        good = found.get("ActiveState") == "active"
        host = self.hosts[service.part]["name"]
        return ServiceState(
            service.name, found.get("SubState", "unknown") if good else found.get("ActiveState", "unknown"), "healthy" if good else "unhealthy",
            since=found.get("ActiveEnterTimestamp", ""), detail=f"on {host} ({service.unit})",
        )  # fmt: skip

    # --- endpoints --------------------------------------------------------------------------------------------------------

    def pooler(self) -> Endpoint:
        return Endpoint("pgbouncer", self.spec.stack.port, self.hosts["pgbouncer"]["address"])

    def server(self) -> Endpoint:
        port = int(self.told.get("port", 5432))
        return Endpoint("postgres", port, self.hosts["postgres"]["address"])

    def meant_settings(self) -> list[tuple[str, str]]:
        found = {}
        for setting in postgresql_settings(self.size, self.spec):
            if setting.name not in HOST and SINCE.get(setting.name, 0) <= self.version:
                older = OLDER.get(setting.name)
                found[setting.name] = (
                    str(older["value"]) if older and self.version < int(str(older["before"])) else setting.value
                )
        return list((found | {name: str(value) for name, value in self.told.get("settings", {}).items()}).items())

    def meant_pooler_settings(self) -> dict[str, str]:
        told = self.hosts["pgbouncer"].get("installed", {}).get("settings", {})
        found = {name: value for name, value in super().meant_pooler_settings().items() if name not in POOLER_HOST}
        return found | {name: str(value) for name, value in told.items()}

    # --- verification -----------------------------------------------------------------------------------------------------

    def facts(self) -> Facts:
        """What the verify suite looks for on the hosts."""
        return Facts(
            target=self.name,
            hosts={role: self._testinfra(role) for role in ("postgres", "pgbouncer")},
            users={"postgres": "postgres", "pgbouncer": "pgbouncer"},
            packages={"postgres": [f"postgresql-{self.version}", "pgbackrest"], "pgbouncer": ["pgbouncer"]},
            private_files={
                "postgres": [
                    f"/etc/orcheo-db/postgres/{name}"
                    for name in ("server.key", "orcheo_admin.scram", "replicator.scram")
                ],
                "pgbouncer": ["/etc/orcheo-db/pgbouncer/server.key", "/etc/orcheo-db/pgbouncer/userlist.txt"],
            },
            listening={"postgres": ["tcp://5432"], "pgbouncer": [f"tcp://{self.spec.stack.port}"]},
            secrets_dir="/etc/orcheo-db",
            data_dir=self.pgdata,
            whole_hosts=True,
            postgres_program=f"/usr/lib/postgresql/{self.version}/bin/postgres",
        )

    def _testinfra(self, role: str) -> str:
        return f"ssh://{role}?sudo=true&ssh_config={self.store.path / SSH_CONFIG}"


def run(words: Sequence[str], command: str, told: str = "") -> Result:
    """Run one command line by SSH. told: its standard input."""
    done = subprocess.run([*words, command], capture_output=True, text=True, input=told)
    return Result(done.returncode, done.stdout, done.stderr)


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return re.sub(r"\s+", " ", lines[-1]) if lines else ""


def read_hosts(store: Store) -> Mapping[str, Any]:
    """The hosts by part, as the playbook took them from its inventory.

    Raises:
        UserError: no playbook has run with this state directory, or the file is damaged.
    """
    file = Path(store.path) / HOSTS_FILE
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"there is no {file}: run `ansible-playbook playbooks/site.yml`, and name its common_state in ORCHEO_DB_STATE_DIR"
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): run the playbook again, which writes it") from None
    return found
