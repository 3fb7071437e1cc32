"""The installation's secrets: random passwords, their SCRAM verifiers, its own certificate authority and certificates.

Made once at the first `up` and kept; never defaulted, never printed, never in an image. Everything lives in the state directory
(mode 0700, files 0600, git-ignored):

    installation.json            who this installation is: an id that the data volume's marker repeats
    ca.crt                       what clients verify against (the one file that may be shared)
    secrets/ROLE.password        the password;  secrets/ROLE.scram  the verifier that PostgreSQL stores
    tls/ca.key tls/NAME.{crt,key}
    app/                         Orcheo's own: vault key, bootstrap token, … (see `app_secrets`)
    backup/                      the repository's cipher key, the evidence's signing key, … (see `backup_secrets`)
    mounts/SERVICE/              copies for one service, owned by its user (see `targets`)
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import ipaddress
import json
import os
import secrets as random_source
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orcheo_db.errors import UserError

ROLES = (
    "orcheo_admin",
    "orcheo_app_a",
    "orcheo_app_b",
    "orcheo_ro",
    "orcheo_monitor",
    "pgbouncer",
    "replicator",
)
PASSWORD_BYTES = 24  # 192 bits: beyond guessing, and 32 characters that need no quoting in a DSN
SCRAM_ITERATIONS = (
    4096  # RFC 7677 section 4's minimum and PostgreSQL's default; the password is random, so more buys nothing
)
SCRAM_SALT_BYTES = 16  # PostgreSQL's SCRAM_DEFAULT_SALT_LEN
CA_DAYS = 3650  # ten years: its key never leaves the state directory
LEAF_DAYS = 825  # the longest life that common TLS stacks accept for a server certificate
RENEW_BEFORE_DAYS = 30  # `up` renews a certificate that has less than this left

SERVER_NAMES: dict[str, tuple[str, ...]] = {
    "postgres": ("postgres", "localhost"),
    "pgbouncer": ("pgbouncer", "localhost", "127.0.0.1", "::1"),
}


def scram_verifier(password: str, salt: bytes | None = None, iterations: int = SCRAM_ITERATIONS) -> str:
    """The SCRAM-SHA-256 verifier that PostgreSQL keeps in pg_authid (RFC 5802 section 3, RFC 7677).

    Setting the verifier instead of the password keeps the password out of the server's log and statistics. `password` must
    be ASCII, because SASLprep is then the identity.

    Raises:
        ValueError: the password is not ASCII.
    """
    if not password.isascii():
        raise ValueError("a generated password is ASCII")
    salt = random_source.token_bytes(SCRAM_SALT_BYTES) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    b64 = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{b64[0]}${b64[1]}:{b64[2]}"


def write_private(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file that only its owner may read, whole or not at all (a crash leaves the old one)."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(mode)
    temporary.replace(path)


def read_secret(file: Path, command: str) -> bytes:
    """The contents of a secret's file that `command` makes.

    Raises:
        UserError: it is missing or may not be read.
    """
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{file} is missing: run `{command}`, or restore it from your copy of the state directory"
        ) from None
    except PermissionError:
        raise UserError(f"{file} may not be read by this user: run as the user who ran `make up`") from None


def days_left_of(file: Path) -> float:
    """Days until a certificate expires; negative when it has.

    Raises:
        UserError: the file is no certificate.
    """
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
    except ValueError:
        raise UserError(f"{file} is damaged: restore it from your copy of the state directory") from None
    return (certificate.not_valid_after_utc - _now()).total_seconds() / 86400


@dataclass(frozen=True)
class Store:
    """The state directory of one installation.

    `external` installations (PostgreSQL elsewhere) have the same layout; certificates of `postgres` are then unused.
    """

    path: Path
    namespace: str = ""  # of Kubernetes, whose longer names the servers' certificates have too
    # Everything that the toolkit writes there; anything else is somebody else's.
    entries = (
        "secrets", "tls", "app", "backup", "backups", "restored", "mounts", "logs", "mounts.json", "mounts.sha256", "compose.env", "ca.crt", "server-ca.crt", "active-login",
        "pooler-auth", "choices.json", "adopting", "migrate", "evidence", "hosts", "hosts.json", "ssh_config", ".lock", "installation.json", "rotating.json", "former",
    )  # fmt: skip

    @property
    def identity_file(self) -> Path:
        return self.path / "installation.json"

    @property
    def ca_file(self) -> Path:
        return self.path / "ca.crt"

    def exists(self) -> bool:
        """Whether this installation's secrets were made (the identity is written last)."""
        return self.identity_file.is_file()

    def installation_id(self) -> str:
        try:
            return str(json.loads(self.identity_file.read_text())["installation_id"])
        except FileNotFoundError:
            raise UserError(f"no installation in {self.path}: run `make up` first") from None
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{self.identity_file} is damaged ({error}): restore the state directory from your copy"
            ) from None

    def password(self, role: str) -> str:
        return self._read(f"secrets/{role}.password")

    def verifier(self, role: str) -> str:
        return self._read(f"secrets/{role}.scram")

    def _read(self, name: str) -> str:
        file = self.path / name
        try:
            return file.read_text().strip()
        except FileNotFoundError:
            raise UserError(
                f"{file} is missing, but {self.identity_file.name} is there: restore it from your copy of the state directory,"
                " or see ops/runbooks/lost-secrets.md"
            ) from None
        except PermissionError:
            raise UserError(f"{file} may not be read by this user: run as the user who ran `make up`") from None

    def choices(self) -> dict[str, str]:
        """What was chosen at an earlier `up` (size, port) and holds until something else is chosen; by environment name."""
        file = self.path / "choices.json"
        try:
            return (
                {str(key): str(value) for key, value in json.loads(file.read_text()).items()} if file.is_file() else {}
            )
        except (ValueError, AttributeError):
            raise UserError(f"{file} is damaged: remove it and give SIZE and ORCHEO_DB_PORT again") from None

    def choose(self, chosen: dict[str, str]) -> None:
        """Remember choices for the next commands."""
        if chosen != self.choices():
            write_private(self.path / "choices.json", (json.dumps(chosen) + "\n").encode())

    def missing(self) -> list[str]:
        """Secret files that should exist and do not."""
        names = [f"secrets/{role}.{kind}" for role in ROLES for kind in ("password", "scram")]
        names += [
            "ca.crt",
            "tls/ca.key",
            *(f"tls/{name}.{kind}" for name in SERVER_NAMES for kind in ("crt", "key")),
        ]
        return [name for name in names if not (self.path / name).is_file()]

    def create(self) -> None:
        """Make every secret that is not there yet; the identity last, so that a crash half-way is begun again.

        Raises:
            UserError: the installation exists but some of its files are gone (they are never silently made anew).
        """
        if self.path.is_dir() and (strangers := {entry.name for entry in self.path.iterdir()} - set(self.entries)):
            raise UserError(
                f"{self.path} holds files that are not this toolkit's ({', '.join(sorted(strangers)[:3])}): choose an empty ORCHEO_DB_STATE_DIR"
            )
        for directory in (self.path, self.path / "secrets", self.path / "tls"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        if self.exists():
            if gone := self.missing():
                raise UserError(
                    f"secrets are missing in {self.path}: {', '.join(gone)}: restore them from your copy of that directory,"
                    " or see ops/runbooks/lost-secrets.md"
                )
            return
        for role in ROLES:
            password = random_source.token_urlsafe(PASSWORD_BYTES)
            write_private(self.path / "secrets" / f"{role}.password", f"{password}\n".encode())
            write_private(self.path / "secrets" / f"{role}.scram", f"{scram_verifier(password)}\n".encode())
        authority = Authority.create()
        write_private(self.path / "tls" / "ca.key", authority.key_pem())
        write_private(self.ca_file, authority.certificate_pem(), mode=0o644)
        for name in SERVER_NAMES:
            self._issue(authority, name)
        identity = {
            "format": 1,
            "installation_id": str(uuid.uuid4()),
            "created_at": _now().isoformat(timespec="seconds"),
        }
        write_private(self.identity_file, (json.dumps(identity, indent=2) + "\n").encode())

    def _issue(self, authority: Authority, name: str) -> None:
        key, certificate = authority.issue(name, self.server_names(name))
        write_private(self.path / "tls" / f"{name}.key", key)
        write_private(self.path / "tls" / f"{name}.crt", certificate)

    def server_names(self, name: str) -> tuple[str, ...]:
        """The names and addresses that server `name` is reached by."""
        places = (
            (self.namespace, f"{self.namespace}.svc", f"{self.namespace}.svc.cluster.local") if self.namespace else ()
        )
        return (*SERVER_NAMES[name], *(f"{name}.{place}" for place in places))

    def days_left(self, name: str) -> float:
        """Days until the certificate of server `name` (or `ca`) expires; negative when it has."""
        return days_left_of(self.ca_file if name == "ca" else self.path / "tls" / f"{name}.crt")

    def renew(self) -> list[str]:
        """Issue again the server certificates that have less than RENEW_BEFORE_DAYS left; returns their names."""
        due = [name for name in SERVER_NAMES if self.days_left(name) < RENEW_BEFORE_DAYS]
        if due:
            self.reissue(due)
        return due

    def reissue(self, names: Iterable[str] = tuple(SERVER_NAMES)) -> None:
        """Issue server certificates again, with new keys, by the same authority."""
        authority = Authority.load(self.ca_file.read_bytes(), (self.path / "tls" / "ca.key").read_bytes())
        for name in names:
            self._issue(authority, name)


@dataclass(frozen=True)
class Authority:
    """The installation's own certificate authority (ECDSA P-256: small, and accepted by every TLS 1.2+ stack)."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"orcheo-db CA {uuid.uuid4().hex[:8]}")])
        builder = _builder(name, name, key, CA_DAYS).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        builder = builder.add_extension(_usage(sign=True), critical=True)
        return cls(key, builder.sign(key, hashes.SHA256()))

    @classmethod
    def load(cls, certificate: bytes, key: bytes) -> Authority:
        try:
            private = serialization.load_pem_private_key(key, password=None)
        except ValueError:
            private = None
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise UserError(
                "tls/ca.key is not the key this toolkit made: restore it from your copy of the state directory"
            )
        return cls(private, x509.load_pem_x509_certificate(certificate))

    def issue(self, name: str, hosts: tuple[str, ...], *, client: bool = False) -> tuple[bytes, bytes]:
        """A server key and certificate (PEM, PEM) valid for `hosts` (names and addresses).

        Args:
            client: it also proves who its holder is, by its common name `name` (mutual TLS).
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self.certificate.subject, key, LEAF_DAYS)
        builder = builder.add_extension(x509.SubjectAlternativeName([_san(host) for host in hosts]), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(sign=False), critical=True)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, *([ExtendedKeyUsageOID.CLIENT_AUTH] if client else [])]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = builder.add_extension(identifier, critical=False).sign(self.key, hashes.SHA256())
        return _key_pem(key), certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        return _key_pem(self.key)

    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _san(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    start = _now() - dt.timedelta(minutes=5)  # clocks of containers and clients differ a little
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start)
    builder = builder.not_valid_after(start + dt.timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign, key_cert_sign=sign, crl_sign=sign, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
