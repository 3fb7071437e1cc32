"""Building the images: each is built again only when something that goes into it changed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.errors import ImageNotFound

from orcheo_db.base_image import ensure_base_image
from orcheo_db.console import Step, say, step
from orcheo_db.errors import UserError
from orcheo_db.host import build_client, ca_bundle
from orcheo_db.spec import Spec

LABEL = "orcheo-db.inputs"
# What the Dockerfile of `orcheo` copies: the init job, the app's launcher and what they import. The rest of the toolkit runs on the host, and a
# change there must not make the image anew.
TOOLKIT_IN_IMAGE = tuple(
    f"ops/orcheo_db/{name}" for name in ("__init__.py", "errors.py", "database.py", "bootstrap", "runtime", "upgrade")
)
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True)
class Image:
    """One image: its tag, its build arguments and the files (relative to the repository) that go into it."""

    name: str
    tag: str
    arguments: dict[str, str]
    inputs: tuple[str, ...]
    on: str | None = None  # the image of ours that it is built on, instead of the base image

    @property
    def dockerfile(self) -> str:
        return f"compose/images/{self.name}/Dockerfile"


def images(spec: Spec) -> list[Image]:
    """The images of `spec`, in the order in which they are built (the slowest last)."""
    tags, versions = spec.image_tags(), spec.versions
    base = {"BASE_IMAGE": spec.images.base}
    postgres = base | {"POSTGRES_VERSION": str(versions.postgresql)}
    orcheo = base | {
        "ORCHEO_VERSION": versions.orcheo,
        "ORCHEO_BACKEND_VERSION": versions.orcheo_backend,
        "UV_VERSION": versions.uv,
    }
    return [
        Image("postgres", tags["postgres"], postgres, ("compose/images/postgres", ".dockerignore")),
        Image("pgbouncer", tags["pgbouncer"], postgres, ("compose/images/pgbouncer", ".dockerignore")),
        Image("orcheo", tags["orcheo"], orcheo, ("compose/images/orcheo", ".dockerignore", *TOOLKIT_IN_IMAGE)),
        Image(
            "backup",
            tags["backup"],
            {"ORCHEO_IMAGE": tags["orcheo"], "POSTGRES_VERSION": str(versions.postgresql)},
            (
                "compose/images/backup",
                "compose/images/postgres/dpkg-excludes",
                ".dockerignore",
                *(f"ops/orcheo_db/{name}.py" for name in ("secrets", "app_secrets", "backup_secrets", "handed")),
                "ops/orcheo_db/backup",
                "ops/orcheo_db/cluster",
            ),
            on="orcheo",
        ),
    ]


def _files(root: Path, names: Sequence[str]) -> Iterator[Path]:
    for name in names:
        path = root / name
        found = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (file for file in found if file.is_file() and "__pycache__" not in file.parts)


def fingerprint(image: Image, root: Path, base_id: str) -> str:
    """SHA-256 over everything that an image is built from: its files, build arguments and the id of the image below it."""
    digest = hashlib.sha256(repr((image.tag, sorted(image.arguments.items()), base_id)).encode())
    for file in _files(root, image.inputs):
        digest.update(f"{file.relative_to(root)}:{file.stat().st_mode & 0o111 != 0}:".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def current_fingerprint(tag: str) -> str | None:
    """What the present image of that tag was built from; None when there is no such image."""
    try:
        return str(docker.from_env().images.get(tag).labels.get(LABEL, ""))
    except ImageNotFound:
        return None


def ensure_images(spec: Spec, root: Path, logs: Path, names: Sequence[str] | None = None) -> list[str]:
    """Build the images that are missing or out of date; returns what was done.

    Raises:
        UserError: the base image can't be had, or a build fails (with the reason that its log gives).
    """
    with _alone():
        return _ensure(spec, root, logs, names)


@contextmanager
def _alone() -> Iterator[None]:
    """One building command at a time for a user of this machine: two installations share their images."""
    place = Path(tempfile.gettempdir()) / f"orcheo-db-images-{os.getuid()}.lock"
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another command builds images: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _ensure(spec: Spec, root: Path, logs: Path, names: Sequence[str] | None) -> list[str]:
    done = ensure_base_image(spec.images.base, spec.versions.debian)
    for image in images(spec):
        if names is not None and image.name not in names:
            continue
        below = spec.image_tags()[image.on] if image.on else spec.images.base
        wanted = fingerprint(image, root, str(docker.from_env().images.get(below).id))
        if current_fingerprint(image.tag) == wanted:
            continue
        started = time.monotonic()
        build(image, root, wanted, logs)
        done.append(f"image {image.tag} built in {time.monotonic() - started:.0f} s")
    return done


def build(image: Image, root: Path, wanted: str, logs: Path) -> None:
    """Build one image with BuildKit; the host's CA bundle is a build secret and leaves no trace in it."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"build-{image.name}.log"
    argv = [build_client(), "build", "--progress=plain", "--file", image.dockerfile, "--tag", image.tag]
    argv += ["--label", f"{LABEL}={wanted}", "--secret", f"id=ca,src={ca_bundle()}"]
    for key, value in sorted(image.arguments.items()):
        argv += ["--build-arg", f"{key}={value}"]
    # Docker's predefined arguments: they reach the build steps and leave no trace in the image.
    argv += [word for name in PROXIES if name in os.environ for word in ("--build-arg", name)]
    argv.append(".")
    env = os.environ | {"DOCKER_BUILDKIT": "1"}
    with log.open("w") as file, step(f"Building {image.tag}") as bar:
        process = subprocess.Popen(argv, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        reader = threading.Thread(target=_follow, args=(process, file, bar))
        reader.start()
        code = process.wait()
        reader.join()
    if code != 0:
        raise UserError(f"building {image.tag} failed: {reason(log.read_text(errors='replace'))} (whole log: {log})")


def reason(text: str) -> str:
    """Why a build failed, from its log, as one line: the package index's own words before BuildKit's."""
    if match := re.search(r"there is no version of ([a-z-]+)==(\S+) and", text):
        key = f"versions.{match[1].replace('-', '_')}"
        variable = "ORCHEO_BACKEND_VERSION" if match[1] == "orcheo-backend" else "ORCHEO_VERSION"
        return (
            f"the package index has no {match[1]} {match[2]}: name a release that exists in ops/spec.toml ({key}) or {variable};"
            " what runs was not changed"
        )
    lines = [re.sub(r"^#\d+ (?:[\d.]+ )?", "", line).strip() for line in text.splitlines()]
    told = [line for line in lines if re.match(r"(error|cause|E):", line)]  # uv's and apt's own
    failed = [line for line in lines if "ERROR" in line or "error" in line]
    return "; ".join(told[-2:]) or (failed or ["no reason given"])[-1]


def _follow(process: subprocess.Popen[str], log: object, bar: Step) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        log.write(line)  # type: ignore[attr-defined]
        if match := re.search(r"\[(?:\S+ )?(\d+)/(\d+)\] (.*)", line):
            bar.update(int(match[1]), int(match[2]), match[3])
