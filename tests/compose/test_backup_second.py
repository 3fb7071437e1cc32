"""The second repository: backups and WAL in a real object store, drilled from there, its faults its own, and the whole machine lost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.compose.buckets import Azurite, SeaweedFS, azurite, configured
from tests.compose.test_backup import execute, inside
from tests.conftest import Installation, free_port, remove_leftovers
from tests.e2e.api import wait_until

pytestmark = pytest.mark.disruptive
PROJECT = "orcheo-db-test-second"


def credentials(own: Installation, text: str) -> None:
    file = own.state / "backup" / "second.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(0o600)
    file.write_text(text)


def backups(own: Installation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = own.ok("backup", "list", "--repository", "second", "--json").json["backups"]
    return found


def checks(own: Installation) -> dict[str, dict[str, Any]]:
    """What `backup check` says of the second repository, by name."""
    found = own.run("backup", "check", "--json").json["checks"]
    named = {check["name"].removeprefix("second repository: "): check for check in found if "second" in check["name"]}
    assert named and all(check["ok"] for check in found if "second" not in check["name"])
    return named


def relayed(own: Installation) -> bool:
    """Whether everything written so far is in the bucket."""
    segment = execute(own, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")[0][0]
    own.ok("backup", "point", f"p{time.monotonic_ns()}")
    wait_until(
        lambda: checks(own)["WAL relayed"]["found"].rpartition("the last was ")[2] >= segment,
        f"segment {segment} in the bucket",
    )
    return True


@pytest.fixture(scope="module")
def store(docker_ready: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    made = SeaweedFS(tmp_path_factory.mktemp("s3") / "server")
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def own(
    installation: Installation, store: SeaweedFS, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """An installation with that bucket; the session's one has made the images."""
    directory = tmp_path_factory.mktemp("second")
    made = Installation(PROJECT, free_port(), directory / PROJECT)
    made.extra["ORCHEO_DB_SPEC"] = str(configured(directory, "s3", store))
    remove_leftovers(made)
    refused = made.run("up")
    assert refused.code == 2 and "second.toml is missing" in refused.message and "secret" in refused.message
    assert not (made.state / "installation.json").exists()  # said before anything was made
    credentials(made, store.credentials)
    made.ok("up")
    yield made
    remove_leftovers(made)


def test_backups_and_wal_go_to_the_bucket(own: Installation, store: SeaweedFS):
    wait_until(lambda: bool(backups(own)), "the first backup in the bucket", 120)
    assert backups(own)[0]["type"] == "full"
    assert relayed(own)
    assert all(check["ok"] for check in checks(own).values())
    deep = own.ok("backup", "check", "--deep", "--json").json
    assert {"second repository: every file of the repository", "second repository: no gap in the archive"} <= {
        c["name"] for c in deep["checks"]
    }
    names = [check["name"] for check in own.ok("doctor", "--json").json["checks"] if check["ok"]]
    assert "second repository" in names
    made = own.ok("backup", "run", "--repository", "second", "--type", "incremental", "--json").json
    assert made["type"] == "incr" and [each["label"] for each in backups(own)][-1] == made["label"]
    assert (
        "logical copies lie in the first"
        in own.run("backup", "run", "--repository", "second", "--type", "logical").message
    )


def test_a_drill_from_the_bucket_and_its_evidence_there(own: Installation):
    execute(own, "CREATE TABLE second_probe AS SELECT i AS id, md5(i::text) AS body FROM generate_series(1, 1000) i")
    record = own.ok("drill", "--repository", "second", "--switch", "--json").json
    assert record["result"] == "pass" and record["sizes"]["rows_compared"] >= 1000
    assert record["backup"]["label"] == backups(own)[-1]["label"]
    code, listed = inside(
        own.target(),
        "second",
        "PGBACKREST_CONFIG=/etc/orcheo-db/pgbackrest-restore.conf pgbackrest repo-ls orcheo-db/evidence-second",
    )
    assert code == 0 and record["id"] in listed


def test_only_the_second_service_has_a_way_out_and_it_can_change_nothing(own: Installation):
    networks = docker.from_env().networks
    ways = {}
    for service in ("postgres", "archive", "pgbackrest", "pgbackrest-second", "backup", "second"):
        container = own.target().container(service)
        assert container is not None
        names = container.attrs["NetworkSettings"]["Networks"]
        ways[service] = any(not networks.get(name).attrs["Internal"] for name in names)
    assert [service for service, out in ways.items() if out] == ["second"]
    for place in ("/var/lib/orcheo-first/x", "/var/lib/orcheo-first/archive/x"):
        code, said = inside(own.target(), "second", f"touch {place}")
        assert code != 0 and "Read-only file system" in said
    code, said = inside(own.target(), "second", "cat /run/orcheo-db/secrets/cipher.key")
    assert (
        code != 0
    )  # it reads the first repository's WAL by pgBackRest's own file; logical copies are not its business


