"""What the roles decide on distributions that no host of the tests has: Ubuntu's archive can't be reached from here. Ansible itself works it out, on made-up facts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import yaml

from tests import tools
from tests.conftest import ROOT

ANSIBLE = ROOT / "ansible"
# `apt-cache policy pgbouncer`, as the distributions have it (packages.debian.org, packages.ubuntu.com).
POLICY = "pgbouncer:\n  Installed: {}\n  Candidate: {}\n  Version table:\n"
HOSTS: dict[str, dict[str, Any]] = {
    "jammy": {"facts": ("Ubuntu", "22.04", "22"), "policy": POLICY.format("(none)", "1.16.1-1ubuntu1")},
    "noble": {"facts": ("Ubuntu", "24.04", "24"), "policy": POLICY.format("(none)", "1.22.0-1build3")},
    "bookworm": {"facts": ("Debian", "12.9", "12"), "policy": POLICY.format("(none)", "1.18.0-1")},
    "trixie": {"facts": ("Debian", "13.1", "13"), "policy": POLICY.format("1.24.1-1+deb13u2", "1.25.0-1")},
    "old": {"facts": ("Ubuntu", "20.04", "20"), "policy": ""},
}
ASKED = {
    "supported": "{{ common_supported }}",
    "python": "{{ common_python }}",
    "version": "{{ postgres_version if common_supported else 0 }}",
    "pgbouncer": "{{ pgbouncer_candidate }}",
    "limit": "{{ pgbouncer_user_limit }}",
    "firewall": "{{ lookup('ansible.builtin.template', 'roles/common/templates/nftables.conf.j2') }}",
    "repository": "{{ lookup('ansible.builtin.template', 'roles/pgbackrest/templates/repository.conf.j2') }}",
    "traps": "{{ postgres_traps | selectattr('since', 'le', 14) | map(attribute='name') | list }}",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Host -> what the roles' variables come to there."""
    place = tmp_path_factory.mktemp("variables")
    facts = ("distribution", "distribution_version", "distribution_major_version")
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.set_fact": {name: f"{{{{ made_up[{at}] }}}}" for at, name in enumerate(facts)} | {"cacheable": True}},
        {"ansible.builtin.set_fact": {"virtualization_role": "host", "virtualization_type": "kvm", "default_ipv4": {"address": "192.0.2.1"}, "cacheable": True}},
        {"ansible.builtin.set_fact": {"common_firewall_clients": ["198.51.100.0/24"]}},
        *(
            {"ansible.builtin.include_vars": {"file": str(file)}}
            for role in ("common", "postgres", "pgbouncer", "pgbackrest")
            for file in sorted((ANSIBLE / "roles" / role).glob("defaults/main/*.yml")) + sorted((ANSIBLE / "roles" / role).glob("vars/*.yml"))
        ),
        {"ansible.builtin.copy": {"content": "{{ asked | to_json }}", "dest": f"{place}/{{{{ inventory_hostname }}}}.json"}, "vars": {"asked": ASKED}},
    ]  # fmt: skip
    # Beside the roles, where templates are looked for.
    (place / "roles").symlink_to(ANSIBLE / "roles")
    (place / "play.yml").write_text(
        yaml.safe_dump([{"hosts": "all", "gather_facts": False, "connection": "local", "tasks": tasks}])
    )
    own: dict[str, dict[str, Any]] = {
        name: {"made_up": list(each["facts"]), "pgbouncer_policy": {"stdout": each["policy"]}}
        for name, each in HOSTS.items()
    }
    own["noble"] |= {"ansible_port": 2222}
    given = {
        "ansible_python_interpreter": sys.executable,
        "item": {"party": "backup"}, "ansible_managed": "made up", "postgres_installed": {"version": 17, "data": "/data", "port": 5432},
        "common_ip": "192.0.2.1", "common_hosts": {},
    }  # fmt: skip
    inventory = {
        "all": {
            "hosts": own,
            "vars": given,
            "children": {
                part: {"hosts": {"noble": {}}} for part in ("postgres", "repository", "pgbouncer", "bootstrap")
            },
        }
    }
    (place / "inventory.yml").write_text(yaml.safe_dump(inventory))
    argv = [str(tools.ansible()), "-i", str(place / "inventory.yml"), str(place / "play.yml")]
    done = subprocess.run(argv, env=os.environ | {"ANSIBLE_NOCOLOR": "1"}, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return {name: json.loads((place / f"{name}.json").read_text()) for name in HOSTS}


def test_the_distributions_that_are_promised(found: dict[str, dict[str, Any]]):
    supported = {name for name, each in found.items() if each["supported"]}
    assert supported == {"jammy", "noble", "bookworm", "trixie"}
    versions = {name: int(found[name]["version"]) for name in sorted(supported)}
    assert versions == {"bookworm": 15, "jammy": 14, "noble": 16, "trixie": 17}


def test_the_toolkit_gets_a_python_that_it_knows(found: dict[str, dict[str, Any]]):
    """pyproject.toml asks for 3.11, which jammy has beside its own 3.10."""
    assert {name: found[name]["python"] for name in ("jammy", "noble", "bookworm")} == {
        "jammy": "python3.11",
        "noble": "python3",
        "bookworm": "python3",
    }


def test_pgbouncer_before_1_23_has_no_pool_size_of_a_user(found: dict[str, dict[str, Any]]):
    assert {name: (each["pgbouncer"], each["limit"]) for name, each in found.items()} == {
        "jammy": ("1.16.1", "max_user_connections"),
        "noble": ("1.22.0", "max_user_connections"),
        "bookworm": ("1.18.0", "max_user_connections"),
        "trixie": ("1.24.1", "pool_size"),
        "old": ("0", "pool_size"),
    }


def test_pgbackrest_2_37_is_not_given_what_it_does_not_know(found: dict[str, dict[str, Any]]):
    assert "repo1-bundle" not in found["jammy"]["repository"] and "repo1-bundle=y" in found["noble"]["repository"]


def test_postgresql_14_is_not_asked_for_a_databases_collation_version(found: dict[str, dict[str, Any]]):
    assert found["jammy"]["traps"] == ["prepared transactions", "replication slots", "checksums"]


def test_the_firewall_lets_ssh_in_where_it_listens(found: dict[str, dict[str, Any]]):
    assert "ip saddr 0.0.0.0/0 tcp dport { 22, 2222 } accept" in found["noble"]["firewall"]
    assert "ip saddr 0.0.0.0/0 tcp dport 22 accept" in found["jammy"]["firewall"]
    assert "ip saddr 198.51.100.0/24 tcp dport 6432 accept" in found["noble"]["firewall"]
