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

    def __init__(self, dsn: str) -> None:
        self.dsn, self.lock = dsn, threading.Lock()
        self.acknowledged: list[int] = []
        self.failed: list[str] = []
        self.longest = 0.0
        self.number = 0

    def client(self, until: float) -> None:
        while time.monotonic() < until:
            try:
                with psycopg.connect(self.dsn, connect_timeout=10) as connection:
                    self.work(connection, until)
            except psycopg.Error as error:
                self.fail(f"connect: {error}")
                time.sleep(0.5)

    def work(self, connection: psycopg.Connection[Any], until: float) -> None:
        renew = time.monotonic() + RENEW_SECONDS
        while time.monotonic() < min(until, renew):
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

    def run(self, seconds: float) -> dict[str, Any]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS public.load_test (i bigint)")
            connection.execute("TRUNCATE public.load_test")
        print("started", flush=True)
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=self.client, args=(until,)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
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


if __name__ == "__main__":
    print(json.dumps(Load(sys.argv[1]).run(float(sys.argv[2]))), flush=True)
