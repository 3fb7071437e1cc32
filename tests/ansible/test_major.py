"""PostgreSQL 15 to 17 on a host that has both (Debian 13 with Debian 12's packages beside its own), with data, under writers."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.ansible.hosts import PARTS, Site, site
from tests.ansible.load import assert_nobody_noticed, under_load
from tests.ansible.test_site import changed
from tests.conftest import Installation

pytestmark = pytest.mark.slow
WAIT_SECONDS = 400
MARKER = "/var/lib/postgresql/upgrade-to-17/unfinished"
# The older release's packages, where the host's own have no such version.
OLDER = """
cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | grep -h ^deb | sed 's/trixie/bookworm/g' > /tmp/older
mv /tmp/older /etc/apt/sources.list.d/older.list
printf 'Package: *\\nPin: release n=bookworm*\\nPin-Priority: 100\\n' > /etc/apt/preferences.d/older
"""


@pytest.fixture(scope="module")
def old(docker_ready: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("old"), {"old": "trixie"}, dict.fromkeys(PARTS, "old"), "old") as found:
        found.hosts["old"].run(OLDER)
        # Clients wait here until a run that was cut off has been finished.
        found.variables |= {"postgres_version": 15, "pgbouncer_settings": {"query_wait_timeout": WAIT_SECONDS}}
        found.play("site")
        yield found


@pytest.fixture(scope="module")
def host(old: Site) -> Installation:
    return Installation(old.state.name, 6432, old.state, kind="host")


def sql(old: Site, query: str) -> str:
    return old.hosts["old"].run(f'runuser -u postgres -- psql -XAtqd orcheo -c "{query}"').stdout.strip()


def cut_off(old: Site, *options: str) -> None:
    """Begin the upgrade, and kill it behind its point of no return."""
    call = old.call("upgrade-major", *options)
    process = subprocess.Popen(**call, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        while old.hosts["old"].run(f"test -e {MARKER}", check=False).returncode != 0:
            assert process.poll() is None, "it ended before"
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def upgrade(old: Site, *options: str, check: bool = True) -> str:
    old.variables["postgres_version"] = 17
    try:
        done = old.play("upgrade-major", *options, check=check)
    finally:
        old.variables["postgres_version"] = 15
    assert check or done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("trap", "undo", "said"),
    [
        (
            "UPDATE pg_database SET datcollversion = '1.0' WHERE datname = 'orcheo'",
            "UPDATE pg_database SET datcollversion = NULL WHERE datname = 'orcheo'",
            "the library that orders text is another than the indexes were built with: orcheo",
        ),
        (
            "SELECT pg_create_logical_replication_slot('trap', 'test_decoding')",
            "SELECT pg_drop_replication_slot('trap')",
            "replication slots are there, which would not survive: trap",
        ),
        ("CREATE EXTENSION xml2", "DROP EXTENSION xml2", "PostgreSQL 17 lacks extension xml2"),
    ],
)
def test_traps_are_refused(old: Site, trap: str, undo: str, said: str):
    there = old.hosts["old"]
    control = "/usr/share/postgresql/17/extension/xml2.control"
    there.run(f"test ! -e {control} || mv {control} {control}.away")
    if "slot" in trap:
        old.variables["postgres_settings"] = {"wal_level": "logical"}
        old.play("site", "--tags", "postgres", "-e", "restart_allowed=true")
    sql(old, trap)
    try:
        refused = upgrade(old, "-e", "upgrade_check_only=true", check=False)
    finally:
        sql(old, undo)
        there.run(f"test ! -e {control}.away || mv {control}.away {control}")
        if "slot" in trap:
            old.variables["postgres_settings"] = {}
            old.play("site", "--tags", "postgres", "-e", "restart_allowed=true")
    assert said in " ".join(refused.split()), refused[-3000:]
    assert sql(old, "SHOW server_version_num").startswith("15")


def test_a_failure_before_clients_go_on_brings_the_old_server_back(old: Site, host: Installation):
    sql(
        old,
        "CREATE SCHEMA of_this_test; CREATE TABLE of_this_test.kept AS SELECT i, md5(i::text) AS t FROM generate_series(1, 5000) i",
    )
    with under_load(host) as found:
        refused = upgrade(old, "-e", "upgrade_query='SELECT false'", check=False)
    assert "the upgrade to 17 failed, and the old server runs again: The operator's own question" in " ".join(
        refused.split()
    ), refused[-3000:]
    assert sql(old, "SHOW server_version_num").startswith("15")
    assert_nobody_noticed(found)
    assert set(changed(old.play("site").stdout).values()) == {0}


def test_15_to_17_with_data_under_writers(old: Site, host: Installation):
    before = sql(old, "SELECT count(*), md5(string_agg(t, '' ORDER BY i)) FROM of_this_test.kept")
    old.variables["postgres_version"] = 17
    with under_load(host, WAIT_SECONDS) as found:
        cut_off(old, "-e", "upgrade_query='SELECT count(*) = 5000 FROM of_this_test.kept'")
        refused = old.play("upgrade-major", "-e", "upgrade_rollback=true", check=False)
        assert refused.returncode != 0 and "is behind its point of no return" in " ".join(refused.stdout.split())
        old.play("upgrade-major")
    assert old.hosts["old"].run(f"test -e {MARKER}", check=False).returncode != 0
    assert sql(old, "SHOW server_version_num").startswith("17")
    assert sql(old, "SELECT count(*), md5(string_agg(t, '' ORDER BY i)) FROM of_this_test.kept") == before
    assert_nobody_noticed(found)
    old.play("site")
    assert set(changed(old.play("site").stdout).values()) == {0}
    host._place = None  # its version is another now
    host.verify()
    assert host.ok("doctor").code == 0
    assert host.ok("drill", "--switch", "--json").json["result"] == "pass"
    assert old.hosts["old"].run("test -s /var/lib/postgresql/15/main/PG_VERSION").returncode == 0
    again = old.play("upgrade-major", check=False)
    assert again.returncode != 0 and "17 is no newer than 17, which runs" in again.stdout
