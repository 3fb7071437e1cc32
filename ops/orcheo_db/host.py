"""Preparing a machine: a Docker daemon that answers, Compose v2, a client that can build, and the base image.

Where something answers, nothing is installed. Everything that is installed comes from the distribution, as root, on Debian or
Ubuntu, and is said first; `INSTALL_DOCKER=no` turns installation off.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import docker
from docker.errors import DockerException

from orcheo_db.console import say
from orcheo_db.errors import UserError

PID_FILE = Path("/var/run/docker.pid")
DAEMON_LOG = Path("/var/log/orcheo-db-dockerd.log")
DAEMON_START_SECONDS = 60  # a first start makes bridges, iptables chains and the storage; a few seconds as a rule
COMPOSE_MINIMUM = (2, 24)  # `!override` and `!reset` in compose/external.yaml came with 2.24
# One language, whose words are read here; no questions.
APT_ENVIRONMENT = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
DOCKER_PACKAGES = (
    "docker.io",
    "docker-cli",
    "docker-buildx",
)  # the last two exist from Debian 13 / Ubuntu 22.04 on


def run(argv: Sequence[str | Path], *, input: bytes | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command and give its stdout; a failure is one line with the command's own last words."""
    done = subprocess.run([str(part) for part in argv], input=input, env=env, capture_output=True)
    if done.returncode != 0:
        words = (
            done.stderr.decode(errors="replace").strip().splitlines()
            or done.stdout.decode(errors="replace").splitlines()
        )
        raise UserError(f"`{' '.join(map(str, argv[:3]))} …` failed: {(words or ['no reason given'])[-1].strip()}")
    return done.stdout.decode(errors="replace")


def daemon_error() -> Exception | None:
    """None when a Docker daemon answers, otherwise why not."""
    try:
        docker.from_env(timeout=10).ping()
    except (DockerException, OSError) as error:
        return error
    return None


def os_release(path: Path = Path("/etc/os-release")) -> dict[str, str]:
    if not path.is_file():
        return {}
    pairs = (line.partition("=") for line in path.read_text().splitlines() if "=" in line)
    return {key: value.strip('"') for key, _, value in pairs}


def is_debian_like(release: dict[str, str]) -> bool:
    return bool({"debian", "ubuntu"} & {release.get("ID", ""), *release.get("ID_LIKE", "").split()})


def ensure_docker(*, install: bool, is_root: bool | None = None, release: dict[str, str] | None = None) -> list[str]:
    """Make sure that a Docker daemon answers; returns what was done (nothing when one answered).

    Raises:
        UserError: none answers and it can't or may not be installed or started, with the reason.
    """
    error = daemon_error()
    if error is None:
        return []
    if "DOCKER_HOST" in os.environ:
        raise UserError(
            f"no Docker daemon answers at DOCKER_HOST={os.environ['DOCKER_HOST']}: start it, or unset DOCKER_HOST"
        )
    if "Permission denied" in str(error):
        raise UserError(
            "the Docker daemon's socket /var/run/docker.sock refuses this user: join the group `docker` or run as root"
        )
    is_root = os.geteuid() == 0 if is_root is None else is_root
    release = os_release() if release is None else release
    have_daemon = shutil.which("dockerd") is not None
    if not is_root:
        wanted = "start it" if have_daemon else "install it"
        raise UserError(
            f"no Docker daemon answers on this machine: {wanted} (as root: `make up` does it on Debian and Ubuntu)"
        )
    done = []
    if not have_daemon:
        if not install:
            raise UserError(
                "Docker is not installed and INSTALL_DOCKER=no forbids it: install Docker Engine, or leave INSTALL_DOCKER out"
            )
        if not is_debian_like(release):
            name = release.get("PRETTY_NAME", "this system")
            raise UserError(
                f"Docker is not installed and can be installed by this tool on Debian and Ubuntu only, not on {name}: install Docker Engine"
            )
        apt_install(*DOCKER_PACKAGES)
        done.append("Docker Engine installed from the distribution")
    if daemon_error() is not None:  # a package's own scripts may have started it
        start_daemon()
        done.append("Docker daemon started")
    return done


def available(packages: Sequence[str]) -> list[str]:
    """Those of `packages` that the machine's package sources offer."""
    run(["apt-get", "update", "-q"], env=APT_ENVIRONMENT)
    policy = run(["apt-cache", "policy", *packages], env=APT_ENVIRONMENT)
    return re.findall(r"^(\S+):\n  Installed: .*\n  Candidate: (?!\(none\))", policy, re.MULTILINE)


