"""A restored copy is production at one moment: proven against a real server that sixteen clients write to, and against bad copies.

The server is a scratch one, in one container of its own with the copies beside it. `commit_delay` holds every commit for some milliseconds
between its record in the WAL and its end, so that each moment has transactions in between, which a fast disk would make rare.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest

from orcheo_db.backup import digest, moment
from orcheo_db.errors import UserError
from tests.conftest import free_port

IMAGE = "orcheo-db/postgres:17-0.1.0"
NAME = "orcheo-db-test-moment"
CLIENTS = 16
SCHEMA = """
CREATE TABLE parent (id int PRIMARY KEY, note text NOT NULL, n int NOT NULL DEFAULT 0);
CREATE TABLE child (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, parent int REFERENCES parent, body text, at timestamptz DEFAULT now());
CREATE TABLE log (body text, amount float8, doc jsonb, raw bytea, span interval);
CREATE TABLE still (id int PRIMARY KEY, body text);
CREATE TABLE parts (id bigint, body text) PARTITION BY HASH (id);
CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE large (id int, body text);
CREATE TABLE emptied (id int);
CREATE UNLOGGED TABLE unlogged (id int);
CREATE SCHEMA orcheo_db;
CREATE TABLE orcheo_db.markers (id text PRIMARY KEY);
INSERT INTO parent SELECT g, 'parent ' || g FROM generate_series(1, 200) g;
INSERT INTO child (parent, body) SELECT g % 200 + 1, 'child ' || g FROM generate_series(1, 2000) g;
INSERT INTO still SELECT g, 'needle-' || g FROM generate_series(1, 5000) g;
INSERT INTO large SELECT g, repeat('x', 400) || g FROM generate_series(1, 30000) g;
INSERT INTO log SELECT 'row ' || g, random(), jsonb_build_object('g', g), decode(repeat('ab', g % 5000), 'hex'), g * interval '1s' FROM generate_series(1, 500) g;
CREATE ROLE drill LOGIN;
GRANT pg_read_all_data TO drill;
GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO drill;
VACUUM ANALYZE;
"""
SETTINGS = """listen_addresses = '*'
unix_socket_directories = '/scratch'
max_prepared_transactions = 40
max_connections = 60
shared_buffers = 64MB
archive_mode = on
archive_command = 'test ! -f /scratch/archive/%f && cp %p /scratch/archive/%f'
commit_delay = 20000
commit_siblings = 0
deadlock_timeout = 100ms
autovacuum_naptime = 1s
"""


@dataclass
class Scratch:
    """One container: production on port 5432, one copy at a time on 5433."""

    port: int
    copy_port: int
    moments: list[moment.Moment] = field(default_factory=list)

    def sh(self, script: str) -> str:
        done = subprocess.run(["docker", "exec", NAME, "sh", "-euc", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def connect(self, user: str = "postgres", *, copy: bool = False) -> psycopg.Connection[Any]:
        port = self.copy_port if copy else self.port
        return psycopg.connect(
            f"host=127.0.0.1 port={port} user={user} dbname=postgres connect_timeout=10", autocommit=True
        )

    def archive(self) -> None:
        """Close the WAL's segment, and wait until it is in the archive."""
        with self.connect() as conn:
            # The segment of a record of our own: after the switch somebody may have written into the next one already.
            row = conn.execute("SELECT pg_walfile_name(pg_logical_emit_message(false, 'test', 'end'))").fetchone()
            conn.execute("SELECT pg_switch_wal()")
            conn.execute("CHECKPOINT")
        assert row
        self.sh(f"i=0; until [ -f /scratch/archive/{row[0]} ]; do sleep 0.1; i=$((i+1)); [ $i -lt 300 ]; done")

    @contextlib.contextmanager
    def restored(self, target: str, tamper: str = "") -> Iterator[psycopg.Connection[Any]]:
        """A copy of the base backup recovered to `target`; `tamper` is a script run on its files while it is stopped."""
        options = f"recovery_target_name = '{target}'\\nrecovery_target_action = promote\\nrestore_command = 'cp /scratch/archive/%%f %%p'\\n"
        options += "autovacuum = off\\narchive_mode = off\\nport = 5433\\ncommit_delay = 0\\n"
        start = "pg_ctl -D /scratch/copy -l /scratch/copy.log -w -t 120 start >/dev/null || { cat /scratch/copy.log >&2; exit 1; }"
        until = "until [ $(psql -XAtq -h /scratch -p 5433 -c 'SELECT pg_is_in_recovery()' postgres) = f ]; do sleep 0.1; done"
        self.sh(
            "rm -rf /scratch/copy /scratch/copy.log; cp -a /scratch/base /scratch/copy; touch /scratch/copy/recovery.signal;"
            f' printf "{options}" >> /scratch/copy/postgresql.conf; {start}; {until}'
        )
        try:
            if tamper:
                self.sh(f"pg_ctl -D /scratch/copy -m fast -w stop >/dev/null; cd /scratch/copy; {tamper}; {start}")
            with self.connect(copy=True) as conn:
                yield conn
        finally:
            self.sh("pg_ctl -D /scratch/copy -m immediate -w stop >/dev/null; rm -rf /scratch/copy")


