"""`up`, `down`, `destroy` as a user runs them: what they do, what they refuse, and that nothing is lost."""

from __future__ import annotations

import socket
import subprocess

import psycopg
import pytest

from tests.compose.conftest import containers
from tests.conftest import PROGRAM, ROOT, Installation
from tests.e2e.api import wait_until


def states(own: Installation) -> dict[str, str]:
    target = own.target()
    return {
        name: f"{c.id} {c.attrs['State']['StartedAt']}"
        for name in target.service_names
        if (c := target.container(name))
    }


def test_a_second_up_changes_nothing(installation: Installation):
    before = states(installation)
    ran = installation.ok("up")
    assert "Nothing changed." in ran.stderr
    assert ran.stdout.strip() == installation.target().dsn()
    assert states(installation) == before
    document = installation.ok("up", "--json").json
    assert document["changed"] == [] and document["app_sees"]["tables"] == 59


def test_the_printed_dsn_serves_psql(installation: Installation):
    dsn = installation.ok("dsn").stdout.strip()
    assert "sslmode=verify-full" in dsn and "sslrootcert=/" in dsn
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (59,)
    direct = installation.ok("dsn", "--direct", "--role", "orcheo_ro").stdout.strip()
    with psycopg.connect(direct) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("orcheo_ro",)


def test_psql_command(installation: Installation):
    ran = installation.ok("psql", "--", "-XAtc", "SELECT session_user || ' ' || current_user")
    assert ran.stdout.strip() == "orcheo_app_a orcheo"


def test_status(installation: Installation):
    document = installation.ok("status", "--json").json
    assert document["ok"] and [s["name"] for s in document["services"]] == [
        "postgres", "init", "pgbouncer", "archive", "pgbackrest", "backup",
    ]  # fmt: skip
    assert document["backups"]["ok"] and document["backups"]["said"].startswith("newest 20")
    assert document["app_sees"]["acts_as"] == "orcheo"


def test_only_pgbouncer_is_published_and_on_loopback(installation: Installation):
    postgres, pgbouncer = installation.target().container("postgres"), installation.target().container("pgbouncer")
    assert postgres is not None and pgbouncer is not None
    assert not any((postgres.attrs["NetworkSettings"]["Ports"] or {}).values())
    published = [item for items in pgbouncer.attrs["NetworkSettings"]["Ports"].values() for item in items or []]
    assert [(item["HostIp"], item["HostPort"]) for item in published] == [("127.0.0.1", str(installation.port))]


def test_doctor_finds_nothing(installation: Installation):
    document = installation.ok("doctor", "--json").json
    assert document["ok"] and len(document["checks"]) >= 12


