"""RDS, Cloud SQL and Azure's flexible server: how one makes, finds and removes a copy of an instance as of a moment.

The instance is named as its cloud names it (an output `identifier` of terraform/modules/):

    arn:aws:rds:REGION:ACCOUNT:db:NAME
    projects/PROJECT/instances/NAME
    /subscriptions/…/resourceGroups/GROUP/providers/Microsoft.DBforPostgreSQL/flexibleServers/NAME
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.managed.shell import CallFailed, Shell

MARK = "-drill-"  # between the instance's name and a drill's time: nothing else is ever deleted
POLL = 20.0  # seconds between two looks: what is waited for takes minutes
RESTORE_SECONDS = 3 * 3600.0
LAG_SECONDS = 20 * 60.0  # until the WAL of a moment can be restored; RDS and Azure say five minutes


@dataclass(frozen=True)
class Copy:
    """A restored copy's address; `ca`: the authority that it must be verified with, where it has one of its own (PEM)."""

    host: str
    port: int
    ca: str | None = None


class Cloud(ABC):
    """One instance of a cloud's, and the calls for a drill with it.

    Args:
        parts: the parts of the instance's identifier (`cloud`).
    """

    title: str

    def __init__(self, shell: Shell, parts: dict[str, str]) -> None:
        self.shell, self.parts = shell, parts
        self.name = parts["name"]

    def copy_name(self, at: datetime) -> str:
        return f"{self.name}{MARK}{at:%Y%m%d%H%M%S}"

    def check_copy(self, name: str) -> None:
        """Raises UserError unless `name` is that of a copy of this instance's."""
        if not re.fullmatch(re.escape(self.name + MARK) + r"\d{14}", name):
            raise UserError(
                f"{name} is no copy that a drill of {self.name} made (those are called {self.name}{MARK}TIME)"
            )

    def wait_restorable(self, at: datetime) -> None:
        """Wait until the WAL of the moment can be restored.

        Raises:
            CheckFailed: it can't, for longer than a service needs.
        """
        end = time.monotonic() + LAG_SECONDS
        while True:
            newest = self.restorable(at)
            if newest is not None and newest >= at:
                return
            if time.monotonic() > end:
                said = f"only up to {newest:%Y-%m-%dT%H:%M:%SZ}" if newest else "nothing: are its backups off?"
                raise CheckFailed(f"{self.title} can't restore {self.name} to {at:%Y-%m-%dT%H:%M:%SZ}: {said}")
            time.sleep(POLL)

    def wait_copy(self, name: str) -> None:
        """Wait until a copy answers.

        Raises:
            CheckFailed: it is not there after three hours.
        """
        end = time.monotonic() + RESTORE_SECONDS
        while (state := self.state(name)) not in self.ready:
            if time.monotonic() > end:
                raise CheckFailed(
                    f"{self.title} has not made {name} after {RESTORE_SECONDS / 3600:.0f} hours: it is {state}"
                )
            time.sleep(POLL)

    ready: tuple[str, ...]

    @abstractmethod
    def restorable(self, at: datetime) -> datetime | None:
        """The newest moment that can be restored now; None: nothing can."""

    @abstractmethod
    def restore(self, name: str, at: datetime) -> None:
        """Begin to make the copy: in the same private network, without a standby, not protected against deletion."""

    @abstractmethod
    def state(self, name: str) -> str:
        """What the cloud says of an instance."""

    @abstractmethod
    def settle(self, name: str) -> Copy:
        """Make a finished copy reachable for who has the app's logins; where it is."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a copy, with its backups, and wait until it is gone."""

    @abstractmethod
    def copies(self) -> list[str]:
        """Copies that drills of this instance have left."""

    def _of_ours(self, names: list[str]) -> list[str]:
        return sorted(name for name in names if name.startswith(self.name + MARK))


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


