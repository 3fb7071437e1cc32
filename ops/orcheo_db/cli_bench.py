"""`orcheo-db bench …`: measurements on an installation of their own, as a table and as JSON."""

from __future__ import annotations

import click
from rich.table import Table

from orcheo_db.bench import search as bench_search
from orcheo_db.command import Context, Group, pass_context
from orcheo_db.console import out
from orcheo_db.errors import CheckFailed


@click.group(cls=Group)
def bench() -> None:
    """Measure what the README claims, against a baseline in the same run."""


@bench.command("search")
@click.option(
    "--steps", type=click.IntRange(1000, 20_000_000), default=1_000_000, show_default=True, help="History steps."
)
@pass_context
def search_(context: Context, /, steps: int) -> None:
    """Search at a million history steps; exit code 1 where the 95th percentile misses the target."""
    result = bench_search.run(context.spec(), steps)
    if not context.as_json:
        table = Table(box=None, pad_edge=False)
        for title in ("question", "p50 ms", "p95 ms", "p99 ms", "plain SQL p50 ms", "times slower"):
            table.add_column(title, justify="left" if title == "question" else "right")
        for row in result["questions"]:
            numbers = [f"{row[key]:.1f}" for key in ("p50", "p95", "p99", "baseline_p50", "ratio")]
            table.add_row(str(row["name"]), *numbers)
        out.print(table)
        indexing, size, idle = result["indexing"], result["bytes"], result["catching_up_when_nothing_is_new_ms"]
        out.print(
            f"{result['documents']} documents indexed in {indexing['seconds']} s ({indexing['documents_per_second']} a second);"
            f" {size['search_schema'] / 2**20:.0f} MB beside {size['app_tables'] / 2**20:.0f} MB of the app's tables;"
            f" catching up when nothing is new: p50 {idle['p50']} ms, p95 {idle['p95']} ms"
        )
    context.print(result, None)
    if not result["met"]:
        raise CheckFailed(f"not every question's 95th percentile is under {result['target_p95_ms']:.0f} ms")
