"""What the verify suite finds in this repository's images, whoever runs them."""

from __future__ import annotations

from collections.abc import Mapping

from orcheo_db.handed import POSTGRES_SECRETS
from orcheo_db.targets.base import Facts, Target

SECRETS = "/run/orcheo-db/secrets"
LISTENING = {"postgres": ("tcp://5432",), "pgbouncer": ("tcp://6432",)}


def image_facts(target: Target, hosts: Mapping[str, str], beside: Mapping[str, tuple[str, ...]] | None = None) -> Facts:
    """The facts about PostgreSQL's and PgBouncer's containers.

    Args:
        hosts: role -> testinfra host specification; a role without one is somebody else's.
        beside: role -> sockets of other containers that share its network.
    """
    keys = [f"{SECRETS}/server.key"]
    private = {
        "postgres": [*keys, *(f"{SECRETS}/{role}.scram" for role in POSTGRES_SECRETS)],
        "pgbouncer": [*keys, f"{SECRETS}/userlist.txt"],
    }
    packages = {
        "postgres": [f"postgresql-{target.spec.versions.postgresql}", "pgbackrest", "patroni"],
        "pgbouncer": ["pgbouncer"],
    }
    return Facts(
        target=target.name,
        hosts=dict(hosts),
        users={name: name for name in hosts},
        packages={name: packages[name] for name in hosts},
        private_files={name: private[name] for name in hosts},
        listening={name: [*LISTENING[name], *(beside or {}).get(name, ())] for name in hosts},
        secrets_dir=SECRETS,
        data_dir=target.pgdata,
        managed_server="postgres" in hosts,
    )
