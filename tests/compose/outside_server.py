"""A second real PostgreSQL on this machine, not ours: Debian 12's PostgreSQL 15, on the gateway address of a network made for it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orcheo_db.host import apt_install, available, os_release
from orcheo_db.secrets import Authority
from tests.conftest import free_port

BIN = Path("/usr/lib/postgresql/15/bin")
NETWORK = "orcheo-db-test-outside"


@dataclass(frozen=True)
class Outside:
    address: str
    port: int
    ca: Path
    directory: Path
    authority: Authority

    @contextlib.contextmanager
    def client_certificates(self) -> Iterator[None]:
        """Meanwhile it lets nobody in who does not show a certificate of its authority."""
        file = self.directory.parent / "data" / "pg_hba.conf"
        before = file.read_text()
        file.write_text(before.replace("scram-sha-256", "scram-sha-256 clientcert=verify-ca"))
        self.sql("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            file.write_text(before)
            self.sql("SELECT pg_reload_conf()")

    def dsn(self, user: str, password: str, sslmode: str = "verify-full") -> str:
        return f"postgresql://{user}:{password}@{self.address}:{self.port}/postgres?sslmode={sslmode}&sslrootcert={self.ca}"

    def sql(self, text: str, database: str = "postgres") -> str:
        argv = [
            "runuser",
            "-u",
            "postgres",
            "--",
            str(BIN / "psql"),
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            str(self.directory),
            "-p",
            str(self.port),
            "-d",
            database,
        ]
        return subprocess.run([*argv, "-c", text], capture_output=True, text=True, check=True, cwd="/").stdout.strip()

    @property
    def archive(self) -> Path:
        return self.directory.parent / "archive"

    def base_backup(self) -> Path:
        """A physical backup of it as it is now; its WAL goes on being archived."""
        place = self.directory.parent / f"base-{time.monotonic_ns()}"
        as_postgres(
            str(BIN / "pg_basebackup"),
            "-D",
            str(place),
            "-h",
            str(self.directory),
            "-p",
            str(self.port),
            "-c",
            "fast",
            "-X",
            "none",
        )
        return place

    def start_copy(self, base: Path, at: str, change: str = "") -> Path:
        """What a cloud does: the backup, recovered to a moment and promoted, on `copy_port` of the same address.

        Args:
            change: SQL that falsifies it, before anybody can connect.
        """
        segment = self.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
        self.sql("SELECT pg_switch_wal()")
        deadline = time.monotonic() + 60
        while not (self.archive / segment).exists():  # recovery ends where the archive ends
            assert time.monotonic() < deadline, f"{segment} is not archived"
            time.sleep(0.1)
        place = Path(tempfile.mkdtemp(prefix="copy-", dir=self.directory.parent))
        shutil.copytree(base, place, dirs_exist_ok=True)
        more = {
            "restore_command": f"cp {self.archive}/%f %p", "recovery_target_time": at.replace("T", " ").replace("Z", "+00"), "recovery_target_action": "promote", "archive_mode": "off",
            "port": str(self.copy_port), "listen_addresses": "",
        }  # fmt: skip
        with (place / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in more.items())
        (place / "recovery.signal").touch()
        subprocess.run(["chown", "-R", "postgres:postgres", str(place)], check=True)
        place.chmod(0o700)
        start = (str(BIN / "pg_ctl"), "-D", str(place), "-l", str(self.directory / "copy.log"), "-w", "-t", "120")
        try:
            as_postgres(*start, "start")
        except AssertionError as error:
            raise AssertionError(f"{error}{(self.directory / 'copy.log').read_text()[-1000:]}") from None
        while self._on_copy("SELECT pg_is_in_recovery()") != "f":
            time.sleep(0.2)
        if change:
            self._on_copy(change, "orcheo")
        with (place / "postgresql.conf").open("a") as file:
            file.write(f"listen_addresses = '{self.address}'\n")
        as_postgres(*start, "-m", "fast", "restart")
        return place

    def stop_copy(self, place: Path) -> None:
        as_postgres(str(BIN / "pg_ctl"), "-D", str(place), "-m", "immediate", "-w", "stop")
        shutil.rmtree(place)

    @property
    def copy_port(self) -> int:
        return self.port + 1

    def _on_copy(self, text: str, database: str = "postgres") -> str:
        return dataclasses.replace(self, port=self.copy_port).sql(text, database)


def as_postgres(*argv: str) -> None:
    done = subprocess.run(["runuser", "-u", "postgres", "--", *argv], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr


def ensure_postgresql_15() -> None:
    """Use the host's PostgreSQL 15, or install it where Debian 12's packages offer it; otherwise the test says why it can't run."""
    if (BIN / "initdb").exists():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None or "postgresql-15" not in available(["postgresql-15"]):
        pytest.skip(
            f"no PostgreSQL 15 here and none to install ({os_release().get('PRETTY_NAME', 'unknown system')}): needs Debian 12 as root"
        )
    apt_install("postgresql-15")


@contextlib.contextmanager
def outside_server() -> Iterator[Outside]:
    """Run the server in a directory of its own: pytest's folders are private, and this server is another user."""
    with tempfile.TemporaryDirectory(prefix="orcheo-db-test-outside-", dir="/var/tmp") as scratch:
        Path(scratch).chmod(0o755)
        with _server_in(Path(scratch)) as server:
            yield server


@contextlib.contextmanager
def _server_in(directory: Path) -> Iterator[Outside]:
    if os.geteuid() != 0:
        pytest.skip("making a server that is not ours takes root: it runs as another user")
    ensure_postgresql_15()
    subprocess.run(["docker", "network", "rm", NETWORK], capture_output=True)
    subprocess.run(["docker", "network", "create", NETWORK], check=True, capture_output=True)
    template = "{{(index .IPAM.Config 0).Gateway}}"
    address = subprocess.run(
        ["docker", "network", "inspect", "--format", template, NETWORK],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    authority = Authority.create()
    key, certificate = authority.issue("outside", (address,))
    server = Outside(address, free_port(), directory / "ca.crt", directory / "run", authority)
    data = directory / "data"
    server.directory.mkdir()
    server.archive.mkdir()
    for name, content in (
        ("ca.crt", authority.certificate_pem()),
        ("server.key", key),
        ("server.crt", certificate),
    ):
        (directory / name).write_bytes(content)
    (directory / "server.key").chmod(0o600)
    subprocess.run(["chown", "-R", "postgres:postgres", str(directory)], check=True)

    as_postgres(
        str(BIN / "initdb"),
        "-D",
        str(data),
        "--auth-local=trust",
        "--auth-host=reject",
        "-E",
        "UTF8",
        "--locale=C.UTF-8",
    )
    (data / "pg_hba.conf").write_text(
        "local all all trust\nlocal replication all trust\nhostssl all all all scram-sha-256\n"
    )
    options = {
        "listen_addresses": address, "port": str(server.port), "unix_socket_directories": str(server.directory), "ssl": "on",
        "ssl_cert_file": str(directory / "server.crt"), "ssl_key_file": str(directory / "server.key"), "ssl_ca_file": str(directory / "ca.crt"), "password_encryption": "scram-sha-256",
        "archive_mode": "on", "archive_command": f"cp %p {server.archive}/%f",
    }  # fmt: skip
    with (data / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in options.items())
    as_postgres(str(BIN / "pg_ctl"), "-D", str(data), "-l", str(directory / "run" / "log"), "-w", "start")
    try:
        yield server
    finally:
        as_postgres(str(BIN / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop")
        subprocess.run(["docker", "network", "rm", NETWORK], capture_output=True)
