"""Backups on the running stack: the first one is there, WAL goes over mutual TLS, restores are what they should be, drills prove it."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
import psycopg
import pytest

from orcheo_db.targets.compose import ComposeTarget
from tests.conftest import PROGRAM, ROOT, Installation


def execute(own: Installation, text: str, *parameters: Any) -> list[Any]:
    """As the app, straight to the server."""
    with psycopg.connect(own.target().dsn(direct=True), autocommit=True) as connection:
        cursor = connection.execute(text.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def inside(target: ComposeTarget, service: str, script: str) -> tuple[int, str]:
    result = target.run(service, ["sh", "-c", script])
    return result.code, result.stdout + result.stderr


def test_the_first_full_backup_came_with_up(installation: Installation):
    found = installation.ok("backup", "list", "--json").json
    assert found["status"] == "ok" and found["backups"][0]["type"] == "full" and found["backups"][0]["size"] > 2**20
    assert found["restorable"]["from"] < found["restorable"]["to"]
    text = installation.ok("backup", "list").stdout
    assert found["backups"][0]["label"] in text and "Any moment can be restored from" in text


def test_check_is_content(installation: Installation):
    found = installation.ok("backup", "check", "--json").json
    assert found["ok"] and {"WAL arriving", "archive round trip", "newest backup", "page checksums"} <= {
        c["name"] for c in found["checks"]
    }
    deep = installation.ok("backup", "check", "--deep", "--json").json
    assert deep["ok"] and {"every file of the repository", "logical copies"} <= {c["name"] for c in deep["checks"]}


def test_the_database_can_push_and_cannot_reach_backups(target: ComposeTarget):
    """PostgreSQL's containers hold a certificate that opens the archive alone, where there are no backups to read or delete."""
    label = json.loads(inside(target, "backup", "pgbackrest info --output=json")[1])[0]["backup"][0]["label"]
    for service in ("postgres", "pgbackrest"):
        assert inside(target, service, "ls /var/lib/orcheo-backup/backup /var/lib/orcheo-backup/archive/orcheo")[0] != 0
        conf = "env -u PGBACKREST_CONFIG_INCLUDE_PATH"
        code, said = inside(target, service, f"{conf} pgbackrest --stanza=orcheo repo-ls archive/orcheo")
        assert code == 0 and "archive.info" in said, said  # the way is open as far as it should be
        code, said = inside(target, service, f"{conf} pgbackrest --stanza=orcheo repo-ls backup/orcheo")
        assert label not in said, said
        code, said = inside(
            target,
            service,
            f"{conf} pgbackrest --stanza=orcheo --set={label} repo-get backup/orcheo/{label}/backup.manifest",
        )
        assert code != 0 and "[backup]" not in said, said
    assert inside(target, "archive", "ls /var/lib/orcheo-backup/backup")[0] != 0
    assert inside(target, "backup", f"ls /var/lib/orcheo-backup/backup/orcheo/{label}")[0] == 0


def test_nobody_without_the_right_certificate(target: ComposeTarget):
    """The TLS servers take their own party alone: the database's certificate does not open the database's own server, nor none at all."""
    for service, host in (("backup", "archive"), ("postgres", "pgbackrest")):
        conf = "env -u PGBACKREST_CONFIG -u PGBACKREST_CONFIG_INCLUDE_PATH"
        options = (
            "--no-config"
            f" --repo1-host={host} --repo1-host-type=tls --repo1-host-ca-file=/run/orcheo-db/secrets/ca.crt"
            " --repo1-host-cert-file=/run/orcheo-db/secrets/pgbackrest.crt --repo1-host-key-file=/run/orcheo-db/secrets/pgbackrest.key"
        )
        code, said = inside(
            target,
            service,
            f"{conf} pgbackrest --stanza=orcheo --log-level-stderr=error {options} repo-ls archive 2>&1",
        )
        assert code != 0 and ("access denied" in said.lower() or "AccessError" in said or "[071]" in said), said


def test_repository_is_encrypted_and_no_secret_shows(target: ComposeTarget):
    code, head = inside(target, "backup", "cat /var/lib/orcheo-backup/backup/orcheo/backup.info | head -c 8")
    assert code == 0 and head.startswith("Salted__")
    key = (target.store.path / "backup" / "cipher.key").read_text().strip()
    for service in ("archive", "backup", "pgbackrest", "postgres"):
        container = target.container(service)
        assert container is not None and key not in json.dumps(container.attrs)
    assert inside(target, "postgres", f"grep -rl {key} /etc/orcheo-db /run/orcheo-db 2>/dev/null")[1] == ""


