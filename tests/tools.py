"""Programs that tests need and nobody else: each in a Python environment of its own, because its dependencies are not ours."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKOV = "3.3.30"  # pinned: another release has other checks


def checkov() -> Path:
    """checkov's path, installed at the first use."""
    return _own("checkov", CHECKOV)


def _own(name: str, version: str) -> Path:
    place = ROOT / ".tools" / f"{name}-{version}"
    place.parent.mkdir(exist_ok=True)
    with (place.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "complete").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
            pip = [
                str(place / "bin" / "pip"),
                "install",
                "--quiet",
                "--disable-pip-version-check",
                f"{name}=={version}",
            ]
            done = subprocess.run(pip, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            (place / "complete").touch()
    return place / "bin" / name