def apt_install(*packages: str) -> None:
    """Install those of `packages` that the machine's package sources offer.

    Raises:
        UserError: they offer none of them, or the installation fails.
    """
    found = available(packages)
    if not found:
        raise UserError(
            f"this machine's package sources do not offer {' or '.join(packages)}: add the distribution's own sources, or install it by hand"
        )
    say(f"Installing {', '.join(found)} from the distribution")
    run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *found], env=APT_ENVIRONMENT)


def use_context() -> None:
    """Make the library talk to the daemon that the docker command talks to (a context, rootless Docker), if that is another one."""
    if "DOCKER_HOST" in os.environ or shutil.which("docker") is None:
        return
    done = subprocess.run(
        ["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"], capture_output=True, text=True
    )
    host = done.stdout.strip()
    if done.returncode == 0 and host and host != "unix:///var/run/docker.sock":
        os.environ["DOCKER_HOST"] = host


def forget_stale_pid(file: Path = PID_FILE, processes: Path = Path("/proc")) -> None:
    """Remove dockerd's pid file where its daemon is gone: one left by a crash stops the next start if its number lives on as
    another process.
    """
    with suppress(FileNotFoundError, ValueError):
        name = processes / str(int(file.read_text())) / "comm"
        if not name.is_file() or name.read_text().strip() != "dockerd":
            file.unlink()


def start_daemon() -> None:
    """Start dockerd by systemd where it runs, else as a process of its own that outlives this command."""
    if Path("/run/systemd/system").is_dir():
        say("Starting the Docker daemon (systemd)")
        run(["systemctl", "enable", "--now", "docker"])
        process = None
    else:
        say(f"Starting the Docker daemon (no systemd here; log: {DAEMON_LOG})")
        forget_stale_pid()
        with DAEMON_LOG.open("ab") as log:
            process = subprocess.Popen(
                ["dockerd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
    deadline = time.monotonic() + DAEMON_START_SECONDS
    while (error := daemon_error()) is not None:
        if process is not None and process.poll() is not None:
            words = DAEMON_LOG.read_text(errors="replace").strip().splitlines()
            raise UserError(
                f"dockerd ended with code {process.returncode}: {(words or ['no reason given'])[-1]} (log: {DAEMON_LOG})"
            )
        if time.monotonic() > deadline:
            raise UserError(f"the Docker daemon did not answer within {DAEMON_START_SECONDS} s of its start: {error}")
        time.sleep(0.3)


def _programs(name: str) -> list[str]:
    """Every program of that name on PATH, then Debian's own place, without repetitions."""
    places = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin"]
    found = [str(Path(place, name)) for place in places if place and os.access(Path(place, name), os.X_OK)]
    return list(dict.fromkeys(found))


@cache
def build_client() -> str:
    """A docker client that can build with BuildKit (secret mounts): one with buildx, or an old one that has it built in.

    Raises:
        UserError: no client on this machine can, and docker-buildx can't be installed.
    """
    for attempt in range(2):
        for program in _programs("docker"):
            version = subprocess.run(
                [program, "version", "--format", "{{.Client.Version}}"], capture_output=True, text=True
            )
            major = int((re.match(r"\d+", version.stdout) or ["0"])[0])
            buildx = subprocess.run([program, "buildx", "version"], capture_output=True)
            if buildx.returncode == 0 or 18 <= major < 23:  # from 23 on, BuildKit in the client means buildx
                return program
        if attempt == 0 and os.geteuid() == 0 and shutil.which("apt-get"):
            apt_install("docker-buildx" if available(["docker-buildx"]) else "docker.io")
    raise UserError(
        "no docker client here can build with BuildKit: install docker-buildx (Debian, Ubuntu) or Docker's buildx plugin"
    )


@cache
def compose_command() -> tuple[str, ...]:
    """Compose v2 as a command: the host's `docker compose`, else the one in the toolkit's Python environment."""
    for program in _programs("docker"):
        probe = subprocess.run([program, "compose", "version", "--short"], capture_output=True, text=True)
        match = re.match(r"v?(\d+)\.(\d+)", probe.stdout.strip())
        if probe.returncode == 0 and match and (int(match[1]), int(match[2])) >= COMPOSE_MINIMUM:
            return (program, "compose")
    own = Path(sys.executable).with_name("docker-compose")
    if own.is_file():
        return (str(own),)
    raise UserError(
        "Docker Compose v2 is missing and not in the toolkit's environment: remove .venv and run make again"
    )


def ca_bundle() -> Path:
    """The bundle of certificate authorities that this host trusts (a company's proxy included), for image builds."""
    import certifi  # noqa: PLC0415 - the last resort alone needs it

    for name in (
        os.environ.get("SSL_CERT_FILE"),
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
    ):
        if name and Path(name).is_file():
            return Path(name)
    return Path(certifi.where())
