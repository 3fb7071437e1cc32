"""Secrets: random, private, kept; certificates that verify for the names they should and for no other."""

from __future__ import annotations

import datetime as dt
import os
import socket
import ssl
import stat
import threading

import pytest
from cryptography import x509

from orcheo_db.errors import UserError
from orcheo_db.secrets import ROLES, SERVER_NAMES, Store, scram_verifier


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "state")
    made.create()
    return made


def test_scram_verifier_is_rfc7677s():
    # RFC 7677 section 3: user "user", password "pencil", this salt, 4096 iterations. StoredKey and ServerKey follow from the
    # example's proof and server signature; computed independently with PostgreSQL 17's own CREATE ROLE … PASSWORD on the same salt.
    import base64  # noqa: PLC0415
    import hashlib  # noqa: PLC0415
    import hmac  # noqa: PLC0415

    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    verifier = scram_verifier("pencil", salt, 4096)
    head, stored_salt, keys = verifier.split("$")
    assert (head, stored_salt) == ("SCRAM-SHA-256", "4096:W22ZaJ0SNY7soEsUEjb6gQ==")
    stored_key, server_key = (base64.b64decode(part) for part in keys.split(":"))
    message = (
        b"n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,"
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    )
    # The server's signature in the RFC's exchange is made with ServerKey, and the client's proof reveals ClientKey.
    assert (
        base64.b64encode(hmac.digest(server_key, message, "sha256")).decode()
        == "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    )
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    signature = hmac.digest(stored_key, message, "sha256")
    client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
    assert hashlib.sha256(client_key).digest() == stored_key


def test_a_second_create_keeps_everything(store):
    before = {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    store.create()
    assert {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()} == before


def test_passwords_are_random_and_need_no_quoting(store):
    passwords = [store.password(role) for role in ROLES]
    assert len(set(passwords)) == len(ROLES)
    assert all(len(password) == 32 and password.replace("-", "").replace("_", "").isalnum() for password in passwords)


def test_everything_secret_is_private(store):
    for path in store.path.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        wanted = 0o700 if path.is_dir() else 0o644 if path.name == "ca.crt" else 0o600
        assert mode == wanted, f"{path} has mode {mode:o}"


def test_private_also_under_a_lax_umask(tmp_path):
    old = os.umask(0)
    try:
        made = Store(tmp_path / "state")
        made.create()
    finally:
        os.umask(old)
    test_everything_secret_is_private(made)


def test_a_lost_file_is_named_and_not_made_anew(store):
    (store.path / "secrets" / "orcheo_app_a.password").unlink()
    with pytest.raises(UserError, match=r"secrets/orcheo_app_a\.password.*lost-secrets\.md"):
        store.create()
    with pytest.raises(UserError, match=r"orcheo_app_a\.password is missing"):
        store.password("orcheo_app_a")


def test_a_crash_before_the_identity_begins_again(store):
    store.identity_file.unlink()
    (store.path / "secrets" / "pgbouncer.password").unlink()
    store.create()
    assert store.missing() == [] and store.installation_id()


def test_a_damaged_identity_is_said(store):
    store.identity_file.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        store.installation_id()


def test_no_installation_is_said(tmp_path):
    with pytest.raises(UserError, match="run `make up` first"):
        Store(tmp_path).installation_id()


def handshake(store, server_name: str, verify_as: str) -> None:
    """A real TLS handshake over a socket pair; raises ssl.SSLError where libpq's verify-full would refuse."""
    left, right = socket.socketpair()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(store.path / f"tls/{server_name}.crt", store.path / f"tls/{server_name}.key")
    client = ssl.create_default_context(cafile=str(store.ca_file))

    def serve() -> None:
        try:
            server.wrap_socket(left, server_side=True).close()
        except (ssl.SSLError, OSError):
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(right, server_hostname=verify_as).close()
    finally:
        right.close()
        thread.join()


@pytest.mark.parametrize(("name", "host"), [(name, host) for name, hosts in SERVER_NAMES.items() for host in hosts])
def test_certificates_verify_for_their_names(store, name, host):
    handshake(store, name, host)


@pytest.mark.parametrize(
    ("name", "host"), [("postgres", "pgbouncer"), ("pgbouncer", "example.com"), ("pgbouncer", "127.0.0.2")]
)
def test_certificates_do_not_verify_for_other_names(store, name, host):
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(store, name, host)


def test_certificates_due_are_renewed_and_the_authority_stays(store, monkeypatch):
    assert store.renew() == []
    authority, before = store.ca_file.read_bytes(), (store.path / "tls/postgres.crt").read_bytes()
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=800)
    monkeypatch.setattr("orcheo_db.secrets._now", lambda: later)
    assert store.renew() == ["postgres", "pgbouncer"]
    assert store.ca_file.read_bytes() == authority and (store.path / "tls/postgres.crt").read_bytes() != before
    certificate = x509.load_pem_x509_certificate((store.path / "tls/postgres.crt").read_bytes())
    assert certificate.not_valid_after_utc > later + dt.timedelta(days=800)
    assert store.renew() == []
