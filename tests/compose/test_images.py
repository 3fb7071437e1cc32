"""The images: small, not root, and with nothing inside that is somebody's secret."""

from __future__ import annotations

import re
import subprocess

import docker
import pytest

from orcheo_db.images import LABEL, current_fingerprint, fingerprint, images
from orcheo_db.spec import load_spec
from tests.conftest import ROOT, Installation

NAMES = ("postgres", "pgbouncer", "orcheo")
UIDS = {"postgres": "999:999", "pgbouncer": "998:998", "orcheo": "10001:10001"}


@pytest.fixture(params=NAMES)
def image(request: pytest.FixtureRequest, installation: Installation):
    spec = load_spec(env=installation.env)
    return next(image for image in images(spec) if image.name == request.param)


def inside(tag: str, script: str) -> str:
    argv = ["docker", "run", "--rm", "--network=none", "--user=0", "--entrypoint=sh", tag, "-c", script]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_user_is_not_root(image):
    config = docker.from_env().images.get(image.tag).attrs["Config"]
    assert config["User"] == UIDS[image.name]


def test_postgres_image_is_small(installation: Installation):
    tag = next(image.tag for image in images(load_spec(env=installation.env)) if image.name == "postgres")
    assert docker.from_env().images.get(tag).attrs["Size"] <= 500e6


def test_certificates_are_debians_own(image):
    """The host's CA bundle (a company's proxy) is a build secret: every authority in an image comes from Debian's package."""
    blocks = re.compile(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")
    standard = set(
        blocks.findall(inside(image.tag, "cat /usr/share/ca-certificates/mozilla/*.crt 2>/dev/null || true"))
    )
    trusted = inside(
        image.tag, "find /etc/ssl /usr/local/share/ca-certificates /run -type f -exec cat {} + 2>/dev/null || true"
    )
    assert set(blocks.findall(trusted)) <= standard
    assert image.name != "orcheo" or standard, "the app calls HTTPS services"


def test_no_secret_and_no_package_lists(image, installation: Installation):
    assert inside(image.tag, "find /run/orcheo-db /run/secrets -type f 2>/dev/null | head").strip() == ""
    assert (
        inside(
            image.tag,
            "ls /var/lib/apt/lists /var/cache/apt/archives/*.deb 2>/dev/null | grep -v -e partial -e lock -e auxfiles | head",
        ).strip()
        == "/var/lib/apt/lists:"
    )
    history = subprocess.run(
        ["docker", "history", "--no-trunc", image.tag], capture_output=True, text=True, check=True
    ).stdout
    for role in ("orcheo_admin", "orcheo_app_a"):
        assert installation.target().store.password(role) not in history


def test_images_are_current_and_the_fingerprint_sees_a_change(image, tmp_path):
    base = str(docker.from_env().images.get(image.arguments["BASE_IMAGE"]).id)
    assert current_fingerprint(image.tag) == fingerprint(image, ROOT, base)
    other = fingerprint(
        type(image)(image.name, image.tag, {**image.arguments, "BASE_IMAGE": "x"}, image.inputs), ROOT, base
    )
    assert other != fingerprint(image, ROOT, base) != fingerprint(image, ROOT, "another base")
    assert LABEL in docker.from_env().images.get(image.tag).labels
