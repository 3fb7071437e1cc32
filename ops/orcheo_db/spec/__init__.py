"""The spec: one TOML file that describes the database tier, as typed models.

Nothing here knows what a value means for PostgreSQL (that is `tuning`'s); here a value is only of the right
kind. Every mistake is one `SpecError` line: where, which key, the bad value, what is accepted.
"""

from orcheo_db.spec.models import BACKENDS, App, Cluster, Database, Images, Size, Spec, Stack, Versions
from orcheo_db.spec.read import DEFAULT_PATH, ENVIRONMENT, load_spec, validated
from orcheo_db.spec.values import STORAGE_KINDS, SpecError, format_memory, parse_memory

__all__ = [
    "BACKENDS",
    "DEFAULT_PATH",
    "ENVIRONMENT",
    "STORAGE_KINDS",
    "App",
    "Cluster",
    "Database",
    "Images",
    "Size",
    "Spec",
    "SpecError",
    "Stack",
    "Versions",
    "format_memory",
    "load_spec",
    "parse_memory",
    "validated",
]
