"""Faults in and around the repository (`make test-faults`): each is survived, or reported by the next check or drill; the tests say which.

One installation for all of them; what a fault broke in the repository is put back from a copy.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import psycopg
import pytest

from tests.compose.test_backup import execute, inside
from tests.conftest import PROGRAM, ROOT, Installation, Ran, free_port, remove_leftovers

pytestmark = [pytest.mark.disruptive, pytest.mark.faults]
REPOSITORY = "/var/lib/orcheo-backup"


@pytest.fixture(scope="module")
def own(docker_ready: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    name = "orcheo-db-test-second"
    directory = tmp_path_factory.mktemp("faults")
    made = Installation(name, free_port(), directory / name)
    text = (ROOT / "ops" / "spec.toml").read_text()
    assert text.count('wal_queue_max = "16GB"') == 1
    (directory / "spec.toml").write_text(text.replace('wal_queue_max = "16GB"', 'wal_queue_max = "512MB"'))
    made.extra["ORCHEO_DB_SPEC"] = str(directory / "spec.toml")
    remove_leftovers(made)
    made.ok("up")
    execute(made, "CREATE TABLE load (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)")
    yield made
    remove_leftovers(made)


@pytest.fixture
def whole(own: Installation) -> Iterator[Installation]:
    """An installation whose repository is whole, and is made whole again."""
    own.ok("backup", "check")
    target = own.target()
    copy = f"cd {REPOSITORY} && tar -cf /tmp/kept.tar backup archive state"
    assert inside(target, "backup", copy)[0] == 0
    yield own
    back = f"cd {REPOSITORY} && rm -rf backup/* archive/orcheo && tar -xf /tmp/kept.tar && rm /tmp/kept.tar"
    assert inside(own.target(), "backup", back)[0] == 0
    own.ok("backup", "run", "--type", "full")
    assert drill(own).code == 0  # the check goes on saying that the last drill failed, until one passes


def drill(own: Installation) -> Ran:
    return own.run("drill", "--switch", "--json")


def test_a_flipped_byte_in_a_backup(whole: Installation):
    """Reported by the deep check, and by the next drill: the restore of that file fails."""
    script = f"f=$(ls -S {REPOSITORY}/backup/orcheo/*F/bundle/* | head -1); printf X | dd of=$f bs=1 seek=4096 conv=notrunc status=none"
    assert inside(whole.target(), "backup", script)[0] == 0
    ran = whole.run("backup", "check", "--deep")
    assert ran.code == 1 and "every file of the repository" in ran.message, ran.stderr
    ran = drill(whole)
    assert ran.code == 1 and ran.json["result"] == "fail" and "pgbackrest restore" in ran.json["failure"]


def test_a_missing_wal_segment(whole: Installation):
    """Reported by the next check, and by the next drill: recovery doesn't reach the marker."""
    target = whole.target()
    for _ in range(3):
        execute(whole, "INSERT INTO load (body) VALUES ('x')")
        whole.ok("backup", "check")
    script = f"ls {REPOSITORY}/archive/orcheo/17-1/0000000100000000/*.zst | tail -2 | head -1 | xargs rm -v"
    assert inside(target, "backup", script)[0] == 0
    ran = whole.run("backup", "check")
    assert ran.code == 1 and "no gap in the archive" in ran.message, ran.stderr
    ran = drill(whole)
    assert ran.code == 1 and "recovery" in ran.json["failure"], ran.json["failure"]
    ran = whole.run("restore")  # and by a restore: PostgreSQL itself takes the gap for the archive's end
    assert ran.code == 1 and "WAL in between is missing" in ran.message, ran.stderr


def test_a_truncated_manifest(whole: Installation):
    """Survived: pgBackRest keeps a second copy of each manifest, and the drill passes."""
    script = f"for f in {REPOSITORY}/backup/orcheo/*F/backup.manifest; do truncate -s 100 $f; done"
    assert inside(whole.target(), "backup", script)[0] == 0
    ran = drill(whole)
    assert ran.code == 0 and ran.json["result"] == "pass", ran.stderr


def test_a_deleted_backup(whole: Installation):
    """Reported by the next drill and by the deep check."""
    assert inside(whole.target(), "backup", f"rm -rf {REPOSITORY}/backup/orcheo/20*")[0] == 0
    assert drill(whole).code == 1
    assert whole.run("backup", "check", "--deep").code == 1


