"""Object stores for the second repository's tests: SeaweedFS (S3, signatures enforced) and azurite, with TLS by a CA of their own.

They run on this machine and listen on Docker's bridge, where containers of every network reach them.
"""

from __future__ import annotations

import base64
import hmac
import http.client
import ipaddress
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import docker

from orcheo_db.secrets import Authority
from tests.conftest import free_port, spec_with_second

WEED = Path(sys.executable).with_name("weed")
READY_SECONDS = 60.0
BUCKET = "orcheo-backups"
AZURITE = "azurite@3.35.0"


def bridge() -> str:
    """The address of this machine on Docker's default bridge."""
    settings = docker.from_env().networks.get("bridge").attrs["IPAM"]["Config"][0]
    # A daemon that made the bridge in this very run doesn't name it: it took the first address.
    return str(settings.get("Gateway") or ipaddress.ip_network(settings["Subnet"])[1])


class Server:
    """A process that is ended at the end, and how to reach it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.host = directory, bridge()
        directory.mkdir()
        authority = Authority.create()
        key, certificate = authority.issue("bucket", (self.host,))
        self.ca_file = directory / "ca.crt"
        self.ca_file.write_bytes(authority.certificate_pem())
        (directory / "server.key").write_bytes(key)
        (directory / "server.crt").write_bytes(certificate)
        self.port = free_port(self.host)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    def start(self) -> None:
        raise NotImplementedError

    def _start(self, argv: list[str], ready: Callable[[], bool]) -> None:
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, cwd=self.directory, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + READY_SECONDS
        while not ready():
            assert self._process.poll() is None and time.monotonic() < deadline, (self.directory / "log").read_text()[
                -2000:
            ]
            time.sleep(0.3)

    def answers(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), 1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()  # SeaweedFS takes half a minute to end by itself
            self._process.wait(30)
            self._process = None


class SeaweedFS(Server):
    """S3 with one bucket and one key that may use it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.key, self.secret = "ORCHEODB" + secrets.token_hex(4).upper(), secrets.token_urlsafe(24)
        own = {"accessKey": self.key, "secretKey": self.secret}
        who = {"name": "orcheo", "credentials": [own], "actions": ["Read", "Write", "List", "Tagging"]}
        (directory / "s3.json").write_text(json.dumps({"identities": [who]}))
        (directory / "data").mkdir()
        self._ports = {name: port_with_grpc() for name in ("master", "volume", "filer")}
        self._s3_grpc = free_port()

    @property
    def credentials(self) -> str:
        return f'key = "{self.key}"\nsecret = "{self.secret}"\n'

    def start(self) -> None:
        ports = [f"-{name}.port={port}" for name, port in self._ports.items()]
        argv = [
            str(WEED), "server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *ports, "-filer", "-s3", f"-s3.ip.bind={self.host}",
            f"-s3.port={self.port}", f"-s3.port.grpc={self._s3_grpc}", "-s3.config=s3.json", "-s3.cert.file=server.crt", "-s3.key.file=server.key",
            "-s3.port.iceberg=0", "-s3.port.lance=0",  # two of these run at once
            "-s3.autoCreateBucket=false", "-master.volumeSizeLimitMB=64", "-volume.max=100", "-master.telemetry=false",
        ]  # fmt: skip
        self._start(argv, self.answers)
        if BUCKET not in self.shell("s3.bucket.list"):
            self.shell(f"s3.bucket.create -name {BUCKET}")
            assert BUCKET in self.shell("s3.bucket.list")

    def shell(self, command: str) -> str:
        """What SeaweedFS' own shell answers; asked again until its parts know one another."""
        argv = [str(WEED), "shell", f"-master=127.0.0.1:{self._ports['master']}"]
        deadline = time.monotonic() + READY_SECONDS
        while True:
            done = subprocess.run(argv, input=command + "\n", capture_output=True, text=True, cwd=self.directory)
            said = done.stdout + done.stderr
            if done.returncode == 0 and "error" not in said:
                return said
            assert time.monotonic() < deadline, said
            time.sleep(0.5)


def configured(directory: Path, kind: str, server: Server, **changes: str) -> Path:
    """A spec with a second repository."""
    values = {
        "type": kind, "bucket": BUCKET, "endpoint": server.endpoint, "region": "us-east-1" if kind == "s3" else "", "uri_style": "path",
        "ca_file": str(server.ca_file), **changes,
    }  # fmt: skip
    return spec_with_second(directory, **values)


def port_with_grpc() -> int:
    """A free port whose neighbour 10000 above, which SeaweedFS takes for its own talk, is free too."""
    for port in range(21000, 29000):
        try:
            for each in (port, port + 10000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", each))
        except OSError:
            continue
        if port not in _taken:
            _taken.add(port)
            return port
    raise AssertionError("no free port")


_taken: set[int] = set()


class Azurite(Server):
    """Azure's blob storage, emulated, with one container; `program` is azurite-blob."""

    def __init__(self, directory: Path, program: Path) -> None:
        super().__init__(directory)
        self.program = program
        self.account, self.key = "orcheobackups", base64.b64encode(secrets.token_bytes(48)).decode()

    @property
    def credentials(self) -> str:
        return f'account = "{self.account}"\nkey = "{self.key}"\n'

    def start(self) -> None:
        os.environ["AZURITE_ACCOUNTS"] = f"{self.account}:{self.key}"
        argv = [
            str(self.program), "--blobHost", self.host, "--blobPort", str(self.port), "--location", str(self.directory / "data"),
            "--cert", "server.crt", "--key", "server.key", "--skipApiVersionCheck", "--disableTelemetry", "--silent",
        ]  # fmt: skip
        self._start(argv, self.answers)
        self._make_container()

    def _make_container(self) -> None:
        """Create Container, signed by the account's key (Azure's "Authorize with Shared Key")."""
        date = formatdate(usegmt=True)
        resource = f"/{self.account}/{self.account}/{BUCKET}\nrestype:container"
        text = f"PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:2021-08-06\n{resource}"
        signature = base64.b64encode(hmac.digest(base64.b64decode(self.key), text.encode(), "sha256")).decode()
        context = ssl.create_default_context(cafile=str(self.ca_file))
        connection = http.client.HTTPSConnection(self.host, self.port, context=context, timeout=30)
        headers = {
            "x-ms-date": date,
            "x-ms-version": "2021-08-06",
            "Authorization": f"SharedKey {self.account}:{signature}",
        }
        connection.request(
            "PUT", f"/{self.account}/{BUCKET}?restype=container", headers={**headers, "Content-Length": "0"}
        )
        answer = connection.getresponse()
        assert answer.status in (201, 409), (answer.status, answer.read())
        connection.close()


def azurite(directory: Path) -> Path | None:
    """azurite-blob, installed by npm into `directory`; None where this machine has no npm."""
    npm = shutil.which("npm")
    if npm is None:
        return None
    subprocess.run(
        [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(directory), AZURITE],
        check=True,
        capture_output=True,
    )
    return directory / "node_modules" / ".bin" / "azurite-blob"