class Load:
    """Clients that write all the time, each in its own way at each step."""

    def __init__(self, scratch: Scratch) -> None:
        self.scratch, self.end, self.done, self.errors = scratch, threading.Event(), 0, list[str]()
        self.threads = [threading.Thread(target=self._client, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        for thread in self.threads:
            thread.join(60)

    def _client(self, number: int) -> None:
        dice = random.Random(number)
        steps = [
            self._insert,
            self._insert,
            self._update,
            self._delete,
            self._lock,
            self._savepoints,
            self._roll_back,
            self._prepared,
            self._truncate,
            self._tables,
        ]
        with self.scratch.connect() as conn:
            while not self.end.is_set():
                try:
                    dice.choice(steps)(conn, dice)
                    self.done += 1
                except (psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable):
                    conn.execute("ROLLBACK")
                except Exception as error:
                    self.errors.append(repr(error))
                    return

    def _insert(self, conn: psycopg.Connection[Any], dice: random.Random) -> None:
        conn.execute(
            "INSERT INTO child (parent, body) VALUES (%s, %s)", (dice.randint(1, 200), "x" * dice.randint(1, 3000))
        )
        conn.execute("INSERT INTO parts SELECT g, 'p' || g FROM generate_series(1, 3) g")

    def _update(self, conn: psycopg.Connection[Any], dice: random.Random) -> None:
        conn.execute("UPDATE parent SET n = n + 1 WHERE id = %s", (dice.randint(1, 200),))
        conn.execute(
            "UPDATE log SET amount = random(), span = span * 1.01 WHERE body = %s", (f"row {dice.randint(1, 500)}",)
        )

    def _delete(self, conn: psycopg.Connection[Any], dice: random.Random) -> None:
        conn.execute(
            "DELETE FROM child WHERE id IN (SELECT id FROM child WHERE parent = %s LIMIT 2 FOR UPDATE SKIP LOCKED)",
            (dice.randint(1, 200),),
        )

    def _lock(self, conn: psycopg.Connection[Any], dice: random.Random) -> None:
        """Several lock the same few rows, and some change them without their key: multixacts with and without an update."""
        with conn.transaction():
            conn.execute("SET LOCAL lock_timeout = '300ms'")
            mode = dice.choice(["KEY SHARE", "SHARE", "KEY SHARE", "UPDATE", "NO KEY UPDATE"])
            conn.execute(f"SELECT FROM parent WHERE id = %s FOR {mode}", (dice.randint(1, 5),))
            conn.execute("SELECT FROM still WHERE id = %s FOR KEY SHARE", (dice.randint(1, 20),))
            conn.execute("UPDATE parent SET n = n + 1 WHERE id = %s", (dice.randint(1, 5),))

    def _savepoints(self, conn: psycopg.Connection[Any], dice: random.Random) -> None:
        with conn.transaction():
            for _ in range(dice.choice([1, 3, 3, 70])):  # beyond 64 the list of running subtransactions overflows
                with contextlib.suppress(ZeroDivisionError), conn.transaction():
                    conn.execute("INSERT INTO log (body) VALUES ('in a savepoint')")
                    conn.execute("UPDATE parent SET note = note || '.' WHERE id = %s", (dice.randint(100, 200),))
                    if dice.random() < 0.2:
                        raise ZeroDivisionError

    def _roll_back(self, conn: psycopg.Connection[Any], dice: random.Random) -> None:
        with contextlib.suppress(ZeroDivisionError), conn.transaction():
            conn.execute("UPDATE parent SET n = -1 WHERE id = %s", (dice.randint(1, 200),))
            conn.execute("DELETE FROM child WHERE parent = %s", (dice.randint(1, 200),))
            raise ZeroDivisionError

    def _prepared(self, conn: psycopg.Connection[Any], dice: random.Random) -> None:
        name = f"p{threading.get_ident()}"
        conn.execute("BEGIN")
        conn.execute("UPDATE log SET body = body WHERE body = %s", (f"row {dice.randint(1, 500)}",))
        conn.execute("INSERT INTO log (body) VALUES ('prepared')")
        conn.execute(f"PREPARE TRANSACTION '{name}'")
        time.sleep(dice.random() * 0.2)
        conn.execute(f"{dice.choice(['COMMIT', 'ROLLBACK'])} PREPARED '{name}'")

    def _truncate(self, conn: psycopg.Connection[Any], dice: random.Random) -> None:
        if dice.random() < 0.1:
            conn.execute("TRUNCATE emptied")
        conn.execute("INSERT INTO emptied SELECT generate_series(1, 5)")

    def _tables(self, conn: psycopg.Connection[Any], dice: random.Random) -> None:
        if dice.random() < 0.1:
            name = f"own_{threading.get_ident()}"
            conn.execute(f"DROP TABLE IF EXISTS {name}")
            conn.execute(f"CREATE TABLE {name} AS SELECT generate_series(1, 5) AS id")


@pytest.fixture(scope="module")
def server(docker_ready: None) -> Iterator[Scratch]:
    """An empty production with its archive, in memory."""
    scratch = Scratch(free_port(), free_port())
    subprocess.run(["docker", "rm", "--force", "--volumes", NAME], capture_output=True)
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True).returncode:
        pytest.skip(f"{IMAGE} is not built")
    argv = [
        "docker",
        "run",
        "--detach",
        "--init",
        "--name",
        NAME,
        "--user=999:999",
        "--tmpfs=/scratch:uid=999,gid=999,mode=0700,size=4g",
    ]
    argv += [
        f"--publish=127.0.0.1:{scratch.port}:5432",
        f"--publish=127.0.0.1:{scratch.copy_port}:5433",
        "--entrypoint=sleep",
        IMAGE,
        "infinity",
    ]
    try:
        subprocess.run(argv, check=True, capture_output=True)
        scratch.sh("mkdir /scratch/archive; initdb -D /scratch/data -E UTF8 --locale=C.UTF-8 --auth=trust >/dev/null")
        scratch.sh(f'cat >> /scratch/data/postgresql.conf <<"X"\n{SETTINGS}X\n')
        scratch.sh(
            "echo 'host all all all trust' >> /scratch/data/pg_hba.conf; pg_ctl -D /scratch/data -l /scratch/log -w start >/dev/null"
        )
        yield scratch
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", NAME], capture_output=True)


@contextlib.contextmanager
def slow_to_begin(seconds: float) -> Iterator[None]:
    """Time between the look at what runs and the snapshot: transactions begin and end there, and S sees them."""
    look = moment._running

    def slow(conn: psycopg.Connection[Any]) -> tuple[int, list[int]]:
        found = look(conn)
        time.sleep(seconds)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moment, "_running", slow)
        yield


