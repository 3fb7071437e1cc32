"""kubectl's place in the tests of target kubernetes: every command goes to the test's `Control` (control.py) by a socket; `exec` and `logs` become
docker's, and `port-forward` forwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import threading

ADDRESS = os.environ["ORCHEO_DB_TEST_CLUSTER"]


def ask(argv: list[str], told: str = "") -> dict[str, object]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(ADDRESS)
        connection.sendall(json.dumps({"argv": argv, "input": told}).encode() + b"\n")
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile() as answer:
            found: dict[str, object] = json.loads(answer.read())
            return found


def splice(one: socket.socket, address: str, port: int) -> None:
    with one, socket.create_connection((address, port)) as other, selectors.DefaultSelector() as either:
        for each in (one, other):
            either.register(each, selectors.EVENT_READ)
        while True:
            for key, _ in either.select():
                source = one if key.fileobj is one else other
                data = source.recv(65536)
                if not data:
                    return
                (other if source is one else one).sendall(data)


def forward(address: str, port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(f"Forwarding from 127.0.0.1:{server.getsockname()[1]} -> {port}", flush=True)
        while True:
            client, _ = server.accept()
            threading.Thread(target=quietly, args=(client, address, port), daemon=True).start()


def quietly(client: socket.socket, address: str, port: int) -> None:
    with contextlib.suppress(OSError):
        splice(client, address, port)


def main() -> int:
    argv = sys.argv[1:]
    reads = any(word in ("--filename=-", "--patch-file=/dev/stdin") for word in argv)
    answer = ask(argv, sys.stdin.read() if reads else "")
    if "run" in answer:  # a command of this machine's, with this one's input and output
        words = [str(word) for word in answer["run"]]  # type: ignore[attr-defined]
        child = os.spawnvp(os.P_WAIT, words[0], words)
        if child:
            print(f"command terminated with exit code {child}", file=sys.stderr)
        return child
    if "forward" in answer:
        address, port = answer["forward"]  # type: ignore[misc]
        forward(str(address), int(port))  # type: ignore[has-type]
    print(answer["stdout"], end="")
    print(answer["stderr"], end="", file=sys.stderr)
    return int(str(answer["code"]))


if __name__ == "__main__":
    sys.exit(main())