class RDS(Cloud):
    title = "RDS"
    ready = ("available",)

    def _aws(self, *words: str) -> list[str]:
        return ["aws", "rds", *words, "--region", self.parts["region"], "--output", "json"]

    def _describe(self, name: str, sample: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self.shell.ask(
            self._aws("describe-db-instances", "--db-instance-identifier", name),
            {"DBInstances": [SAMPLE_RDS | (sample or {})]},
        )
        found: dict[str, Any] = answer["DBInstances"][0]
        return found

    def restorable(self, at: datetime) -> datetime | None:
        said = self._describe(self.name, {"LatestRestorableTime": _time(at)}).get("LatestRestorableTime")
        return datetime.fromisoformat(said) if said else None

    def restore(self, name: str, at: datetime) -> None:
        source = self._describe(self.name)
        self.shell.change(self._aws(
            "restore-db-instance-to-point-in-time", "--source-db-instance-identifier", self.name, "--target-db-instance-identifier", name,
            "--restore-time", _time(at), "--db-instance-class", source["DBInstanceClass"], "--port", str(source["Endpoint"]["Port"]),
            "--db-subnet-group-name", source["DBSubnetGroup"]["DBSubnetGroupName"],
            "--vpc-security-group-ids", *(each["VpcSecurityGroupId"] for each in source["VpcSecurityGroups"]),
            "--db-parameter-group-name", source["DBParameterGroups"][0]["DBParameterGroupName"],
            "--no-multi-az", "--no-publicly-accessible", "--no-deletion-protection", "--no-auto-minor-version-upgrade",
            "--tags", f"Key=orcheo-db-drill,Value={name}",
        ))  # fmt: skip

    def state(self, name: str) -> str:
        return str(self._describe(name)["DBInstanceStatus"])

    def settle(self, name: str) -> Copy:
        endpoint = self._describe(name, {"Endpoint": {"Address": "COPY_ADDRESS", "Port": 5432}})["Endpoint"]
        return Copy(endpoint["Address"], int(endpoint["Port"]))

    def remove(self, name: str) -> None:
        self.check_copy(name)
        gone = ("--skip-final-snapshot", "--delete-automated-backups")
        self.shell.change(self._aws("delete-db-instance", "--db-instance-identifier", name, *gone))
        self.shell.ask(self._aws("wait", "db-instance-deleted", "--db-instance-identifier", name), None)

    def copies(self) -> list[str]:
        answer = self.shell.ask(self._aws("describe-db-instances"), {"DBInstances": []})
        return self._of_ours([each["DBInstanceIdentifier"] for each in answer["DBInstances"]])


# What a dry run shows in place of what the instance would have said.
SAMPLE_RDS: dict[str, Any] = {
    "DBInstanceStatus": "available",
    "DBInstanceClass": "INSTANCE_CLASS",
    "Endpoint": {"Address": "ADDRESS", "Port": 5432},
    "DBSubnetGroup": {"DBSubnetGroupName": "SUBNET_GROUP"},
    "VpcSecurityGroups": [{"VpcSecurityGroupId": "SECURITY_GROUP"}],
    "DBParameterGroups": [{"DBParameterGroupName": "PARAMETER_GROUP"}],
}


# A clone has its original's settings. Deleted, this one leaves nothing: each of its backups would be a whole copy of production.
SHORT_LIVED = ("--no-deletion-protection", "--no-final-backup", "--no-retain-backups-on-delete")


class CloudSQL(Cloud):
    title = "Cloud SQL"
    ready = ("RUNNABLE",)

    def _gcloud(self, *words: str) -> list[str]:
        return ["gcloud", "sql", "instances", *words, "--project", self.parts["project"], "--quiet", "--format", "json"]

    def restorable(self, at: datetime) -> datetime | None:
        answer = self.shell.ask(self._gcloud("get-latest-recovery-time", self.name), {"latestRecoveryTime": _time(at)})
        said = (answer or {}).get("latestRecoveryTime")
        return datetime.fromisoformat(said) if said else None

    def restore(self, name: str, at: datetime) -> None:
        self.shell.change(self._gcloud("clone", self.name, name, "--point-in-time", _time(at), "--async"))

    def state(self, name: str) -> str:
        return str(self.shell.ask(self._gcloud("describe", name), {"state": "RUNNABLE"})["state"])

    def settle(self, name: str) -> Copy:
        # A clone has its original's settings; clients' certificates are an instance's own, and this copy lives for minutes.
        lasting = ("--availability-type=zonal", "--ssl-mode=ENCRYPTED_ONLY")
        self.shell.change(self._gcloud("patch", name, *SHORT_LIVED, *lasting))
        sample = {
            "ipAddresses": [{"type": "PRIVATE", "ipAddress": "COPY_ADDRESS"}],
            "serverCaCert": {"cert": "COPY_CA"},
        }
        found = self.shell.ask(self._gcloud("describe", name), sample)
        private = [each["ipAddress"] for each in found["ipAddresses"] if each["type"] == "PRIVATE"]
        if not private:
            raise CheckFailed(f"{name} has no private address")
        return Copy(private[0], 5432, found["serverCaCert"]["cert"])

    def remove(self, name: str) -> None:
        self.check_copy(name)
        # A copy that was cut off before `settle` is still protected, and would leave its original's kind of last backup.
        self.shell.change(self._gcloud("patch", name, *SHORT_LIVED))
        self.shell.change(self._gcloud("delete", name))

    def copies(self) -> list[str]:
        answer = self.shell.ask(self._gcloud("list"), [])
        return self._of_ours([each["name"] for each in answer])


class Azure(Cloud):
    title = "Azure"
    ready = ("Ready",)
    # Azure names no newest moment; its documentation says five minutes.
    lag = timedelta(minutes=10)

    def _az(self, *words: str) -> list[str]:
        return [
            "az", "postgres", "flexible-server", *words, "--subscription", self.parts["subscription"],
            "--resource-group", self.parts["group"], "--output", "json",
        ]  # fmt: skip

    def restorable(self, at: datetime) -> datetime | None:
        return at if self.shell.dry else datetime.now(UTC) - self.lag

    def restore(self, name: str, at: datetime) -> None:
        sample = {
            "network": {
                "delegatedSubnetResourceId": "DELEGATED_SUBNET_ID",
                "privateDnsZoneArmResourceId": "PRIVATE_DNS_ZONE_ID",
            }
        }
        network = self.shell.ask(self._az("show", "--name", self.name), sample)["network"]
        self.shell.change(self._az(
            "restore", "--name", name, "--source-server", self.name, "--restore-time", _time(at),
            "--subnet", network["delegatedSubnetResourceId"], "--private-dns-zone", network["privateDnsZoneArmResourceId"], "--yes",
        ))  # fmt: skip

    def state(self, name: str) -> str:
        return str(self.shell.ask(self._az("show", "--name", name), {"state": "Ready"})["state"])

    def settle(self, name: str) -> Copy:
        found = self.shell.ask(self._az("show", "--name", name), {"fullyQualifiedDomainName": "COPY_ADDRESS"})
        return Copy(found["fullyQualifiedDomainName"], 5432)

    def remove(self, name: str) -> None:
        self.check_copy(name)
        self.shell.change(self._az("delete", "--name", name, "--yes"))

    def copies(self) -> list[str]:
        return self._of_ours([each["name"] for each in self.shell.ask(self._az("list"), [])])


KINDS: tuple[tuple[re.Pattern[str], type[Cloud]], ...] = (
    (re.compile(r"arn:[a-z-]+:rds:(?P<region>[a-z0-9-]+):\d{12}:db:(?P<name>[a-z][a-z0-9-]{0,62})"), RDS),
    (re.compile(r"projects/(?P<project>[a-z0-9.:-]+)/instances/(?P<name>[a-z][a-z0-9-]{0,97})"), CloudSQL),
    (
        re.compile(
            r"/subscriptions/(?P<subscription>[0-9a-fA-F-]{36})/resourceGroups/(?P<group>[\w.()-]+)"
            r"/providers/Microsoft\.DBforPostgreSQL/flexibleServers/(?P<name>[a-z0-9-]{3,63})"
        ),
        Azure,
    ),
)


def cloud(identifier: str, shell: Shell) -> Cloud:
    """The instance of an identifier.

    Raises:
        UserError: it is none of the three forms.
    """
    for pattern, kind in KINDS:
        if match := pattern.fullmatch(identifier):
            return kind(shell, match.groupdict())
    raise UserError(
        f"{identifier!r} names no managed instance: give arn:aws:rds:REGION:ACCOUNT:db:NAME, projects/PROJECT/instances/NAME or Azure's"
        " /subscriptions/…/flexibleServers/NAME (`terraform output -raw identifier`)"
    )


__all__ = ["RDS", "Azure", "CallFailed", "Cloud", "CloudSQL", "Copy", "cloud"]
