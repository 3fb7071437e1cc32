"""Why a build failed, in one line, from real logs."""

from __future__ import annotations

import pytest

from orcheo_db.images import reason

UV = """#10 0.199 Using Python 3.13.5 environment at: /opt/orcheo
#10 0.656 error: No solution found when resolving dependencies
#10 0.656   cause: Because there is no version of {name}==9.9.9 and you require {name}==9.9.9, we can conclude that your requirements are unsatisfiable.
#10 0.661 Traceback (most recent call last):
#10 0.662 subprocess.CalledProcessError: Command '['/opt/uv/bin/uv', 'pip', 'install']' returned non-zero exit status 1.
#10 ERROR: executor failed running [/bin/sh -c python3 /build/install.py]: exit code: 1
"""


@pytest.mark.parametrize(
    ("name", "key", "variable"),
    [
        ("orcheo", "versions.orcheo", "ORCHEO_VERSION"),
        ("orcheo-backend", "versions.orcheo_backend", "ORCHEO_BACKEND_VERSION"),
    ],
)
def test_a_release_that_does_not_exist_is_named(name: str, key: str, variable: str) -> None:
    line = reason(UV.format(name=name))
    assert line.startswith(f"the package index has no {name} 9.9.9: ")
    assert f"({key})" in line and variable in line and "not changed" in line and "\n" not in line


def test_the_installers_own_words_come_before_the_builders() -> None:
    text = "#9 1.2 E: Unable to locate package redis-sever\n#9 ERROR: executor failed running [/bin/sh -c apt-get]: exit code: 100\n"
    assert reason(text) == "E: Unable to locate package redis-sever"
    other = "#9 0.1 error: Failed to fetch\n#9 0.1   cause: dns error\n#9 ERROR: executor failed\n"
    assert reason(other) == "error: Failed to fetch; cause: dns error"


def test_the_builders_words_where_there_are_no_others() -> None:
    assert reason("#9 ERROR: no space left on device\n") == "ERROR: no space left on device"
    assert reason("") == "no reason given"
