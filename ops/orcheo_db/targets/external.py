"""PostgreSQL somewhere else (RDS, Cloud SQL, Azure, a server of one's own): only PgBouncer and the init job run here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from orcheo_db import handed
from orcheo_db.database import connect
from orcheo_db.errors import UserError
from orcheo_db.host import ca_bundle
from orcheo_db.render.compose import render_pgbouncer
from orcheo_db.secrets import Store, write_private
from orcheo_db.spec import Size, Spec
from orcheo_db.targets.base import Endpoint
from orcheo_db.targets.compose import ROOT, ComposeTarget
from orcheo_db.targets.image_facts import SECRETS
from orcheo_db.targets.mounts import File

ADMIN_DSN = "ORCHEO_DB_ADMIN_DSN"
ADMIN_PASSWORD = "ORCHEO_DB_ADMIN_PASSWORD"  # noqa: S105 - its name; for a DSN without one: it comes from a cloud's secret manager
SSLMODES = ("verify-full", "verify-ca")  # anything weaker sends passwords to whoever answers
AUTH_DATABASE = "postgres"  # where the init job makes the lookup function
SERVER_CA = "server-ca.crt"
# For a server that wants to see a client's certificate (Cloud SQL's TRUSTED_CLIENT_CERTIFICATE_REQUIRED): libpq's word -> our file.
CLIENT_FILES = {"sslcert": "server-client.crt", "sslkey": "server-client.key"}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ExternalTarget(ComposeTarget):
    """PgBouncer and the init job in containers, against a server that this toolkit does not run."""

    name = "external"
    compose_file = "compose/external.yaml"
    tier = ("init", "pgbouncer")
    up_command = "make up TARGET=external"
    managed_server = False

    def __init__(self, spec: Spec, size: Size, store: Store, root: Path = ROOT) -> None:
        super().__init__(spec, size, store, root)
        self.project = f"{spec.stack.project}-external"

    # --- the administrator's DSN -----------------------------------------------------------------------------------------

    @property
    def _dsn_file(self) -> Path:
        return self.store.path / "secrets" / "admin.dsn"

    @property
    def _server_ca(self) -> Path:
        return self.store.path / SERVER_CA

    def admin(self) -> dict[str, Any]:
        """The parts of the administrator's DSN: from the environment at the first `up`, kept (mode 0600) afterwards.

        A password in the environment wins over the DSN's, given or kept, and is kept in turn by the next `up`.

        Raises:
            UserError: it is missing, can't be parsed, lacks a part, or asks for less than a required TLS connection.
        """
        given = os.environ.get(ADMIN_DSN)
        if not given and not self._dsn_file.is_file():
            raise UserError(
                f"{ADMIN_DSN} is not set: give the administrator's DSN of the external server, for example"
                f" {ADMIN_DSN}='postgresql://admin:…@db.example.com:5432/postgres?sslmode=verify-full&sslrootcert=/path/ca.pem'"
            )
        # Also for the kept DSN: a cloud gives its administrator a new password from time to time.
        password = {"password": os.environ[ADMIN_PASSWORD]} if os.environ.get(ADMIN_PASSWORD) else {}
        try:
            # Through libpq's own words and back: the parts come in the same order, whoever gave them.
            parts: dict[str, Any] = conninfo_to_dict(
                make_conninfo(given or self._dsn_file.read_text().strip(), **password)
            )
        except psycopg.ProgrammingError as error:
            raise UserError(f"{ADMIN_DSN} is not a PostgreSQL DSN: {str(error).strip().splitlines()[0]}") from None
        return self._checked(parts)

    def _checked(self, parts: dict[str, Any]) -> dict[str, Any]:
        for key in ("host", "user", "password"):
            if not parts.get(key):
                also = f" (the password by {ADMIN_PASSWORD}, if you like)" if key == "password" else ""
                raise UserError(
                    f"{ADMIN_DSN} has no {key}: give host, user and password of the external server's administrator{also}"
                )
        if parts["host"] in LOOPBACK or str(parts["host"]).startswith("/"):
            raise UserError(
                f"{ADMIN_DSN} names this machine itself ({parts['host']}), which containers can't reach: name an address of it that they can"
            )
        parts.setdefault("port", "5432")
        if not str(parts["port"]).isdigit():
            raise UserError(f"{ADMIN_DSN} says port={parts['port']}: give one port number")
        parts.setdefault("dbname", "postgres")
        parts.setdefault("sslmode", "verify-full")
        if parts["sslmode"] not in SSLMODES:
            raise UserError(
                f"{ADMIN_DSN} says sslmode={parts['sslmode']}, which does not protect the password: use {', '.join(SSLMODES)}"
            )
        if bool(parts.get("sslcert")) != bool(parts.get("sslkey")):
            raise UserError(f"{ADMIN_DSN} has one of sslcert and sslkey: a client's certificate needs both")
        return parts

    def check(self) -> None:
        parts = self.admin()
        self._ca_source(parts)
        self._client_sources(parts)

    def _client_sources(self, parts: dict[str, Any]) -> dict[str, Path]:
        """This machine's certificate and key for the server, as files here: the DSN's, or (of our own kept DSN) the store's."""
        found = {}
        for word, name in CLIENT_FILES.items():
            wanted = parts.get(word)
            if not wanted:
                continue
            own = self.store.path / "secrets" / name
            found[word] = own if wanted == f"{SECRETS}/{name}" else Path(wanted)
            if not found[word].is_file():
                raise UserError(f"{ADMIN_DSN} says {word}={found[word]}, and there is no such file")
        return found

    def client_files(self, *, direct: bool) -> dict[str, Path]:
        return self._client_sources(self.admin()) if direct else {}

    def _ca_source(self, parts: dict[str, Any]) -> Path:
        """The file that the server's certificate is verified against: the DSN's, else what this host trusts."""
        wanted = parts.get("sslrootcert")
        if wanted == f"{SECRETS}/{SERVER_CA}":  # our own kept DSN: the file is in the store already
            return self._server_ca
        source = Path(wanted) if wanted and wanted != "system" else ca_bundle()
        if not source.is_file():
            raise UserError(
                f"{ADMIN_DSN} says sslrootcert={source}, and there is no such file: give the server's CA certificate"
            )
        return source

    def prepare_store(self) -> None:
        parts = self.admin()
        content = self._ca_source(parts).read_bytes()
        if not self._server_ca.is_file() or self._server_ca.read_bytes() != content:
            write_private(self._server_ca, content, mode=0o644)
        mounted = {"sslrootcert": f"{SECRETS}/{SERVER_CA}"}
        for word, source in self._client_sources(parts).items():
            own = self.store.path / "secrets" / CLIENT_FILES[word]
            if not own.is_file() or own.read_bytes() != source.read_bytes():
                write_private(own, source.read_bytes())
            mounted[word] = f"{SECRETS}/{CLIENT_FILES[word]}"
        dsn = make_conninfo("", **(parts | mounted))
        if not self._dsn_file.is_file() or self._dsn_file.read_text().strip() != dsn:
            write_private(self._dsn_file, f"{dsn}\n".encode())

    def admin_dsn(self) -> str:
        return "in-file"  # the init job reads secrets/admin.dsn; compose.env holds no secret

    # --- how PgBouncer finds the server and the passwords ------------------------------------------------------------------

    @property
    def _auth_file(self) -> Path:
        return self.store.path / "pooler-auth"

    def pooler_auth(self) -> str:
        """auth_query where the server let us make the lookup function, else auth_file (the init job finds out)."""
        return self._auth_file.read_text().strip() if self._auth_file.is_file() else "auth_file"

    def after_init(self, summary: dict[str, Any] | None) -> bool:
        if summary is None or summary.get("pooler_auth", "auth_file") == self.pooler_auth():
            return False
        write_private(self._auth_file, f"{summary['pooler_auth']}\n".encode())
        return True

    def pgbouncer_ini(self) -> bytes:
        parts = self.admin()
        address = f"host={parts['host']} port={parts['port']}"
        databases = {self.spec.database.name: f"{address} dbname={self.spec.database.name}"}
        if self.pooler_auth() == "auth_query":
            databases[AUTH_DATABASE] = f"{address} dbname={AUTH_DATABASE}"
        text = render_pgbouncer(
            self.spec, self.size, databases=databases, auth_query=self.pooler_auth() == "auth_query", auth_dbname=AUTH_DATABASE,
            server_tls_sslmode=parts["sslmode"], server_tls_ca_file=f"{SECRETS}/{SERVER_CA}",
            server_tls_client=tuple(f"{SECRETS}/{name}" for word, name in CLIENT_FILES.items() if parts.get(word)),
        )  # fmt: skip
        return text.encode()

    def pgbouncer_secrets(self) -> dict[str, bytes]:
        found = super().pgbouncer_secrets()
        if self.pooler_auth() != "auth_query":
            found["userlist.txt"] = handed.verifiers(self.store)
        return found

    def mounts(self) -> dict[str, list[File]]:
        return {"pgbouncer": self.pgbouncer_files(), "init": self.init_files()}

    def pgbouncer_files(self) -> list[File]:
        return [*super().pgbouncer_files(), *self._server_files()]

    def _server_files(self) -> list[File]:
        """What a client of the server's needs besides a password."""
        files = [File(f"secrets/{SERVER_CA}", self._server_ca.read_bytes())]
        clients = self._client_sources(self.admin())
        return [*files, *(File(f"secrets/{CLIENT_FILES[word]}", file.read_bytes()) for word, file in clients.items())]

    def init_files(self) -> list[File]:
        return [
            *super().init_files(),
            File("secrets/admin.dsn", self._dsn_file.read_bytes()),
            *self._server_files(),
        ]

    def app_dsn(self) -> str:
        if self.spec.app.via == "pgbouncer":
            return super().app_dsn()
        parts = self.admin()
        options = f"sslmode={parts['sslmode']}&sslrootcert={SECRETS}/{SERVER_CA}&connect_timeout=10"
        options += "".join(f"&{word}={SECRETS}/{name}" for word, name in CLIENT_FILES.items() if parts.get(word))
        return f"postgresql://{self.app_login()}@{parts['host']}:{parts['port']}/{self.spec.database.name}?{options}"

    def app_authorities(self) -> list[File]:
        return [*super().app_authorities(), *self._server_files()]

    # --- endpoints ----------------------------------------------------------------------------------------------------------

    def server(self) -> Endpoint:
        parts = self.admin()
        return Endpoint(str(parts["host"]), int(parts["port"]), parts.get("hostaddr"))

    def sslmode(self, *, direct: bool) -> str:
        return str(self.admin()["sslmode"]) if direct else "verify-full"

    def ca_file(self, *, direct: bool = False) -> Path:
        return self._server_ca if direct else self.store.ca_file

    def is_bootstrapped(self) -> bool:
        try:
            with connect(self.dsn("orcheo_monitor", direct=True), timeout=10) as connection:
                row = connection.execute("SELECT installation_id FROM orcheo_db.installation").fetchone()
        except (UserError, psycopg.Error):
            return False
        return row is not None and row[0] == self.store.installation_id()
