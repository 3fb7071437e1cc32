"""What is on the postgres image's volume and what a start may do with it: facts and decisions, no writing.

Used by node.py, which acts on the decision. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

MARKER = "orcheo-db.json"  # in PGDATA: whose cluster this is, and what its order of text depends on
LOCK = ".orcheo-db.lock"  # in the volume's root; see node.hold_volume
IGNORED = {"lost+found", LOCK}  # what a file system or this program puts on an otherwise empty volume
VERIFIER_ROLES = ("orcheo_admin", "orcheo_monitor", "pgbouncer", "replicator")
VERIFIER = re.compile(r"SCRAM-SHA-256\$\d+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+\n?")
# PostgreSQL's own collations (provider builtin) have carried version 1 since they exist.
BUILTIN_COLLATION_VERSION = "1"


class Refusal(Exception):
    """The node must not start; the text is the one line to print: what, in which place, what to do."""


@dataclass(frozen=True)
class Settings:
    """Where things are and what is asked for; everything that the environment may change."""

    major: str
    volume: Path = Path("/var/lib/postgresql")
    secrets: Path = Path("/run/orcheo-db/secrets")
    conf: Path = Path("/etc/orcheo-db")
    scratch: Path = Path("/run/postgresql")
    library: Path = Path(__file__).parent
    locale_provider: str = "builtin"
    locale: str = "C.UTF-8"
    adopt: str = ""  # the mounted installation's id: it takes over a cluster of another one
    uid: int = field(default_factory=os.getuid)
    accept_collation: str = ""  # the collation version that the user has accepted

    @property
    def data(self) -> Path:
        """PGDATA."""
        return self.volume / self.major / "main"

    @property
    def unfinished(self) -> Path:
        """Where a first boot works; renamed to PGDATA as its last step."""
        return self.volume / self.major / "main.init"


def settings_from(environ: Mapping[str, str]) -> Settings:
    """Read the image's and the stack's environment; an empty value is as good as none."""
    base = Settings(major=environ.get("PG_MAJOR", "17"))
    return replace(
        base,
        locale_provider=environ.get("ORCHEO_DB_INITDB_LOCALE_PROVIDER") or base.locale_provider,
        locale=environ.get("ORCHEO_DB_INITDB_LOCALE") or base.locale,
        adopt=environ.get("ORCHEO_DB_ADOPT", ""),
        accept_collation=environ.get("ORCHEO_DB_ACCEPT_COLLATION", ""),
    )


@dataclass(frozen=True)
class Volume:
    """The facts about a volume; `state` is empty, half-made, cluster or foreign."""

    state: str
    majors: tuple[str, ...]  # with a `<major>/main`
    marker: dict[str, Any] | None  # of this image's major
    strangers: tuple[str, ...]  # entries, relative to the volume, that no cluster of this layout has

    @property
    def installation_id(self) -> str | None:
        """The installation whose secrets fit this cluster, as its marker says."""
        return str(self.marker["installation_id"]) if self.marker else None


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file if it names an installation, else None."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("installation_id") else None


def look(settings: Settings) -> Volume:
    """Read a volume's facts. Raises Refusal if it can't be read."""
    try:
        entries = sorted(path for path in settings.volume.iterdir() if path.name not in IGNORED)
        tops = [path for path in entries if path.name.isdigit() and path.is_dir()]
        inside = [path for top in tops for path in sorted(top.iterdir())]
    except OSError as error:
        what = f"cannot read the volume ({error.strerror}) in {settings.volume}"
        raise Refusal(f"{what}: it must exist and belong to uid {settings.uid}") from error
    clusters = [path for path in inside if path.name == "main"]
    majors = tuple(path.parent.name for path in clusters)
    others = [path for path in entries if path not in tops]
    others += [path for path in inside if path not in clusters and path != settings.unfinished]
    strangers = tuple(str(path.relative_to(settings.volume)) for path in others)
    marker = read_json(settings.data / MARKER)
    if settings.major in majors:
        complete = marker is not None and (settings.data / "PG_VERSION").is_file()
        state = "cluster" if complete else "foreign"
    elif majors or strangers:
        state = "foreign"
    else:
        state = "half-made" if settings.unfinished.exists() else "empty"
    return Volume(state, majors, marker, strangers)


def glibc_version() -> str:
    """Return the C library's version, such as 2.41."""
    return (os.confstr("CS_GNU_LIBC_VERSION") or "unknown").removeprefix("glibc ")


def collation_version(provider: str, locale: str) -> str:
    """Return the version of the library whose rules order text for `provider`: what indexes depend on."""
    if provider == "builtin" or locale in ("C", "POSIX"):
        return BUILTIN_COLLATION_VERSION
    if provider == "libc":
        return glibc_version()
    libraries = sorted(Path("/usr/lib").glob("*/libicui18n.so.*.*"))
    return libraries[-1].name.removeprefix("libicui18n.so.") if libraries else "unknown"


def image_collation(marker: Mapping[str, Any]) -> str:
    """Return this image's version of the library that a cluster's marker names."""
    return collation_version(str(marker.get("locale_provider")), str(marker.get("locale")))


def superuser_digest(settings: Settings) -> str:
    """Return the digest of this image's superuser.sql, as the marker records it."""
    return hashlib.sha256((settings.library / "superuser.sql").read_bytes()).hexdigest()[:16]


