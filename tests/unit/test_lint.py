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