@pytest.fixture(scope="module")
def production(server: Scratch) -> Scratch:
    """Production with a base backup and five moments, taken while everybody wrote and with the drill's own role."""
    with server.connect() as conn:
        for statement in SCHEMA.split(";\n"):
            if statement.strip():
                conn.execute(statement)
    server.sh("pg_basebackup -h /scratch -D /scratch/base -c fast -X none")
    with server.connect() as conn, server.connect("drill") as drill, Load(server) as load:
        time.sleep(1.5)
        conn.execute("SELECT pg_create_restore_point('before')")
        for number in range(5):
            conn.execute("INSERT INTO orcheo_db.markers VALUES (%s)", (f"A{number}",))

            def marker(number: int = number) -> None:
                conn.execute("INSERT INTO orcheo_db.markers VALUES (%s)", (f"B{number}",))

            budget = 4 << 20 if number % 2 else moment.BUDGET
            with slow_to_begin(0.2 if number % 2 else 0.0):
                taken = moment.take(
                    drill, f"R{number}", budget_bytes=budget, seed=str(number), after_restore_point=marker
                )
            server.moments.append(moment.Moment.from_json(taken.to_json()))
            time.sleep(0.3)
    assert not load.errors
    assert load.done > 200
    with server.connect() as conn:
        conn.execute("SELECT pg_create_restore_point('after')")
    server.archive()
    return server