@pytest.mark.parametrize(
    ("changes", "secret", "words"),
    [
        ({}, "wrong", "403"),
        pytest.param({"bucket": "no-such-bucket"}, None, "404", marks=pytest.mark.faults),
        pytest.param({"ca_file": ""}, None, "certificate", marks=pytest.mark.faults),
    ],
)
def test_a_bucket_that_refuses_is_one_line_and_local_backups_go_on(
    own: Installation, store: SeaweedFS, tmp_path: Path, changes: dict[str, str], secret: str | None, words: str
):
    kept = own.extra["ORCHEO_DB_SPEC"]
    try:
        own.extra["ORCHEO_DB_SPEC"] = str(configured(tmp_path, "s3", store, **changes))
        credentials(own, store.credentials.replace(store.secret, secret or store.secret))
        own.ok("up")
        wait_until(lambda: not checks(own).get("WAL relayed", {"ok": True})["ok"], "word of the relay")
        found = own.run("backup", "check")
        assert found.code == 1 and "second repository" in found.message and found.message.count("\n") == 0
        assert words in " ".join(check["found"] for check in checks(own).values() if not check["ok"])
        assert store.secret not in found.stdout + found.stderr
        assert own.ok("backup", "run", "--json").json["type"] == "incr"
        refused = own.run("restore", "--repository", "second")
        assert refused.code in (1, 2) and words in refused.message
    finally:
        own.extra["ORCHEO_DB_SPEC"] = kept
        credentials(own, store.credentials)
        own.ok("up")
    wait_until(lambda: checks(own)["WAL relayed"]["ok"], "the relay's recovery")


@pytest.mark.faults
def test_an_outage_holds_nothing_up_and_loses_nothing(own: Installation, store: SeaweedFS):
    wait_until(lambda: bool(backups(own)), "the first backup in the bucket", 120)
    execute(own, "CREATE TABLE IF NOT EXISTS second_probe (id int, body text)")
    store.stop()
    try:
        for _ in range(4):
            execute(own, "INSERT INTO second_probe SELECT i, md5(i::text) FROM generate_series(1, 20000) i")
            own.ok("backup", "point", f"outage-{time.monotonic_ns()}")
        wait_until(lambda: checks(own)["WAL relayed"]["ok"] is False, "word of the outage")
        assert own.ok("backup", "run", "--json").json["type"] == "incr"
    finally:
        store.start()
    wait_until(lambda: checks(own)["WAL relayed"]["ok"], "the relay's recovery")
    assert relayed(own)
    deep = own.ok("backup", "check", "--deep", "--json").json["checks"]
    assert next(check for check in deep if check["name"] == "second repository: no gap in the archive")["ok"]
    assert own.ok("drill", "--repository", "second", "--switch", "--json").json["result"] == "pass"


def test_azure(own: Installation, store: SeaweedFS, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory):
    program = azurite(tmp_path_factory.mktemp("npm"))
    if program is None:
        pytest.skip("npm is not on this machine, and azurite comes by it")
    server = Azurite(tmp_path / "server", program)
    kept = own.extra["ORCHEO_DB_SPEC"]
    server.start()
    try:
        own.extra["ORCHEO_DB_SPEC"] = str(configured(tmp_path, "azure", server))
        credentials(own, server.credentials)
        own.ok("up")
        wait_until(lambda: bool(backups(own)), "the first backup in the container", 120)
        assert relayed(own) and all(check["ok"] for check in checks(own).values())
        assert own.ok("drill", "--repository", "second", "--switch", "--json").json["result"] == "pass"
    finally:
        own.extra["ORCHEO_DB_SPEC"] = kept
        credentials(own, store.credentials)
        own.ok("up")
        server.stop()
    wait_until(lambda: checks(own)["WAL relayed"]["ok"], "the relay's recovery")


def test_a_lost_host_comes_back_elsewhere(own: Installation, store: SeaweedFS, tmp_path: Path):
    """ops/runbooks/lost-host.md: another machine has the spec and the secrets, and no volume of the first one's."""
    execute(own, "INSERT INTO second_probe VALUES (-1, 'the last word')")
    assert relayed(own)
    count = execute(own, "SELECT count(*) FROM second_probe")
    other = Installation("orcheo-db-test-elsewhere", free_port(), tmp_path / "orcheo-db-test-elsewhere")
    other.extra = dict(own.extra)
    remove_leftovers(other)
    refused = other.run("restore", "--repository", "second", "--swap", "--confirm", "yes")
    assert refused.code == 2 and "the installation's secrets are not in" in refused.message
    kept = [
        file
        for file in own.state.iterdir()
        if file.name in ("installation.json", "ca.crt", "secrets", "tls", "backup", "app")
    ]
    other.state.mkdir(mode=0o700)
    for file in kept:
        (shutil.copytree if file.is_dir() else shutil.copy2)(file, other.state / file.name)
    own.ok("down")
    try:
        done = other.ok("restore", "--repository", "second", "--swap", "--confirm", "yes", "--json").json
        assert done["in_place"].startswith("orcheo-db-test-elsewhere_pgdata-") and done["kept"] is None
        assert execute(other, "SELECT count(*) FROM second_probe") == count
        assert execute(other, "SELECT body FROM second_probe WHERE id = -1") == [("the last word",)]
        assert other.ok("up", "--json").json["changed"] == []
        assert all(check["ok"] for check in other.ok("doctor", "--json").json["checks"])
        assert (
            other.ok("drill", "--switch", "--json").json["result"] == "pass"
        )  # from the new machine's own first repository
        assert relayed(other)  # and the bucket goes on with the new timeline
        assert other.ok("drill", "--repository", "second", "--switch", "--json").json["result"] == "pass"
    finally:
        remove_leftovers(other)