def test_the_archive_away_under_load_loses_nothing(own: Installation):
    """WAL waits in pg_wal, the check says so, and it drains by itself."""
    target = own.target()
    container = target.container("archive")
    assert container is not None
    container.stop()
    execute(own, "INSERT INTO load (body) SELECT repeat(md5(i::text), 20) FROM generate_series(1, 60000) i")
    ran = own.run("backup", "check")
    assert ran.code == 1 and "checks failed" in ran.message, ran.stderr
    container.start()
    deadline = time.monotonic() + 150
    while own.run("backup", "check").code != 0:
        assert time.monotonic() < deadline
        time.sleep(2)
    ran = drill(own)
    assert ran.code == 0 and ran.json["sizes"]["rows_compared"] >= 60000, ran.stderr


def test_waiting_wal_is_bounded_and_the_gap_is_reported(own: Installation):
    """Beyond wal_queue_max what waits is given up: the database goes on, check and drill report the gap, a new full backup ends it."""
    target = own.target()
    container = target.container("archive")
    assert container is not None
    container.stop()
    for _ in range(40):  # 640 MB of segments
        execute(own, "INSERT INTO load (body) VALUES ('x')")
        assert inside(target, "postgres", "psql -XAtqc 'SELECT pg_switch_wal()'")[0] == 0
    deadline = time.monotonic() + 120
    while "dropped WAL file" not in own_log(own):
        assert time.monotonic() < deadline
        time.sleep(2)
    container.start()
    execute(own, "INSERT INTO load (body) VALUES ('the database goes on')")
    ran = drill(own)
    assert ran.code == 1 and ran.json["result"] == "fail"
    ran = own.run("backup", "check")
    assert ran.code == 1 and "no gap in the archive" in ran.message, ran.stderr
    own.ok("backup", "run", "--type", "full")
    assert drill(own).code == 0
    own.ok("backup", "check")


def own_log(own: Installation) -> str:
    container = own.target().container("postgres")
    assert container is not None
    return str(container.logs().decode(errors="replace"))


def test_postgresql_killed_during_a_backup(own: Installation):
    """That backup fails or ends well, with a line; the database comes back, the next backup and drill are good."""
    process = subprocess.Popen(
        [PROGRAM, "backup", "run", "--type", "full"],
        env=own.env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(1.2)
    own.target().kill("postgres")
    _, errors = process.communicate(timeout=300)
    assert process.returncode in (0, 1), errors
    assert process.returncode == 0 or "pgbackrest backup" in errors
    deadline = time.monotonic() + 120
    while own.run("status").code != 0:
        assert time.monotonic() < deadline
        time.sleep(1)
    own.ok("backup", "run", "--type", "full")
    assert drill(own).code == 0


def test_an_honest_drill_under_writes(own: Installation):
    """Sixteen clients insert, change, delete and roll back all the time; three drills in a row find everything equal."""
    stop, broken = threading.Event(), list[BaseException]()
    dsn = own.target().dsn(direct=True)

    def write(seed: int) -> None:
        try:
            with psycopg.connect(dsn) as connection:
                while not stop.is_set():
                    connection.execute("INSERT INTO load (body) VALUES (md5(random()::text))")
                    connection.execute(
                        "UPDATE load SET body = body || 'x' WHERE id = (SELECT max(id) - %s FROM load)", (seed,)
                    )
                    connection.execute("DELETE FROM load WHERE id = (SELECT min(id) + %s FROM load)", (seed,))
                    (connection.rollback if seed % 4 == 0 else connection.commit)()
        except BaseException as error:
            broken.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(1, 17)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            ran = drill(own)
            assert ran.code == 0, ran.stderr
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert broken == []


def test_the_repositorys_disk_is_full(docker_ready: None, installation: Installation, tmp_path: Path):
    """The backup fails with the reason, older ones stay, the database goes on; with room again the next one is good."""
    name = "orcheo-db-test-second"
    small = Installation(name, free_port(), tmp_path / name)
    remove_leftovers(small)
    client = docker.from_env()
    labels = {"com.docker.compose.project": name, "com.docker.compose.volume": "backup"}
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size=12m,uid=999,gid=999,mode=0700"}
    client.volumes.create(f"{name}_backup", driver="local", driver_opts=options, labels=labels)
    try:
        small.ok("up")
        target = small.target()
        assert inside(target, "backup", f"head -c 7m /dev/urandom > {REPOSITORY}/filler")[0] == 0
        ran = small.run("backup", "run", "--type", "full")
        assert ran.code in (1, 2) and "No space left on device" in ran.message, ran.stderr
        assert [b["type"] for b in small.ok("backup", "list", "--json").json["backups"]] == ["full"]
        assert small.run("backup", "check").code == 1
        assert execute(small, "SELECT 1") == [(1,)]
        assert inside(target, "backup", f"rm {REPOSITORY}/filler")[0] == 0
        small.ok("backup", "run", "--type", "differential")
    finally:
        remove_leftovers(small)
