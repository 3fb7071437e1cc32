"""The jobs inside a cluster, against an API server of the test's own (the same calls over HTTP, in memory)."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from orcheo_db.cluster import api as cluster_api
from orcheo_db.cluster import results, secrets
from orcheo_db.cluster.api import Api
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.secrets import Store


class Server(ThreadingHTTPServer):
    """Objects of namespace `here`, by kind and name; `refuse`: a code for every call."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.calls: list[tuple[str, str]] = []
        self.refuse = 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def _answer(self) -> None:
        assert self.headers["Authorization"] == "Bearer tok"
        prefix, _, place = self.path.partition("/namespaces/here/")
        assert prefix == "/api/v1"
        kind, _, name = place.partition("/")
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null")
        with self.server.lock:
            self.server.calls.append((self.command, name or body["metadata"]["name"]))
            code, found = self._do(kind, name, body)
        text = json.dumps(found).encode()
        self.send_response(self.server.refuse or code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _do(self, kind: str, name: str, body: Any) -> tuple[int, Any]:
        objects = self.server.objects
        if self.command == "POST":
            key = (kind, body["metadata"]["name"])
            if key in objects:
                return 409, {"message": "exists"}
            objects[key] = body
            return 201, body
        if (kind, name) not in objects:
            return 404, {"message": "not found"}
        if self.command == "PATCH":
            assert self.headers["Content-Type"] == "application/merge-patch+json"
            objects[kind, name].setdefault("data", {}).update(body["data"])
        return 200, objects[kind, name]

    do_GET = do_POST = do_PATCH = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture
def api(server: Server) -> Api:
    return Api(f"http://127.0.0.1:{server.server_address[1]}", "here", "tok")


def make(api: Api, scratch: Path) -> list[str]:
    scratch.mkdir()
    return secrets.make(api, scratch, lambda _: None)


NAMES = [secrets.INSTALLATION, *(secrets.PREFIX + name for name in secrets.SERVICES)]


def held(server: Server, name: str) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in server.objects["secrets", name]["data"].items()}


def test_every_secret_is_made_once_and_never_changed(api: Api, server: Server, tmp_path: Path):
    assert sorted(make(api, tmp_path / "a")) == sorted(NAMES)
    before = json.dumps(server.objects["secrets", secrets.INSTALLATION]), sorted(server.objects)
    server.calls.clear()
    assert make(api, tmp_path / "b") == []
    assert {method for method, _ in server.calls} == {"GET"}
    assert (json.dumps(server.objects["secrets", secrets.INSTALLATION]), sorted(server.objects)) == before


def test_services_see_what_is_theirs_and_no_more(api: Api, server: Server, tmp_path: Path):
    make(api, tmp_path / "a")
    pooler = held(server, "orcheo-db-pgbouncer")
    assert set(pooler) == {
        "server.crt",
        "server.key",
        "ca.crt",
        "orcheo_monitor.pgpass",
        "userlist.txt",
        "verifiers.txt",
    }
    store = Store(tmp_path / "store", "here")
    secrets.take(store, server.objects["secrets", secrets.INSTALLATION])
    password = store.password("orcheo_admin").encode()
    holders = {
        name
        for kind, name in server.objects
        if kind == "secrets" and any(password in text for text in held(server, name).values())
    }
    assert holders == {secrets.INSTALLATION, "orcheo-db-init"}
    keys = {
        name
        for _, name in server.objects
        if "ca.key" in held(server, name) or "tls.key" in held(server, name) or "tls__ca.key" in held(server, name)
    }
    assert keys == {secrets.INSTALLATION, secrets.AUTHORITY}
    assert server.objects["secrets", secrets.AUTHORITY]["type"] == "kubernetes.io/tls"
    names = (
        x509.load_pem_x509_certificate(pooler["server.crt"])
        .extensions.get_extension_for_class(x509.SubjectAlternativeName)
        .value
    )
    assert {
        "pgbouncer",
        "localhost",
        "pgbouncer.here",
        "pgbouncer.here.svc",
        "pgbouncer.here.svc.cluster.local",
    } == set(names.get_values_for_type(x509.DNSName))
    assert store.exists() and store.missing() == []


def test_a_job_that_was_killed_is_finished_by_the_next(api: Api, server: Server, tmp_path: Path):
    make(api, tmp_path / "a")
    kept = held(server, "orcheo-db-postgres")
    for name in ("orcheo-db-backup", "orcheo-db-app"):
        del server.objects["secrets", name]
    assert sorted(make(api, tmp_path / "b")) == ["orcheo-db-app", "orcheo-db-backup"]
    assert held(server, "orcheo-db-backup")["ca.crt"] == kept["ca.crt"]


def test_two_jobs_at_once_agree(api: Api, server: Server, tmp_path: Path):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda i: make(api, tmp_path / str(i)), range(4)))
    assert sorted(name for names in made for name in names) == sorted(NAMES)
    authorities = {
        held(server, f"orcheo-db-{name}")["ca.crt"]
        for name in ("postgres", "pgbouncer", "init", "archive", "backup", "app")
    }
    assert authorities == {held(server, secrets.INSTALLATION)["ca.crt"]}


def test_a_lost_installation_is_not_made_anew(api: Api, server: Server, tmp_path: Path):
    make(api, tmp_path / "a")
    del server.objects["secrets", secrets.INSTALLATION]
    with pytest.raises(UserError, match="orcheo-db-installation of namespace here is gone and orcheo-db-postgres, "):
        make(api, tmp_path / "b")
    assert ("secrets", secrets.INSTALLATION) not in server.objects


def test_a_refusal_and_silence_are_one_line(api: Api, server: Server, tmp_path: Path):
    server.refuse = 403
    with pytest.raises(CheckFailed, match="the API server refuses GET secrets/orcheo-db-installation: not found"):
        make(api, tmp_path / "a")
    with pytest.raises(CheckFailed, match="does not answer"):
        secrets.make(Api("http://127.0.0.1:1", "here", "tok"), tmp_path, lambda _: None)


def test_results_are_merged_into_their_config_map(api: Api, server: Server):
    with pytest.raises(CheckFailed, match="orcheo-db-results of namespace here is gone"):
        results.tell(api, "drill", ok=True, words="RTO 3 s", details={})
    server.objects["configmaps", results.NAME] = {"metadata": {"name": results.NAME}}
    results.tell(api, "full", ok=True, words="20261101-1F", details={"label": "20261101-1F", "size": 5, "other": 1})
    results.tell(api, "drill", ok=False, words="differs", details={"result": "fail", "failure": "differs"})
    data = server.objects["configmaps", results.NAME]["data"]
    assert set(data) == {"full", "full.json", "drill", "drill.json"}
    assert data["drill"].startswith("FAILED at ") and data["drill"].endswith(": differs")
    told = json.loads(data["full.json"])
    assert told["label"] == "20261101-1F" and told["ok"] is True and "other" not in told


def test_outside_of_a_pod_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UserError, match="KUBERNETES_SERVICE_HOST is not set"):
        cluster_api.inside()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    with pytest.raises(UserError, match="automountServiceAccountToken"):
        cluster_api.inside(tmp_path)
    for name, text in (("token", "tok\n"), ("namespace", "here"), ("ca.crt", "")):
        (tmp_path / name).write_text(text)
    found = cluster_api.inside(tmp_path)
    assert (found.url, found.namespace, found.token) == ("https://[fd00::1]:443", "here", "tok")
