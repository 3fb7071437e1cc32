"""playbooks/site.yml on a real host: it converges, changes nothing again, is verified as every target, and changes as asked.

`make test` has the first two and some refusals; the rest takes minutes and is `make test-ansible-full`.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests import tools
from tests.ansible.hosts import Site
from tests.conftest import Installation
from tests.migrate.whole import there_and_back


def changed(output: str) -> dict[str, int]:
    """Changed tasks by host, of a playbook's recap."""
    return {name: int(count) for name, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", output, re.M)}


def started(one: Site) -> str:
    return (
        one.hosts["one"]
        .run("systemctl show --property=ActiveEnterTimestampMonotonic postgresql@17-main")
        .stdout.strip()
    )


def sql(one: Site, query: str) -> str:
    return one.hosts["one"].run(f'runuser -u postgres -- psql -XAtqc "{query}"').stdout.strip()


def test_again_nothing_changes(one: Site):
    assert changed(one.play("site").stdout) == {"localhost": 0, "one": 0}


def test_the_verify_suite_passes_over_ssh(one: Site, host: Installation):
    host.verify()


@pytest.mark.slow
def test_the_toolkit_works_as_on_compose(one: Site, host: Installation):
    assert host.ok("status").code == 0
    assert host.ok("backup", "run", "--type", "incremental", "--json").json["label"]
    record = host.ok("drill", "--switch", "--json").json
    found = {check["name"] for check in record["checks"] if check["ok"]}
    assert (
        record["result"] == "pass"
        and {"content equal to production's", "pg_amcheck", "read through Orcheo's stores"} <= found
    )
    assert host.ok("doctor").code == 0
    refused = host.run("up")
    assert refused.code == 2 and "the playbooks do that" in refused.message


@pytest.mark.slow
def test_psql_by_ssh_leaves_no_password_behind(one: Site, host: Installation):
    for words in ((), ("--direct",)):
        told = host.ok("psql", *words, "--", "-XAtc", "SELECT current_user, current_database()")
        assert told.stdout.strip() == "orcheo|orcheo"
    assert host.run("psql", "--", "-XAtqc", "SELECT 1/0").code == 1
    assert one.hosts["one"].run("ls -d /tmp/orcheo-db-psql.*", check=False).returncode != 0


@pytest.mark.slow
def test_secrets_come_from_ansible_vault_where_this_machine_has_none(one: Site, tmp_path: Path):
    password, vault = tmp_path / "password", tmp_path / "state.tar.vault"
    password.touch(0o600)
    password.write_text("a password of this test\n")
    kept = one.state / "secrets" / "orcheo_app_a.password"
    content = kept.read_bytes()
    tar = subprocess.run(["tar", "-C", str(one.state.parent), "-c", "."], check=True, capture_output=True).stdout
    program = tools.ansible().with_name("ansible-vault")
    argv = [str(program), "encrypt", f"--vault-password-file={password}", f"--output={vault}"]
    subprocess.run(argv, input=tar, check=True, capture_output=True)
    assert vault.read_bytes().startswith(b"$ANSIBLE_VAULT;") and content not in vault.read_bytes()
    new = tmp_path / "state"
    variables = ["-e", f"common_state={new}", "-e", f"common_vault={vault}"]
    refused = one.play("site", "--tags", "secrets", *variables, check=False)
    assert refused.returncode != 0 and not (new / one.state.name).exists(), "without the password nothing is made anew"
    told = one.play("site", "--tags", "secrets", *variables, f"--vault-password-file={password}").stdout
    assert (new / one.state.name / "secrets" / "orcheo_app_a.password").read_bytes() == content
    assert not (new / "vault.tar").exists() and content.decode().strip() not in told
    again = one.play("site", "--tags", "secrets", *variables, f"--vault-password-file={password}").stdout
    assert changed(again) == {"localhost": 0, "one": 0}


@pytest.mark.slow
def test_a_migration_there_and_back(one: Site, host: Installation, tmp_path: Path):
    there_and_back(host, tmp_path, "pgbouncer:6432")


@pytest.mark.slow
def test_jobs_run_by_systemd_and_a_failed_one_is_reported(one: Site):
    there = one.hosts["one"]
    timers = there.run("systemctl list-timers --all --no-legend 'orcheo-db-job@*'").stdout
    assert set(re.findall(r"orcheo-db-job@(\w+)\.timer", timers)) == {
        "full",
        "differential",
        "incremental",
        "logical",
        "drill",
    }
    there.run("systemctl start orcheo-db-job@logical.service")
    there.run("mv /etc/orcheo-db/repository/pgbackrest.conf /etc/orcheo-db/repository/away")
    try:
        assert there.run("systemctl start orcheo-db-job@incremental.service", check=False).returncode != 0
    finally:
        there.run("mv /etc/orcheo-db/repository/away /etc/orcheo-db/repository/pgbackrest.conf")
    there.run(
        "for n in $(seq 50); do journalctl --no-pager -t orcheo-db | grep -q 'incremental failed on one: ' && exit 0; sleep 0.2; done; exit 1"
    )


@pytest.mark.slow
def test_a_setting_changes_by_a_reload(one: Site):
    before = started(one)
    one.variables["postgres_settings"] = {"log_min_duration_statement": "750ms"}
    assert changed(one.play("site", "--tags", "postgres").stdout)["one"] > 0
    assert sql(one, "SHOW log_min_duration_statement") == "750ms" and started(one) == before


@pytest.mark.slow
def test_a_setting_that_needs_a_restart_waits_until_it_is_allowed(one: Site, host: Installation):
    before = started(one)
    one.variables["postgres_settings"] = {"max_connections": 110}
    told = one.play("site", "--tags", "postgres").stdout
    assert "max_connections wait for a restart of PostgreSQL, which is not made unasked" in told
    assert started(one) == before and sql(one, "SHOW max_connections") == "100"
    one.play("site", "--tags", "postgres", "-e", "restart_allowed=true")
    assert started(one) != before and sql(one, "SHOW max_connections") == "110"
    one.variables["postgres_settings"] = {}
    one.play("site", "-e", "restart_allowed=true")
    assert sql(one, "SHOW max_connections") == "100"
    assert host.ok("doctor").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["secrets", "pgbackrest", "bootstrap", "pgbouncer", "exporters"])