def show(found: digest.Comparison, taken: moment.Moment) -> None:
    window = taken.window
    print(
        f"{taken.name}: take {taken.seconds} s, compare {found.seconds} s, {found.rows_compared} rows, {found.bytes_compared} bytes,"
        f" {found.committed_in_the_moment} committed and {found.replaced_in_the_moment} replaced in the moment,"
        f" window {window.next - window.base}, listed {len(window.listed)}, running {len(window.running)},"
        f" moving {sum(len(p.moving) for t in taken.tables for p in t.pieces)}, seen {len(taken.seen)},"
        f" {len(taken.to_json())} characters; {found.notes}; {found.problems}"
    )


def test_an_honest_copy_of_every_moment_passes(production: Scratch) -> None:
    beyond = replaced = 0
    for taken in production.moments:
        with production.restored(taken.name) as copy:
            found = digest.compare(copy, taken)
            markers = {str(row[0]) for row in copy.execute("SELECT id FROM orcheo_db.markers")}
        show(found, taken)
        assert found.ok, found.problems
        assert f"A{taken.name[1:]}" in markers
        assert f"B{taken.name[1:]}" not in markers
        tables = {one.table: one for one in found.tables}
        assert tables["public.still"].rows == 5000
        assert any("public.unlogged" in note for note in found.notes)
        large = next(table for table in taken.tables if table.name == "large")
        assert large.whole == (taken.seed in "024")
        assert 0 < tables["public.large"].blocks_compared <= large.blocks
        assert bool(taken.seen) >= (taken.seed in "13"), "no transaction was unsure and visible"
        beyond += found.committed_in_the_moment
        replaced += found.replaced_in_the_moment
    assert beyond > 0, "no transaction stood between S and R: the test proves less than it should"
    assert replaced > 0


BETWEEN = """
CREATE TABLE a AS SELECT g AS id, 'row ' || g AS body FROM generate_series(1, 10) g;
ALTER TABLE a ADD PRIMARY KEY (id);
CREATE TABLE dying AS SELECT 1 AS id;
CREATE TABLE hollow AS SELECT 1 AS id;
CREATE TABLE changing AS SELECT 1 AS id, 2 AS other;
CREATE TABLE wider AS SELECT 1 AS id;
"""
INSIDE = (
    "BEGIN; INSERT INTO a VALUES (11, 'top'); SAVEPOINT s; INSERT INTO a VALUES (12, 'sub'), (13, 'sub'); UPDATE a SET body = 'new' WHERE id = 1;"
    "RELEASE s; SAVEPOINT s; DELETE FROM a WHERE id = 2; ROLLBACK TO s; SAVEPOINT t; DELETE FROM a WHERE id = 3; SAVEPOINT u;"
    "SELECT FROM a WHERE id = 4 FOR UPDATE; UPDATE a SET body = 'new' WHERE id = 5; RELEASE u; RELEASE t"
)
TABLES = "BEGIN; CREATE TABLE born AS SELECT 1 AS id; DROP TABLE dying; TRUNCATE hollow; ALTER TABLE changing DROP COLUMN other"


