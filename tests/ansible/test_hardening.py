"""ansible/HARDENING.md: each item of the CIS Benchmark for PostgreSQL 17 (v1.0.0) that the table claims has its test here or in the verify suite."""

from __future__ import annotations

import re

import pytest

from tests.ansible.hosts import Site
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
TABLE = ROOT / "ansible" / "HARDENING.md"
ROW = re.compile(r"^\| (\d[\d.]*) \|.*\| `([\w/.]+)::(\w+)(?:\[([\d.]+)\])?` \|$", re.M)


def out(one: Site, script: str) -> str:
    return one.hosts["one"].run(script).stdout.strip()


def sql(one: Site, query: str) -> str:
    return out(one, f'runuser -u postgres -- psql -XAtqd orcheo -c "{query}"')


# What a shell on the host answers, by item.
SHELL = {
    "1.2": ("dpkg-query -Wf '${Package}\\n' | grep -E '^(postgresql-(doc|pl)|phppgadmin|pgadmin)' || echo none", "none"),
    "1.3": ("systemctl is-enabled postgresql@17-main", "enabled"),
    "1.4": ("stat -c '%U %G %a' /var/lib/postgresql/17/main", "postgres postgres 700"),
    "1.6": ("grep -l PGPASSWORD /etc/environment /etc/profile /etc/profile.d/* /root/.[!.]* /home/*/.[!.]* 2>/dev/null || echo none", "none"),
    "1.7": ("for p in /proc/[0-9]*; do tr '\\0' '\\n' < $p/environ 2>/dev/null | grep -q ^PGPASSWORD= && echo $p; done; echo end", "end"),
    "2.1": ("systemctl show --property=UMask --value postgresql@17-main", "0077"),
    "2.2": ("find /usr/share/postgresql/17/extension ! -user root -o -perm /022 ! -type l | head -1; echo end", "end"),
    "2.3": ("readlink /var/lib/postgresql/.psql_history", "/dev/null"),
    "2.4": ("find / -xdev -name '*pg_service.conf' -exec grep -l password {} + 2>/dev/null; echo end", "end"),
    "4.1": ("passwd --status postgres | cut -d' ' -f2", "L"),
    "8.2": ("test -x /usr/bin/pgbackrest && systemctl is-enabled orcheo-db-job@full.timer orcheo-db-job@drill.timer | sort -u", "enabled"),
}  # fmt: skip
# What the server answers.
SERVER = {
    "3.1.20": ("SHOW log_connections", "on"),
    "3.1.21": ("SHOW log_disconnections", "on"),
    "3.1.23": ("SHOW log_hostname", "off"),
    "3.1.24": ("SELECT current_setting('log_line_prefix') LIKE '%m%u=%' OR current_setting('log_line_prefix') LIKE '%m%user=%u%db=%d%app=%a%client=%h%'", "t"),
    "3.1.26": ("SHOW log_timezone", "UTC"),
    "4.3": ("SELECT string_agg(rolname, ',') FROM pg_roles WHERE rolsuper OR rolbypassrls", "postgres"),
    "4.5": (
        "SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE prosecdef AND nspname !~ '^(pg_|information_schema)'"
        " AND (NOT coalesce(array_to_string(proconfig, ',') ~ 'search_path', false) OR has_function_privilege('public', p.oid, 'EXECUTE'))",
        "0",
    ),
    "4.10": ("SELECT has_schema_privilege('public', 'public', 'CREATE')", "f"),
    "5.3": ("SELECT string_agg(DISTINCT auth_method, ',') FROM pg_hba_file_rules WHERE type = 'local'", "peer"),
    "5.4": ("SELECT string_agg(DISTINCT type || ' ' || auth_method, ',') FROM pg_hba_file_rules WHERE type <> 'local' AND auth_method <> 'reject'", "hostssl scram-sha-256"),
    "6.8": ("SHOW ssl", "on"),
    "6.11": ("SELECT count(*) FROM pg_extension WHERE extname = 'pgcrypto'", "1"),
    "7.1": ("SELECT string_agg(rolname, ',') FROM pg_roles WHERE rolreplication AND NOT rolsuper", "replicator"),
    "7.2": ("SHOW log_replication_commands", "on"),
    "7.4": ("SELECT current_setting('archive_mode') || ' ' || (current_setting('archive_command') LIKE 'pgbackrest %')::text", "on true"),
}  # fmt: skip


@pytest.mark.parametrize("item", SHELL)
def test_host(one: Site, item: str):
    script, meant = SHELL[item]
    assert out(one, script) == meant


@pytest.mark.parametrize("item", SERVER)
def test_server(one: Site, item: str):
    query, meant = SERVER[item]
    assert sql(one, query) == meant


def test_units_are_sandboxed(one: Site):
    """systemd's own judgement: 10 is no protection at all."""
    for unit, most in (("pgbouncer", 4.0), ("orcheo-db-archive", 4.0), ("orcheo-db-pgbackrest", 4.0), ("postgresql@17-main", 6.0)):  # fmt: skip
        told = out(one, f"systemd-analyze security --no-pager {unit} | tail -1")
        found = re.search(r"exposure level for \S+: ([\d.]+)", told)
        assert found and float(found[1]) <= most, told


def test_kernel_settings_are_set_or_reported(one: Site):
    told = one.play("site", "--tags", "common").stdout
    for name, value in (("vm.overcommit_memory", "2"), ("vm.swappiness", "1"), ("vm.dirty_ratio", "10")):
        there = out(one, f"cat /proc/sys/{name.replace('.', '/')}")
        assert there == value or f"{name} can't be set on this host (a container?): have it set to {value}" in told
