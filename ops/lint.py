#!/usr/bin/env python3
"""`make lint`: every linter over the files that git knows, all of them even when one fails; exit code 1 if any does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"


def tracked(*patterns: str) -> list[str]:
    """Files that git knows or would add, by pattern."""
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [name for name in listed if (ROOT / name).is_file()]


def shell_scripts() -> list[str]:
    return [
        name
        for name in tracked()
        if (ROOT / name).read_bytes()[:64].startswith((b"#!/usr/bin/env bash", b"#!/bin/sh", b"#!/bin/bash"))
    ]


def compose_environment() -> dict[str, str]:
    """Placeholders for everything that compose.yaml requires, so that its structure can be checked without an installation."""
    import re  # noqa: PLC0415

    names = {
        name
        for file in tracked("compose/*.yaml")
        for name in re.findall(r"\$\{([A-Z_]+):\?", (ROOT / file).read_text())
    }
    numbers = {name: "64m" for name in names if name.endswith(("_MEMORY", "_SIZE"))}
    return (
        dict.fromkeys(names, "lint")
        | numbers
        | {
            "PGBOUNCER_PORT": "6432",
            "PGBOUNCER_NOFILE": "1024",
            "APP_PORT": "8000",
            "BIND_ADDRESS": "127.0.0.1",
            "STATE_DIR": "/nonexistent",
        }
    )


def checks() -> list[tuple[str, Sequence[str], dict[str, str]]]:
    # Files that are only read on top of others are checked with those.
    alone = [
        name
        for name in tracked("compose/*.yaml")
        if name.count("/") == 1 and name.split("/")[1].partition("-")[0].partition(".")[0] not in ("app", "backup")
    ]
    with_app = [[*base, "compose/app.yaml"] for base in (["compose/compose.yaml"], ["compose/external.yaml"])]
    compose_files = [[name] for name in alone] + with_app + [[*with_app[0], "compose/app-direct.yaml"]]
    compose_files += [
        ["compose/compose.yaml", "compose/backup.yaml", *more]
        for more in ([], ["compose/backup-second.yaml"], with_app[0][1:])
    ]
    found: list[tuple[str, Sequence[str], dict[str, str]]] = [
        ("ruff check", [f"{BIN}/ruff", "check", "."], {}),
        ("ruff format", [f"{BIN}/ruff", "format", "--check", "."], {}),
        ("mypy", [f"{BIN}/mypy"], {}),
        ("hadolint", [f"{BIN}/hadolint", *tracked("**/Dockerfile")], {}),
        ("shellcheck", [f"{BIN}/shellcheck", *shell_scripts()], {}),
        ("yamllint", [f"{BIN}/yamllint", "--strict", *tracked("*.yaml", "*.yml")], {}),
        ("rendered files", [f"{BIN}/orcheo-db", "render", "--check"], {}),
    ]
    for files in compose_files:
        named = [word for file in files for word in ("--file", file)]
        found.append(
            (
                f"compose {' + '.join(files)}",
                [f"{BIN}/docker-compose", *named, "config", "--quiet"],
                compose_environment(),
            )
        )
    return found


def main() -> int:
    failed = []
    for name, argv, env in checks():
        done = subprocess.run(argv, cwd=ROOT, env=os.environ | env, capture_output=True, text=True)
        print(f"{'ok  ' if done.returncode == 0 else 'FAIL'} {name}", flush=True)
        if done.returncode != 0:
            failed.append(name)
            print(done.stdout + done.stderr, flush=True)
    if failed:
        print(f"lint: {', '.join(failed)} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
