"""Hosts for Ansible: containers whose PID 1 is systemd, reached over SSH with a key that lives as long as the tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from orcheo_db.base_image import ensure_base_image
from orcheo_db.host import build_client, ca_bundle
from tests import tools
from tests.conftest import ROOT

DIRECTORY = Path(__file__).parent / "host"
NETWORK, LABEL = "orcheo-db-test-ansible", "orcheo-db-test.site"
PARTS = ("postgres", "repository", "pgbouncer", "bootstrap")


def image(codename: str) -> str:
    """The image of a host with that Debian, built at the first use."""
    tag, base = f"orcheo-db-test/host:{codename}", f"debian:{codename}-slim"
    ensure_base_image(base, codename)
    argv = [
        build_client(),
        "build",
        "--quiet",
        f"--tag={tag}",
        f"--build-arg=BASE_IMAGE={base}",
        f"--secret=id=ca,src={ca_bundle()}",
        str(DIRECTORY),
    ]
    done = subprocess.run(argv, env=os.environ | {"DOCKER_BUILDKIT": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return tag


@dataclass
class Host:
    """One container."""

    name: str
    address: str

    def run(self, script: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(["docker", "exec", self.name, "bash", "-euc", script], capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done


@dataclass
class Site:
    """Hosts and an inventory of them."""

    directory: Path
    hosts: dict[str, Host]
    groups: dict[str, str]  # part -> host's name
    name: str  # that of its network
    variables: dict[str, object] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.directory / "state" / self.name

    @property
    def range(self) -> str:
        """The addresses of its network."""
        argv = ["docker", "network", "inspect", "--format", "{{(index .IPAM.Config 0).Subnet}}", self.name]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()

    def add(self, name: str, codename: str) -> None:
        """Another host."""
        public = (self.directory / "key.pub").read_text().strip()
        self.hosts[name] = _start(self.name, name, image(codename), public)

    def lose(self, name: str) -> None:
        """A host is gone, with its disks."""
        subprocess.run(["docker", "rm", "-f", "-v", self.hosts.pop(name).name], check=True, capture_output=True)

    def write(self) -> Path:
        """The inventory's file."""
        ssh = {
            "ansible_user": "sysop",
            "ansible_ssh_private_key_file": str(self.directory / "key"),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
        }
        tier = {
            "common_project": self.state.name,
            "common_state": str(self.state.parent),
            "common_toolkit": str(ROOT / ".venv" / "bin" / "python"),
        }
        names = {name: {"ansible_host": host.address} for name, host in self.hosts.items()}
        document = {
            "all": {
                "hosts": names,
                "vars": {**ssh, **tier, **self.variables},
                "children": {part: {"hosts": {name: {}}} for part, name in self.groups.items()},
            }
        }
        file = self.directory / "inventory.yml"
        file.write_text(yaml.safe_dump(document))
        return file

    def play(self, playbook: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a playbook."""
        done = subprocess.run(**self.call(playbook, *options), capture_output=True, text=True)
        assert not check or done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return done

    def call(self, playbook: str, *options: str) -> dict[str, Any]:
        """What subprocess is given for a playbook."""
        argv = [str(tools.ansible()), "-i", str(self.write()), f"playbooks/{playbook}.yml", *options]
        env = os.environ | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible" / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOST_KEY_CHECKING": "false",
        }
        return {"args": argv, "cwd": ROOT / "ansible", "env": env}


@contextlib.contextmanager
def site(directory: Path, hosts: dict[str, str], groups: dict[str, str], name: str = "one") -> Iterator[Site]:
    """Containers for the block's length. hosts: name -> Debian's codename; name: the site's."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / "key")], check=True)
    network = f"{NETWORK}-{name}"
    _clear(network)
    subprocess.run(["docker", "network", "create", network], check=True, capture_output=True)
    found = Site(directory, {}, groups, network)
    try:
        for each, codename in hosts.items():
            found.add(each, codename)
        yield found
    finally:
        _clear(network)


def _clear(network: str) -> None:
    argv = ["docker", "ps", "-aq", f"--filter=label={LABEL}={network}"]
    left = subprocess.run(argv, check=True, capture_output=True, text=True)
    for each in left.stdout.split():
        subprocess.run(["docker", "rm", "-f", "-v", each], check=True, capture_output=True)
    subprocess.run(["docker", "network", "rm", network], capture_output=True)


def _start(network: str, name: str, tag: str, public: str) -> Host:
    called = f"{network}-{name}"
    argv = [
        "docker", "run", "--detach", f"--name={called}", f"--hostname={name}", f"--network={network}", f"--label={LABEL}={network}",
        "--cap-add=SYS_ADMIN", "--cap-add=NET_ADMIN", "--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined",
        "--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw", "--tmpfs=/run", "--tmpfs=/run/lock", "--tmpfs=/tmp:exec", tag,
    ]  # fmt: skip
    subprocess.run(argv, check=True, capture_output=True)
    told = subprocess.run(
        ["docker", "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", called],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    host = Host(called, told.stdout.strip())
    for source, target in (
        (ca_bundle(), "/usr/local/share/ca-certificates/host.crt"),
        (Path("/etc/pip.conf"), "/etc/pip.conf"),
    ):
        if source.is_file():
            subprocess.run(["docker", "cp", str(source), f"{called}:{target}"], check=True, capture_output=True)
    deadline = time.monotonic() + 60
    while host.run("systemctl is-system-running", check=False).stdout.strip() not in ("running", "degraded"):
        assert time.monotonic() < deadline, host.run("systemctl list-jobs; systemctl --failed", check=False).stdout
        time.sleep(0.3)
    host.run(
        f"update-ca-certificates; ssh-keygen -A; install -d -m 0700 -o sysop -g sysop ~sysop/.ssh;"
        f" echo '{public}' > ~sysop/.ssh/authorized_keys; chown sysop: ~sysop/.ssh/authorized_keys; systemctl reset-failed ssh; systemctl restart ssh"
    )
    return host
