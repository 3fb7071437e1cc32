"""What several unit tests need of the machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

NOBODY = 65534
# A busy machine is no failure of what is tested.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that every user may enter and write to, as pytest's own are not."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o777)
    yield directory
    for path in [directory, *directory.iterdir()]:
        path.chmod(0o777)
    shutil.rmtree(directory)


@pytest.fixture
def nobody() -> Iterator[Callable[[], None]]:
    """Go on as a user without rights: root's reach further than a file's mode."""
    user = os.geteuid()
    yield lambda: os.seteuid(NOBODY) if user == 0 else None
    os.seteuid(user)
