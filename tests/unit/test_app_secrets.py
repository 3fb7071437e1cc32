"""The app's own secrets: made once, kept, never silently made anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from orcheo_db import app_secrets
from orcheo_db.errors import UserError
from orcheo_db.secrets import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv(app_secrets.KEY_VARIABLE, raising=False)
    return Store(tmp_path / "state")


def values(store: Store) -> dict[str, str]:
    return {name: app_secrets.read(store, name) for name in app_secrets.APP_SECRETS}


def test_made_once_private_and_different(store: Store) -> None:
    assert len(app_secrets.create(store)) == 1
    made = values(store)
    assert len(set(made.values())) == len(app_secrets.APP_SECRETS)
    assert all(len(value) >= 43 for value in made.values())  # 256 bits in base64
    for file in (store.path / app_secrets.DIRECTORY).iterdir():
        assert file.stat().st_mode & 0o777 == 0o600
    assert (store.path / app_secrets.DIRECTORY).stat().st_mode & 0o777 == 0o700
    assert not app_secrets.create(store) and values(store) == made
    header = app_secrets.path(store, app_secrets.HEADER).read_text()
    assert header == f"Authorization: Bearer {made[app_secrets.BOOTSTRAP_TOKEN]}\n"


def test_a_given_vault_key_is_taken_at_the_first_start(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(app_secrets.KEY_VARIABLE, " of-before \n")
    app_secrets.create(store)
    assert app_secrets.read(store, app_secrets.VAULT_KEY) == "of-before"


def test_a_lost_vault_key_is_never_made_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    app_secrets.create(store)
    app_secrets.path(store, app_secrets.VAULT_KEY).unlink()
    with pytest.raises(UserError, match=r"vault\.key is gone, and no other key opens the credentials"):
        app_secrets.create(store)
    assert not app_secrets.path(store, app_secrets.VAULT_KEY).exists()
    monkeypatch.setenv(app_secrets.KEY_VARIABLE, "found-again")
    app_secrets.create(store)
    assert app_secrets.read(store, app_secrets.VAULT_KEY) == "found-again"


@pytest.mark.parametrize("name", [name for name in app_secrets.APP_SECRETS if name != app_secrets.VAULT_KEY])
def test_another_lost_one_is_made_anew_and_said(store: Store, name: str) -> None:
    app_secrets.create(store)
    before = values(store)
    app_secrets.path(store, name).unlink()
    assert app_secrets.create(store) == [f"{name} of the app was missing and is another one now"]
    after = values(store)
    assert after[name] != before[name] and {**after, name: ""} == {**before, name: ""}
    assert after[app_secrets.BOOTSTRAP_TOKEN] in app_secrets.path(store, app_secrets.HEADER).read_text()


def test_the_header_for_curl_is_made_again(store: Store) -> None:
    app_secrets.create(store)
    app_secrets.path(store, app_secrets.HEADER).unlink()
    assert app_secrets.create(store) == []
    assert app_secrets.path(store, app_secrets.HEADER).is_file()


def test_a_key_from_a_file_stands_in_no_history(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vault.key").write_text("from-a-file\n")
    monkeypatch.setenv(app_secrets.KEY_FILE_VARIABLE, str(tmp_path / "vault.key"))
    app_secrets.create(store)
    assert app_secrets.read(store, app_secrets.VAULT_KEY) == "from-a-file"
    for content in (None, ""):
        (tmp_path / "vault.key").unlink() if content is None else (tmp_path / "vault.key").write_text(content)
        with pytest.raises(UserError, match=f"{app_secrets.KEY_FILE_VARIABLE}="):
            app_secrets.given_key()


def test_a_start_that_was_killed_half_way_goes_on(store: Store) -> None:
    app_secrets.create(store)
    first = app_secrets.read(store, app_secrets.VAULT_KEY)
    for name in (app_secrets.MARKER, app_secrets.REDIS_PASSWORD):
        app_secrets.path(store, name).unlink()
    assert app_secrets.create(store)
    assert app_secrets.read(store, app_secrets.VAULT_KEY) == first
    assert app_secrets.exists(store)


def test_a_replaced_vault_key_keeps_the_former_ones(store: Store) -> None:
    app_secrets.create(store)
    first = app_secrets.read(store, app_secrets.VAULT_KEY)
    app_secrets.replace_vault_key(store, "second")
    app_secrets.replace_vault_key(store, "third")
    assert app_secrets.read(store, app_secrets.VAULT_KEY) == "third"
    kept = [app_secrets.path(store, f"{app_secrets.VAULT_KEY}.old-{number}").read_text().strip() for number in (1, 2)]
    assert kept == [first, "second"]


def test_reading_before_there_are_any_is_one_line(store: Store) -> None:
    with pytest.raises(UserError, match="run `make up WITH=app`"):
        app_secrets.read(store, app_secrets.BOOTSTRAP_TOKEN)
