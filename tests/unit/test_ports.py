"""Who holds a port, asked while other containers come and go."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import docker
import docker.errors
import pytest

from orcheo_db import preflight
from orcheo_db.errors import UserError
from orcheo_db.targets.compose import ComposeTarget


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> docker.DockerClient:
    """A Docker that lists two containers, of which the first is gone when it is asked about."""
    client = docker.DockerClient(base_url="unix:///nowhere", version="1.41")

    def inspect(name: str) -> dict[str, Any]:
        if name == "gone":
            raise docker.errors.NotFound("No such container: gone")
        return {"Id": name, "Name": f"/{name}", "NetworkSettings": {"Ports": {"6432/tcp": [{"HostPort": held[0]}]}}}

    held = ["0"]
    monkeypatch.setattr(client.api, "containers", lambda **options: [{"Id": "gone"}, {"Id": "there"}])
    monkeypatch.setattr(client.api, "inspect_container", inspect)
    monkeypatch.setattr(docker, "from_env", lambda: client)
    client.held = held  # type: ignore[attr-defined]
    return client


def test_a_container_that_went_away_between_list_and_look(engine: docker.DockerClient) -> None:
    found = ComposeTarget.container(SimpleNamespace(project="any"), "postgres")  # type: ignore[arg-type]
    assert found is not None and found.name == "there"


def test_a_taken_port_names_who_has_it_although_another_went_away(engine: docker.DockerClient) -> None:
    target: Any = SimpleNamespace(container=lambda service: None)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        engine.held[0] = str(port)
        with pytest.raises(UserError, match=rf"port 127\.0\.0\.1:{port} .* by container there\): free it, or choose"):
            preflight._check_port(target, "pgbouncer", "127.0.0.1", port, "the spec")
