"""What runs on each host: packages, users, files, sockets."""

from __future__ import annotations

import pytest

from orcheo_db.targets.base import Facts, Target

ROLES = ("postgres", "pgbouncer")


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest, facts: Facts) -> str:
    if request.param not in facts.hosts:
        pytest.skip(f"target {facts.target} has no {request.param} host of its own")
    return str(request.param)


def processes(host) -> dict[int, tuple[str, int]]:
    """pid -> (name, effective uid), read from /proc: slim images have no ps."""
    script = "for d in /proc/[0-9]*; do echo \"${d#/proc/} $(awk '/^Name:/{n=$2} /^Uid:/{u=$3} END{print n, u}' $d/status 2>/dev/null)\"; done"
    found = {}
    for line in host.check_output(script).splitlines():
        pid, *rest = line.split()
        if len(rest) == 2:
            found[int(pid)] = (rest[0], int(rest[1]))
    return found


def listening(host) -> set[tuple[str, int]]:
    """(hexadecimal address, port) of every TCP socket in state LISTEN."""
    sockets = set()
    for line in host.check_output("cat /proc/net/tcp /proc/net/tcp6").splitlines():
        parts = line.split()
        if len(parts) > 3 and parts[3] == "0A":
            address, _, port = parts[1].rpartition(":")
            sockets.add((address, int(port, 16)))
    return sockets


def test_packages_are_installed(host, facts, role):
    for name in facts.packages[role]:
        assert host(role).package(name).is_installed, name


def test_versions(host, target: Target, facts):
    if "postgres" in facts.hosts:
        assert f" {target.spec.versions.postgresql}." in host("postgres").check_output(
            f"{facts.postgres_program} --version"
        )
    version = host("pgbouncer").check_output("pgbouncer --version").split()[1]
    assert tuple(map(int, version.split(".")[:2])) >= (1, 21), "max_prepared_statements came with 1.21"


def test_nothing_runs_as_root(host, facts, role):
    running = processes(host(role))
    assert any(name == facts.users[role] for name, _ in running.values()), running
    ours = (
        running.values()
        if not facts.whole_hosts
        else [each for each in running.values() if each[0] in facts.users.values()]
    )
    assert all(uid != 0 for _, uid in ours), running


def test_the_service_runs_as_its_user(host, facts, role):
    uid = int(host(role).check_output(f"id -u {facts.users[role]}"))
    assert {u for name, u in processes(host(role)).values() if name == facts.users[role]} == {uid}


def test_keys_and_secrets_are_private(host, facts, role):
    for path in facts.private_files[role]:
        file = host(role).file(path)
        assert file.exists, path
        assert file.mode in (0o400, 0o600), f"{path} has mode {file.mode:o}"
        assert file.user == facts.users[role], f"{path} belongs to {file.user}"


def test_data_directory_is_private(host, facts):
    if "postgres" not in facts.hosts:
        pytest.skip("the server is not ours")
    directory = host("postgres").file(facts.data_dir)
    # A volume with a group of its own hands it down (setgid), which gives nobody a right.
    assert directory.is_directory and directory.mode & 0o777 == 0o700 and directory.user == facts.users["postgres"]


def test_only_the_meant_sockets_listen(host, facts, role):
    meant = {int(text.rpartition(":")[2].lstrip("/")) for text in facts.listening[role]}
    # Docker's own resolver listens on 127.0.0.11 (0B00007F) in each container's network namespace, on a port of its choice.
    found = {port for address, port in listening(host(role)) if address != "0B00007F"}
    assert meant <= found if facts.whole_hosts else found == meant


def test_root_file_system_is_read_only(host, role, facts):
    if not facts.hosts[role].startswith(("docker://", "kubectl://")):
        pytest.skip("a whole host, not a container")
    assert host(role).run("touch /usr/probe").rc != 0
    # CapEff of PID 1: no capability at all; NoNewPrivs set.
    status = host(role).check_output("cat /proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == 0 and int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"


def test_no_secret_in_environment_or_command_lines(host, target: Target, role):
    seen = host(role).check_output("cat /proc/[0-9]*/cmdline /proc/1/environ 2>/dev/null | tr '\\0' '\\n'")
    for name in ("orcheo_admin", "orcheo_app_a", "orcheo_app_b", "orcheo_monitor", "pgbouncer"):
        assert target.store.password(name) not in seen, name
