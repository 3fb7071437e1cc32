"""Who gets in, and how: TLS on every hop, SCRAM, nothing else."""

from __future__ import annotations

import socket
import ssl
import struct

import psycopg
import pytest

from orcheo_db.secrets import Authority
from orcheo_db.targets.base import Facts, Target


@pytest.mark.parametrize("direct", [False, True], ids=["pooled", "direct"])
def test_tls_is_used_and_modern(connect, direct):
    connection = connect("orcheo_ro", direct=direct)
    assert connection.pgconn.ssl_in_use
    # What PostgreSQL itself sees: through PgBouncer this is the second hop.
    row = connection.execute("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
    assert row[0] is True and row[1] in ("TLSv1.2", "TLSv1.3")


@pytest.mark.parametrize("direct", [False, True], ids=["pooled", "direct"])
def test_plaintext_is_refused(connect, facts: Facts, direct):
    if direct and not facts.managed_server:
        pytest.skip("whether an external server refuses plaintext is its owner's choice")
    with pytest.raises(psycopg.OperationalError, match="SSL required|no encryption"):
        connect("orcheo_ro", direct=direct, sslmode="disable")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")  # which is the point of the test
@pytest.mark.parametrize("direct", [False, True], ids=["pooled", "direct"])
def test_old_tls_is_refused(target: Target, facts: Facts, direct):
    """The server itself answers a TLS 1.1 client with the alert `protocol version`; the same client gets in with TLS 1.2."""
    if direct and not facts.managed_server:
        pytest.skip("an external server's TLS versions are its owner's choice")
    end = target.server() if direct else target.pooler()

    def greet(version: ssl.TLSVersion) -> str | None:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        client.set_ciphers("ALL:@SECLEVEL=0")  # or this client's own library would refuse before the server is asked
        client.minimum_version = client.maximum_version = version
        with socket.create_connection((end.address or end.host, end.port), timeout=5) as plain:
            plain.sendall(
                struct.pack("!ii", 8, 80877103)
            )  # SSLRequest (protocol documentation, "SSL Session Encryption")
            assert plain.recv(1) == b"S"
            with client.wrap_socket(plain) as encrypted:
                return encrypted.version()

    assert greet(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        greet(ssl.TLSVersion.TLSv1_1)


@pytest.mark.parametrize("direct", [False, True], ids=["pooled", "direct"])
def test_another_authority_is_noticed(connect, tmp_path, direct):
    other = tmp_path / "other.crt"
    other.write_bytes(Authority.create().certificate_pem())
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        connect("orcheo_ro", direct=direct, sslrootcert=str(other))


def test_another_name_is_noticed(target: Target):
    end = target.pooler()
    wrong = (
        target.dsn("orcheo_ro").replace(f"@{end.host}:", "@db.example.com:") + f"&hostaddr={end.address or '127.0.0.1'}"
    )
    with pytest.raises(psycopg.OperationalError, match="does not match host name"):
        psycopg.connect(wrong, connect_timeout=5)


@pytest.mark.parametrize("direct", [False, True], ids=["pooled", "direct"])
@pytest.mark.parametrize("role", ["orcheo_app_a", "nobody"])
def test_wrong_passwords_and_unknown_roles_are_refused(target: Target, direct, role):
    dsn = target.dsn("orcheo_app_a", direct=direct).replace("//orcheo_app_a:", f"//{role}:")
    dsn = dsn.replace(target.store.password("orcheo_app_a"), "wrong")
    with pytest.raises(psycopg.OperationalError, match="authentication failed|no pg_hba.conf entry|no such user"):
        psycopg.connect(dsn, connect_timeout=5)


@pytest.mark.parametrize("direct", [False, True], ids=["pooled", "direct"])
def test_the_superuser_has_no_way_in_over_the_network(target: Target, facts: Facts, direct):
    if not facts.managed_server:
        pytest.skip("the superuser of an external server is its owner's")
    for database in (target.spec.database.name, "postgres"):
        dsn = target.dsn("orcheo_app_a", direct=direct, database=database).replace("//orcheo_app_a:", "//postgres:")
        # Not "password authentication failed": there is no way in that a password could open.
        with pytest.raises(
            psycopg.OperationalError, match="no pg_hba.conf entry" if direct else "no such user|SASL|authentication"
        ):
            psycopg.connect(dsn, connect_timeout=5)


@pytest.mark.disruptive
def test_not_even_a_superuser_with_a_password(target: Target, facts: Facts, superuser):
    """Somebody makes a second superuser by mistake: pg_hba still has no line for it, and the pooler does not look it up."""
    if not facts.managed_server:
        pytest.skip("the superuser of an external server is its owner's")
    superuser("DROP ROLE IF EXISTS mistake")
    superuser("CREATE ROLE mistake SUPERUSER LOGIN PASSWORD 'probe-only'")
    try:
        for direct in (True, False):
            dsn = target.dsn("orcheo_app_a", direct=direct).replace("//orcheo_app_a:", "//mistake:")
            dsn = dsn.replace(target.store.password("orcheo_app_a"), "probe-only")
            with pytest.raises(
                psycopg.OperationalError, match="no pg_hba.conf entry|authentication failed|no such user"
            ):
                psycopg.connect(dsn, connect_timeout=5)
    finally:
        superuser("DROP ROLE mistake")


@pytest.mark.disruptive
def test_md5_is_not_accepted(target: Target, facts: Facts, superuser):
    """A role whose password somebody stored as MD5 can't log in: pg_hba asks for SCRAM."""
    if not facts.managed_server:
        pytest.skip("an external server's pg_hba is its owner's")
    superuser("DROP ROLE IF EXISTS old_style")
    superuser("SET password_encryption = 'md5'; CREATE ROLE old_style LOGIN IN ROLE orcheo_ro PASSWORD 'probe-only'")
    try:
        for direct in (True, False):
            dsn = target.dsn("orcheo_ro", direct=direct).replace("//orcheo_ro:", "//old_style:")
            dsn = dsn.replace(target.store.password("orcheo_ro"), "probe-only")
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(dsn, connect_timeout=5)
    finally:
        superuser("DROP ROLE old_style")
