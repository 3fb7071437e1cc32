"""The commands `orcheo-db bench …`."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from orcheo_db.bench import backup, migrate, search
from orcheo_db.command import Context, Group, pass_context
from orcheo_db.console import out, say
from orcheo_db.errors import CheckFailed
from orcheo_db.targets.compose import ROOT


@click.group("bench", cls=Group)
def bench_group() -> None:
    """Measure, against a baseline of the same run."""


@bench_group.command("search")
@click.option("--steps", type=click.IntRange(1000, 50_000_000), default=1_000_000, show_default=True)
@pass_context
def bench_search(context: Context, /, steps: int) -> None:
    """Search on that many history steps; in schemas of its own, dropped at the end. Exit code 1 if p95 of all questions misses 100 ms."""
    result = search.bench(context.target().dsn(direct=True), steps)
    context.print(result, None)
    if not context.as_json:
        table = Table(box=None, pad_edge=False)
        for title in ("question", "p50 ms", "p95 ms", "p99 ms", "without index, ms", "times faster"):
            table.add_column(title, justify="left" if title == "question" else "right")
        for row in result["questions"]:
            base = ("-", "-") if row["ratio"] is None else (f"{row['baseline_p50']:.0f}", f"{row['ratio']:.0f}")
            table.add_row(row["question"], *(f"{row[name]:.1f}" for name in ("p50", "p95", "p99")), *base)
        table.add_row(
            "all questions", *(f"{result['all_questions'][name]:.1f}" for name in ("p50", "p95", "p99")), "-", "-"
        )
        out.print(table)
        if result["slow_classes"]:
            say(f"p95 of {search.AIM_MS:.0f} ms or more: {'; '.join(result['slow_classes'])}")
    if not result["ok"]:
        raise CheckFailed(f"p95 of all questions is {result['all_questions']['p95']} ms: not below {search.AIM_MS:.0f}")


@bench_group.command("backup")
@click.option(
    "--megabytes", "sizes", type=click.IntRange(10, 1_000_000), multiple=True, default=(200, 1000), show_default=True
)
@pass_context
def bench_backup(context: Context, /, sizes: tuple[int, ...]) -> None:
    """Backup, restore, drill and archiving, on an installation of its own (removed at the end). Exit code 1 if an aim is missed."""
    result = backup.bench(ROOT, context.spec().stack.project, sorted(sizes))
    context.print(result, None)
    if not context.as_json:
        table = Table(box=None, pad_edge=False)
        for title in (
            "rows",
            "cluster",
            "backup",
            "pg_basebackup",
            "restore",
            "cp -a",
            "recovery",
            "restore to copy",
            "RTO",
            "drill",
        ):
            table.add_column(title, justify="right")
        for one in result["sizes"]:
            table.add_row(
                f"{one['rows_mb']} MB", f"{one['cluster_bytes'] / 2**20:.0f} MB", f"{one['backup_mb_s']} MB/s", f"{one['pg_basebackup_mb_s']} MB/s",
                f"{one['restore_mb_s']} MB/s", f"{one['cp_mb_s']} MB/s", f"{one['recovery_seconds']} s", f"{one['restore_to_copy']:.0%}",
                f"{one['rto_seconds']} s", f"{one['drill_seconds']} s",
            )  # fmt: skip
        out.print(table)
        archiving = result["archiving"]
        rates = {name: ", ".join(f"{rate:.0f}" for rate in archiving[f"writes_s_{name}"]) for name in ("on", "off")}
        say(
            f"writes a second with archiving: {rates['on']}; without: {rates['off']}; overhead, median of the pairs {archiving['overhead']:.1%}"
        )
    if not result["ok"]:
        raise CheckFailed(
            "an aim was missed: restore at least 80 % as fast as cp -a and the same recovery (at the largest size), archiving overhead below 10 %"
        )


@bench_group.command("migrate")
@click.option("--megabytes", type=click.IntRange(10, 100_000), default=400, show_default=True, help="Of SQLite files.")
@click.option(
    "--release", default="0.34.0", show_default=True, help="The old release that makes them: 0.15.0 or 0.34.0."
)
@click.option(
    "--kills",
    type=click.IntRange(0, 1000),
    default=0,
    show_default=True,
    help="Runs that are killed (on small files) and run again.",
)
@click.option(
    "--baselines/--no-baselines",
    default=True,
    show_default=True,
    help="Compare with plain COPY and Orcheo's own tool; without, it takes a third of the time.",
)
@pass_context
def bench_migrate(context: Context, /, megabytes: int, release: str, kills: int, baselines: bool) -> None:
    """SQLite to PostgreSQL, against plain COPY and Orcheo's own tool, on an installation of its own (removed at the end). Exit code 1 if an aim is missed."""
    result = migrate.bench(ROOT, context.spec().stack.project, megabytes, release, kills, baselines=baselines)
    context.print(result, None)
    if not context.as_json:
        _show_migrate(result)
    if not result["ok"]:
        raise CheckFailed(f"an aim was missed: {'; '.join(result['missed'])}")


def _show_migrate(result: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("", "seconds", "rows", "rows/s", "MB", "MB/s", "memory", "largest process"):
        table.add_column(title, justify="right" if title else "left")
    ours = result["ours"]
    shown = [(f"migrate {name}", one) for name, one in ours.items()]
    if "peer" in result:
        peer = result["peer"]
        shown.append((f"migrate run, the {peer['tables']} tables of the next", result["ours_same_tables"]))
        shown.append((f"Orcheo's own tool ({peer['tables']} of {peer['of_tables']} tables)", peer))
        names = {"plain": "plain COPY", "lz4": "plain COPY, lz4", "two_connections": "plain COPY, lz4, two connections"}
        same = {key: result[key] for key in ("rows", "bytes")}
        shown += [(names[name], same | one) for name, one in result["limit"].items()]
        shown.append((f"the {result['indexes']['indexes']} indexes alone", same | result["indexes"]))
    forms = {
        "rows": "{:d}",
        "rows_s": "{:d}",
        "mb": "{:.0f}",
        "mb_s": "{:.1f}",
        "peak_mb": "{:.0f} MB",
        "largest_mb": "{:.0f} MB",
    }
    for name, one in shown:
        known = one | ({"mb": one["bytes"] / 2**20} if "bytes" in one else {})
        cells = (form.format(known[key]) if key in known else "" for key, form in forms.items())
        table.add_row(name, f"{one['seconds']:.1f}", *cells)
    out.print(table)
    ratios, cut = result["ratios"], ours["cutover"]
    if ratios:
        _say_ratios(ratios)
    say(
        f"cutover after {sum(cut['made'].values())} rows were added, changed or deleted: {cut['downtime_seconds']} s of write downtime"
    )
    if "kills" in result:
        killed = result["kills"]
        say(f"killed runs that were whole after a second one: {killed['ok']} of {killed['wanted']}")


def _say_ratios(ratios: dict[str, float]) -> None:
    say(
        f"migrate run: {ratios['to_peer']:.1f} times the MB/s of Orcheo's own tool (on the same tables {ratios['to_peer_same_tables']:.1f}; plain COPY"
        f" itself {ratios['limit_to_peer']:.1f}; rows that cost nothing, with their indexes made as now, {ratios['indexes_to_peer']:.1f}),"
        f" {ratios['to_copy']:.0%} of plain COPY's (lz4 {ratios['to_copy_lz4']:.0%}, two connections {ratios['to_copy_two_connections']:.0%})"
    )
