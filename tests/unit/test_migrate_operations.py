"""The places that a migration makes and removes: never anything that is somebody else's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orcheo_db.errors import UserError
from orcheo_db.migrate import operations, run
from orcheo_db.migrate.operations import MARKER, Place, _anew, _is_of, _own


def original(directory: Path) -> Any:
    directory.mkdir(exist_ok=True)
    return SimpleNamespace(directory=directory, origin=directory)


@pytest.mark.parametrize("place", ["snapshot", ".", "snapshot/in/it"])
def test_a_snapshot_is_never_put_over_the_users_own_files(tmp_path: Path, place: str) -> None:
    """`migrate run /data/snapshot --work /data` removed the source."""
    (tmp_path / "snapshot" / "in" / "it").mkdir(parents=True)
    source = original(tmp_path / place)
    (source.directory / "workflows.sqlite").touch()
    with pytest.raises(UserError, match="name another one with --work") as caught:
        _own(tmp_path / "snapshot", source)
    assert "\n" not in str(caught.value) and (source.directory / "workflows.sqlite").exists()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "snapshot")
    with pytest.raises(UserError, match="name another one with --work"):
        _own(link, source)


def test_a_directory_that_is_not_the_toolkits_is_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "work" / "snapshot"
    foreign.mkdir(parents=True)
    assert _own(foreign, original(tmp_path / "orcheo")) == foreign  # empty: left by one that was killed
    (foreign / "theirs").touch()
    with pytest.raises(UserError, match=f"no snapshot of this toolkit .it has no file {MARKER}.*Nothing was changed"):
        _own(foreign, original(tmp_path / "orcheo"))
    assert _own(tmp_path / "work" / "other", original(tmp_path / "orcheo")) == tmp_path / "work" / "other"


def test_a_snapshot_is_known_again_by_its_migration_alone(tmp_path: Path) -> None:
    directory = _anew(tmp_path / "work" / "snapshot")
    assert directory.stat().st_mode & 0o777 == 0o700
    (directory / "workflows.sqlite").write_bytes(b"old")
    name = (directory / MARKER).read_text()
    mine, other = (SimpleNamespace(report={"snapshot": text}) for text in (name, "another\n"))
    assert _is_of(directory, mine) and not _is_of(directory, other)  # type: ignore[arg-type]
    assert not _is_of(tmp_path, mine) and not _is_of(directory, SimpleNamespace(report={}))  # type: ignore[arg-type]
    assert _own(directory, original(tmp_path / "orcheo")) == directory
    assert [file.name for file in _anew(directory).iterdir()] == [MARKER] and not _is_of(directory, mine)  # type: ignore[arg-type]


def test_a_source_that_was_moved_is_named_by_its_old_name(tmp_path: Path) -> None:
    name = run.identity(tmp_path)
    found = SimpleNamespace(source=f"old:{tmp_path}")
    with pytest.raises(
        UserError, match=f"not of {name}: if that is the same directory, moved .* --source old:{tmp_path}"
    ):
        operations._refuse_other(found, tmp_path, Place("", tmp_path))  # type: ignore[arg-type]
    operations._refuse_other(found, tmp_path, Place("", tmp_path, f"old:{tmp_path}"))  # type: ignore[arg-type]
    operations._refuse_other(SimpleNamespace(source=name), tmp_path, Place("", tmp_path))  # type: ignore[arg-type]
