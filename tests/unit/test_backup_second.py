"""The second repository: its spec and credentials refused in one line, its files, and the relay's order, bounds and failures."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orcheo_db import backup_secrets
from orcheo_db.backup import archive, engine, operations, relay, restore
from orcheo_db.backup.config import Config
from orcheo_db.backup.engine import Info
from orcheo_db.backup.health import RELAY_LATE, check
from orcheo_db.backup.running import Stop
from orcheo_db.backup.scratch import Target
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.render.backup import second, service
from orcheo_db.secrets import Store
from orcheo_db.spec import SpecError, load_spec
from tests.conftest import spec_with_second

S3 = {"type": "s3", "bucket": "backups", "endpoint": "s3.example.org", "region": "eu"}


def spec_with(directory: Path, **values: str) -> Any:
    return load_spec(spec_with_second(directory, **values), env={})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"type": "s4"}, "backup.second.type = 's4': expected one of none, s3, azure, gcs"),
        (
            {"type": "s3", "bucket": "backups"},
            "backup.second.endpoint = '': expected a value, because backup.second.type is s3",
        ),
        ({"type": "azure"}, "backup.second.bucket = '': expected a value"),
        ({"type": "gcs"}, "because backup.second.type is gcs"),
        ({**S3, "endpoint": "https://s3.example.org"}, "expected a host, or host:port, without https://"),
        ({**S3, "path": "orcheo"}, "expected a path inside the bucket"),
        ({**S3, "uri_style": "virtual"}, "expected host or path"),
        ({**S3, "ca_file": "ca.crt"}, "expected an absolute path, or empty"),
    ],
)
def test_a_wrong_place_is_one_line(tmp_path: Path, values: dict[str, str], words: str) -> None:
    with pytest.raises(SpecError, match=re.escape(words)) as caught:
        spec_with(tmp_path, **values)
    assert "\n" not in str(caught.value) and "backup.second" in str(caught.value)


def test_each_kinds_options(tmp_path: Path) -> None:
    s3 = second(spec_with(tmp_path, **S3, ca_file="/etc/ca.crt"))["pgbackrest.conf"]
    for line in (
        "repo1-type=s3",
        "repo1-s3-bucket=backups",
        "repo1-s3-endpoint=s3.example.org",
        "repo1-s3-region=eu",
        "repo1-s3-uri-style=host",
    ):
        assert line in s3.splitlines()
    assert "repo1-storage-ca-file=/run/orcheo-db/secrets/second-ca.crt" in s3 and "repo1-cipher-type=aes-256-cbc" in s3
    assert "repo2" not in s3 and "pg1-host=pgbackrest-second" in s3
    azure = second(spec_with(tmp_path, type="azure", bucket="container", endpoint="10.0.0.1:10000"))[
        "pgbackrest-restore.conf"
    ]
    assert {"repo1-azure-container=container", "repo1-azure-endpoint=10.0.0.1", "repo1-storage-port=10000"} <= set(
        azure.splitlines()
    )
    assert "pg1-" not in azure and "ca-file" not in azure
    gcs = second(spec_with(tmp_path, type="gcs", bucket="container"))["pgbackrest.conf"]
    assert "repo1-gcs-key=/run/orcheo-db/secrets/second-gcs.json" in gcs and "endpoint" not in gcs


def test_another_bucket_has_a_state_of_its_own(tmp_path: Path) -> None:
    places = {
        service(spec_with(tmp_path, **(S3 | change)), "id", second=True)["place"]
        for change in ({}, {"bucket": "container"}, {"path": "/x"})
    }
    assert len(places) == 3
    told = service(load_spec(env={}), "id")
    assert told["remote"] is False and told["place"] == ""


@pytest.mark.parametrize(
    ("values", "account", "expected"),
    [
        (S3, "", "backups.s3.example.org:443"),
        ({**S3, "uri_style": "path", "endpoint": "10.0.0.1:9000"}, "", "10.0.0.1:9000"),
        ({"type": "azure", "bucket": "container"}, "account", "account.blob.core.windows.net:443"),
        ({"type": "gcs", "bucket": "container"}, "", "storage.googleapis.com:443"),
    ],
)
def test_where_a_bucket_is_reached(tmp_path: Path, values: dict[str, str], account: str, expected: str) -> None:
    assert service(spec_with(tmp_path, **values), "id", second=True, account=account)["reach"] == expected


def test_a_bucket_that_is_away_is_known_at_once(config: Config) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and listens not
        away = replace(config, reach=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(
            CheckFailed, match=rf"the bucket's server {away.reach} can't be reached: Connection refused"
        ):
            engine.PgBackRest(away).info()


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("s3", None, "second.toml is missing: [backup.second] says s3"),
        ("s3", 'key = "a"', 'lacks secret: s3 takes key = "…", secret = "…" and may have token'),
        ("s3", 'key = "a"\nsecret = "b"\nsecert = "c"', "has unknown secert"),
        ("s3", 'key = "a"\nsecret = 5', "has no one-line string in secret"),
        ("s3", 'key = "a"\nsecret = "b\\nrepo1-path=/"', "has no one-line string in secret"),
        ("s3", "key = a", "can't be read"),
        ("azure", 'key = "a"', "lacks account"),
        ("gcs", "", "lacks service_account"),
    ],
)
def test_wrong_credentials_are_one_line(tmp_path: Path, kind: str, text: str | None, words: str) -> None:
    store = Store(tmp_path)
    file = backup_secrets.path(store, backup_secrets.SECOND)
    file.parent.mkdir()
    if text is not None:
        file.touch(0o600)
        file.write_text(text)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        backup_secrets.credentials(store, kind)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_credentials_that_others_can_read_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = backup_secrets.path(store, backup_secrets.SECOND)
    file.parent.mkdir()
    file.write_text('key = "a"\nsecret = "b"')
    file.chmod(0o640)
    with pytest.raises(UserError, match=f"may be read by others: chmod 600 {file}"):
        backup_secrets.credentials(store, "s3")
    file.chmod(0o600)
    assert backup_secrets.credentials(store, "s3") == {"key": "a", "secret": "b"}


def test_an_installation_from_before_gets_the_key(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    store.create()
    backup_secrets.create(store)
    backup_secrets.path(store, backup_secrets.SECOND_KEY).unlink()
    backup_secrets.path(store, backup_secrets.MARKER).write_text('{"format": 1}')
    backup_secrets.create(store)
    assert backup_secrets.read(store, backup_secrets.SECOND_KEY) != backup_secrets.read(
        store, backup_secrets.CIPHER_KEY
    )
    kept = backup_secrets.read(store, backup_secrets.SECOND_KEY)
    backup_secrets.path(store, backup_secrets.MARKER).write_text(
        '{"format": 1}'
    )  # an older copy, and the key put beside it
    backup_secrets.create(store)
    assert backup_secrets.read(store, backup_secrets.SECOND_KEY) == kept
    backup_secrets.path(store, backup_secrets.SECOND_KEY).unlink()  # from then on its loss is a loss
    with pytest.raises(UserError, match=r"second\.key is gone"):
        backup_secrets.create(store)


# --- the relay ----------------------------------------------------------------------------------------------------------


class Bucket:
    """What pgBackRest is asked for, by its adapter's methods: a first repository in a directory, a second one in memory."""

    def __init__(self, first: Path) -> None:
        self.first, self.pushed, self.refuse = first, list[str](), set[str]()

    def get(self, path: str) -> bytes:
        return (self.first / path).read_bytes()

    def run(self, command: str, *options: str, **_more: Any) -> str:
        assert command == "archive-push"
        name = Path(options[0]).name
        if name in self.refuse or "all" in self.refuse:
            raise CheckFailed(f"pgbackrest archive-push: [039] HTTP request failed with 403 for {name}")
        assert Path(options[0]).read_bytes()
        self.pushed.append(name)
        return ""