def test_a_part_alone(one: Site, tag: str):
    assert changed(one.play("site", "--tags", tag).stdout) == {"localhost": 0, "one": 0}


@pytest.mark.slow
def test_check_shows_what_would_change_and_changes_nothing(one: Site):
    one.variables["postgres_settings"] = {"work_mem": "5MB"}
    try:
        told = one.play("site", "--check", "--diff").stdout
    finally:
        one.variables["postgres_settings"] = {}
    assert "+work_mem = '5MB'" in told and sql(one, "SHOW work_mem") == "4MB"
    assert changed(one.play("site").stdout) == {"localhost": 0, "one": 0}


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"postgres_size": "huge"}, "postgres_size: huge is none of small, medium, large"),
        pytest.param(
            {"postgres_size": "large"}, "postgres_size: large is for 32GB, and the host has", marks=pytest.mark.slow
        ),
        pytest.param(
            {"postgres_version": 13},
            "value of postgres_version must be one of: 14, 15, 16, 17, got: 13",
            marks=pytest.mark.slow,
        ),
        ({"postgres_version": 16}, "PostgreSQL 17 is this installation's, and postgres_version is 16"),
        pytest.param({"postgres_port": "many"}, "postgres_port", marks=pytest.mark.slow),
        pytest.param(
            {"postgres_settings": {"ssl": "off"}}, "postgres_settings: ssl: the role's own", marks=pytest.mark.slow
        ),
        pytest.param(
            {"pgbouncer_settings": {"auth_file": "/x"}},
            "pgbouncer_settings: auth_file: the role's own",
            marks=pytest.mark.slow,
        ),
        pytest.param({"common_firewall": "perhaps"}, "common_firewall", marks=pytest.mark.slow),
    ],
)
def test_wrong_variables_are_refused_before_anything_changes(one: Site, variables: dict[str, object], said: str):
    one.variables |= variables
    try:
        refused = one.play("site", check=False)
    finally:
        for name in variables:
            one.variables.pop(name)
    assert refused.returncode != 0 and said in refused.stdout + refused.stderr
    assert changed(refused.stdout).get("one", 0) == 0


def test_a_part_without_a_host_is_named(one: Site):
    kept = one.groups.pop("repository")
    try:
        refused = one.play("site", check=False)
    finally:
        one.groups["repository"] = kept
    assert (
        refused.returncode != 0 and "group `repository` has 0 hosts: put one into it" in refused.stdout + refused.stderr
    )


def test_a_part_of_the_hosts_alone_is_refused(one: Site):
    refused = one.play("site", "--limit", "one", check=False)
    assert refused.returncode != 0 and "--limit one: the tier's hosts are configured together" in refused.stdout
    assert changed(refused.stdout) == {"one": 0}
