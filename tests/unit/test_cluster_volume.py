"""What lies aside on PostgreSQL's volume in a cluster: putting it in place survives a crash at every step, and never happens under a server."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from orcheo_db.cluster import volume
from orcheo_db.errors import CheckFailed, UserError

NAME = "restored-20261126T101500Z"


def make(directory: Path, *, installation: str = "one", marks: bool = True) -> None:
    main = directory / "17" / "main"
    main.mkdir(parents=True)
    (main / "PG_VERSION").write_text("17\n")
    (main / "content").write_text(directory.name)
    (main / volume.MARKER).write_text(json.dumps({"installation_id": installation}))
    if marks:
        (directory / volume.RESTORED).write_text(json.dumps({"id": "x", "timeline": 2}))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "volume"
    directory.mkdir()
    make(directory, marks=False)
    (directory / "17" / "main" / "content").write_text("in use")
    (directory / "lost+found").mkdir()
    make(directory / NAME)
    return directory


def content(directory: Path) -> str:
    return (directory / "17" / "main" / "content").read_text()


def test_what_lies_aside_is_told(place: Path):
    (place / "former-20261126T090000Z").mkdir()
    (place / "restored-by-hand").mkdir()  # not ours to name
    found = volume.look(place)
    assert found["in_use"] == ["17"] and found["placing"] is None
    assert found["aside"][NAME] == {"installation_id": "one", "cut_off": False, "claim": {"id": "x", "timeline": 2}}
    assert set(found["aside"]) == {NAME, "former-20261126T090000Z"}
    assert found["aside"]["former-20261126T090000Z"]["installation_id"] is None


def test_a_restore_is_put_in_place_and_the_former_one_kept(place: Path):
    done = volume.place(NAME, place)
    assert content(place) == NAME and content(place / done["kept"]) == "in use"
    assert (place / volume.RESTORED).is_file() and not (place / NAME).exists() and not (place / volume.JOURNAL).exists()
    back = volume.place(done["kept"], place)
    assert content(place) == "in use" and content(place / back["kept"]) == NAME
    assert not (place / volume.RESTORED).exists() and (place / back["kept"] / volume.RESTORED).is_file()


def test_on_an_empty_volume_nothing_is_kept(tmp_path: Path):
    make(tmp_path / NAME)
    assert volume.place(NAME, tmp_path) == {"in_place": NAME, "kept": None}
    assert content(tmp_path) == NAME


STEPS = 40


@pytest.mark.parametrize("at", range(STEPS))
def test_a_crash_at_any_change_is_finished_by_the_next_call(place: Path, monkeypatch: pytest.MonkeyPatch, at: int):
    """Each rename, mkdir, rmdir and unlink is a place to crash at; nothing is lost, and the call made again ends as if it was the first."""
    calls = 0

    class Crash(BaseException):
        pass

    def counted(real):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == at + 1:
                raise Crash
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for kind in ("rename", "replace", "mkdir", "rmdir", "unlink"):
            patch.setattr(Path, kind, counted(getattr(Path, kind)))
        try:
            volume.place(NAME, place)
        except Crash:
            pass
        else:
            assert calls <= at, "the crash did not happen"
    clusters = {file.read_text() for file in place.rglob("content")}
    assert clusters == {"in use", NAME}
    if volume.look(place)["placing"] or content(place) != NAME:
        volume.place(NAME, place)
    assert content(place) == NAME and not (place / volume.JOURNAL).exists()
    (former,) = [path for path in place.iterdir() if path.name.startswith("former-")]
    assert content(former) == "in use" and (place / volume.RESTORED).is_file()


def test_the_steps_above_cover_every_change(place: Path, monkeypatch: pytest.MonkeyPatch):
    calls = 0

    def counted(real):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            return real(*arguments, **options)

        return call

    for kind in ("rename", "replace", "mkdir", "rmdir", "unlink"):
        monkeypatch.setattr(Path, kind, counted(getattr(Path, kind)))
    volume.place(NAME, place)
    assert 5 < calls < STEPS


def test_under_a_running_server_nothing_is_moved(place: Path):
    descriptor = os.open(place / volume.LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(CheckFailed, match="a server runs on the volume"):
            volume.place(NAME, place, seconds=0.3)
    finally:
        os.close(descriptor)
    assert content(place) == "in use" and content(place / NAME) == NAME


def test_another_call_that_was_cut_off_comes_first(place: Path):
    other = "restored-20261126T111500Z"
    make(place / other)
    (place / volume.JOURNAL).write_text(json.dumps({"name": NAME, "former": None, "phase": "aside"}))
    with pytest.raises(UserError, match=f"restore --use {NAME}"):
        volume.place(other, place)
    with pytest.raises(UserError, match="finish that first"):
        volume.remove(other, place)


@pytest.mark.parametrize("name", ["restored-20200101T000000Z", "17", "lost+found", "../volume", ""])
def test_what_is_not_there_or_in_use_is_neither_placed_nor_removed(place: Path, name: str):
    with pytest.raises(UserError, match="there is no"):
        volume.place(name, place)
    with pytest.raises(UserError, match="there is no"):
        volume.remove(name, place)
    assert content(place) == "in use"


def test_remove_takes_one_away(place: Path):
    assert volume.remove(NAME, place) == {"removed": NAME}
    assert not (place / NAME).exists() and content(place) == "in use"


@pytest.fixture
def shared(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host's /var/lib/postgresql: clusters of other people's beside the tier's own."""
    monkeypatch.setattr(volume, "CLUSTER", "17/main")
    (place / "17" / "theirs").mkdir()
    (place / "15" / "main").mkdir(parents=True)
    return place


def test_on_a_host_only_the_tiers_own_cluster_is_moved(shared: Path):
    done = volume.place(NAME, shared)
    assert content(shared) == NAME and content(shared / done["kept"]) == "in use" and not (shared / NAME).exists()
    assert (shared / "17" / "theirs").is_dir() and (shared / "15" / "main").is_dir()
    assert volume.look(shared)["aside"][done["kept"]]["installation_id"] == "one"
    volume.place(done["kept"], shared)
    assert content(shared) == "in use"


def test_on_a_host_nothing_is_moved_under_a_running_server(shared: Path, monkeypatch: pytest.MonkeyPatch):
    data = shared / "17" / "main"
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n")
    monkeypatch.chdir(data)
    with pytest.raises(CheckFailed, match=r"a server runs on .*17/main: nothing was changed; stop it first"):
        volume.place(NAME, shared)
    monkeypatch.chdir(shared)  # that process works elsewhere: the file is a killed server's
    assert volume.place(NAME, shared)["in_place"] == NAME
