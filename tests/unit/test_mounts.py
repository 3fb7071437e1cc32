"""Each service gets its own files, owned by its user and readable by no other."""

from __future__ import annotations

import io
import tarfile

from orcheo_db.targets.mounts import UIDS, File, archive, fingerprint

FILES = {
    "postgres": [File("secrets/server.key", b"k"), File("conf/pg_hba.conf", b"h")],
    "pgbouncer": [File("secrets/userlist.txt", b"u")],
}


def entries():
    with tarfile.open(fileobj=io.BytesIO(archive(FILES))) as tar:
        return {entry.name: entry for entry in tar.getmembers()}


def test_owners_and_modes():
    found = entries()
    assert found["postgres/secrets/server.key"].mode == 0o400
    assert found["postgres/conf/pg_hba.conf"].mode == 0o444
    for name, entry in found.items():
        assert entry.uid == entry.gid == UIDS[name.partition("/")[0]]
        assert not entry.isdir() or entry.mode == 0o500


def test_no_service_gets_anothers_secrets():
    assert {name for name in entries() if name.startswith("pgbouncer/")} == {
        "pgbouncer/secrets",
        "pgbouncer/secrets/userlist.txt",
    }


def test_fingerprint_follows_content_and_path():
    assert fingerprint([File("a", b"1"), File("b", b"2")]) == fingerprint([File("b", b"2"), File("a", b"1")])
    assert (
        len(
            {
                fingerprint([File(path, content)])
                for path, content in [("a", b"1"), ("a", b"2"), ("b", b"1"), ("secrets/a", b"1")]
            }
        )
        == 4
    )
