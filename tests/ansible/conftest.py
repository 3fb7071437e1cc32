"""One Debian 13 host that is everything, converged once for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ansible.hosts import PARTS, Site, site
from tests.conftest import Installation


@pytest.fixture(scope="session")
def one(docker_ready: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("ansible"), {"one": "trixie"}, dict.fromkeys(PARTS, "one")) as found:
        found.play("site")
        yield found


@pytest.fixture(scope="session")
def host(one: Site) -> Installation:
    """The same, by the toolkit's command line."""
    return Installation(one.state.name, 6432, one.state, kind="host")
