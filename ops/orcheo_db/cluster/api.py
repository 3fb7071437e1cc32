"""The three calls of the Kubernetes API that the tier's jobs make, with the pod's own account.

Standard library: the official client would put thirty packages into an image that otherwise needs none of them.
"""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from orcheo_db.errors import CheckFailed, UserError

ACCOUNT = Path(
    "/var/run/secrets/kubernetes.io/serviceaccount"
)  # where kubelet mounts it (Kubernetes: Accessing the API from a Pod)
TIMEOUT = 10.0  # seconds for an answer
PATCH = "application/merge-patch+json"  # RFC 7386


@dataclass(frozen=True)
class Api:
    """One namespace, as one account sees it. url: of the API server; ca_file: its authority (None: plain HTTP, in tests)."""

    url: str
    namespace: str
    token: str
    ca_file: Path | None = None

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """An object of the namespace (`kind` in the plural, such as secrets); None where there is none.

        Raises:
            CheckFailed: the API server does not answer, or refuses.
        """
        return self._call("GET", kind, name)

    def create(self, kind: str, body: dict[str, Any]) -> bool:
        """Make an object; False where one of that name is there already.

        Raises:
            CheckFailed: the API server does not answer, or refuses.
        """
        return self._call("POST", kind, "", body) is not None

    def patch(self, kind: str, name: str, body: dict[str, Any]) -> bool:
        """Merge into an object; False where there is none.

        Raises:
            CheckFailed: the API server does not answer, or refuses.
        """
        return self._call("PATCH", kind, name, body) is not None

    def _call(self, method: str, kind: str, name: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        place = f"{self.url}/api/v1/namespaces/{self.namespace}/{kind}{'/' if name else ''}{name}"
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = PATCH if method == "PATCH" else "application/json"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(place, data, headers, method=method)  # noqa: S310 - the cluster's own address
        context = ssl.create_default_context(cafile=str(self.ca_file)) if self.ca_file else None
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT, context=context) as answer:  # noqa: S310
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            if error.code == (HTTPStatus.CONFLICT if method == "POST" else HTTPStatus.NOT_FOUND):
                return None
            raise CheckFailed(f"the API server refuses {method} {kind}/{name}: {_reason(error)}") from None
        except (OSError, ValueError) as error:  # URLError, timeouts, a broken answer
            raise CheckFailed(f"the API server does not answer at {self.url}: {error}") from None


def _reason(error: urllib.error.HTTPError) -> str:
    """The API server's own words (a Status object), or HTTP's."""
    try:
        return str(json.load(error)["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"


def inside(account: Path = ACCOUNT) -> Api:
    """The API as the pod that this runs in may use it.

    Raises:
        UserError: this is no pod of a cluster, or one without its account's token.
    """
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise UserError("KUBERNETES_SERVICE_HOST is not set: this command runs in a pod (k8s/README.md)")
    try:
        token = (account / "token").read_text().strip()
        namespace = (account / "namespace").read_text().strip()
    except OSError as error:
        raise UserError(
            f"{error.filename} can't be read: the pod needs its account's token (automountServiceAccountToken)"
        ) from None
    return Api(f"https://{f'[{host}]' if ':' in host else host}:{port}", namespace, token, account / "ca.crt")