def test_after_a_start_the_checkpointer_is_woken(target: ComposeTarget):
    """Else archive_timeout would not hold for up to checkpoint_timeout after each start (see wake_checkpointer in the image's node.py)."""
    container = target.container("postgres")
    assert container is not None
    lines = container.logs().decode(errors="replace").splitlines()
    starts = [n for n, line in enumerate(lines) if "database system is ready to accept connections" in line]
    assert any("received SIGHUP, reloading configuration files" in line for line in lines[starts[-1] :])


def test_a_drill_proves_and_leaves_evidence(installation: Installation, target: ComposeTarget):
    execute(installation, "CREATE TABLE IF NOT EXISTS drill_probe (id int PRIMARY KEY, body text)")
    execute(
        installation,
        "INSERT INTO drill_probe SELECT i, md5(i::text) FROM generate_series(1, 500) i ON CONFLICT DO NOTHING",
    )
    try:
        record = installation.ok("drill", "--json").json
    finally:
        execute(installation, "DROP TABLE drill_probe")
    assert record["result"] == "pass" and record["failure"] is None
    assert all(check["ok"] for check in record["checks"]) and len(record["checks"]) >= 9
    assert 0 < record["rto_seconds"] < 600 and 0 <= record["rpo_seconds"] <= 121
    assert record["sizes"]["rows_compared"] >= 500
    assert inside(target, "backup", "ls -A /var/lib/orcheo-scratch") == (0, "")
    files = inside(target, "backup", "ls /var/lib/orcheo-backup/evidence/*.json")[1].split()
    assert files and installation.ok("backup", "list", "--json").json["last_drill"]["result"] == "pass"
    metrics = inside(target, "backup", "python -m orcheo_db.backup metrics")[1]
    shown = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert float(shown["orcheo_db_drill_rto_seconds"]) == record["rto_seconds"]
    assert shown["orcheo_db_evidence_chain_ok"] == "1"


def test_a_logical_copy_is_restored_and_compared(installation: Installation, target: ComposeTarget, tmp_path: Path):
    """And it can be read without this toolkit: gpg with the cipher key, tar, pg_restore."""
    execute(
        installation,
        "CREATE TABLE logical_probe AS SELECT i AS id, md5(i::text) AS body FROM generate_series(1, 300) i",
    )
    try:
        made = installation.ok("backup", "run", "--type", "logical", "--json").json
    finally:
        execute(installation, "DROP TABLE logical_probe")
    assert made["rows"] >= 300 and made["removed"] == []
    home = f"/var/lib/orcheo-backup/logical/{made['label']}"
    script = (
        f"mkdir -m 700 /tmp/g /tmp/out && gpg --batch --quiet --homedir=/tmp/g --pinentry-mode=loopback"
        f" --passphrase-file=/run/orcheo-db/secrets/cipher.key --decrypt {home}/dump.tar.gpg | tar -x -C /tmp/out"
        " && pg_restore --list /tmp/out/dump | grep -c 'TABLE DATA public'; rm -rf /tmp/g /tmp/out"
    )
    code, said = inside(target, "backup", script)
    assert code == 0 and int(said.split()[-1]) >= 59, said
    assert "CREATE ROLE orcheo_app_a" in inside(target, "backup", f"cat {home}/globals.sql")[1]
    assert "PASSWORD" not in inside(target, "backup", f"cat {home}/globals.sql")[1]
    assert made["label"] in installation.ok("backup", "list").stdout
    assert inside(target, "backup", "ls -A /var/lib/orcheo-scratch") == (0, "")


def test_the_drills_page(installation: Installation, tmp_path: Path):
    installation.ok("drill", "--html", str(tmp_path / "drills.html"))
    page = (tmp_path / "drills.html").read_text()
    assert (
        page.startswith("<!doctype html>") and "<svg" in page and "http" not in page.replace("http://www.w3.org/", "")
    )


def test_restore_refuses_what_the_archive_has_not(installation: Installation):
    before = {volume.name for volume in docker.from_env().volumes.list()}
    for arguments, words in (
        (("--to", "2020-01-01 00:00:00+00"), "outside of the archive"),
        (("--to", "2020-01-01 00:00:00"), "no time zone"),
        (("--to-name", "nosuch"), "no restore point 'nosuch'"),
        (("--to-lsn", "FFFFFFF/0"), "outside of the archive"),
        (("--table", "x"), "--out FILE"),
        (("--swap",), "confirm with --confirm"),
        (("--use", "other_volume", "--confirm", "yes"), "no volume other_volume"),
    ):
        ran = installation.run("restore", *arguments)
        assert ran.code == 2 and words in ran.message, ran.stderr
    assert {volume.name for volume in docker.from_env().volumes.list()} == before


