#!/usr/bin/python3
"""Metrics for node_exporter's textfile directory, by a timer: the backups' own, and what PgBouncer's console shows.

    metrics.py backup|pgbouncer

Debian's prometheus-pgbouncer-exporter knows the columns of PgBouncer 1.7 alone. Here every numeric column is a gauge, named as PgBouncer names it:
pgbouncer_pools_cl_active{database="orcheo",user="orcheo_app_a"}. A file is replaced as a whole, so that no half of it is ever read; how old it is
node_exporter says itself (node_textfile_mtime_seconds).
"""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

DIRECTORY = Path("/var/lib/prometheus/node-exporter")
BACKUP = ["runuser", "-u", "postgres", "--", "/opt/orcheo-db/bin/orcheo-db-backup", "metrics", "--here"]
CONSOLE = ["runuser", "-u", "pgbouncer", "--", "psql", "-X", "--csv", "-h", "/run/pgbouncer", "-U", "pgbouncer", "-d", "pgbouncer"]  # fmt: skip
LABELS = ("database", "user")
SHOWN = {"pools": "SHOW POOLS", "stats": "SHOW STATS", "databases": "SHOW DATABASES"}


def backup() -> str:
    """The backups' and drills' metrics, as their service gives them."""
    return subprocess.run(BACKUP, check=True, capture_output=True, text=True).stdout


def pgbouncer() -> str:
    """Pools, statistics and databases."""
    port = os.environ.get("PGBOUNCER_PORT", "6432")
    lines = []
    for name, command in SHOWN.items():
        done = subprocess.run([*CONSOLE, "-p", port, "-c", command], check=True, capture_output=True, text=True)
        lines += samples(name, list(csv.DictReader(io.StringIO(done.stdout))))
    return "\n".join(lines) + "\n"


def samples(name: str, rows: list[dict[str, str]]) -> list[str]:
    """Each numeric column as one metric."""
    lines = []
    for column in (column for column in (rows[0] if rows else {}) if column not in LABELS):
        if not all(row[column].isdecimal() for row in rows):
            continue
        metric = f"pgbouncer_{name}_{column}"
        lines += [f"# HELP {metric} {column} of {SHOWN[name]}", f"# TYPE {metric} gauge"]
        for row in rows:
            labels = (
                {"database": row["name"]} if "name" in row else {label: row[label] for label in LABELS if label in row}
            )
            said = ",".join(f'{label}="{value}"' for label, value in labels.items())
            lines.append(f"{metric}{{{said}}} {row[column]}")
    return lines


def main() -> int:
    """Write the file of one kind; returns the exit code."""
    kinds = {"backup": backup, "pgbouncer": pgbouncer}
    if len(sys.argv) != 2 or sys.argv[1] not in kinds:
        print(f"usage: metrics.py {'|'.join(kinds)}", file=sys.stderr)
        return 2
    kind = sys.argv[1]
    try:
        text = kinds[kind]()
    except subprocess.CalledProcessError as error:
        print(
            f"orcheo-db metrics: {kind}: {(error.stderr.strip().splitlines() or ['it said nothing'])[-1]}",
            file=sys.stderr,
        )
        return 1
    fresh = DIRECTORY / f".orcheo-db-{kind}.new"
    fresh.write_text(text, encoding="utf-8")
    fresh.chmod(0o644)
    fresh.rename(DIRECTORY / f"orcheo-db-{kind}.prom")
    return 0


if __name__ == "__main__":
    sys.exit(main())
