"""Three hosts: PostgreSQL and the repository on Debian 12 (PostgreSQL 15, pgBackRest 2.45), PgBouncer and the init job on Debian 13.

Then what people do with it: a backup, a drill, new minor versions and a restart under load, a point in time beside and in place, a
database host that is lost, and the end.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from collections.abc import Iterator

import pytest

from tests.ansible.hosts import Site, site
from tests.ansible.load import assert_nobody_noticed, under_load
from tests.ansible.test_site import changed
from tests.conftest import Installation

pytestmark = pytest.mark.slow
HOSTS = {"db": "bookworm", "vault": "bookworm", "pool": "trixie"}
GROUPS = {"postgres": "db", "repository": "vault", "pgbouncer": "pool", "bootstrap": "pool"}
# The package sources have a release's own PostgreSQL and the newest security update of it: the hosts begin with the older one.
VERSIONS = "apt-get -qq update && apt-cache madison postgresql-15 | awk '{print $3}'"
OLDER = """printf 'Package: postgresql-15 postgresql-client-15\\nPin: version {}\\nPin-Priority: 1001\\n' > /etc/apt/preferences.d/older"""
SERVING = "SELECT split_part(current_setting('server_version'), ' ', 1)"
NEWER = "rm -f /etc/apt/preferences.d/older"


@pytest.fixture(scope="module")
def three(docker_ready: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("three"), HOSTS, dict(GROUPS), "three") as found:
        versions = found.hosts["db"].run(VERSIONS).stdout.split()
        for name in ("db", "vault"):
            found.hosts[name].run(OLDER.format(versions[-1]))
        # This machine is where the app and the toolkit are; its address on that network is the first.
        here = [f"{next(ipaddress.ip_network(found.range).hosts())}/32"]
        found.variables |= {"common_firewall": True, "common_firewall_clients": here, "common_firewall_operators": here}
        found.play("site")
        yield found


@pytest.fixture(scope="module")
def host(three: Site) -> Installation:
    return Installation(three.state.name, 6432, three.state, kind="host")


def sql(three: Site, query: str) -> str:
    name = three.groups["postgres"]
    return three.hosts[name].run(f'runuser -u postgres -- psql -XAtqd orcheo -c "{query}"').stdout.strip()


def minor(package: str) -> str:
    """PostgreSQL's version, of a package's."""
    return package.split("-", maxsplit=1)[0]


def test_again_nothing_changes(three: Site):
    assert changed(three.play("site").stdout) == {"localhost": 0, "db": 0, "vault": 0, "pool": 0}


def test_the_verify_suite_passes_over_ssh(three: Site, host: Installation):
    host.verify()


def test_the_repository_host_has_no_pooler_and_the_database_host_no_backups(three: Site):
    listening = {name: there.run("ss -Hltn | awk '{print $4}'").stdout for name, there in three.hosts.items()}
    ports = {name: set(re.findall(r":(\d+)$", text, re.M)) for name, text in listening.items()}
    assert {"5432", "8433"} <= ports["db"] and {"8432"} <= ports["vault"] and {"6432"} <= ports["pool"]
    assert not ports["vault"] & {"5432", "6432"} and not ports["db"] & {"6432", "8432"}
    assert three.hosts["db"].run("ls /var/lib/orcheo-backup /etc/orcheo-db/backup 2>&1", check=False).returncode != 0
    assert not three.hosts["db"].run("grep -rl cipher /etc/orcheo-db /etc/pgbackrest", check=False).stdout


def reached(three: Site, name: str, port: int) -> bool:
    try:
        socket.create_connection((three.hosts[name].address, port), timeout=3).close()
    except TimeoutError:
        return False
    return True


def test_the_firewall_lets_in_whom_it_should(three: Site):
    """What listens is in the test before."""
    assert reached(three, "db", 5432) and reached(three, "pool", 6432) and reached(three, "vault", 22)
    assert not reached(three, "db", 8433) and not reached(three, "vault", 8432)
    kept = dict(three.variables)
    three.variables |= {"common_firewall_clients": [], "common_firewall_operators": ["192.0.2.0/24"]}
    three.play("site", "--tags", "common")
    try:
        assert not reached(three, "db", 5432) and not reached(three, "pool", 6432) and reached(three, "db", 22)
    finally:
        three.variables |= kept
        three.play("site", "--tags", "common")
    assert reached(three, "db", 5432) and reached(three, "pool", 6432)


def test_a_backup_and_a_drill(three: Site):
    assert "incremental" in three.play("backup").stdout
    told = three.play("drill").stdout
    assert "content equal to production's" in told or "pass" in told
    refused = three.play("backup", "-e", "backup_type=everything", check=False)
    assert refused.returncode != 0 and "everything" in refused.stdout


def test_a_new_minor_version_under_load_fails_no_transaction(three: Site, host: Installation):
    versions = three.hosts["db"].run(VERSIONS).stdout.split()
    if len(set(versions)) < 2:
        pytest.skip(f"the package sources have one version of PostgreSQL 15 alone: {versions}")
    for name in ("db", "vault"):
        three.hosts[name].run(NEWER)
    assert sql(three, SERVING) == minor(versions[-1])
    with under_load(host) as found:
        three.play("upgrade-minor")
    assert_nobody_noticed(found)
    assert sql(three, SERVING) == minor(versions[0])
    assert minor(versions[0]) in three.hosts["vault"].run("/usr/lib/postgresql/15/bin/postgres --version").stdout
    assert host.ok("doctor").code == 0


def test_a_restart_under_load_fails_no_transaction(three: Site, host: Installation):
    before = sql(three, "SELECT pg_postmaster_start_time()")
    three.play("upgrade-minor")
    assert sql(three, "SELECT pg_postmaster_start_time()") == before  # nothing is new
    with under_load(host) as found:
        three.play("upgrade-minor", "-e", "restart_allowed=true")
    assert sql(three, "SELECT pg_postmaster_start_time()") != before
    assert_nobody_noticed(found)


def test_a_long_transaction_is_not_broken(three: Site, host: Installation):
    """Nothing restarts, clients go on, and the message says why."""
    import psycopg  # noqa: PLC0415

    before = sql(three, "SELECT pg_postmaster_start_time()")
    with psycopg.connect(host.ok("dsn").stdout.strip()) as busy:
        busy.execute("SELECT 1")
        refused = three.play(
            "upgrade-minor", "-e", "restart_allowed=true", "-e", "pgbouncer_pause_seconds=3", check=False
        )
        assert refused.returncode != 0 and "a transaction has been open for more than 3 s" in refused.stdout
        assert busy.execute("SELECT 2").fetchone() == (2,)
    assert sql(three, "SELECT pg_postmaster_start_time()") == before
    with psycopg.connect(host.ok("dsn").stdout.strip()) as after:
        assert after.execute("SELECT 3").fetchone() == (3,)


def test_new_secrets_under_load_fail_no_query(three: Site, host: Installation):
    import psycopg  # noqa: PLC0415

    former, monitor = host.ok("dsn").stdout.strip(), host.ok("dsn", "--role", "orcheo_monitor").stdout.strip()
    with under_load(host) as found:
        told = three.play("rotate-secrets").stdout
    assert "The app's login is orcheo_app_b now" in told
    assert_nobody_noticed(found)
    now = host.ok("dsn").stdout.strip()
    assert "orcheo_app_b:" in now and "orcheo_app_a:" in former
    for dsn in (former, now, host.ok("dsn", "--role", "orcheo_monitor").stdout.strip()):
        with psycopg.connect(dsn) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        psycopg.connect(monitor)
    assert host.ok("doctor").code == 0
    assert host.ok("drill", "--switch", "--json").json["result"] == "pass"
    assert set(changed(three.play("site").stdout).values()) == {0}


def test_a_point_in_time_beside_and_in_place(three: Site, host: Installation):
    sql(three, "CREATE SCHEMA of_this_test; CREATE TABLE of_this_test.kept AS SELECT 1 AS i")
    time.sleep(1.5)
    moment = sql(three, "SELECT now()")
    time.sleep(1.5)
    sql(three, "DROP SCHEMA of_this_test CASCADE")
    refused = three.play("restore", "-e", f"{{restore_to: '{moment}', restore_in_place: true}}", check=False)
    assert (
        refused.returncode != 0
        and f"the one in use is kept): confirm with -e restore_confirm={three.state.name}" in refused.stdout
    )
    told = three.play("restore", "--tags", "restore", "-e", f"{{restore_to: '{moment}'}}").stdout
    (name,) = set(re.findall(r"It is in directory (restored-\w+), beside the running one", told))
    assert sql(three, "SELECT to_regclass('of_this_test.kept') IS NULL") == "t"
    confirm = f"restore_confirm={three.state.name}"
    told = three.play("restore", "--tags", "restore", "-e", f"restore_use={name}", "-e", confirm).stdout
    assert sql(three, "SELECT i FROM of_this_test.kept") == "1"
    (former,) = set(re.findall(r"(former-\w+) is kept", told))
    assert three.hosts["db"].run(f"test -s /var/lib/postgresql/{former}/15/main/PG_VERSION").returncode == 0
    assert host.ok("doctor").code == 0
    sql(three, "DROP SCHEMA of_this_test CASCADE")
    three.play("restore", "--tags", "restore", "-e", f"restore_remove={former}", "-e", f"restore_confirm={former}")
    assert three.hosts["db"].run("ls /var/lib/postgresql").stdout.split() == ["15"]


def test_a_new_host_takes_the_place_of_a_lost_one(three: Site, host: Installation):
    sql(three, "CREATE SCHEMA of_this_test; CREATE TABLE of_this_test.before_the_loss AS SELECT 7 AS i")
    host.ok("backup", "run", "--type", "incremental")
    three.lose("db")
    three.add("db2", "bookworm")
    three.groups["postgres"] = "db2"
    begun_anew = three.play("site", check=False)
    assert begun_anew.returncode != 0 and "playbooks/restore.yml brings the backups' cluster to this one" in " ".join(
        begun_anew.stdout.split()
    )
    assert host.run("psql", "--direct", "--", "-XAtc", "SELECT 1").code != 0, "no app can write to the empty one"
    confirm = f"restore_confirm={three.state.name}"
    three.play("restore", "-e", "restore_in_place=true", "-e", confirm)
    assert sql(three, "SELECT i FROM of_this_test.before_the_loss") == "7"
    three.play("site")
    assert set(changed(three.play("site").stdout).values()) == {0}
    host.verify()
    assert host.ok("doctor").code == 0


def test_decommissioning_asks_and_keeps(three: Site):
    refused = three.play("decommission", "-e", "decommission_confirm=somebody-else", check=False)
    assert refused.returncode != 0 and "somebody-else is not the installation's name" in refused.stdout
    told = three.play("decommission", "-e", f"decommission_confirm={three.state.name}").stdout
    assert "backups, WAL and evidence in /var/lib/orcheo-backup" in told
    db, vault, pool = (three.hosts[name] for name in ("db2", "vault", "pool"))
    for there, unit in ((db, "postgresql@15-main"), (vault, "orcheo-db-archive"), (pool, "pgbouncer")):
        assert there.run(f"systemctl is-active {unit}", check=False).stdout.strip() == "inactive"
        assert there.run(f"systemctl is-enabled {unit}", check=False).stdout.strip() == "disabled"
    assert vault.run("ls /var/lib/orcheo-backup/backup/orcheo | grep -c F$").stdout.strip() != "0"
    assert db.run("test -s /var/lib/postgresql/15/main/PG_VERSION").returncode == 0
    three.play("site")  # in service again, with all that was there
    assert sql(three, "SELECT i FROM of_this_test.before_the_loss") == "7"
