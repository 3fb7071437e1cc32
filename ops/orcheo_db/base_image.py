"""The base image: pulled, or made with debootstrap from the host's own apt sources where no registry answers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.errors import ImageNotFound

from orcheo_db.console import say, step
from orcheo_db.errors import UserError
from orcheo_db.host import apt_install, os_release, run

PULL_SECONDS = 300  # 30 MB; a registry that can't be reached refuses at once or hangs
# What debian:*-slim leaves out, as dpkg.cfg.d lines (debuerreotype's "slim" variant); copyright files stay, as licences ask.
SLIM = """path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-include /usr/share/locale/locale.alias
path-exclude /usr/share/lintian/*
path-exclude /usr/share/linda/*
"""
# As in Debian's official images: no package files, lists or translations are kept in a layer.
APT = """APT::Keep-Downloaded-Packages "false";
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin"; };
Acquire::Languages "none";
Acquire::GzipIndexes "true";
"""


@dataclass(frozen=True)
class Mirrors:
    """Where this host gets Debian's packages: the archive and, if it has one, the security archive."""

    archive: str
    security: str | None


def host_mirrors(text: str, codename: str) -> Mirrors | None:
    """Read the host's apt sources (deb822 or one-line style) for the mirrors that serve suite `codename`; None if none does."""
    archive = security = None
    stanzas = re.split(r"\n\s*\n", text)
    entries: list[tuple[str, list[str]]] = []
    for stanza in stanzas:
        fields = dict(re.findall(r"^(URIs|Suites):\s*(.+)$", stanza, re.MULTILINE))
        if "URIs" in fields:
            entries.append((fields["URIs"].split()[0], fields.get("Suites", "").split()))
    entries += [
        (uri, [suite]) for uri, suite in re.findall(r"^\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)", text, re.MULTILINE)
    ]
    for uri, suites in entries:
        if codename in suites and archive is None:
            archive = uri.rstrip("/")
        if f"{codename}-security" in suites and security is None:
            security = uri.rstrip("/")
    return Mirrors(archive, security) if archive else None


def apt_sources() -> str:
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.sources"))]
    files += sorted(Path("/etc/apt/sources.list.d").glob("*.list"))
    return "\n\n".join(file.read_text() for file in files if file.is_file())


def ensure_base_image(image: str, codename: str) -> list[str]:
    """Make sure that `image` (for example debian:trixie-slim) is there; returns what was done.

    Raises:
        UserError: it can't be pulled, and this host can't make it, with both reasons.
    """
    client = docker.from_env()
    try:
        client.images.get(image)
        return []
    except ImageNotFound:
        pass
    reason = pull(image)
    if reason is None:
        return [f"base image {image} pulled"]
    say(f"Base image {image} can't be pulled ({reason}): making it with debootstrap from this host's own apt sources")
    make(image, codename)
    return [f"base image {image} made with debootstrap"]


def pull(image: str) -> str | None:
    """Pull an image; None when it worked, otherwise the reason in one line."""
    try:
        docker.from_env(timeout=PULL_SECONDS).images.pull(image)
    except (docker.errors.APIError, OSError) as error:
        words = str(getattr(error, "explanation", None) or error).strip().splitlines()
        return words[-1] if words else type(error).__name__
    return None


def make(image: str, codename: str) -> None:
    """Make a slim Debian base image by debootstrap and import it under the name `image`."""
    if image.partition(":")[0] not in ("debian", "docker.io/library/debian") or codename not in image:
        raise UserError(
            f"base image {image} can't be pulled and is not Debian {codename}, so it can't be made: load it with `docker load`"
        )
    if os.geteuid() != 0:
        raise UserError(
            f"base image {image} can't be pulled and making it with debootstrap needs root: run as root or `docker load` it"
        )
    own = os.environ.get("ORCHEO_DB_DEBIAN_MIRROR")
    mirrors = Mirrors(own, None) if own else host_mirrors(apt_sources(), os_release().get("VERSION_CODENAME", "?"))
    if mirrors is None or (os_release().get("ID") != "debian" and not own):
        raise UserError(
            f"base image {image} can't be pulled and this host's apt sources are not Debian's: name a Debian mirror in"
            " ORCHEO_DB_DEBIAN_MIRROR, or `docker load` the image"
        )
    if shutil.which("debootstrap") is None:
        apt_install("debootstrap", "debian-archive-keyring")
    with (
        tempfile.TemporaryDirectory(prefix="orcheo-db-base-", dir="/var/tmp") as scratch,
        step(f"Making {image} (half a minute)"),
    ):
        root = Path(scratch, "root")
        _debootstrap(root, codename, mirrors)
        _slim(root, codename, mirrors)
        tar = subprocess.Popen(["tar", "-C", str(root), "--one-file-system", "-c", "."], stdout=subprocess.PIPE)
        done = subprocess.run(
            ["docker", "import", "--change", 'CMD ["bash"]', "--message", f"debootstrap {codename}", "-", image],
            stdin=tar.stdout, capture_output=True, text=True,
        )  # fmt: skip
        if tar.wait() != 0 or done.returncode != 0:
            raise UserError(f"importing {image} failed: {done.stderr.strip() or 'tar ended early (is the disk full?)'}")


def _debootstrap(root: Path, codename: str, mirrors: Mirrors) -> None:
    root.mkdir()
    config = root / "etc" / "dpkg" / "dpkg.cfg.d"
    config.mkdir(parents=True)
    (config / "slim").write_text(SLIM)
    argv = ["debootstrap", "--variant=minbase", codename, str(root), mirrors.archive]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        words = [line for line in done.stdout.splitlines() + done.stderr.splitlines() if line.startswith(("E:", "W:"))]
        raise UserError(f"debootstrap {codename} from {mirrors.archive} failed: {(words or ['no reason given'])[-1]}")


def _slim(root: Path, codename: str, mirrors: Mirrors) -> None:
    """Add the update suites, apply what they hold, and drop what a slim image does without."""
    lines = [f"deb {mirrors.archive} {codename} main", f"deb {mirrors.archive} {codename}-updates main"]
    if mirrors.security:
        lines.append(f"deb {mirrors.security} {codename}-security main")
    (root / "etc/apt/sources.list").write_text("\n".join(lines) + "\n")
    (root / "etc/apt/apt.conf.d/docker-slim").write_text(APT)
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        if name in os.environ:
            env[name] = os.environ[name]
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    run(["chroot", root, "apt-get", "-q", "update"], env=env)
    run(["chroot", root, "apt-get", "-q", "-y", "upgrade"], env=env)
    run(["chroot", root, "apt-get", "-q", "clean"], env=env)
    (root / "etc/resolv.conf").unlink()
    for pattern in (
        "var/lib/apt/lists/*",
        "var/log/*",
        "var/cache/*/*",
        "usr/share/man/*",
        "usr/share/info/*",
        "usr/share/locale/*",
    ):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in (root / "usr/share/doc").rglob("*"):
        if path.is_file() and path.name != "copyright":
            path.unlink()
