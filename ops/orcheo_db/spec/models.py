"""The spec's models: what there is to say about a database tier, each value of the right kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

from orcheo_db import __version__
from orcheo_db.spec.values import (
    IMAGE,
    STORAGE_KINDS,
    Address,
    Cron,
    Extension,
    Memory,
    Release,
    Repository,
    Settings,
    SizeName,
    SpecError,
    Variable,
    VariableValue,
    not_reserved,
    text,
    unique,
    whole,
)

DEFAULT_NAME = "ops/spec.toml"
# The app's subsystems that choose their backend by ORCHEO_NAME_BACKEND.
BACKENDS = ("CHECKPOINT", "GRAPH_STORE", "REPOSITORY", "WORKSPACE", "CHATKIT", "VAULT", "AUTH_SERVICE_TOKEN")


class _Model(BaseModel):
    # Strict: a quoted number, or a boolean where a count belongs, is a mistake, not to be converted silently.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Stack(_Model):
    """One installation on one machine."""

    project: Annotated[
        str, text(r"[a-z0-9][a-z0-9_-]{0,49}", "1 to 50 of a-z, 0-9, _ and -, the first a letter or digit")
    ]
    size: SizeName
    bind_address: Address
    port: Annotated[int, whole(1, 65535)]
    parts: Annotated[
        tuple[Annotated[Literal["app"], Field(description="app (Orcheo itself), or none")], ...],
        BeforeValidator(unique),
        Field(description='a list of what else runs: ["app"], or [] for the database alone'),
    ] = ()


class Versions(_Model):
    """Releases of everything. `postgresql`: the majors that Debian has and `tuning` was checked against."""

    debian: Annotated[str, text(r"[a-z]{3,20}", "a Debian release's name, for example trixie")]
    postgresql: Annotated[Literal[17], Field(description="17")]
    orcheo: Release
    orcheo_backend: Release
    uv: Release


class Images(_Model):
    """Names of the base image and of the images built from it (their tags follow from the versions)."""

    base: Annotated[str, text(IMAGE, "an image reference, for example debian:trixie-slim")]
    postgres: Repository
    pgbouncer: Repository
    orcheo: Repository
    backup: Repository


class Cluster(_Model):
    """What initdb is told; fixed for the life of a cluster."""

    locale_provider: Annotated[Literal["builtin", "icu", "libc"], Field(description="one of builtin, icu, libc")]
    locale: Annotated[str, text(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}", "a locale's name, for example C.UTF-8")]


class Database(_Model):
    """The app's database. The reserved names mean something else to pg_hba.conf, PgBouncer or initdb."""

    name: Annotated[
        str,
        text(r"[a-z_][a-z0-9_]{0,62}", "1 to 63 of a-z, 0-9 and _, the first not a digit"),
        not_reserved(
            "postgres",
            "template0",
            "template1",
            "pgbouncer",
            "replication",
            "all",
            "sameuser",
            "samerole",
            "samegroup",
        ),
    ]
    extensions: Annotated[
        tuple[Extension, ...],
        BeforeValidator(unique),
        Field(description='a list of names, for example ["pg_trgm"]'),
    ]


class App(_Model):
    """How Orcheo itself runs (`make up WITH=app`): its processes, what each may open, where it keeps its data.

    `environment`: further variables of the app that are no secrets; the ones that the toolkit makes itself are refused.
    """

    port: Annotated[int, whole(1, 65535)]
    via: Annotated[Literal["pgbouncer", "postgres"], Field(description="pgbouncer, or postgres (past the pooler)")]
    storage: Annotated[Literal["postgres", "sqlite"], Field(description="postgres, or sqlite (bridge releases only)")]
    prepared_statements: Annotated[bool, Field(description="true or false")]
    workflow_trust_mode: Annotated[
        Literal["managed", "allow_client_uploads"], Field(description="managed or allow_client_uploads")
    ]
    chatkit_retention_days: Annotated[int, whole(1, 36500, "days")]
    trace_retention_days: Annotated[int, whole(0, 36500, "days")]
    process_memory: Memory
    backend_processes: Annotated[int, whole(0, 1000, "processes")]
    worker_processes: Annotated[int, whole(0, 1000, "processes")]
    pool_min_size: Annotated[int, whole(0, 1000, "connections")]
    pool_max_size: Annotated[int, whole(1, 1000, "connections")]
    pool_timeout: Annotated[int, whole(1, 3600, "seconds")]
    pool_max_idle: Annotated[int, whole(1, 86400, "seconds")]
    environment: Annotated[dict[Variable, VariableValue], Field(description="a table of environment variables")] = {}


class SecondSchedule(_Model):
    """When each kind of job of the second repository is due: cron's five fields (minute hour day month weekday), UTC."""

    full: Cron
    differential: Cron
    drill: Cron


class BackupSchedule(SecondSchedule):
    """When each kind of job of the first repository is due."""

    incremental: Cron
    logical: Cron


