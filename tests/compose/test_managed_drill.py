"""`orcheo-db --target external drill`: RDS' calls against moto, the content against a real PostgreSQL that is restored as RDS would."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orcheo_db.backup import evidence
from tests import tools
from tests.compose.outside_server import Outside
from tests.conftest import PROGRAM, ROOT, Installation
from tests.terraform import aws as aws_in_memory

REGION = "eu-central-1"
NAME = "orcheo-db"


@dataclass
class Service:
    """RDS as far as the drill sees it: moto answers the calls, and whoever restores gets a real copy of `outside`."""

    outside: Outside
    environment: dict[str, str]
    log: Path  # every call of the command line, a line each
    base: Path
    change: str = ""
    idle: bool = False  # no copy is made
    restored: list[str] = field(default_factory=list)
    copies: list[Path] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)

    def aws(self, *words: str) -> Any:
        argv = [str(tools.aws()), *words, "--region", REGION, "--output", "json"]
        done = subprocess.run(argv, env=os.environ | self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    def instances(self) -> list[str]:
        return sorted(each["DBInstanceIdentifier"] for each in self.aws("rds", "describe-db-instances")["DBInstances"])

    def make_instance(self) -> str:
        subnets = [each["SubnetId"] for each in self.aws("ec2", "describe-subnets")["Subnets"]]
        self.aws("rds", "create-db-subnet-group", "--db-subnet-group-name", NAME, "--db-subnet-group-description", "x", "--subnet-ids", *subnets)  # fmt: skip
        family = ("--db-parameter-group-family", "postgres17", "--description", "x")
        self.aws("rds", "create-db-parameter-group", "--db-parameter-group-name", f"{NAME}-1", *family)
        made = self.aws(
            "rds", "create-db-instance", "--db-instance-identifier", NAME, "--engine", "postgres", "--db-instance-class", "db.t4g.small", "--allocated-storage", "20",
            "--master-username", "orcheo_admin", "--master-user-password", "probe-only", "--db-subnet-group-name", NAME, "--db-parameter-group-name", f"{NAME}-1",
            "--deletion-protection", "--port", "5432", "--backup-retention-period", "7",
        )  # fmt: skip
        arn: str = made["DBInstance"]["DBInstanceArn"]
        return arn

    def watch(self, stop: threading.Event) -> None:
        """Restore whenever a restore has been asked for, as it was asked for; end a copy that is deleted."""
        try:
            while not stop.wait(0.2):
                calls = [shlex.split(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
                asked = [each for each in calls if "restore-db-instance-to-point-in-time" in each]
                for call in asked[len(self.restored) :] if not self.idle else []:
                    self.restored.append(call[call.index("--restore-time") + 1])
                    while self.copies:
                        self.outside.stop_copy(self.copies.pop())
                    self.copies.append(self.outside.start_copy(self.base, self.restored[-1], self.change))
        except BaseException as error:  # said by the test, which is in another thread
            self.failed.append(error)


@pytest.fixture
def service(external: Installation, outside: Outside, tmp_path: Path) -> Iterator[Service]:
    with aws_in_memory.running(tmp_path, f"{outside.address}:{outside.copy_port}") as moto:
        found = Service(outside, moto.environment, tmp_path / "calls.log", tmp_path)
        external.extra = {
            "ORCHEO_DB_ADMIN_DSN": outside.dsn("superuser_admin", "probe-only"), "ORCHEO_DB_INSTANCE": found.make_instance(),
        }  # fmt: skip
        external.ok("up", "--json")
        found.base = outside.base_backup()
        shim = tmp_path / "bin" / "aws"
        shim.parent.mkdir()
        shim.write_text(f'#!/bin/bash\n{{ printf "%q " "$@"; echo; }} >> {found.log}\nexec {tools.aws()} "$@"\n')
        shim.chmod(0o755)
        external.extra = moto.environment | {"PATH": f"{shim.parent}:{os.environ['PATH']}"}
        stop = threading.Event()
        watcher = threading.Thread(target=found.watch, args=(stop,))
        watcher.start()
        try:
            yield found
        finally:
            stop.set()
            watcher.join()
            for copy in found.copies:
                outside.stop_copy(copy)


@contextlib.contextmanager
def writers(dsn: str) -> Iterator[dict[str, int]]:
    """Rows come, change and go meanwhile, in transactions of their own."""
    stop, done = threading.Event(), {"transactions": 0}

    def write(number: int) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            turn = 0
            while not stop.is_set():
                turn += 1
                values = (f"w{number}-{turn}", f"w{number}-{turn - 3}", f"w{number}-{turn - 1}")
                with connection.transaction():
                    connection.execute(
                        "INSERT INTO chat_threads VALUES (%s, 'A thread', NULL, NULL, NULL, '{}', '{}', now(), now())",
                        values[:1],
                    )
                    connection.execute("DELETE FROM chat_threads WHERE id = %s", values[1:2])
                    connection.execute("UPDATE chat_threads SET title = title || '.' WHERE id = %s", values[2:])
                done["transactions"] += 1

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for each in threads:
        each.start()
    try:
        yield done
    finally:
        stop.set()
        for each in threads:
            each.join()


@pytest.mark.disruptive
def test_a_drill_of_a_managed_instance(external: Installation, service: Service, outside: Outside):
    outside.sql(
        "INSERT INTO chat_threads SELECT 'stable-' || i, 'A thread', NULL, NULL, NULL, '{}', '{}', now(), now() FROM generate_series(1, 500) i",
        "orcheo",
    )
    with writers(external.ok("dsn", "--direct").stdout.strip()) as written:
        while written["transactions"] < 50:
            time.sleep(0.1)
        done = external.run("drill", "--json")
    assert not service.failed, service.failed
    assert done.code == 0, done.stderr
    record = done.json
    assert record["result"] == "pass" and record["target"]["service"] == "RDS"
    assert record["target"]["time"] == service.restored[0] and record["rto_seconds"] > 0
    found = {check["name"]: check for check in record["checks"]}
    tables = {each["table"]: each for each in found["content equal to production's"]["tables"]}
    assert tables["public.chat_threads"]["rows"] >= 500 and tables["orcheo_db.installation"]["rows"] == 1
    assert record["sizes"]["committed_in_the_moment"] > 0, "rows of the second in which the writers went on"
    assert found["marker present, later marker absent"]["ok"] and found["the copy is removed"]["ok"]
    assert service.instances() == [NAME], "the copy is gone, the instance is not"
    # A copy that differs by one value of one row is found out, and removed as well.
    service.change = "UPDATE chat_threads SET title = title || '.' WHERE id = (SELECT min(id) FROM chat_threads)"
    refused = external.run("drill", "--json")
    assert refused.code == 1 and "content equal to production's: public.chat_threads" in refused.message, refused.stderr
    assert service.instances() == [NAME]
    # Both are in the evidence, whose chain is whole, and on the page.
    where = external.state / "evidence"
    key = evidence.public_key((external.state / "secrets" / "evidence.key").read_bytes())
    assert [each["result"] for each in evidence.load_all(where)] == ["pass", "fail"] and not evidence.verify(where, key)
    page = external.state.parent / "drills.html"
    external.ok("drill", "--html", str(page))
    assert record["id"] in page.read_text()


@pytest.mark.disruptive
def test_a_drill_that_is_killed_leaves_a_copy_that_is_named_and_removed(external: Installation, service: Service):
    service.idle = True  # the drill waits for it to answer
    argv = [str(PROGRAM), "--target", "external", "drill"]
    with subprocess.Popen(argv, env=external.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while len(service.instances()) < 2:
            time.sleep(0.5)
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    (left,) = [name for name in service.instances() if name != NAME]
    refused = external.run("drill")
    assert refused.code == 2 and f"--remove {left}" in refused.message, refused.stderr
    for words, said in (
        (("--remove", left), f"--confirm {left}"),
        (("--remove", NAME, "--confirm", NAME), "is no copy that a drill of"),
    ):
        refused = external.run("drill", *words)
        assert refused.code == 2 and said in refused.message, refused.stderr
    assert len(service.instances()) == 2
    external.ok("drill", "--remove", left, "--confirm", left)
    assert service.instances() == [NAME]