def test_doctor_finds_what_somebody_changed(installation: Installation):
    target = installation.target()

    def sql(text: str, database: str = "orcheo") -> None:
        result = target.run("postgres", ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", text])
        assert result.code == 0, result.stderr

    sql("ALTER DATABASE postgres SET work_mem = '7MB'", "postgres")
    sql("ALTER ROLE orcheo_app_b CREATEDB")
    sql("ALTER TABLE store RENAME TO store_gone")
    try:
        ran = installation.run("doctor", "--json")
        assert ran.code == 1
        failed = {check["name"]: check for check in ran.json["checks"] if not check["ok"]}
        assert set(failed) == {"settings as meant", "roles", "app schema"}
        assert "work_mem is 7168kB, meant 4MB" in failed["settings as meant"]["found"]
        assert "orcheo_app_b" in failed["roles"]["found"]
        assert "store" in failed["app schema"]["found"]
        assert "3 of" in ran.message
    finally:
        sql("ALTER DATABASE postgres RESET work_mem", "postgres")
        sql("ALTER ROLE orcheo_app_b NOCREATEDB")
        sql("ALTER TABLE store_gone RENAME TO store")
    installation.ok("doctor")


def test_a_taken_port_is_said_before_anything_starts(second: Installation):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        second.port = taken.getsockname()[1]
        ran = second.run("up")
    assert ran.code == 2
    assert f"port 127.0.0.1:{second.port} can't be used" in ran.message and "ORCHEO_DB_PORT" in ran.message
    assert containers(second.project) == [] and not second.state.exists() and not second.target().volume_exists()


def test_a_port_taken_by_a_container_names_it(second: Installation, installation: Installation):
    second.port = installation.port
    ran = second.run("up")
    assert ran.code == 2 and f"by container {installation.project}-pgbouncer-1" in ran.message


def test_a_size_beyond_this_machine_is_refused(second: Installation, tmp_path):
    spec = (
        ROOT / "ops" / "spec.toml"
    ).read_text() + '\n[sizes.huge]\nmemory = "4TB"\ncpus = 64\nstorage = "ssd"\nmax_connections = 400\n'
    (tmp_path / "spec.toml").write_text(spec)
    second.extra = {"ORCHEO_DB_SPEC": str(tmp_path / "spec.toml"), "ORCHEO_DB_SIZE": "huge"}
    ran = second.run("up")
    assert ran.code == 2 and "size huge needs 4096.0 GB of memory, and this machine has" in ran.message
    assert containers(second.project) == []


def test_two_at_once_are_told_apart(second: Installation):
    from orcheo_db.lifecycle import exclusive  # noqa: PLC0415

    with exclusive(second.target().store):
        ran = second.run("up")
    assert ran.code == 2 and "another orcheo-db command is changing this installation" in ran.message


@pytest.mark.disruptive
def test_a_start_waits_for_the_health_check_and_not_for_dockers_first_run_of_it(installation: Installation):
    target = installation.target()
    target.restart("postgres")
    container = target.container("postgres")
    assert container is not None
    wait_until(lambda: target.answers(container), "postgres to pass its health check", 60)
    container.reload()
    assert container.attrs["State"]["Health"]["Status"] == "starting"
    assert {s.name: s.health for s in target.services()}["postgres"] == "healthy"  # what `status` and `doctor` show
    init = target.container("init")
    assert init is not None and not target.answers(init)  # it has ended

    def served() -> bool:  # PgBouncer remembers for a while that PostgreSQL refused it
        try:
            psycopg.connect(target.dsn(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    wait_until(served, "PgBouncer to serve again", 60)


@pytest.mark.disruptive
def test_down_and_up_keep_rows_and_secrets(installation: Installation):
    before = installation.target().dsn()
    with psycopg.connect(before) as connection:
        connection.execute("CREATE TABLE kept_probe AS SELECT g FROM generate_series(1, 1000) AS g")
    ran = installation.ok("down")
    assert "Kept: volume" in ran.stdout
    assert containers(installation.project) == []
    assert installation.ok("down").stdout.strip() == "Nothing was running."
    assert installation.run("status").code == 1
    installation.ok("up")
    assert installation.target().dsn() == before
    with psycopg.connect(before) as connection:
        assert connection.execute("SELECT count(*), sum(g) FROM kept_probe").fetchone() == (1000, 500500)
        connection.execute("DROP TABLE kept_probe")
    container = installation.target().container("postgres")
    assert container is not None
    log = container.logs().decode()
    assert "database system was shut down at" in log, "the stop was not a clean one"
    assert "not properly shut down" not in log


@pytest.mark.disruptive
def test_up_killed_at_any_moment_is_finished_by_the_next(second: Installation):
    """`up` is killed (-9) after some time, again and again; the last one is left alone and must serve the whole schema."""
    for seconds in (2, 5, 9, 14):
        process = subprocess.Popen(
            [str(PROGRAM), "up"],
            env=second.env,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    document = second.ok("up", "--json").json
    assert document["app_sees"]["tables"] == 59
    second.ok("doctor")


@pytest.mark.disruptive
def test_lost_and_foreign_secrets(second: Installation, tmp_path):
    second.ok("up")
    with psycopg.connect(second.target().dsn()) as connection:
        connection.execute("CREATE TABLE kept_probe AS SELECT 42 AS answer")
        old_dsn = second.target().dsn()
    second.ok("down")
    second.state.rename(tmp_path / "elsewhere")

    ran = second.run("up")
    assert ran.code == 2
    assert f"volume {second.target().volume} holds a PostgreSQL cluster, but its secrets are gone" in ran.message
    assert "--new-secrets" in ran.message and not (second.state / "installation.json").exists()
    assert containers(second.project) == []

    ran = second.run("up", "--new-secrets")
    assert ran.code == 2 and f"confirm with --confirm {second.project}" in ran.message

    # Secrets of another installation: the volume's marker tells them apart before the server starts.
    second.target().store.create()
    ran = second.run("up")
    assert ran.code == 2 and "installation" in ran.message and "postgres" in ran.message
    assert not any(state.state == "running" for state in second.target().services())

    # The way out that keeps the data and replaces the passwords: killed between the server's part and the init job's, and
    # finished by an ordinary `up`.
    process = subprocess.Popen(
        [str(PROGRAM), "up", "--new-secrets", "--confirm", second.project],
        env=second.env, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert any("Running the init job" in line for line in process.stderr), "it ended before the init job"
    process.kill()
    process.wait()
    assert (second.state / "adopting").exists()
    second.ok("up")
    assert not (second.state / "adopting").exists()
    with psycopg.connect(second.target().dsn()) as connection:
        assert connection.execute("SELECT answer FROM kept_probe").fetchone() == (42,)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(old_dsn.replace(str(second.state), str(tmp_path / "elsewhere")), connect_timeout=5)
    second.ok("doctor")
    assert "Nothing changed." in second.ok("up").stderr
    ran = second.run("up", "--new-secrets", "--confirm", second.project)
    assert ran.code == 2 and "nothing is lost here" in ran.message


@pytest.mark.disruptive
def test_volumes_that_must_not_be_started(second: Installation, in_volume):
    """Another major, another collation version, data of unknown origin: named before the server starts, nothing deleted."""
    second.ok("up")
    second.ok("down")
    major = second.target().spec.versions.postgresql
    listing = "find /var/lib/postgresql -type f | wc -l"

    def refused(damage: str, repair: str, *words: str) -> None:
        in_volume(second, f"cd /var/lib/postgresql && {damage}")
        files = in_volume(second, listing)
        ran = second.run("up")
        assert ran.code == 2, ran.stderr
        assert all(word in ran.message for word in words), ran.message
        assert in_volume(second, listing) == files
        in_volume(second, f"cd /var/lib/postgresql && {repair}")

    refused(
        f"mv {major} 16; echo 16 > 16/main/PG_VERSION",
        f"echo {major} > 16/main/PG_VERSION; mv 16 {major}",
        "PostgreSQL 16",
        "pg_upgrade",
        second.target().volume,
    )
    marker = f"{major}/main/orcheo-db.json"
    icu = """sed -i 's/"locale_provider": *"[a-z]*"/"locale_provider": "icu"/; s/"collation_version": *"[^"]*"/"collation_version": "1.1"/'"""
    refused(
        f"cp {marker} /var/lib/postgresql/saved; {icu} {marker}",
        f"mv /var/lib/postgresql/saved {marker}",
        "ordered by icu 1.1",
        "ORCHEO_DB_ACCEPT_COLLATION",
    )
    refused(f"mv {marker} /var/lib/postgresql/saved", f"mv /var/lib/postgresql/saved {marker}", "orcheo-db")
    assert second.ok("up", "--json").json["app_sees"]["tables"] == 59


@pytest.mark.disruptive
def test_another_clones_volume_and_a_gone_state_directory(second: Installation, tmp_path):
    second.ok("up")
    second.state.rename(tmp_path / "elsewhere")
    ran = second.run("destroy", "--confirm", "yes")
    volume = second.target().volume
    assert ran.code == 2 and f"CONFIRM={volume}" in ran.message and second.target().volume_exists()
    second.ok("down")  # without any file of the state directory
    assert containers(second.project) == [] and second.target().volume_exists()
    (tmp_path / "elsewhere").rename(second.state.parent / "moved")
    second.ok("destroy", "--confirm", volume)
    assert not second.target().volume_exists()


@pytest.mark.disruptive
def test_a_chosen_size_and_port_hold_until_another_is_chosen(second: Installation):
    """As with `make up SIZE=…` once and a plain `make up` afterwards: nothing falls back to the spec by surprise."""
    port = second.port
    second.ok("--size", "medium", "up")
    assert second.target().store.choices() == {"ORCHEO_DB_SIZE": "medium", "ORCHEO_DB_PORT": str(port)}
    bare = {key: value for key, value in second.env.items() if key != "ORCHEO_DB_PORT"}
    for arguments in (["up"], ["doctor"], ["dsn"]):
        done = subprocess.run([PROGRAM, *arguments], env=bare, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert arguments != ["up"] or "Nothing changed." in done.stderr
    assert f"localhost:{port}/" in done.stdout
    with psycopg.connect(done.stdout.strip()) as connection:
        assert connection.execute("SHOW shared_buffers").fetchone() == ("2GB",)


@pytest.mark.disruptive
def test_destroy_keeps_what_is_not_ours(second: Installation):
    second.ok("up")
    (second.state / "precious.txt").write_text("mine")
    second.ok("destroy", "--confirm", "yes")
    assert [entry.name for entry in second.state.iterdir()] == ["precious.txt"]
    ran = second.run("up")
    assert ran.code == 2 and "not this toolkit's (precious.txt)" in ran.message


@pytest.mark.disruptive
def test_destroy_names_what_goes_and_asks(second: Installation):
    second.ok("up")
    ran = second.run("destroy")
    assert ran.code == 2
    target = second.target()
    assert (
        f"volume {target.volume}" in ran.message and str(second.state) in ran.message and "CONFIRM=yes" in ran.message
    )
    assert second.ok("status", "--json").json["ok"]
    second.ok("destroy", "--confirm", "yes")
    assert containers(second.project) == [] and not target.volume_exists() and not second.state.exists()
    assert "Nothing of project" in second.ok("destroy").stdout


@pytest.mark.disruptive
def test_a_changed_setting_reaches_the_server(second: Installation, tmp_path):
    """A spec with another setting: `up` says what it restarts, the server has it, doctor agrees, and rows are kept."""
    second.ok("up")
    with psycopg.connect(second.target().dsn()) as connection:
        connection.execute("CREATE TABLE kept_probe AS SELECT 42 AS answer")
    text = (ROOT / "ops" / "spec.toml").read_text()
    assert "\n[settings]\n" in text
    (tmp_path / "spec.toml").write_text(
        text.replace("\n[settings]\n", '\n[settings]\nlog_min_duration_statement = "123ms"\n')
    )
    second.extra = {"ORCHEO_DB_SPEC": str(tmp_path / "spec.toml")}
    changed = second.ok("up", "--json").json["changed"]
    assert "postgres restarted" in changed and "pgbouncer restarted" not in changed
    with psycopg.connect(second.target().dsn()) as connection:
        assert connection.execute("SHOW log_min_duration_statement").fetchone() == ("123ms",)
        assert connection.execute("SELECT answer FROM kept_probe").fetchone() == (42,)
    second.ok("doctor")