@pytest.fixture
def first(tmp_path: Path) -> Path:
    home = tmp_path / "first" / "archive" / "orcheo"
    home.mkdir(parents=True)
    (home / "archive.info").touch()
    return tmp_path / "first"


def arrive(first: Path, number: int, timeline: int = 1, content: bytes | None = None) -> str:
    """A segment in the first archive, uncompressed."""
    name = f"{timeline:08X}00000000{number:08X}"
    body = content or name.encode()
    digest = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
    file = first / "archive" / "orcheo" / "17-1" / name[:16] / f"{name}-{digest}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(body)
    return name


@pytest.fixture
def bucket(first: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    made = Bucket(first)
    monkeypatch.setattr(engine.PgBackRest, "get", lambda _self, path: made.get(path))
    monkeypatch.setattr(engine.PgBackRest, "run", made.run)
    monkeypatch.setattr(engine.PgBackRest, "info", lambda _self: Info(0, "ok", (), (), "1"))
    monkeypatch.setattr(operations, "make_stanza", lambda _config, _heard: [])
    monkeypatch.setattr(
        archive, "files", lambda _config, _below="": {f"17-1/{n[:16]}/{n}-{'a' * 40}.zst": 1.0 for n in made.pushed}
    )
    return made


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def config(tmp_path: Path) -> Config:
    home = tmp_path / "second"
    (home / "state").mkdir(parents=True)
    return Config("orcheo", 17, "orcheo", (), "id", {}, 400, 7, 1, 60, 1 << 30, home, home, home, home, True)


@pytest.fixture
def made(config: Config, first: Path, bucket: Bucket, told: list[str], tmp_path: Path) -> relay.Relay:
    return relay.Relay(config, told.append, first=first, scratch=tmp_path / "scratch")


def ready(made: relay.Relay, since: str) -> None:
    """As after its preparation, with a bound of the test's own."""
    made._since, made._ready, made._inode = since, True, (made.home / "archive.info").stat().st_ino


def test_the_segments_of_a_first_backup_under_way_are_taken_over(
    made: relay.Relay, first: Path, bucket: Bucket
) -> None:
    """The archive appears while the relay starts, and the first backup has begun by then."""
    info = first / "archive" / "orcheo" / "archive.info"
    info.unlink()
    assert made.look(Stop()) == relay.LOOK and bucket.pushed == []
    info.touch()
    begun = [arrive(first, 2), arrive(first, 3), arrive(first, 4)]
    made.look(Stop())
    assert sorted(bucket.pushed) == begun


def test_what_comes_is_pushed_once_oldest_first(made: relay.Relay, first: Path, bucket: Bucket, config: Config) -> None:
    old = next((first / "archive").rglob(f"{arrive(first, 1)}-*"))
    os.utime(old, (1e9, 1e9))
    lately = [
        arrive(first, 2),
        arrive(first, 3),
    ]  # before there is a backup, what came long before the present is of no use
    assert made.look(Stop()) == relay.LOOK and sorted(bucket.pushed) == lately
    (first / "archive" / "orcheo" / "17-1" / "00000002.history").write_text(
        "1\t0/3000000\tno recovery target specified\n"
    )
    later = [arrive(first, 4), arrive(first, 4, timeline=2), arrive(first, 5, timeline=2)]
    (first / "archive" / "orcheo" / "17-1" / later[0][:16] / f"{later[0]}.partial-{'a' * 40}").touch()
    made.look(Stop())
    made.look(Stop())
    assert sorted(bucket.pushed[2:]) == sorted(["00000002.history", *later])
    found = relay.read(config)
    assert found is not None and found.waiting == 0 and found.said is None and found.last == later[-1]


def test_a_restart_pushes_nothing_again(
    made: relay.Relay, first: Path, bucket: Bucket, config: Config, tmp_path: Path
) -> None:
    arrive(first, 1)
    made.look(Stop())
    pushed = list(bucket.pushed)
    arrive(first, 2)
    relay.Relay(config, print, first=first, scratch=tmp_path / "again").look(Stop())
    assert bucket.pushed == [*pushed, "000000010000000000000002"]


def test_a_bucket_that_refuses_is_said_once_and_asked_again(
    made: relay.Relay, first: Path, bucket: Bucket, config: Config, told: list[str]
) -> None:
    bucket.refuse.add("all")
    for number in range(1, 20):
        arrive(first, number)
    ready(made, "0" * 24)
    assert made.look(Stop()) == relay.AGAIN == made.look(Stop())
    found = relay.read(config)
    assert found is not None and found.waiting == 19 and found.waiting_since is not None and "403" in str(found.said)
    assert len(told) == 1 and "403" in told[0]
    bucket.refuse.clear()
    assert made.look(Stop()) == relay.LOOK and len(bucket.pushed) == 19
    assert told[1:] == ["the second repository takes WAL again"]


def test_one_damaged_segment_is_named_and_the_others_go_on(
    made: relay.Relay, first: Path, bucket: Bucket, config: Config
) -> None:
    ready(made, "0" * 24)
    arrive(first, 1)
    bad = arrive(first, 2, content=b"not what its name says")
    for number in range(3, 8):
        arrive(first, number)
    assert made.look(Stop()) == relay.AGAIN
    assert sorted(bucket.pushed) == [f"00000001000000000000000{n}" for n in (1, 3, 4, 5, 6, 7)]
    found = relay.read(config)
    assert (
        found is not None
        and found.waiting == 1
        and f"WAL segment {bad} is damaged in the first repository" in str(found.said)
    )


def test_a_defect_of_the_relay_is_said(made: relay.Relay, monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    def broken(_config: Config, _heard: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(operations, "make_stanza", broken)
    assert made.look(Stop()) == relay.AGAIN
    found = relay.read(config)
    assert found is not None and found.said == "ZeroDivisionError: a defect"


def test_a_segment_that_expires_meanwhile_is_no_failure(made: relay.Relay, first: Path, bucket: Bucket) -> None:
    ready(made, "0" * 24)
    name = arrive(first, 1)
    paths = made._missing()
    next((first / "archive").rglob(f"{name}-*")).unlink()
    assert made._push(paths, Stop()) is None and bucket.pushed == []


def test_after_going_back_behind_the_oldest_backup_everything_is_of_use(
    made: relay.Relay, first: Path, bucket: Bucket
) -> None:
    """A restore to before the bucket's first backup: the new timeline's places in the WAL are smaller than that backup's."""
    ready(made, "00000001" + "0" * 8 + f"{0x50:08X}")
    arrive(first, 0x40)
    new = [arrive(first, 0x20, timeline=2), arrive(first, 0x60)]
    made.look(Stop())
    assert sorted(bucket.pushed) == sorted(new)


def test_another_cluster_in_the_first_repository_is_looked_at_anew(
    made: relay.Relay, first: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = first / "archive" / "orcheo" / "archive.info"
    info.write_text("one")
    arrive(first, 1)
    made.look(Stop())
    asked: list[bool] = []
    monkeypatch.setattr(operations, "make_stanza", lambda _config, _heard: asked.append(True))
    made.look(Stop())
    assert asked == []
    other = info.with_name("other")
    other.write_text("two")
    other.replace(info)
    made.look(Stop())
    assert asked == [True]


def test_a_full_disk_does_not_end_the_relay(
    made: relay.Relay, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    stop = Stop()
    rounds: list[float] = []

    def full(*_words: Any) -> None:
        raise OSError(28, "No space left on device")

    def sleep(seconds: float) -> None:
        rounds.append(seconds)
        stop.requested = len(rounds) == 3

    monkeypatch.setattr(relay, "write_private", full)
    monkeypatch.setattr(stop, "sleep", sleep)
    made.forever(stop)
    assert rounds == [relay.AGAIN] * 3 and "No space left on device" in told[-1]


HISTORY = "1\t0/3000000\tno recovery target specified\n2\t0/{end}\tno recovery target specified\n"


@pytest.mark.parametrize(
    ("end", "target", "good"),
    [
        ("5000148", Target(last="000000020000000000000005"), True),  # in the last segment
        ("6000000", Target(last="000000020000000000000005"), True),  # at its end
        ("5000000", Target(last="000000020000000000000005"), False),  # at the end of the one before
        ("5000028", Target(last="000000020000000000000005"), False),
        ("4000148", Target(last="000000020000000000000005"), False),
        ("4000148", Target(lsn="0/4000140", last="000000020000000000000005"), True),  # where it should
    ],
)
def test_recovery_that_ends_early_is_a_failure(tmp_path: Path, end: str, target: Target, good: bool) -> None:
    file = tmp_path / "00000003.history"
    file.write_text(HISTORY.format(end=end))
    if good:
        restore.check_end(target, file)
        return
    with pytest.raises(
        CheckFailed,
        match=rf"recovery ended at LSN 0/{end}, and the archive goes on to segment 000000020000000000000005",
    ):
        restore.check_end(target, file)


def test_other_compressions_are_refused() -> None:
    with pytest.raises(CheckFailed, match="compressed in another way"):
        relay.decompressed(b"x", f"{'0' * 24}-{'a' * 40}.lz4")


@pytest.mark.parametrize(
    ("changes", "ok", "words"),
    [
        ({}, True, "0 segments wait; the last was 1"),
        ({"said": "403"}, False, "403"),
        ({"waiting": 3, "waiting_since": 0.0}, False, "3 segments wait, the oldest since 1970"),
        ({"at": 0.0}, False, "the relay has not looked since 1970"),
    ],
)
def test_check_says_how_the_relay_is(
    config: Config, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], ok: bool, words: str
) -> None:
    now = RELAY_LATE * 10
    monkeypatch.setattr("time.time", lambda: now)
    progress = replace(relay.Progress(now, last="1", last_at=now), **changes)
    monkeypatch.setattr(relay, "read", lambda _config: progress)
    found = {entry["name"]: entry for entry in check(config, print)["checks"]}["WAL relayed"]
    assert found["ok"] is ok and words in found["found"]
    assert bool(found["remedy"]) is not ok


def test_a_buckets_archive_is_listed_by_pgbackrest(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    answers = {
        "archive/orcheo": '{".":{"type":"path"},"archive.info":{"type":"file","size":1,"time":5},'
        f'"17-1/0000000100000000/{"0" * 7}1{"0" * 15}1-{"a" * 40}.zst":{{"type":"file","size":1,"time":1000}}}}'
    }

    def run(_self: Any, *words: str, **_more: Any) -> str:
        asked.append(words)
        return answers[words[-1]]

    monkeypatch.setattr(engine.PgBackRest, "run", run)
    found = archive.newest_archived(config)
    assert found is not None and found[0] == "000000010000000000000001" and found[1].timestamp() == 1000
    assert asked == [("repo-ls", "--recurse", "--output=json", "archive/orcheo")]


def test_the_service_reads_first_by_its_own_file(config: Config) -> None:
    environment = engine.PgBackRest(config, first=True).environment()
    assert environment["PGBACKREST_CONFIG"].endswith("pgbackrest-relay.conf")
    assert environment["PGBACKREST_CONFIG_INCLUDE_PATH"] == os.fspath(config.secrets / "relay")