def test_rows_of_one_table_from_before_a_mistake(installation: Installation, tmp_path: Path):
    execute(installation, "CREATE TABLE probe_rows (id int PRIMARY KEY, body text)")
    execute(installation, "INSERT INTO probe_rows SELECT i, 'row ' || i FROM generate_series(1, 100) i")
    point = f"before-{time.time_ns()}"
    assert "is set at LSN" in installation.ok("backup", "point", point).stdout
    execute(installation, "DROP TABLE probe_rows")
    out = tmp_path / "rows.csv"
    done = installation.ok(
        "restore", "--to-name", point, "--table", "probe_rows", "--where", "id > 90", "--out", str(out), "--json"
    ).json
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert done["rows_extracted"] == 10 and [row["id"] for row in rows] == [str(i) for i in range(91, 101)]
    assert done["volume"] is None and execute(installation, "SELECT to_regclass('probe_rows')") == [(None,)]
    ran = installation.run("restore", "--to-name", point, "--table", "nosuch", "--out", str(tmp_path / "other.csv"))
    assert ran.code == 2 and '"public.nosuch" does not exist' in ran.message and not (tmp_path / "other.csv").exists()
    assert installation.run("backup", "point", point).code == 2  # recovery would stop at the first of that name


@pytest.mark.disruptive
def test_an_archive_that_is_away_is_no_crash(installation: Installation, target: ComposeTarget):
    """pgBackRest's asynchronous process ends with an error then, an orphan by that time: PostgreSQL must not take it for a backend."""
    archive, server = target.container("archive"), target.container("postgres")
    assert archive is not None and server is not None
    since = int(time.time())
    started = execute(installation, "SELECT pg_postmaster_start_time()")
    with psycopg.connect(installation.target().dsn(direct=True), autocommit=True) as session:
        archive.stop()
        try:
            for _ in range(3):
                execute(installation, "CREATE TABLE away AS SELECT 1 AS one")
                execute(installation, "DROP TABLE away")
                assert inside(target, "postgres", "psql -Xqd postgres -c 'SELECT pg_switch_wal()'")[0] == 0
                time.sleep(5)  # each try of the archiver takes less than one
            assert session.execute("SELECT 1").fetchone() == (1,)  # the same session all the time
        finally:
            archive.start()
    log = server.logs(since=since).decode(errors="replace")
    assert "terminating any other active server processes" not in log and "exited with exit code" not in log
    assert execute(installation, "SELECT pg_postmaster_start_time()") == started
    deadline = time.monotonic() + 120
    while installation.run("backup", "check").code != 0:
        assert time.monotonic() < deadline
        time.sleep(2)


@pytest.mark.disruptive
def test_backups_off_and_on_again(second: Installation, tmp_path: Path):
    """Off: nothing is archived, the services go, the repository stays; the command line says so."""
    text = (ROOT / "ops" / "spec.toml").read_text()
    assert text.count("[backup]\nenabled = true") == 1
    (tmp_path / "off.toml").write_text(text.replace("[backup]\nenabled = true", "[backup]\nenabled = false"))
    second.extra["ORCHEO_DB_SPEC"] = str(tmp_path / "off.toml")
    second.ok("up")
    assert [state.name for state in second.target().services()] == ["postgres", "init", "pgbouncer"]
    assert execute(second, "SHOW archive_mode") == [("off",)]
    ran = second.run("backup", "list")
    assert ran.code == 2 and "backups are off" in ran.message
    second.ok("doctor")
    second.extra.clear()
    second.ok("up")
    second.ok("backup", "check")
    second.extra["ORCHEO_DB_SPEC"] = str(tmp_path / "off.toml")
    changed = second.ok("up", "--json").json["changed"]
    assert "backup stopped and removed (the repository stays)" in changed
    assert f"{second.project}_backup" in second.target().volumes()


