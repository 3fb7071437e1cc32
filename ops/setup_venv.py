#!/usr/bin/env python3
"""Make the toolkit's own Python environment in .venv: `python3 ops/setup_venv.py`.

Runs before anything is installed, so it uses the standard library alone. Versions and hashes come from requirements.lock; the
environment is made again only when that file, pyproject.toml or the interpreter changes. Exit code 2 and one line when the
machine lacks something.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".orcheo-db-ready"
MINIMUM = (3, 11)  # tomllib and StrEnum; Debian 12 has 3.11, Debian 13 has 3.13, Ubuntu 24.04 has 3.12


def say(text: str) -> None:
    print(f"orcheo-db setup: {text}", file=sys.stderr, flush=True)


def stop(text: str) -> None:
    say(text)
    raise SystemExit(2)


def fingerprint() -> str:
    """What the environment depends on; a change of any makes it again."""
    digest = hashlib.sha256(repr((sys.version_info[:3], sys.executable, str(ROOT))).encode())
    for name in ("requirements.lock", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def ensure_venv_module() -> None:
    """Debian and Ubuntu ship `venv` without pip in the base package: `python3-venv` completes it."""
    probe = subprocess.run([sys.executable, "-c", "import ensurepip, venv"], capture_output=True)
    if probe.returncode == 0:
        return
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        stop(f"Python's venv module is incomplete here: install it (apt-get install {package}) and run again")
    say(f"installing {package} (Python's venv module is incomplete on this machine)")
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for argv in (
        ["apt-get", "update", "-q"],
        ["apt-get", "install", "-y", "-q", "--no-install-recommends", package],
    ):
        done = subprocess.run(argv, env=env, capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            stop(f"`{' '.join(argv)}` failed: {reason}: install {package} by hand and run again")


def run_pip(*arguments: str) -> None:
    # --require-virtualenv and -I keep a user's own settings from putting packages elsewhere.
    argv = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "-qq", *arguments]
    done = subprocess.run(argv, cwd=ROOT)
    if done.returncode != 0:
        stop(f"`pip {' '.join(arguments)}` failed (its message is above): mend it, then run the same command again")


def main() -> int:
    if sys.version_info < MINIMUM:
        found = ".".join(map(str, sys.version_info[:3]))
        stop(
            f"Python {found} at {sys.executable} is too old: install Python >= 3.11, or name one with `make PYTHON=python3.12 …`"
        )
    wanted = fingerprint()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return 0
    ensure_venv_module()
    say(f"making the toolkit's Python environment in {VENV.name}/ (once, about half a minute)")
    # .venv is made by this script alone and holds nothing but installed packages, so it may be made again.
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    run_pip("install", "--require-hashes", "--only-binary", ":all:", "-r", "requirements.lock")
    run_pip("install", "--no-deps", "--no-build-isolation", "--editable", ".")
    STAMP.write_text(wanted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
