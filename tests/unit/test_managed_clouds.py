"""Calls for a drill of a managed instance: what each cloud's command line is asked, in which order, and what its answers lead to.

Against RDS they are made in tests/compose/test_managed_drill.py. gcloud and az are not to be had here: what they answer is written down from
their reference, and nothing but that is tried.
"""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.managed import drill
from orcheo_db.managed.clouds import Copy, cloud
from orcheo_db.managed.shell import CallFailed, Shell

CLOUDS = "orcheo_db.managed.clouds"
AT = datetime(2026, 7, 1, 2, 15, 7, tzinfo=UTC)
COPY = "orcheo-db-drill-20260701021507"
SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
SERVERS = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/data/providers/Microsoft.DBforPostgreSQL/flexibleServers"
INSTANCES = {
    "rds": "arn:aws:rds:eu-central-1:123456789012:db:orcheo-db",
    "cloudsql": "projects/some-project/instances/orcheo-db",
    "azure": f"{SERVERS}/orcheo-db",
}
# What changes something, in order.
CHANGES = {
    "rds": [f"rds restore-db-instance-to-point-in-time --source-db-instance-identifier orcheo-db --target-db-instance-identifier {COPY} --restore-time 2026-07-01T02:15:07Z", f"rds delete-db-instance --db-instance-identifier {COPY} --skip-final-snapshot"],
    "cloudsql": [f"sql instances clone orcheo-db {COPY} --point-in-time 2026-07-01T02:15:07Z", f"sql instances patch {COPY} --no-deletion-protection", f"sql instances patch {COPY} --no-deletion-protection", f"sql instances delete {COPY}"],
    "azure": [f"postgres flexible-server restore --name {COPY} --source-server orcheo-db --restore-time 2026-07-01T02:15:07Z", f"postgres flexible-server delete --name {COPY} --yes"],
}  # fmt: skip


class Answers(Shell):
    """Answers by the call's first words after the program; a list is answered one after the other, an exception raised."""

    def __init__(self, **answers: Any) -> None:
        super().__init__(lambda text: None)
        self.answers = answers

    def _call(self, argv: Any, sample: Any, *, tell: bool) -> Any:
        self.calls.append(" ".join(argv))
        answer = next(found for name, found in self.answers.items() if name in "_".join(argv).replace("-", "_"))
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(f"{CLOUDS}.time", SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic))


