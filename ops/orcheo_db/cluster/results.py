"""How the last backup of each kind and the last drill went, in ConfigMap `orcheo-db-results`, for `kubectl get configmap`."""

from __future__ import annotations

import json
import time
from typing import Any

from orcheo_db.backup.running import utc
from orcheo_db.cluster.api import Api
from orcheo_db.errors import CheckFailed

NAME = "orcheo-db-results"
# What a person asks first; the whole record of a drill is in the repository and in `orcheo-db drill --html`.
TOLD = (
    "result",
    "failure",
    "rto_seconds",
    "rpo_seconds",
    "label",
    "size",
    "stored",
    "seconds",
    "rows",
    "backup",
    "tables",
)


def document(job: str, *, ok: bool, words: str, details: dict[str, Any], now: float) -> dict[str, str]:
    """The entries of one run: `<job>.json`, and `<job>` in one line."""
    told = {"job": job, "ok": ok, "at": utc(now), "said": words} | {
        key: details[key] for key in TOLD if details.get(key) is not None
    }
    return {f"{job}.json": json.dumps(told, default=str), job: f"{'ok' if ok else 'FAILED'} at {utc(now)}: {words}"}


def tell(api: Api, job: str, *, ok: bool, words: str, details: dict[str, Any]) -> None:
    """Note how a run went.

    Raises:
        CheckFailed: it can't be noted.
    """
    data = document(job, ok=ok, words=words, details=details, now=time.time())
    if not api.patch("configmaps", NAME, {"data": data}):
        raise CheckFailed(
            f"ConfigMap {NAME} of namespace {api.namespace} is gone: kubectl apply -k k8s/ makes it again"
        )