@pytest.mark.disruptive
def test_a_moment_restored_beside_and_put_in_place(second: Installation):
    second.ok("up")
    execute(second, "CREATE TABLE probe AS SELECT 1 AS id")
    time.sleep(1.1)
    moment = datetime.now(UTC)
    time.sleep(1.1)
    execute(second, "INSERT INTO probe VALUES (2)")
    second.ok("backup", "check")  # pushes the segment
    former = second.target().volume
    done = second.ok("restore", "--to", moment.isoformat(), "--json").json
    assert execute(second, "SELECT count(*) FROM probe") == [(2,)]  # the running one is as it was
    assert done["rto_seconds"] > 0 and done["volume"].startswith(f"{former}-")
    used = second.ok("restore", "--use", done["volume"], "--confirm", "yes", "--json").json
    assert used == {"in_place": done["volume"], "kept": former}
    assert execute(second, "SELECT array_agg(id) FROM probe") == [([1],)]
    second.ok("doctor")
    second.ok("backup", "check")
    assert second.ok("up", "--json").json["changed"] == []
    assert [b["type"] for b in second.ok("backup", "list", "--json").json["backups"]][-1] == "incr"
    # What was left behind is on the timeline before, and is found there: both rows.
    out = second.state.parent / "left.csv"
    second.ok("restore", "--timeline", "1", "--table", "probe", "--out", str(out))
    assert out.read_text().split() == ["id", "1", "2"]
    second.ok("restore", "--table", "probe", "--out", str(second.state.parent / "new.csv"))
    assert (second.state.parent / "new.csv").read_text().split() == ["id", "1"]
    # A volume of an earlier restore has the same timeline number, and not the same past: it is not put in place any more.
    stale = second.ok("restore", "--timeline", "1", "--json").json["volume"]
    again = second.ok("restore", "--timeline", "1", "--json").json["volume"]
    second.ok("restore", "--use", again, "--confirm", "yes")
    ran = second.run("restore", "--use", stale, "--confirm", "yes")
    assert ran.code == 2 and "another restore has begun since" in ran.message and second.target().volume == again
    assert second.ok("drill", "--switch", "--json").json["result"] == "pass"
    ran = second.run("destroy")
    assert ran.code == 2 and f"volume {former} (a cluster that a restore made or set aside)" in ran.message
    second.ok("restore", "--use", former, "--confirm", "yes")
    assert execute(second, "SELECT count(*) FROM probe") == [(2,)]
    second.ok("destroy", "--confirm", "yes")
    assert not [v for v in docker.from_env().volumes.list() if v.name.startswith(f"{second.project}_")]


@pytest.mark.disruptive
def test_killed_restores_backups_and_drills_leave_nothing_broken(second: Installation):
    second.ok("up")
    target = second.target()
    for arguments in (["restore"], ["backup", "run", "--type", "full"], ["drill", "--switch"]):
        process = subprocess.Popen(
            [PROGRAM, *arguments], env=second.env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(2.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
    target.kill("backup")
    deadline = time.monotonic() + 60
    while second.run("backup", "list").code != 0:
        assert time.monotonic() < deadline
        time.sleep(1)
    second.ok("backup", "run", "--type", "full")
    assert second.ok("drill", "--switch", "--json").json["result"] == "pass"
    assert inside(target, "backup", "ls -A /var/lib/orcheo-scratch") == (0, "")
    second.ok("backup", "check", "--deep")


def test_a_lost_cipher_key_is_said_and_nothing_made_anew(installation: Installation):
    key = installation.state / "backup" / "cipher.key"
    kept = key.read_bytes()
    key.unlink()
    try:
        ran = installation.run("up")
        assert ran.code == 2 and f"{key} is gone" in ran.message and not key.exists()
    finally:
        key.write_bytes(kept)
        key.chmod(0o600)
    assert installation.ok("up", "--json").json["changed"] == []


def test_two_at_once_are_told_apart(installation: Installation, target: ComposeTarget):
    """The second is one line and disturbs nothing. The first one's lock is held for as long as the test needs it."""
    container = target.container("backup")
    assert container is not None
    held = "echo 'drill (since now)' > /var/lib/orcheo-backup/state/lock; flock /var/lib/orcheo-backup/state/lock sh -c 'echo held; sleep 20'"
    argv = ["docker", "exec", str(container.id), "sh", "-c", held]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        for arguments in (["backup", "run"], ["drill"]):
            ran = installation.run(*arguments)
            assert ran.code == 2 and "drill (since now) is running; try again when it has ended" in ran.message
    installation.ok("backup", "run")


@pytest.mark.disruptive
def test_a_lost_volume_comes_back(second: Installation):
    """ops/runbooks/lost-volume.md, word for word: the volume is gone, the repository is there."""
    second.ok("up")
    execute(second, "CREATE TABLE probe AS SELECT i FROM generate_series(1, 1000) i")
    second.ok("backup", "check")  # its WAL is in the archive: what wasn't would be lost with the volume
    target = second.target()
    former = target.volume
    second.ok("down")
    docker.from_env().volumes.get(former).remove()
    ran = second.run("up")
    assert (
        ran.code == 2
        and "the backup repository is another cluster's" in ran.message
        and "lost-volume.md" in ran.message
    )
    done = second.ok("restore", "--swap", "--confirm", "yes", "--json").json
    assert done["kept"] == former and done["in_place"].startswith(f"{former}-")
    assert execute(second, "SELECT count(*) FROM probe") == [(1000,)]
    second.ok("backup", "check")
    second.ok("doctor")