@pytest.mark.parametrize("key", sorted(INSTANCES))
def test_a_dry_run_makes_no_call_and_shows_all(key, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    heard: list[str] = []
    shell = Shell(heard.append, dry=True)
    drill.show(cloud(INSTANCES[key], shell), AT)
    assert heard == shell.calls and len(heard) > len(CHANGES[key])
    rest = iter(heard)
    for wanted in CHANGES[key]:
        assert any(wanted in call for call in rest), f"{wanted} is not there, or not in its place: {heard}"
    changing = [call for call in heard if any(verb in call for verb in (" restore", " clone", " patch", " delete"))]
    assert len(changing) == len(CHANGES[key]), "and nothing else changes anything"


@pytest.mark.parametrize(
    "identifier",
    [
        "orcheo-db",
        "",
        "arn:aws:rds:eu-central-1:123456789012:cluster:orcheo-db",
        "arn:aws:rds:eu-central-1:123456789012:db:orcheo-db; rm -rf /",
        "projects/p/instances/--quiet",
        "some-project:europe-west1:orcheo-db",
        f"{SERVERS}/",
    ],
)
def test_what_names_no_instance_is_refused(identifier):
    with pytest.raises(UserError, match="names no managed instance: give arn:aws:rds"):
        cloud(identifier, Shell(lambda text: None))


@pytest.mark.parametrize("key", sorted(INSTANCES))
@pytest.mark.parametrize(
    "name", ["orcheo-db", "orcheo-db-replica-1", "orcheo-db-drill-", "other-drill-20260701021507", f"{COPY}0"]
)
def test_only_a_drills_copy_is_ever_deleted(key, name):
    shell = Answers()
    with pytest.raises(UserError, match="is no copy that a drill of orcheo-db made"):
        cloud(INSTANCES[key], shell).remove(name)
    assert shell.calls == []


def test_what_earlier_drills_left_is_found_among_others():
    names = ["orcheo-db", COPY, "orcheo-db-replica-1", "other-drill-20260701021507"]
    listed = {
        "rds": Answers(rds={"DBInstances": [{"DBInstanceIdentifier": name} for name in names]}),
        "cloudsql": Answers(gcloud=[[{"name": name} for name in names]]),
        "azure": Answers(az=[[{"name": name} for name in names]]),
    }
    for key, shell in listed.items():
        assert cloud(INSTANCES[key], shell).copies() == [COPY]


def test_cloud_sql_waits_and_reaches_a_copy_by_its_own_authority():
    """Its settings are the original's: a copy that wants clients' certificates, and is protected, could be neither read nor removed."""
    shell = Answers(
        get_latest=[{"latestRecoveryTime": "2026-07-01T02:14:00.5Z"}, None, {"latestRecoveryTime": "2026-07-01T02:15:08.25Z"}],
        describe=[{"state": "PENDING_CREATE"}, {"state": "RUNNABLE", "ipAddresses": [{"type": "OUTGOING", "ipAddress": "192.0.2.1"}, {"type": "PRIVATE", "ipAddress": "10.0.0.9"}], "serverCaCert": {"cert": "PEM"}}],
        patch={},
    )  # fmt: skip
    found = cloud(INSTANCES["cloudsql"], shell)
    found.wait_restorable(AT)
    assert len(shell.calls) == 3
    found.wait_copy(COPY)
    assert found.settle(COPY) == Copy("10.0.0.9", 5432, "PEM")
    (patched,) = [call for call in shell.calls if " patch " in call]
    assert "--ssl-mode=ENCRYPTED_ONLY" in patched and "--no-deletion-protection" in patched
    assert "--no-final-backup" in patched and "--no-retain-backups-on-delete" in patched, (
        "each would be a copy of production that stays"
    )


def test_a_copy_of_its_own_authority_is_not_shown_productions_client_certificate(monkeypatch: pytest.MonkeyPatch):
    seen: list[dict[str, Any]] = []

    def connect(dsn: str, *, timeout: float) -> Any:
        seen.append(conninfo_to_dict(dsn))
        return contextlib.nullcontext()

    monkeypatch.setattr(drill, "connect", connect)
    production = "host=db port=5432 user=u sslmode=verify-ca sslrootcert=/ca.pem sslcert=/client.crt sslkey=/client.key"
    given: Any = SimpleNamespace(
        tier=SimpleNamespace(dsn=lambda *, direct: production), timed=lambda name: contextlib.nullcontext(), heard=print
    )
    with drill._connected(given, Copy("10.0.0.9", 5432, "PEM")):
        pass
    assert seen[0]["sslcertmode"] == "disable" and not seen[0].get("sslcert") and seen[0]["sslmode"] == "verify-ca"
    with drill._connected(given, Copy("10.0.0.9", 5432)):
        pass
    assert seen[1]["sslcert"] == "/client.crt"


def test_a_copy_without_a_private_address_is_said():
    shell = Answers(patch={}, describe={"ipAddresses": [], "serverCaCert": {"cert": "PEM"}})
    with pytest.raises(CheckFailed, match=f"{COPY} has no private address"):
        cloud(INSTANCES["cloudsql"], shell).settle(COPY)


def test_azure_restores_into_the_originals_network_and_waits_for_its_archive():
    network = {"delegatedSubnetResourceId": "/subnet", "privateDnsZoneArmResourceId": "/zone"}
    shell = Answers(
        restore={},
        show={"state": "Ready", "network": network, "fullyQualifiedDomainName": "copy.postgres.database.azure.com"},
    )
    found = cloud(INSTANCES["azure"], shell)
    found.restore(COPY, AT)
    assert "--subnet /subnet --private-dns-zone /zone" in shell.calls[-1]
    assert found.settle(COPY) == Copy("copy.postgres.database.azure.com", 5432)
    now = datetime.now(UTC)
    newest = found.restorable(now)
    assert newest is not None and now - newest >= timedelta(minutes=5), "Azure documents five minutes"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"DBInstances": [{}]}, "nothing: are its backups off?"),
        ({"DBInstances": [{"LatestRestorableTime": "2026-07-01T02:10:00Z"}]}, "only up to 2026-07-01T02:10:00Z"),
    ],
)
def test_what_never_becomes_restorable_is_said(answer, said, monkeypatch):
    ticks = iter(range(0, 100_000, 600))
    monkeypatch.setattr(f"{CLOUDS}.time.monotonic", lambda: float(next(ticks)))
    with pytest.raises(CheckFailed, match="RDS can't restore orcheo-db to 2026-07-01T02:15:07Z: ") as error:
        cloud(INSTANCES["rds"], Answers(describe=answer)).wait_restorable(AT)
    assert said in str(error.value)


def test_a_copy_that_never_comes_is_said(monkeypatch):
    ticks = iter(range(0, 100_000, 3600))
    monkeypatch.setattr(f"{CLOUDS}.time.monotonic", lambda: float(next(ticks)))
    shell = Answers(describe={"DBInstances": [{"DBInstanceStatus": "creating"}]})
    with pytest.raises(CheckFailed, match=f"RDS has not made {COPY} after 3 hours: it is creating"):
        cloud(INSTANCES["rds"], shell).wait_copy(COPY)


def test_the_command_lines_own_words_are_passed_on(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    shell = Shell(lambda text: None)
    with pytest.raises(UserError, match="`aws` is not on this machine"):
        shell.ask(["aws", "rds", "describe-db-instances"], None)
    program = tmp_path / "aws"
    for script, said in (
        ("echo; echo 'An error occurred (AccessDenied): no' >&2; echo >&2; exit 254", r"`aws rds describe-db-instances …`: An error occurred \(AccessDenied\): no"),
        ("exit 1", "it said nothing"),
        ("echo no json", "did not answer in JSON: 'no json"),
    ):  # fmt: skip
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        with pytest.raises(CallFailed, match=said):
            shell.ask(["aws", "rds", "describe-db-instances"], None)