@contextlib.contextmanager
def waiting_commits(server: Scratch, *scripts: str) -> Iterator[None]:
    """Transactions whose commit is in the WAL and which nobody sees yet: they wait for a synchronous standby that doesn't exist."""
    with server.connect() as conn:
        conn.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        conn.execute("SELECT pg_reload_conf()")
        sessions = [server.connect() for _ in scripts]
        for session, script in zip(sessions, scripts, strict=True):
            session.execute(script)
        threads = [threading.Thread(target=session.execute, args=("COMMIT",)) for session in sessions]
        for thread in threads:
            thread.start()
        waiting = "SELECT count(*) = %s FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        while not (conn.execute(waiting, (len(scripts),)).fetchone() or [False])[0]:
            time.sleep(0.05)
        try:
            yield
        finally:
            conn.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            for thread in threads:
                thread.join(20)
            conn.execute("ALTER SYSTEM RESET synchronous_standby_names")
            conn.execute("SELECT pg_reload_conf()")


def test_a_transaction_between_its_record_and_its_end_is_known_exactly(
    production: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moment, "ATTEMPTS", 1)
    with (
        production.connect() as conn,
        production.connect() as locker,
        production.connect() as open_one,
        production.connect("drill") as drill,
    ):
        conn.execute(BETWEEN)
        conn.execute("SET synchronous_commit = local")
        locker.execute("BEGIN; SELECT FROM a WHERE id = 1 FOR KEY SHARE")  # with the update of row 1: a multixact
        open_one.execute("BEGIN; UPDATE a SET body = 'never' WHERE id = 6; SAVEPOINT s; DELETE FROM a WHERE id = 7")

        def widen() -> None:
            conn.execute("ALTER TABLE wider ADD extra int DEFAULT 7")

        with waiting_commits(production, INSIDE, TABLES):
            taken = moment.take(drill, "between", after_restore_point=widen)
        open_one.execute("ROLLBACK")
        locker.execute("ROLLBACK")
        conn.execute("UPDATE a SET body = 'later'")
    production.archive()
    with production.restored("between") as copy:
        found = digest.compare(copy, taken)
        naive = digest.compare(copy, replace(taken, window=replace(taken.window, running=[], fresh=taken.window.xmax)))
    show(found, taken)
    assert found.ok, found.problems
    tables = {one.table: one for one in found.tables}
    assert (tables["public.a"].committed_in_the_moment, tables["public.a"].replaced_in_the_moment) == (5, 3)
    assert tables["public.a"].rows == 7
    assert tables["public.wider"].rows == 1
    assert all("locked" in tables[f"public.{name}"].note for name in ("dying", "hollow", "changing"))
    assert tables["pg_catalog.pg_class"].committed_in_the_moment > 0
    assert any("public.a: " in problem for problem in naive.problems), (
        "subtransactions make no difference: the test proves nothing"
    )


def burn(copy: psycopg.Connection[Any], taken: moment.Moment) -> None:
    """Use up transaction ids, so that what is changed now can't be taken for what was written in the moment."""
    while (copy.execute("SELECT pg_current_xact_id()::text::bigint").fetchone() or [0])[0] <= taken.window.next:
        pass


BAD: dict[str, tuple[str, str]] = {
    "a row deleted": ("DELETE FROM still WHERE id = 4000", "public.still: blocks|rows, and production had"),
    "a byte of a row": ("UPDATE still SET body = 'needle-4OOO' WHERE id = 4000", "public.still: blocks|rows are not production's"),
    "a row twice": ("INSERT INTO log SELECT * FROM log LIMIT 1", "public.log: blocks|rows, and production had"),
    "an older value": ("UPDATE parent SET n = n - 1 WHERE id = (SELECT id FROM parent WHERE n > 0 LIMIT 1)", "public.parent: blocks"),
    "a table dropped": ("DROP TABLE still", "public.still: is not there|pg_catalog.pg_class"),
    "a table emptied": ("TRUNCATE still", "public.still: was rewritten"),
    "a column changed": ("ALTER TABLE still ALTER body SET NOT NULL", "pg_catalog.pg_attribute: blocks"),
    "a sequence set back": ("SELECT setval('child_id_seq', 5)", "public.child_id_seq: the sequence is at 5"),
}  # fmt: skip