def check_secrets(settings: Settings) -> str:
    """Return the mounted installation id; raise Refusal if a needed file is missing or malformed."""
    where = settings.secrets
    installation = read_json(where / "installation.json")
    if installation is None:
        advice = "put the installation's secrets back, or make new ones with `orcheo-db up --new-secrets`"
        raise Refusal(f"installation.json is missing or unreadable in {where}: {advice}")
    verifiers = tuple(f"{role}.scram" for role in VERIFIER_ROLES)
    for name in ("server.crt", "server.key", "ca.crt", *verifiers):
        try:
            text = (where / name).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            advice = f"put it back from a copy of the secrets, readable by uid {settings.uid}"
            raise Refusal(f"{name} is missing or unreadable in {where}: {advice}") from error
        if name in verifiers and not VERIFIER.fullmatch(text):
            # The text itself is not shown. PostgreSQL would take it for a password in clear and hash it.
            advice = "put it back from a copy of the secrets"
            raise Refusal(f"{name} holds no SCRAM-SHA-256 verifier in {where}: {advice}")
    for name in ("postgresql.conf", "pg_hba.conf"):
        if not os.access(settings.conf / name, os.R_OK):
            advice = "run `orcheo-db up`, which mounts it"
            raise Refusal(f"{name} is missing or unreadable in {settings.conf}: {advice}")
    return str(installation["installation_id"])


def check_volume(volume: Volume, settings: Settings) -> None:
    """Raise Refusal for a volume with data that this image must not start on."""
    if volume.state != "foreign":
        return
    if settings.major in volume.majors:
        what = f"{MARKER}, the mark of a complete cluster of orcheo-db, is missing in {settings.data}"
        way = "restore a backup or give another volume"
    elif volume.majors:
        found = ", ".join(volume.majors)
        what = f"a cluster of PostgreSQL {found} and none of {settings.major} is in {settings.volume}"
        way = f"upgrade it with pg_upgrade, or use the image of PostgreSQL {volume.majors[-1]}"
    else:
        names = ", ".join(volume.strangers[:3]) + (", …" if len(volume.strangers) > 3 else "")
        what = f"no cluster but other files ({names}) are in {settings.volume}"
        way = "give an empty volume, or move them away"
    raise Refusal(f"{what}: {way} (nothing was changed)")


def check_collation(marker: Mapping[str, Any], settings: Settings, current: str) -> None:
    """Raise Refusal if text may sort otherwise than when indexes were built: they would be corrupt."""
    recorded = str(marker.get("collation_version"))
    if current in (recorded, settings.accept_collation):
        return
    what = f"text is ordered by {marker.get('locale_provider')} {recorded}, but by {current} in this image,"
    way = f"use the earlier image, or set ORCHEO_DB_ACCEPT_COLLATION={current} and REINDEX all"
    raise Refusal(f"{what} in {settings.data}: {way}")


def decide(volume: Volume, settings: Settings, mounted_id: str, collation: str, sql: str) -> tuple[str, str]:
    """Return what a start has to do, and the line that says why.

    Args:
        volume: the facts.
        settings: what is asked for.
        mounted_id: the installation id of the mounted secrets.
        collation: this image's version of the library that the cluster's marker names.
        sql: digest of this image's superuser.sql.

    Returns:
        first-boot (volume empty), redo (a first boot was interrupted), adopt (accept another installation's
        cluster), refresh (apply this image's newer superuser.sql) or run, which has no line.

    Raises:
        Refusal: the server must not start on this volume.
    """
    check_volume(volume, settings)
    if volume.state == "empty":
        return "first-boot", f"the volume is empty: making a new cluster in {settings.data}"
    if volume.state == "half-made":
        return "redo", f"a first boot was interrupted: making its unfinished {settings.unfinished} anew"
    marker = volume.marker or {}
    check_collation(marker, settings, collation)
    standby = any((settings.data / name).exists() for name in ("standby.signal", "recovery.signal"))
    owner = volume.installation_id
    if owner != mounted_id:
        what = f"the cluster is of installation {owner} but the mounted secrets are of {mounted_id}"
        if settings.adopt != mounted_id:
            way = "put its own secrets back, or set new passwords in it with `orcheo-db up --new-secrets`"
            raise Refusal(f"{what} in {settings.data}: {way}")
        if standby:
            raise Refusal(f"{what} in {settings.data}, a standby: adopt its primary instead")
        return "adopt", f"the cluster of installation {owner} is adopted by installation {mounted_id}"
    if marker.get("superuser_sql") != sql and not standby:
        return "refresh", "superuser.sql of this image was not yet applied to the cluster: applying it"
    return "run", ""


def preflight(settings: Settings, *, writes: bool = True) -> tuple[str, str, str]:
    """Check all that needs no writing; return (action, why, mounted installation id) or raise Refusal.

    `writes` is false to look at a volume that is mounted read-only for that purpose.
    """
    if settings.uid == 0:
        raise Refusal("the container runs as root in its `user`: start it as 999:999")
    volume = look(settings)
    # What is wrong with the volume is said first: it decides which secrets are wanted.
    check_volume(volume, settings)
    if writes and not os.access(settings.volume, os.W_OK | os.X_OK):
        owner = settings.volume.stat().st_uid
        what = f"no permission to write (owner uid {owner}) in {settings.volume}"
        raise Refusal(f"{what}: its owner must be uid {settings.uid}")
    mounted_id = check_secrets(settings)
    collation = image_collation(volume.marker or {})
    action, why = decide(volume, settings, mounted_id, collation, superuser_digest(settings))
    return action, why, mounted_id
