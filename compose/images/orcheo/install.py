#!/usr/bin/env python3
"""Install Orcheo's two PyPI packages into a virtual environment of the image (standard library only).

The default pair of releases comes from `requirements.lock` (every version and hash pinned: the same image
tomorrow). Any other pair, or extra requirements, is resolved freshly, and the log says so.

    install.py --orcheo 0.46.1 --backend 0.39.0 [--extra "mcp<2 --exclude-newer=2026-05-14"]
    install.py lock --orcheo 0.46.1 --backend 0.39.0    writes requirements.lock (needs uv and the network)
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LOCK = Path(__file__).with_name("requirements.lock")
# uv reads the CA bundle of the build host from here; the file is a build secret and never in a layer.
CA_SECRET = Path("/run/secrets/ca")
# What the toolkit (ops/orcheo_db) imports inside the image; Orcheo's own dependencies bring them today.
TOOLKIT_NEEDS = ("click", "cryptography", "psycopg", "psycopg-pool", "pydantic", "rich", "uvicorn")
# Test suites of dependencies, 50 MB that no program imports.
TEST_SUITES = ("pandas/tests", "pyarrow/tests")
# What old pairs need beside themselves to install today, because a dependency of theirs has moved on without a bound. Each was
# installed and run; a pair that is not here is tried as it is.
KNOWN_NEEDS = {
    ("0.34.0", "0.30.0"): "mcp<2 orcheo-sdk==0.28.0",  # the last bridge release: PostgreSQL and SQLite
    # The last release that knows SQLite only, as of its own day; its agentensor 0.0.4 does not import with that day's langgraph.
    ("0.15.0", "0.15.0"): "--exclude-newer=2025-12-24 --exclude-newer-package=agentensor=2026-05-14 agentensor==0.1.2",
}
HEADER = re.compile(r"^# orcheo==(?P<orcheo>\S+) orcheo-backend==(?P<backend>\S+) python==(?P<python>\S+)$")


@dataclass(frozen=True)
class Plan:
    """What to give `uv pip install`, and the line to print before doing it."""

    arguments: tuple[str, ...]
    note: str


def locked_pair(lock_text: str) -> tuple[str, str] | None:
    """Return (orcheo, orcheo-backend) that a lock was made for, as its first line says, or None."""
    match = HEADER.match(lock_text.partition("\n")[0])
    return (match["orcheo"], match["backend"]) if match else None


def plan(orcheo: str, backend: str, extra: str, lock_text: str, lock_path: Path = LOCK) -> Plan:
    """Decide between the lock and a fresh resolution.

    `extra` is a shell-like list of requirements; words that start with `--` are options of `uv pip install`
    (`--exclude-newer=2026-01-01`). Any extra means a fresh resolution, because it may contradict the lock. Without one, the
    pair's known needs are its extra.
    """
    pair = f"orcheo {orcheo} + orcheo-backend {backend}"
    words = shlex.split(extra or KNOWN_NEEDS.get((orcheo, backend), ""))
    if not words and locked_pair(lock_text) == (orcheo, backend):
        note = f"{pair}: from {lock_path.name}, hashes required"
        return Plan(("--require-hashes", "--requirement", str(lock_path)), note)
    why = "extra requirements are given" if words else f"{lock_path.name} is of another pair"
    requirements = [word for word in words if not word.startswith("--")]
    options = [word for word in words if word.startswith("--")]
    note = f"{pair}: resolved freshly, not reproducible ({why})"
    return Plan((*options, f"orcheo=={orcheo}", f"orcheo-backend=={backend}", *requirements), note)


def environment(ca: Path = CA_SECRET) -> dict[str, str]:
    """Return the environment for uv: no user configuration, and the build host's CA bundle where given."""
    env = dict(os.environ, UV_NO_CONFIG="1", UV_LINK_MODE="copy", UV_PYTHON_DOWNLOADS="never")
    if ca.is_file() and ca.stat().st_size:
        env["SSL_CERT_FILE"] = str(ca)
    return env


def install(uv: str, venv: Path, chosen: Plan) -> None:
    """Create `venv` with this interpreter and install the plan into it, bytecode compiled."""
    print(f"install.py: {chosen.note}", flush=True)
    env = environment()
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(venv)], check=True, env=env)
    python = str(venv / "bin" / "python")
    command = [uv, "pip", "install", "--python", python, "--compile-bytecode", *chosen.arguments]
    subprocess.run(command, check=True, env=env)
    for site_packages in venv.glob("lib/python*/site-packages"):
        remove_test_suites(site_packages)
    check = "import importlib.metadata as m, sys; [print(n, m.version(n)) for n in sys.argv[1:]]"
    subprocess.run([python, "-c", check, "orcheo", "orcheo-backend", *TOOLKIT_NEEDS], check=True)


def remove_test_suites(site_packages: Path) -> None:
    """Remove the test suites that packages carry; no file of a program is touched."""
    for name in TEST_SUITES:
        shutil.rmtree(site_packages / name, ignore_errors=True)


def write_lock(uv: str, orcheo: str, backend: str, lock_path: Path = LOCK) -> None:
    """Resolve the pair for every CPU architecture and write the lock: versions, hashes, no index address."""
    python = "3.13"  # Debian trixie's
    command = [
        uv,
        "pip",
        "compile",
        "-",
        "--quiet",
        "--no-config",
        f"--python-version={python}",
        "--universal",
    ]
    command += [
        "--generate-hashes",
        "--no-header",
        "--no-annotate",
        "--no-emit-index-url",
        "--no-emit-find-links",
    ]
    requirements = f"orcheo=={orcheo}\norcheo-backend=={backend}\n"
    done = subprocess.run(command, input=requirements, text=True, check=True, stdout=subprocess.PIPE)
    header = f"# orcheo=={orcheo} orcheo-backend=={backend} python=={python}\n"
    made_by = "# Made by `install.py lock`, which says more; used when the image is built with this very pair.\n"
    lock_path.write_text(header + made_by + done.stdout, encoding="utf-8")


def main(argv: list[str]) -> int:
    """Parse the command line and do it; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", nargs="?", choices=("install", "lock"), default="install")
    parser.add_argument("--orcheo", required=True, help="release of orcheo")
    parser.add_argument("--backend", required=True, help="release of orcheo-backend")
    parser.add_argument("--extra", default="", help="more requirements and uv options for old releases")
    parser.add_argument("--venv", type=Path, default=Path("/opt/orcheo"))
    parser.add_argument("--uv", default="uv", help="the uv program")
    args = parser.parse_args(argv)
    if args.action == "lock":
        write_lock(args.uv, args.orcheo, args.backend)
        return 0
    lock_text = LOCK.read_text(encoding="utf-8") if LOCK.is_file() else ""
    install(args.uv, args.venv, plan(args.orcheo, args.backend, args.extra, lock_text))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
