"""What the backup service tells over HTTP: /metrics for Prometheus (text format 0.0.4), /drill for people, /healthz for the container."""

from __future__ import annotations

import math
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from orcheo_db.backup import evidence, report
from orcheo_db.backup.plan import Entry
from orcheo_db.backup.record import Record, moment
from orcheo_db.backup.running import POLL, Pulse

STALE = (
    8 * POLL
)  # seconds without a look of the loop: far beyond a slow disk, two minutes until the container is unhealthy
CLIENT_TIMEOUT = 10.0  # seconds that a client may take for its request
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PHYSICAL = ("full", "differential", "incremental")
JOB_HELP = {
    "last_success_timestamp_seconds": (
        "gauge",
        "When the last run of the job that succeeded ended; absent before the first.",
    ),
    "age_seconds": ("gauge", "Since that; before the first success, since the service knows the job."),
    "failures_total": ("counter", "Runs of the job that failed or were interrupted by a kill."),
    "last_duration_seconds": ("gauge", "How long the last run that succeeded took."),
    "running": ("gauge", "1 while the job runs."),
}
DRILL_HELP = {
    "last_success_timestamp_seconds": ("gauge", "When the last drill that passed ended; absent before the first."),
    "age_seconds": ("gauge", "Since that; before the first success, since the service knows the job."),
    "rto_seconds": ("gauge", "Start of the last drill that passed to a usable database."),
    "rpo_seconds": ("gauge", "How much older what it restored is than what was asked for."),
    "failures_total": ("counter", "Drills that failed or were interrupted by a kill."),
}
# What is known of `backups`; other names may be given too.
BACKUPS_HELP = {
    "count": "Backups in the repository.",
    "repository_bytes": "Size of the repository.",
    "database_bytes": "Size of the database at the newest backup.",
    "oldest_timestamp_seconds": "When the oldest backup ended.",
    "newest_timestamp_seconds": "When the newest backup ended.",
}

Samples = list[tuple[Mapping[str, str], float]]


@dataclass(frozen=True)
class Page:
    """An answer: its status, its Content-Type, its text."""

    status: int
    kind: str
    body: str


Render = Callable[[str], Page | None]


