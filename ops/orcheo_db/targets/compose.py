"""The Compose stack on one machine: PostgreSQL, PgBouncer and the init job in containers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, NotFound
from docker.models.containers import Container

from orcheo_db import handed
from orcheo_db.errors import UserError
from orcheo_db.host import compose_command
from orcheo_db.render import render
from orcheo_db.secrets import Store
from orcheo_db.spec import Size, Spec
from orcheo_db.targets import app, backup
from orcheo_db.targets.base import Endpoint, Facts, Result, ServiceState, Target
from orcheo_db.targets.image_facts import SECRETS, image_facts
from orcheo_db.targets.mounts import File, fingerprint, secret
from orcheo_db.tuning import app_limits

ROOT = Path(__file__).resolve().parents[3]
DOCKER_ENVIRONMENT = (
    "PATH", "HOME", "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY", "XDG_RUNTIME_DIR",
)  # fmt: skip
JOB_MEMORY = "1g"  # as the init job's: it imports the app
IN_PLACE = "restored"  # in the state directory: the name of the volume that a restore put in place


class ComposeTarget(Target):
    """Containers on this machine's Docker daemon, one Compose project an installation."""

    name = "compose"
    compose_file = "compose/compose.yaml"
    tier: tuple[str, ...] = ("postgres", "init", "pgbouncer")  # in start order
    up_command = "make up"

    def __init__(self, spec: Spec, size: Size, store: Store, root: Path = ROOT) -> None:
        super().__init__(spec, size, store)
        self.root = root
        self.project = spec.stack.project
        self.tags = spec.image_tags()

    @property
    def backup_services(self) -> tuple[str, ...]:
        """The backups' services that are wanted, in start order."""
        second = backup.SECOND_SERVICES if self.with_second else ()
        return (*backup.SERVICES, *second) if self.with_backup else ()

    @property
    def image_names(self) -> tuple[str, ...]:
        """The images that are wanted."""
        server = ("postgres",) if self.managed_server else ()
        return (*server, "pgbouncer", "orcheo", *(("backup",) if self.with_backup else ()))

    @property
    def service_names(self) -> tuple[str, ...]:
        """The services that are wanted, in start order."""
        return (*self.tier, *self.backup_services, *(app.SERVICES if self.with_app else ()))

    @property
    def all_services(self) -> tuple[str, ...]:
        """Every service that there can be, wanted now or not."""
        backups = (*backup.SERVICES, *backup.SECOND_SERVICES) if self.managed_server else ()
        return (*self.tier, *backups, *app.SERVICES)

    @property
    def compose_files(self) -> tuple[str, ...]:
        """The files that Compose reads."""
        direct = self.with_app and self.managed_server and self.spec.app.via == "postgres"
        more = (
            *(("compose/backup.yaml",) if self.with_backup else ()),
            *(("compose/backup-second.yaml",) if self.with_second else ()),
            *(("compose/app.yaml",) if self.with_app else ()),
        )
        return (self.compose_file, *more, *(("compose/app-direct.yaml",) if direct else ()))

    # --- containers -----------------------------------------------------------------------------------------------------

    @property
    def volume(self) -> str:
        """The data volume's name: that of the restore which was put in place, if one was."""
        file = self.store.path / IN_PLACE
        return file.read_text().strip() if file.is_file() else f"{self.project}_pgdata"

    def volumes(self) -> list[str]:
        """Every volume of this installation that exists, by name: also those of parts that are not wanted now."""
        parts = (*(backup.VOLUMES if self.managed_server else ()), *app.VOLUMES)
        names = [*([self.volume] if self.managed_server else []), *(f"{self.project}_{name}" for name in parts)]
        return [name for name in names if self._volume_exists(name)] + self.restored_volumes()

    def restored_volumes(self) -> list[str]:
        """The data volumes that restores made or set aside, by name, without the one in use."""
        if not self.managed_server:
            return []
        found = docker.from_env().volumes.list(filters={"name": f"{self.project}_pgdata"})
        names = (str(volume.name) for volume in found)
        return sorted(
            n for n in names if re.fullmatch(rf"{re.escape(self.project)}_pgdata(-.*)?", n) and n != self.volume
        )

    def container(self, service: str) -> Container | None:
        """The service's container, running or not; None when there is none."""
        labels = [f"com.docker.compose.project={self.project}", f"com.docker.compose.service={service}"]
        found = docker.from_env().containers.list(
            all=True,
            filters={"label": [*labels, "com.docker.compose.oneoff=False"]},
            ignore_removed=True,  # each is asked about after the list: one may be gone by then
        )
        return found[0] if found else None

    def compose(self, *arguments: str, input: str | None = None) -> Result:
        """Run Compose with this project's file and values; its own progress is in the result's stderr."""
        files = [word for name in self.compose_files for word in ("--file", name)]
        words = ("--env-file", str(self.store.path / "compose.env"), *files, *arguments)
        return self._compose(self.root, *words, input=input)

    def compose_by_name(self, *arguments: str) -> Result:
        """Run Compose on this project's containers by its name alone, without any file."""
        return self._compose(self.root / "tests", "--project-name", self.project, *arguments)

    def _compose(self, directory: Path, *arguments: str, input: str | None = None) -> Result:
        # What is in the caller's environment would win over the env file: only what Docker itself needs goes through.
        env = {key: os.environ[key] for key in DOCKER_ENVIRONMENT if key in os.environ}
        argv = [*compose_command(), "--progress", "plain", *arguments]
        told: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(argv, cwd=directory, env=env, capture_output=True, text=True, **told)
        return Result(done.returncode, done.stdout, done.stderr)

    def inside(self, service: str, *, interactive: bool = False, tty: bool = False) -> list[str]:
        words = [*(["--interactive"] if interactive else []), *(["--tty"] if tty else [])]
        return ["docker", "exec", *words, str(self._running(service).id)]

    def one_off(self, argv: Sequence[str], told: str) -> Result:
        command = [
            "docker", "run", "--rm", "--interactive", f"--network={self.project}_clients", "--read-only", "--cap-drop=ALL",
            "--tmpfs=/tmp:mode=1777,size=64m", "--security-opt=no-new-privileges:true", f"--memory={JOB_MEMORY}",
            self.tags["orcheo"], *argv,
        ]  # fmt: skip
        done = subprocess.run(command, input=told, capture_output=True, text=True)
        return Result(done.returncode, done.stdout, done.stderr)

    def _running(self, service: str) -> Container:
        container = self.container(service)
        if container is None or container.status != "running":
            state = container.status if container else "not there"
            raise UserError(f"service {service} of project {self.project} is {state}: run `{self.up_command}`")
        return container

    def restart(self, service: str) -> None:
        container = self._running(service)
        container.restart(
            timeout=container.attrs["Config"].get("StopTimeout", 10)
        )  # its stop_grace_period; Docker's own default

    def kill(self, service: str) -> None:
        container = self._running(service)
        try:
            os.kill(
                int(container.attrs["State"]["Pid"]), signal.SIGKILL
            )  # as a crash: the restart policy brings it back
        except (PermissionError, ProcessLookupError):  # not root, or a daemon elsewhere
            container.kill("SIGKILL")
            container.start()  # after a kill by its own command Docker takes the end for intended

    def services(self) -> list[ServiceState]:
        # Those that are there although they are not wanted (somebody chose otherwise in the meantime) are shown too.
        unwanted = [
            name for name in self.all_services if name not in self.service_names and self.container(name) is not None
        ]
        return [self._state(name) for name in (*self.service_names, *unwanted)]

    def _state(self, service: str) -> ServiceState:
        container = self.container(service)
        if container is None:
            return ServiceState(service, "missing", "none")
        state = container.attrs["State"]
        health = str(state.get("Health", {}).get("Status", "none"))
        if health == "starting" and self.answers(container):
            health = "healthy"
        detail = ""
        if service == "init" and state["Status"] == "exited":
            health = "done" if state["ExitCode"] == 0 else "failed"
            detail = f"exit code {state['ExitCode']}"
        image = str(container.attrs["Config"]["Image"])
        return ServiceState(service, str(state["Status"]), health, image, str(state["StartedAt"])[:19], detail)

    def answers(self, container: Container) -> bool:
        """Whether a container passes its own health check now; Docker's first check comes only after a whole interval.

        (Compose's `start_interval` would do the same, but wants Docker Engine 25.)
        """
        container.reload()
        words = container.attrs["Config"].get("Healthcheck", {}).get("Test") or ["NONE"]
        if container.status != "running" or words[0] not in ("CMD", "CMD-SHELL"):
            return False
        argv = words[1:] if words[0] == "CMD" else ["sh", "-c", words[1]]
        done = subprocess.run(
            ["docker", "exec", str(container.id), *argv], stdin=subprocess.DEVNULL, capture_output=True
        )
        return done.returncode == 0

    # --- endpoints ------------------------------------------------------------------------------------------------------

    def pooler(self) -> Endpoint:
        bound = self.spec.stack.bind_address
        everywhere = ("127.0.0.1", "0.0.0.0", "::1", "::")  # noqa: S104 - reached by the name localhost
        # The certificate names localhost; at another address it is reached by hostaddr, and the name stays verified.
        return Endpoint("localhost", self.spec.stack.port, None if bound in everywhere else bound)

    def server(self) -> Endpoint:
        container = self._running("postgres")
        networks = container.attrs["NetworkSettings"]["Networks"]
        return Endpoint("postgres", 5432, str(networks[f"{self.project}_database"]["IPAddress"]))

    # --- what the containers get ----------------------------------------------------------------------------------------

    def conf(self, name: str) -> bytes:
        """A configuration file of the spec in use, as compose/conf/ has it for the committed spec."""
        return render(self.spec)[f"compose/conf/{name}"].encode()

    def pgbouncer_ini(self) -> bytes:
        return self.conf(f"{self.size.name}/pgbouncer.ini")

    def mounts(self) -> dict[str, list[File]]:
        """The files of the tier's services."""
        tier = {"postgres": self._postgres_files(), "pgbouncer": self.pgbouncer_files(), "init": self.init_files()}
        return tier | (backup.files(self) if self.with_backup else {})

    def app_mounts(self) -> dict[str, list[File]]:
        """The files of the app's services; they are put in place when the database serves (`lifecycle`)."""
        return app.files(self)

    def app_dsn(self) -> str:
        """The app's way to the database inside the networks, without its password; connect_timeout is in seconds."""
        host = "pgbouncer:6432" if self.spec.app.via == "pgbouncer" else "postgres:5432"
        options = f"sslmode=verify-full&sslrootcert={SECRETS}/ca.crt&connect_timeout=10"
        return f"postgresql://{self.app_login()}@{host}/{self.spec.database.name}?{options}"

    def app_authorities(self) -> list[File]:
        """The certificate authorities that `app_dsn` names."""
        return secret(handed.authority(self.store))

    def _postgres_files(self) -> list[File]:
        files = [File("conf/postgresql.conf", self.conf(f"{self.size.name}/postgresql.conf"))]
        names = ("pg_hba.conf", "pg_ident.conf")
        files += [File(f"conf/{name}", self.conf(name)) for name in names]
        if self.with_backup:
            files.append(File("conf/pgbackrest.conf", self.conf("pgbackrest-database.conf")))
        return [*secret(handed.postgres(self.store, backups=self.with_backup)), *files]

    def pgbouncer_secrets(self) -> dict[str, bytes]:
        """PgBouncer's secrets."""
        return handed.pgbouncer(self.store)

    def pgbouncer_files(self) -> list[File]:
        return [*secret(self.pgbouncer_secrets()), File("conf/pgbouncer.ini", self.pgbouncer_ini())]

    def init_files(self) -> list[File]:
        return secret(handed.init(self.store))

    def admin_dsn(self) -> str:
        """The init job's way in, without a password (it reads that from its own secrets)."""
        return f"postgresql://orcheo_admin@postgres:5432/postgres?sslmode=verify-full&sslrootcert={SECRETS}/ca.crt"

    def environment(self) -> dict[str, str]:
        """All of compose.env: what compose.yaml takes its values from. No secret is among them."""
        stack = dict(
            line.partition("=")[::2]
            for line in self.conf(f"{self.size.name}/stack.env").decode().splitlines()
            if "=" in line and line[0] != "#"
        )
        files = self.mounts()
        bootstrap = [
            self.spec.database.name,
            *self.spec.database.extensions,
            self.image_id("orcheo"),
            self.admin_dsn(),
        ]
        digest = hashlib.sha256(repr([*bootstrap, fingerprint(files["init"])]).encode()).hexdigest()
        if self.with_app:
            stack |= self._app_environment()
        if self.with_backup:
            stack |= {
                f"{name.upper()}_INPUTS": fingerprint(files[name])
                for name in files
                if name in ("archive", "backup", "second")
            }
            stack["DATABASE_BACKUP_INPUTS"] = fingerprint(files["pgbackrest"])
        return stack | {
            "COMPOSE_PROJECT_NAME": self.project,
            "STATE_DIR": str(self.store.path),
            "PGDATA_VOLUME": self.volume,
            "POSTGRES_IMAGE": self.tags["postgres"],
            "PGBOUNCER_IMAGE": self.tags["pgbouncer"],
            "ORCHEO_IMAGE": self.tags["orcheo"],
            # external.yaml extends compose.yaml, which is read whole: its postgres service wants a value there too.
            "POSTGRES_INPUTS": fingerprint(files["postgres"]) if "postgres" in files else "unused",
            "PGBOUNCER_INPUTS": fingerprint(files["pgbouncer"]),
            "INIT_INPUTS": digest,
            "INIT_ADMIN_DSN": self.admin_dsn(),
            "INITDB_LOCALE_PROVIDER": self.spec.cluster.locale_provider,
            "INITDB_LOCALE": self.spec.cluster.locale,
            "DATABASE_NAME": self.spec.database.name,
            "DATABASE_EXTENSIONS": ",".join(self.spec.database.extensions),
            "BIND_ADDRESS": self.spec.stack.bind_address,
            "PGBOUNCER_PORT": str(self.spec.stack.port),
            # The user's word that an index order made by another collation library is accepted (the image says when to give it).
            "ORCHEO_DB_ACCEPT_COLLATION": os.environ.get("ORCHEO_DB_ACCEPT_COLLATION", ""),
        }

    def _app_environment(self) -> dict[str, str]:
        inputs = {f"{name.upper()}_INPUTS": fingerprint(files) for name, files in self.app_mounts().items()}
        limits = {name: str(size) for name, size in app_limits(self.spec).items()}
        return {**inputs, **limits, "APP_PORT": str(self.spec.app.port)}

    def image_id(self, name: str) -> str:
        """The id of one of the toolkit's images.

        Raises:
            UserError: it is not there.
        """
        try:
            return str(docker.from_env().images.get(self.tags[name]).id)
        except NotFound:
            raise UserError(f"image {self.tags[name]} is not there: run `make images`") from None

    @property
    def helper_image(self) -> str:
        """An image with tar and find, for work on the services' files."""
        return self.tags["pgbouncer"]

    # --- steps of `up` that differ between targets ------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse wrong input of this target's own, before anything is done: nothing here."""

    def prepare_store(self) -> None:
        """Take into the state directory what this target needs beyond the generated secrets: nothing here."""

    def after_init(self, summary: dict[str, Any] | None) -> bool:
        """React to what the init job found out, before PgBouncer starts; returns whether the services' files changed by it."""
        del summary
        return False

    def is_bootstrapped(self) -> bool:
        """Whether this installation's init job has finished on the database that is there now."""
        query = "SELECT installation_id FROM orcheo_db.installation"
        result = self.run("postgres", ["psql", "-XAtq", "-d", self.spec.database.name, "-c", query])
        return result.code == 0 and result.stdout.strip() == self.store.installation_id()

    # --- the volume -----------------------------------------------------------------------------------------------------

    def volume_exists(self) -> bool:
        """Whether the data volume is there."""
        return self._volume_exists(self.volume)

    @staticmethod
    def _volume_exists(name: str) -> bool:
        try:
            docker.from_env().volumes.get(name)
        except NotFound:
            return False
        return True

    def volume_owner(self, volume: str | None = None) -> str | None:
        """The installation id in a volume's marker (default: the data volume's); None where there is no volume, nothing in it, or no marker."""
        volume = volume or self.volume
        marker = self.inspect_volume(volume).get("marker") if self._volume_exists(volume) else None
        return str(marker.get("installation_id")) if isinstance(marker, dict) else None

    def inspect_volume(self, volume: str | None = None) -> dict[str, Any]:
        """What a volume (default: the data volume) holds, read without starting a server (the image's own `inspect`)."""
        volume = volume or self.volume
        client = docker.from_env()
        try:
            output = client.containers.run(
                self.tags["postgres"], ["inspect"], remove=True, network_mode="none", read_only=True, user="999:999", cap_drop=["ALL"],
                volumes={volume: {"bind": "/var/lib/postgresql", "mode": "ro"}},
            )  # fmt: skip
        except APIError as error:
            raise UserError(f"volume {volume} can't be inspected: {error.explanation or error}") from None
        found: dict[str, Any] = json.loads(output)
        return found

    # --- verification ---------------------------------------------------------------------------------------------------

    def facts(self) -> Facts:
        def host(service: str) -> str:
            container = self.container(service)
            if container is None:
                raise UserError(f"service {service} of project {self.project} is missing: run `make up`")
            return f"docker://{container.name}"

        return image_facts(self, {name: host(name) for name in ("postgres", "pgbouncer") if name in self.tier})
