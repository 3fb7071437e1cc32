"""The way out to an operator: a CloudNativePG `Cluster` with what the spec says, that fills itself from the tier that runs.

k8s/cloudnative-pg/cluster-<size>.yaml, for CloudNativePG 1.25 or newer (k8s/README.md, "Moving to an operator"). PgBouncer and the init job stay
as they are, by component external-database: an app's DSN does not change.
"""

from __future__ import annotations

from typing import Any

from orcheo_db.render.compose import HEADER
from orcheo_db.render.kubernetes import mebibytes, text
from orcheo_db.spec import Size, Spec
from orcheo_db.tuning import container_limits, postgresql_settings

DIRECTORY = "k8s/cloudnative-pg"
NAME = "orcheo-cnpg"  # not orcheo-db: the operator's Secrets are named after it, and orcheo-db-ca is this tier's
INSTANCES = 3  # what one moves to an operator for: a primary and two that may take over
# The operator's own; it ignores or refuses them (its documentation, "PostgreSQL Configuration": Fixed parameters).
FIXED = frozenset({
    "archive_command", "archive_mode", "hba_file", "ident_file", "listen_addresses", "log_destination", "logging_collector", "port",
    "shared_preload_libraries", "ssl", "ssl_cert_file", "ssl_key_file", "unix_socket_directories", "unix_socket_permissions", "allow_alter_system",
})  # fmt: skip
# What its standbys want otherwise: it needs slots and senders of its own choice, and pg_rewind hints.
OTHERWISE = frozenset({"max_wal_senders", "max_replication_slots", "wal_level"})


def render(spec: Spec) -> dict[str, str]:
    """The files: path relative to the repository -> text."""
    return {
        f"{DIRECTORY}/cluster-{size.name}.yaml": HEADER + WORDS + text(cluster(spec, size), "")
        for size in spec.sizes.values()
    }


WORDS = """\
# Apply it beside the running tier, with the app stopped: it copies database and extensions from Service postgres, as role orcheo_admin, whose
# password and authority the namespace has already. Whoever may reach PostgreSQL is said by network policies: k8s/cloudnative-pg/network-policy.yaml.
"""


def cluster(spec: Spec, size: Size) -> dict[str, Any]:
    """The resource."""
    settings = {setting.name: setting.value for setting in postgresql_settings(size, spec)}
    limits = container_limits(size, spec)
    installation = "orcheo-db-installation"
    name = spec.database.name
    return {
        "apiVersion": "postgresql.cnpg.io/v1",
        "kind": "Cluster",
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/part-of": "orcheo-db"}},
        "spec": {
            "instances": INSTANCES,
            "imageCatalogRef": {
                "apiGroup": "postgresql.cnpg.io",
                "kind": "ClusterImageCatalog",
                "name": "postgresql",
                "major": spec.versions.postgresql,
            },
            "enableSuperuserAccess": True,  # for the init job, which makes roles
            "bootstrap": {
                "initdb": {
                    "database": name,
                    "owner": "orcheo",
                    "encoding": "UTF8",
                    "localeProvider": spec.cluster.locale_provider,
                    **_locale(spec),
                    "dataChecksums": True,
                    "import": {
                        "type": "microservice",
                        "databases": [name],
                        "source": {"externalCluster": "former"},
                    },
                }
            },
            "externalClusters": [
                {
                    "name": "former",
                    "connectionParameters": {
                        "host": "postgres",
                        "port": "5432",
                        "user": "orcheo_admin",
                        "dbname": name,
                        "sslmode": "verify-full",
                    },
                    "password": {"name": installation, "key": "secrets__orcheo_admin.password"},
                    "sslRootCert": {"name": installation, "key": "ca.crt"},
                }
            ],
            "postgresql": {
                "parameters": {
                    # Without the quotes of postgresql.conf: the operator puts its own.
                    key: str(value).removeprefix("'").removesuffix("'")
                    for key, value in settings.items()
                    if key not in FIXED | OTHERWISE
                },
                "pg_hba": [
                    f"hostssl {name},postgres postgres,orcheo_admin,orcheo_monitor all scram-sha-256",
                    f"hostssl {name} +orcheo,+orcheo_ro all scram-sha-256",
                    "hostssl postgres pgbouncer all scram-sha-256",
                ],
            },
            "resources": {
                "requests": {"cpu": str(size.cpus), "memory": mebibytes(limits.postgres)},
                "limits": {"cpu": str(size.cpus), "memory": mebibytes(limits.postgres)},
            },
            "storage": {"size": "100Gi" if size.name != next(iter(spec.sizes)) else "20Gi"},
            "affinity": {"enablePodAntiAffinity": True, "topologyKey": "kubernetes.io/hostname"},
        },
    }


def _locale(spec: Spec) -> dict[str, str]:
    """initdb's locale, in the operator's words."""
    if spec.cluster.locale_provider == "libc":
        return {"locale": spec.cluster.locale}
    return {"locale": "C.UTF-8", f"{spec.cluster.locale_provider}Locale": spec.cluster.locale}
