"""The command `orcheo-db search`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from orcheo_db.command import Command, Context, pass_context
from orcheo_db.console import out, say, step
from orcheo_db.search import run
from orcheo_db.search.request import read
from orcheo_db.search.run import MARK, UNMARK, Answer


@click.command("search", cls=Command)
@click.argument("query", nargs=-1)
@click.option("--in", "wanted", metavar="KINDS", help="runs, steps, messages, workflows (with commas; default: all).")
@click.option("--workspace", metavar="SLUG|ID")
@click.option("--workflow", metavar="ID|HANDLE")
@click.option("--since", metavar="TIME", help="From this time on (ISO; UTC where no zone is given).")
@click.option("--until", metavar="TIME", help="Before this time.")
@click.option(
    "--filter", "filter_", metavar="JSON", help='What the row\'s document contains, e.g. \'{"status": "error"}\'.'
)
@click.option("--limit", type=int, default=20, show_default=True)
@click.option("--after", metavar="CURSOR", help="Go on after this page.")
@click.option("--similar", is_flag=True, help="Also words that are spelt like these or contain them.")
@click.option("--refresh", is_flag=True, help="Bring the whole index up to date first (without a query: only that).")
@pass_context
def search_command(context: Context, /, query: tuple[str, ...], wanted: str | None, **options: Any) -> None:
    """Search runs, their steps, chat messages and workflows; newest first.

    QUERY is words, "phrases", or, -not. Without one, the newest rows that fit the filters.
    """
    places, times = (options["workspace"], options["workflow"]), (options["since"], options["until"])
    more = {name: options[name] for name in ("limit", "after", "similar")} | {"filter": options["filter_"]}
    request = read(query, wanted, places, times, more)
    only_refresh = options["refresh"] and not (query or wanted or any(places) or any(times) or request.filter)
    done = None
    with run.open_(context.target().dsn()) as conn:
        if options["refresh"]:
            run.resolve(conn, request)  # a wrong name is said before the long part
            with step("Bringing the search index up to date") as bar:
                done = run.refresh(conn, lambda written: bar.update(0, 0, f"{written} documents"))
            if only_refresh:
                context.print(
                    done,
                    f"{done['indexed']} documents indexed, {done['removed']} removed, {done['pending']} sources behind.",
                )
                return
        answer = run.search(conn, request)
    context.print(_document(answer, done), None)
    if not context.as_json:
        _show(answer)


def _document(answer: Answer, done: dict[str, Any] | None) -> dict[str, Any]:
    rows = [
        {name: value for name, value in asdict(found.hit).items() if name != "alive"}
        | {"where": found.where, "snippet": found.snippet.replace(MARK, "**").replace(UNMARK, "**")}
        for found in answer.rows
    ]
    document = {
        "rows": rows,
        "next": answer.next,
        "index": {"indexed": answer.indexed, "complete": answer.complete, "pending": answer.pending},
        "seconds": answer.seconds,
    }
    return document | ({"refresh": done} if done else {})


def _show(answer: Answer) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("time (UTC)", "kind", "where", "text"):
        table.add_column(title, overflow="fold", no_wrap=title in ("time (UTC)", "kind"))
    for found in answer.rows:
        table.add_row(found.hit.at[:19], found.hit.kind, Text(found.where), _marked(found.snippet))
    if answer.rows:
        out.print(table)
    if not answer.complete:
        behind = "some" if answer.pending is None else str(answer.pending)
        say(
            f"The index is {behind} sources behind, so newer rows may be missing: `orcheo-db search --refresh` brings it up to date."
        )
    say(f"Next page: --after {answer.next}" if answer.next else "No more." if answer.rows else "Nothing found.")


def _marked(snippet: str) -> Text:
    text = Text()
    for number, part in enumerate(snippet.split(MARK)):
        marked, _, rest = part.partition(UNMARK) if number else ("", "", part)
        text.append(marked, style="bold").append(rest)
    return text