def family(name: str, kind: str, about: str, samples: Samples) -> str:
    """One metric with its HELP and TYPE; nothing if it has no samples."""
    if not samples:
        return ""
    escaped = about.replace("\\", r"\\").replace("\n", r"\n")
    lines = [f"# HELP {name} {escaped}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inner = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
        lines.append(f"{name}{f'{{{inner}}}' if inner else ''} {_number(value)}")
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isnan(value) or math.isinf(value):
        return {True: "+Inf", False: "-Inf"}[value > 0] if math.isinf(value) else "NaN"
    return str(int(value)) if value == int(value) else repr(float(value))


def metrics(
    state: Mapping[str, Entry],
    records: Sequence[Record],
    problems: Sequence[str],
    now: float,
    backups: Mapping[str, float] | None = None,
    pulse: Pulse | None = None,
) -> str:
    """The text for Prometheus.

    Args:
        records, problems: of `evidence.load_all` and `evidence.verify`.
        now: Unix seconds.
        backups: numbers about the repository, name -> value, as orcheo_db_backup_NAME (see BACKUPS_HELP).
    """
    parts = [*_jobs(state, now), *_drills(state, records, now)]
    chain = ("orcheo_db_evidence_chain_ok", "gauge", "1 if every drill's record is there, signed and chained.")
    parts.append(family(*chain, [({}, float(not problems))]))
    parts.append(family("orcheo_db_evidence_records", "gauge", "Readable drill records.", [({}, float(len(records)))]))
    for name, value in (backups or {}).items():
        known = re.sub(r"[^a-zA-Z0-9_]", "_", name)
        parts.append(
            family(
                f"orcheo_db_backup_{known}", "gauge", BACKUPS_HELP.get(name, "Of the repository."), [({}, float(value))]
            )
        )
    if pulse is not None:
        about = "1 if the schedule's loop looks regularly and nothing is wrong with it."
        parts.append(family("orcheo_db_backup_scheduler_ok", "gauge", about, [({}, float(not unhealthy(pulse)))]))
    return "".join(parts)


def _jobs(state: Mapping[str, Entry], now: float) -> Iterator[str]:
    values: dict[str, Samples] = {name: [] for name in JOB_HELP}
    for job, entry in state.items():
        found = {
            "last_success_timestamp_seconds": entry.last_success,
            "age_seconds": now - (entry.last_success or entry.known_since),
            "failures_total": float(entry.failures_total),
            "last_duration_seconds": entry.last_duration,
            "running": float(entry.running),
        }
        for name, value in found.items():
            if value is not None:
                values[name].append(({"job": job}, value))
    for name, (kind, about) in JOB_HELP.items():
        yield family(f"orcheo_db_backup_{name}", kind, about, values[name])
    # A full backup stands for lesser ones, whose own age is then no trouble: this is what to watch.
    ends = [state[job].last_success or state[job].known_since for job in PHYSICAL if job in state]
    about = "Since the last physical backup of any kind; before the first, since the service knows one of their jobs."
    yield family("orcheo_db_backup_newest_age_seconds", "gauge", about, [({}, now - max(ends))] if ends else [])


def _drills(state: Mapping[str, Entry], records: Sequence[Record], now: float) -> Iterator[str]:
    """By the evidence, which outlives the state; only failures are the state's, which remembers what was pruned."""
    good = next((record for record in reversed(records) if record["result"] == "pass"), None)
    entry = state.get("drill")
    end = moment(good["finished_at"]) if good else None
    since = end if end is not None else entry.known_since if entry else None
    failures = entry.failures_total if entry else sum(record["result"] == "fail" for record in records)
    found: dict[str, float | None] = {
        "last_success_timestamp_seconds": end,
        "age_seconds": None if since is None else now - since,
        "rto_seconds": good["rto_seconds"] if good else None,
        "rpo_seconds": good["rpo_seconds"] if good else None,
        "failures_total": float(failures),
    }
    for name, (kind, about) in DRILL_HELP.items():
        value = found[name]
        yield family(f"orcheo_db_drill_{name}", kind, about, [] if value is None else [({}, value)])


def unhealthy(pulse: Pulse) -> str | None:
    """Why the schedule can't be trusted to run, in one line; None if it can."""
    if pulse.problem:
        return pulse.problem
    age = pulse.age()
    return f"the schedule has not been looked at for {age:.0f} s" if age > STALE else None


class Evidence:
    """The evidence as the pages show it: verified again only when a file of it changed."""

    def __init__(self, directory: Path, public_key_pem: bytes) -> None:
        self._directory, self._key = directory, public_key_pem
        self._seen: object = None
        self._found: tuple[list[Record], list[str]] = ([], [])
        self._lock = threading.Lock()

    def read(self) -> tuple[list[Record], list[str]]:
        """Records, oldest first, and what is wrong.

        Raises:
            OSError: the directory can't be read.
        """
        with self._lock:
            try:
                stats = [(path.name, path.stat()) for path in sorted(self._directory.glob("*.json"))]
            except FileNotFoundError:  # one was pruned this moment
                return self._found
            seen = [(name, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino) for name, stat in stats]
            if seen != self._seen:
                self._found = evidence.load_all(self._directory), evidence.verify(self._directory, self._key)
                self._seen = seen
            return self._found


def pages(
    state: Callable[[], Mapping[str, Entry]],
    proofs: Callable[[], tuple[Sequence[Record], Sequence[str]]],
    pulse: Pulse,
    clock: Callable[[], float],
    backups: Callable[[], Mapping[str, float]] = dict,
) -> Render:
    """The service's three pages, for `serve`.

    Args:
        state: reads the jobs' state, for example `lambda: plan.load(home, time.time())[0]`.
        proofs: `Evidence.read`.
        backups: see `metrics`; called at each scrape.
    """

    def render(path: str) -> Page | None:
        if path == "/metrics":
            return Page(200, METRICS_TYPE, metrics(state(), *proofs(), clock(), backups(), pulse))
        if path == "/drill":
            return Page(200, "text/html; charset=utf-8", report.html(*proofs(), clock()))
        if path == "/healthz":
            wrong = unhealthy(pulse)
            doing = f"running {pulse.job}" if pulse.job else "ok"
            return Page(503 if wrong else 200, "text/plain; charset=utf-8", f"{wrong or doing}\n")
        return None

    return render


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_TIMEOUT
    server_version = "orcheo-db"
    sys_version = ""
    render: Render

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        try:
            page = self.render(path) or Page(
                404, "text/plain; charset=utf-8", "there are /metrics, /drill and /healthz\n"
            )
            body = page.body.encode("utf-8", "replace")
        except Exception as error:  # the client learns that, the log learns why
            print(f"{path!r} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            page, body = Page(500, "text/plain; charset=utf-8", ""), b"internal error; see the service's log\n"
        self.send_response(page.status)
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header(
            "Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        )
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """A scrape is no event."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a client that hangs does not keep the service from stopping

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - its caller's signature
        """A client that went away is no event; anything else is one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"HTTP: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def serve(host: str, port: int, render: Render) -> ThreadingHTTPServer:
    """Answer GET and HEAD in threads of their own until `shutdown()` of what is returned; port 0 takes a free one.

    Args:
        render: path -> page, None for a path that there is not. If it raises, the client gets a 500 without the reason.

    Raises:
        OSError: the address can't be had.
    """
    handler = type("Handler", (_Handler,), {"render": staticmethod(render)})
    kind = type("Server", (_Server,), {"address_family": socket.AF_INET6 if ":" in host else socket.AF_INET})
    server: ThreadingHTTPServer = kind((host, port), handler)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server
