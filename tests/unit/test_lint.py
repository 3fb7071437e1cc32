"""`make lint` is part of `make test`, so that CI, which runs the tests alone, keeps every linter green."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_make_lint_is_clean():
    done = subprocess.run([sys.executable, ROOT / "ops" / "lint.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") >= 8


def test_no_binary_file_is_committed():
    done = subprocess.run(["git", "ls-files", "-z", "--cached"], cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name.decode() for name in done.stdout.split(b"\0") if name]
    assert len(paths) > 100
    assert [path.name for path in paths if path.is_file() and b"\0" in path.read_bytes()] == []
