"""What a managed PostgreSQL lets one set, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

GB = 1 << 30


@dataclass(frozen=True)
class Machine:
    """An instance class: memory in bytes, and its list price in US dollars an hour (see `Prices`)."""

    name: str
    memory: int
    cpus: int
    price: Decimal
    burstable: bool = False


@dataclass(frozen=True)
class Prices:
    """The rest of a price list, in US dollars, of one region."""

    region: str
    date: str  # when the list was read, or from when it is known
    source: str
    storage: Decimal  # a GB and month
    backup: Decimal  # a GB and month beyond what is free
    standby: Decimal  # what a standby in another zone multiplies machine and storage by


@dataclass(frozen=True)
class Service:
    """One cloud's PostgreSQL.

    `restart` and `own` are of this product's settings alone: what a customer's own parameters need is the cloud's to say.
    """

    key: str
    title: str
    on_off: tuple[str, str]  # how it writes a boolean
    own: Mapping[str, str]  # setting -> what the service does about it: it can't be set
    restart: frozenset[str]  # settings that wait for a restart
    instead: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # setting -> another value, and why
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # in pg_settings' unit
    # setting -> the largest part of the machine's memory that the service takes
    shares: Mapping[str, float] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    # The service's own parameters, which stand for ours: name -> (value, why, needs a restart)
    extra: Mapping[str, tuple[str, str, bool]] = field(default_factory=dict)
    reserved: int = 0  # connections that the service keeps for itself out of max_connections
    extensions: str | None = None  # the parameter that lists the extensions which may be made
    machines: tuple[Machine, ...] = ()
    storage_gb: Mapping[str, int] = field(default_factory=dict)  # by size
    prices: Prices = field(kw_only=True)


@dataclass(frozen=True)
class Parameter:
    """One parameter as the service takes it. `setting` is the name in postgresql.conf, `meant` its value there."""

    name: str
    value: str
    restart: bool
    reason: str
    setting: str | None = None
    meant: str | None = None


@dataclass(frozen=True)
class Other:
    """A setting that is not as the spec has it: left to the service (`value` None), or another value; and why."""

    setting: str
    meant: str
    value: str | None
    why: str


@dataclass(frozen=True)
class Fitted:
    """A size on a service."""

    service: Service
    machine: Machine
    storage_gb: int
    parameters: tuple[Parameter, ...]
    others: tuple[Other, ...]
