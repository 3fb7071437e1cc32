"""The backups' secrets: made once, kept; a key whose loss is a loss is never silently made anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orcheo_db import backup_secrets
from orcheo_db.errors import UserError
from orcheo_db.secrets import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "state")
    made.create()
    return made


def contents(store: Store) -> dict[str, bytes]:
    directory = store.path / backup_secrets.DIRECTORY
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def test_made_once_private(store: Store) -> None:
    assert len(backup_secrets.create(store)) == 1
    made = contents(store)
    assert backup_secrets.create(store) == [] and contents(store) == made
    for file in (store.path / backup_secrets.DIRECTORY).rglob("*"):
        assert file.stat().st_mode & 0o077 == 0
    assert len(made[backup_secrets.CIPHER_KEY].strip()) == 64  # 384 bits in base64


@pytest.mark.parametrize("name", backup_secrets.KEYS)
def test_a_lost_key_stops_everything(store: Store, name: str) -> None:
    backup_secrets.create(store)
    backup_secrets.path(store, name).unlink()
    before = contents(store)
    with pytest.raises(UserError, match=rf"{name} is gone, and without it no backup .* put it back"):
        backup_secrets.create(store)
    assert contents(store) == before


def test_a_lost_password_is_made_anew_with_its_verifier(store: Store) -> None:
    backup_secrets.create(store)
    before = contents(store)
    backup_secrets.path(store, f"{backup_secrets.ROLE}.password").unlink()
    assert backup_secrets.create(store) == [
        f"{backup_secrets.ROLE}.password of the backups was missing and is another one now"
    ]
    after = contents(store)
    assert {name for name in after if after[name] != before[name]} == {"orcheo_backup.password", "orcheo_backup.scram"}


def test_each_party_is_told_by_its_name(store: Store) -> None:
    backup_secrets.create(store)
    for party, hosts in backup_secrets.PARTIES.items():
        certificate = x509.load_pem_x509_certificate(backup_secrets.read(store, f"tls/{party}.crt"))
        assert [a.value for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [party]
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert tuple(names.get_values_for_type(x509.DNSName)) == hosts
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} == set(usages)


def test_a_certificate_of_another_authority_is_renewed(store: Store, tmp_path: Path) -> None:
    backup_secrets.create(store)
    other = Store(tmp_path / "other")
    other.create()
    backup_secrets.create(other)
    for kind in ("crt", "key"):
        backup_secrets.path(store, f"tls/archive.{kind}").write_bytes(backup_secrets.read(other, f"tls/archive.{kind}"))
    assert backup_secrets.create(store) == ["certificate of archive renewed"]
