"""Orcheo's own pods in a cluster, as far as operations need them: stopped for a while, its vault key replaced."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager

from orcheo_db import app_secrets, upgrade_app
from orcheo_db.cluster.secrets import INSTALLATION, PREFIX, SEPARATOR
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.targets.kubernetes import APP, KubernetesTarget


@contextmanager
def stopped(target: KubernetesTarget) -> Iterator[None]:
    """Have none of the app's pods; as many as before again where the body fails (then nothing was changed)."""
    were = {name: target.replicas(name) for name in APP}
    for name, count in were.items():
        if count:
            target.scale(name, 0)
    try:
        yield
    except (UserError, CheckFailed) as error:  # an interrupted one stays stopped: its job may still be at work
        for name, count in were.items():
            if count:
                target.scale(name, count, wait=False)
        app = "the app is started again" if any(were.values()) else "no app was running"
        raise upgrade_app.unchanged(error, app) from error


def use_vault_key(target: KubernetesTarget) -> bool:
    """Have the cluster's Secrets hold the vault key that the state directory has; returns whether they did not before.

    The former key stays in Secret orcheo-db-installation, as it does in the state directory. Pods of the app that run are replaced.

    Raises:
        CheckFailed: the cluster refuses; the key is in the state directory alone then, and the same call again goes on.
    """
    places = sorted(app_secrets.path(target.store, app_secrets.VAULT_KEY).parent.glob(f"{app_secrets.VAULT_KEY}*"))
    name = f"{app_secrets.DIRECTORY}{SEPARATOR}{{}}"
    kept = {name.format(place.name): place.read_bytes() for place in places}
    own = {app_secrets.VAULT_KEY: app_secrets.path(target.store, app_secrets.VAULT_KEY).read_bytes()}
    # The app's first: cut off in between, the installation's still differs, and the next call does both.
    changed = [_merge(target, f"{PREFIX}app", own), _merge(target, INSTALLATION, kept)]
    if not any(changed):
        return False
    for service in APP:
        if target.replicas(service):
            target.rolled(service)
    return True


def _merge(target: KubernetesTarget, name: str, files: dict[str, bytes]) -> bool:
    """Have a Secret hold these files too; returns whether one was other."""
    data = {key: base64.b64encode(content).decode() for key, content in files.items()}
    found = target.kubectl.get("secret", name)
    if not found:
        raise CheckFailed(f"Secret {name} is not in {target.kubectl.place()}: run `{target.up_command}`")
    if data.items() <= found[0]["data"].items():
        return False
    # By standard input: no secret is in a command line.
    patch = json.dumps({"data": data})
    target.kubectl.text("patch", "secret", name, "--type=merge", "--patch-file=/dev/stdin", input=patch)
    return True