def test_what_was_changed_is_found_and_named(production: Scratch) -> None:
    taken = production.moments[0]
    for what, (statement, named) in BAD.items():
        with production.restored(taken.name) as copy:
            burn(copy, taken)
            copy.execute(statement)
            found = digest.compare(copy, taken)
        print(what, found.problems)
        assert not found.ok, what
        for part in named.split("|"):
            assert any(part in problem for problem in found.problems), (what, found.problems)


def test_damaged_files_are_found(production: Scratch) -> None:
    """Bytes changed below PostgreSQL: one letter of a row, and a block as the base backup had it (a lost write)."""
    taken = production.moments[0]
    with production.connect() as conn:
        paths = {
            name: (conn.execute("SELECT pg_relation_filepath(%s)", (name,)).fetchone() or [""])[0]
            for name in ("still", "parent")
        }
    letter = f"python3 -c \"p='{paths['still']}'; d=open(p,'rb').read(); assert d.count(b'needle-4000')==1; open(p,'wb').write(d.replace(b'needle-4000', b'needle-4O00'))\""
    block = f"dd if=/scratch/base/{paths['parent']} of={paths['parent']} bs=8192 count=1 conv=notrunc status=none"
    lost = f"python3 -c \"p='{paths['parent']}'; d=open(p,'rb').read(); open(p,'wb').write(bytes(8192)+d[8192:])\""
    for tamper, table in ((letter, "still"), (block, "parent"), (lost, "parent")):
        with production.restored(taken.name, tamper) as copy:
            found = digest.compare(copy, taken)
        print(found.problems)
        assert [problem.split(":")[0] for problem in found.problems] == [f"public.{table}"]


def test_another_point_than_the_moments_is_refused(production: Scratch) -> None:
    taken = production.moments[2]
    for target in ("before", "R1", "R3", "after"):
        with production.restored(target) as copy:
            found = digest.compare(copy, taken)
        assert f'(at restore point "{target}"), not to restore point "R2"' in found.problems[0]
        if target in ("before", "R1"):
            assert len(found.problems) > 1  # rows are missing as well
    found = digest.compare(production.connect(), taken)
    assert 'recovered to no point (it has no history), not to restore point "R2"' in found.problems[0]


def test_a_locked_or_dropped_table_does_not_hang(production: Scratch) -> None:
    with production.connect() as conn, production.connect("drill") as drill:
        conn.execute(
            "CREATE TABLE held AS SELECT 1 AS id; CREATE TABLE going AS SELECT 1 AS id; CREATE TABLE void AS SELECT 1 AS id"
        )

        def meanwhile() -> None:
            conn.execute("DROP TABLE going; TRUNCATE void")
            conn.execute("BEGIN")
            conn.execute("LOCK TABLE held")

        started = time.monotonic()
        taken = moment.take(drill, "locked", after_restore_point=meanwhile)
        conn.execute("ROLLBACK")
        assert time.monotonic() - started < 15
        assert drill.info.transaction_status.name == "IDLE"
    notes = {table.name: table.note for table in taken.tables}
    assert "locked" in notes["held"]
    assert "dropped" in notes["going"]
    assert "truncated" in notes["void"]
    assert notes["still"] == ""


def test_the_role_needs_its_two_privileges(production: Scratch) -> None:
    with production.connect() as conn:
        conn.execute("CREATE ROLE nobody LOGIN")
        with production.connect("nobody") as nobody, pytest.raises(UserError, match="pg_read_all_data and EXECUTE"):
            moment.take(nobody, "denied")
        with pytest.raises(UserError, match="no restore point"):
            moment.take(conn, "x" * 64)


def test_many_rows_in_motion_are_left_out_and_said(production: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moment, "MOST_MOVING", 100)
    with production.connect() as conn, production.connect("drill") as drill:
        conn.execute("BEGIN")
        conn.execute("UPDATE still SET body = body || '!'")
        taken = moment.take(drill, "bulk")
        conn.execute("ROLLBACK")
    still = next(table for table in taken.tables if table.name == "still")
    assert "too many of their rows were being changed" in still.note
