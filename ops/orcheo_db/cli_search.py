"""`orcheo-db search`: parse, catch up, ask, print."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from orcheo_db.command import Command, Context, pass_context
from orcheo_db.console import out, say, step
from orcheo_db.database import connect
from orcheo_db.search import index
from orcheo_db.search.query import START, STOP, Page, ask
from orcheo_db.search.request import Cursor, Request, checked, containment, kinds, moment


@click.command(cls=Command)
@click.argument("query", required=False, default="")
@click.option("--in", "where", metavar="KINDS", help="Some of runs,steps,messages,workflows (default: all).")
@click.option("--workspace", metavar="SLUG|ID", help="Only this workspace.")
@click.option("--workflow", metavar="HANDLE|ID", help="Only this workflow.")
@click.option("--since", metavar="TIME", help="From this time on, ISO 8601 (UTC unless it says otherwise).")
@click.option("--until", metavar="TIME", help="Before this time.")
@click.option(
    "--filter", "filters", metavar="JSON", multiple=True, help="The document contains this JSON; may be repeated."
)
@click.option("--similar", is_flag=True, help="Words like these, by trigrams: finds parts and misspellings.")
@click.option("--limit", type=int, default=20, show_default=True, help="Results of a page.")
@click.option("--after", metavar="CURSOR", help="The page after the one that printed this cursor.")
@click.option("--refresh", is_flag=True, help="First index everything that is new, however long it takes.")
@pass_context
def search(context: Context, /, query: str, **options: Any) -> None:
    """Search run history, chat messages and workflows: words, "exact phrases", or, -without; newest first."""
    request = checked(
        Request(
            text=query,
            similar=options["similar"],
            kinds=kinds(options["where"]),
            workspace=options["workspace"],
            workflow=options["workflow"],
            since=moment("--since", options["since"]),
            until=moment("--until", options["until"]),
            contains=containment(options["filters"]),
            limit=options["limit"],
            after=Cursor.decode(options["after"]) if options["after"] else None,
        )
    )
    with connect(context.target().dsn(), timeout=10, options="") as connection:
        connection.prepare_threshold = None
        if options["refresh"]:
            with step("Indexing what is new") as bar:
                done = index.catch_up(
                    connection,
                    thorough=True,
                    seconds=None,
                    on_batch=lambda count: bar.update(0, 0, f"{count} documents"),
                )
            say(f"{done.written} documents written, {done.removed} removed in {done.seconds:.1f} s")
        else:
            done = index.catch_up(connection)
        page = ask(connection, request)
    document = {
        "hits": [asdict(hit) | {"snippet": _plain(hit.snippet)} for hit in page.hits],
        "after": page.after.encode() if page.after else None,
        "behind": done.behind,
        "seconds": {"catching_up": round(done.seconds, 4), "query": round(page.seconds, 4)},
    }
    context.print(document, None)
    if not context.as_json:
        _print(page, document, done.behind)


def _plain(snippet: str) -> str:
    return snippet.replace(START, "").replace(STOP, "")


def _highlighted(snippet: str) -> Text:
    text = Text()
    for number, part in enumerate(" ".join(snippet.split()).replace(STOP, START).split(START)):
        text.append(part, style="bold" if number % 2 else "")
    return text


def _print(page: Page, document: dict[str, Any], behind: bool) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("time (UTC)", "kind", "id"):
        table.add_column(title, no_wrap=True)
    table.add_column("text", overflow="fold")
    for hit in page.hits:
        where = hit.id if hit.kind != "message" else f"{hit.parent} {hit.id}"
        table.add_row(f"{hit.at:%Y-%m-%d %H:%M:%S}", hit.kind, where, _highlighted(hit.snippet))
    if page.hits:
        out.print(table)
    taken = document["seconds"]
    say(
        f"{len(page.hits)} results in {taken['query'] * 1000:.0f} ms"
        + (f"; more: --after {document['after']}" if page.after else "")
    )
    if behind:
        say("Not everything is indexed yet: run it once with --refresh.")