class SecondRetention(_Model):
    """What the second repository keeps: numbers of full and of differential backups (pgBackRest's)."""

    full: Annotated[int, whole(1, 1000, "full backups")]
    differential: Annotated[int, whole(1, 1000, "differential backups")]


class BackupRetention(SecondRetention):
    """What the first repository keeps, also numbers of logical copies and days of evidence."""

    logical: Annotated[int, whole(1, 1000, "logical copies")]
    evidence_days: Annotated[int, whole(30, 36500, "days")]


class SecondRepository(_Model):
    """A repository in a bucket. What each type needs is pgBackRest's (its configuration reference, "Repository Options")."""

    type: Annotated[Literal["none", "s3", "azure", "gcs"], Field(description="one of none, s3, azure, gcs")]
    bucket: Annotated[str, text(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{1,220})?", "a bucket's name")] = ""
    endpoint: Annotated[
        str, text(r"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?)?", "a host, or host:port, without https://")
    ] = ""
    region: Annotated[str, text(r"(?:[A-Za-z0-9][A-Za-z0-9-]*)?", "a region, for example eu-central-1")] = ""
    path: Annotated[str, text(r"(?:/[A-Za-z0-9._-]+)+", "a path inside the bucket, for example /orcheo-db")]
    uri_style: Annotated[Literal["host", "path"], Field(description="host or path")] = "host"
    ca_file: Annotated[str, text(r"(?:/[^\x00-\x1f\x7f]+)?", "an absolute path, or empty")] = ""
    schedule: SecondSchedule
    retention: SecondRetention


class Backup(_Model):
    """Backups by pgBackRest and the drills that prove them. `wal_queue_max`, `drill_sample` and `memory` are in bytes.

    archive_timeout: seconds after which a WAL segment is archived though it isn't full: the bound of what a lost server loses.
    """

    enabled: Annotated[bool, Field(description="true or false")]
    archive_timeout: Annotated[int, whole(10, 3600, "seconds")]
    wal_queue_max: Memory
    processes: Annotated[int, whole(1, 64, "processes")]
    compress_level: Annotated[int, whole(1, 19)]
    drill_sample: Memory
    memory: Memory
    schedule: BackupSchedule
    retention: BackupRetention
    second: SecondRepository

    @property
    def has_second(self) -> bool:
        """Whether there is a second repository."""
        return self.enabled and self.second.type != "none"


class Size(_Model):
    """A machine for PostgreSQL. `memory` is in bytes (the file: "2GB"); `settings` are not computed."""

    name: SizeName
    memory: Memory
    cpus: Annotated[int, whole(1, 1024, "cores")]
    storage: Annotated[Literal["ssd", "hdd", "san"], Field(description=f"one of {', '.join(STORAGE_KINDS)}")]
    max_connections: Annotated[int, whole(20, 10000, "connections")]
    settings: Annotated[Settings, Field(description="a table of settings")] = {}


class Spec(_Model):
    """The whole spec. `source` is how error messages call the file that it came from."""

    stack: Stack
    versions: Versions
    images: Images
    cluster: Cluster
    database: Database
    app: App
    backup: Backup
    sizes: Annotated[dict[SizeName, Size], Field(min_length=1, description="at least one [sizes.NAME] table")]
    settings: Annotated[Settings, Field(description="a table of PostgreSQL settings")] = {}
    pgbouncer: Annotated[Settings, Field(description="a table of PgBouncer settings")] = {}
    _source: str = PrivateAttr(default=DEFAULT_NAME)

    @model_validator(mode="before")
    @classmethod
    def _name_sizes(cls, data: Any) -> Any:
        """A size's name is its table's name."""
        sizes = data.get("sizes") if isinstance(data, dict) else None
        if not isinstance(sizes, dict):
            return data
        named = {key: {"name": key} | size if isinstance(size, dict) else size for key, size in sizes.items()}
        return data | {"sizes": named}

    @property
    def source(self) -> str:
        """The file that this spec was read from, as messages name it."""
        return self._source

    def size(self, name: str | None = None) -> Size:
        """A size by name; without one, the size of [stack].

        Raises:
            SpecError: there is no such size.
        """
        name = name or self.stack.size
        if name not in self.sizes:
            known = ", ".join(self.sizes)
            raise SpecError(f"{self.source}: no size {name!r}: expected one of {known}, or a [sizes.{name}] table")
        return self.sizes[name]

    def image_tags(self) -> dict[str, str]:
        """The reference of each image that the toolkit builds: postgres, pgbouncer, orcheo, backup."""
        images, versions = self.images, self.versions
        return {
            "postgres": f"{images.postgres}:{versions.postgresql}-{__version__}",
            "pgbouncer": f"{images.pgbouncer}:{__version__}",
            "orcheo": f"{images.orcheo}:{versions.orcheo}-{versions.orcheo_backend}-{__version__}",
            "backup": f"{images.backup}:{versions.postgresql}-{versions.orcheo}-{versions.orcheo_backend}-{__version__}",
        }
