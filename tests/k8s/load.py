"""Load from inside the cluster: rows by several connections, each renewed as a pool renews them, until a number of seconds is over; then what was
acknowledged is looked for. One JSON document at the end. Standard in the app's image: Python and psycopg.

    python load.py DSN SECONDS
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import psycopg

CLIENTS = 6
RENEW_SECONDS = 15.0  # a pool's max_lifetime, shortened as the test is
PAUSE = 0.02


class Load:
    """What the connections did."""

    def __init__(self, dsn: str, connect_seconds: int = 10) -> None:
        self.dsn, self.lock, self.connect_seconds = dsn, threading.Lock(), connect_seconds
        self.until = 0.0  # on the monotonic clock
        self.threads: list[threading.Thread] = []
        self.acknowledged: list[int] = []
        self.failed: list[str] = []
        self.longest = 0.0
        self.number = 0

    def client(self) -> None:
        while time.monotonic() < self.until:
            try:
                with psycopg.connect(self.dsn, connect_timeout=self.connect_seconds) as connection:
                    self.work(connection)
            except psycopg.Error as error:
                self.fail(f"connect: {error}")
                time.sleep(0.5)

    def work(self, connection: psycopg.Connection[Any]) -> None:
        renew = time.monotonic() + RENEW_SECONDS
        while time.monotonic() < min(self.until, renew):
            with self.lock:
                self.number += 1
                number = self.number
            begun = time.monotonic()
            try:
                with connection.transaction():
                    connection.execute("INSERT INTO public.load_test (i) VALUES (%s)", (number,))
            except psycopg.Error as error:
                self.fail(f"transaction: {error}")
                return
            with self.lock:
                self.acknowledged.append(number)
                self.longest = max(self.longest, time.monotonic() - begun)
            time.sleep(PAUSE)

    def fail(self, words: str) -> None:
        with self.lock:
            self.failed.append(" ".join(words.split()))

    def start(self, seconds: float) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS public.load_test (i bigint)")
            connection.execute("TRUNCATE public.load_test")
        self.until = time.monotonic() + seconds
        self.threads = [threading.Thread(target=self.client) for _ in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def finish(self) -> dict[str, Any]:
        """Wait for the end, and look for what was acknowledged."""
        for thread in self.threads:
            thread.join()
        with psycopg.connect(self.dsn) as connection:
            there = {row[0] for row in connection.execute("SELECT i FROM public.load_test")}
        lost = sorted(set(self.acknowledged) - there)
        return {
            "acknowledged": len(self.acknowledged),
            "lost": lost[:10],
            "failed": len(self.failed),
            "failures": self.failed[:5],
            "longest_seconds": round(self.longest, 2),
        }

    def run(self, seconds: float) -> dict[str, Any]:
        self.start(seconds)
        print("started", flush=True)
        return self.finish()


if __name__ == "__main__":
    print(json.dumps(Load(sys.argv[1]).run(float(sys.argv[2]))), flush=True)
