"""A rotation's secrets: what changes, what stays, what is kept; and a rotation that was cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orcheo_db import backup_secrets, rotate
from orcheo_db.errors import UserError
from orcheo_db.secrets import ROLES, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "state")
    made.create()
    backup_secrets.create(made)
    return made


def files(store: Store) -> dict[str, bytes]:
    skipped = (rotate.FORMER, rotate.JOURNAL)
    names = [
        file
        for file in store.path.rglob("*")
        if file.is_file() and file.relative_to(store.path).parts[0] not in skipped
    ]
    return {str(file.relative_to(store.path)): file.read_bytes() for file in names}


def test_all_but_the_login_in_use_and_the_keys_change_and_the_former_are_kept(store: Store):
    before = files(store)
    begun = rotate.begin(store)
    after = files(store)
    same = {name for name in before if before[name] == after[name]}
    keys = {f"backup/{name}" for name in (*backup_secrets.KEYS, backup_secrets.MARKER)}
    assert same == keys | {
        "secrets/orcheo_app_a.password",
        "secrets/orcheo_app_a.scram",
        "installation.json",
        "ca.crt",
        "tls/ca.key",
    }
    assert begun["login"] == "orcheo_app_b" and begun["changed"]
    former = store.path / rotate.FORMER / begun["stamp"]
    assert {str(file.relative_to(former)): file.read_bytes() for file in former.rglob("*") if file.is_file()} == {
        name: content for name, content in before.items() if name not in same
    }
    assert all(file.stat().st_mode & 0o077 == 0 for file in former.rglob("*"))


def test_the_two_logins_take_turns(store: Store):
    for login in ("orcheo_app_b", "orcheo_app_a", "orcheo_app_b"):
        kept = store.password(login)
        assert rotate.begin(store)["login"] == login and store.password(login) != kept
        assert rotate.finish(store)["login"] == login


def test_one_that_was_cut_off_is_gone_on_with(store: Store, monkeypatch: pytest.MonkeyPatch):
    before = {role: store.password(role) for role in ROLES}
    with monkeypatch.context() as patch:
        patch.setattr(Store, "reissue", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            rotate.begin(store)
    begun = rotate.begin(store)
    kept = store.path / rotate.FORMER / begun["stamp"] / "secrets" / "orcheo_admin.password"
    assert kept.read_text().strip() == before["orcheo_admin"] and begun["changed"]
    now = files(store)
    assert not rotate.begin(store)["changed"] and files(store) == now
    assert json.loads((store.path / rotate.JOURNAL).read_text())["made"] is True


def test_nothing_to_finish_or_begin(store: Store, tmp_path: Path):
    with pytest.raises(UserError, match="no rotation is under way"):
        rotate.finish(store)
    with pytest.raises(UserError, match="no installation in"):
        rotate.begin(Store(tmp_path / "nowhere"))


def test_the_state_directory_still_is_the_installations_own(store: Store):
    rotate.begin(store)
    store.create()
    rotate.finish(store)
    store.create()
