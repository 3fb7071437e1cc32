"""What an inspection found, as lines for a person: every hazard one line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'' if noun.endswith('s') else 's'}"


def hazards(found: Mapping[str, Any]) -> list[str]:
    """One line for each thing that would go wrong, or that the upgrade changes. `found`: the document of `inspect`."""
    lines = []
    if found["missing_columns"]:
        lines.append(f"the release needs and doesn't add: {', '.join(found['missing_columns'])}; the upgrade adds it")
    for index in found["stale_indexes"]:
        lines.append(
            f"unique index {index['name']} holds a rule of the old release that the new one never drops; the upgrade drops it"
        )
    if found["stray"]:
        groups = found["groups"]
        ids = ", ".join(f"{name or 'none'}: {count}" for name, count in list(groups.items())[:6])
        more = f" and {len(groups) - 6} more" if len(groups) > 6 else ""
        where = found["destination"]
        home = f"workspace {where['slug']!r}{' (made for it)' if where['new'] else ''}" if where else "a workspace"
        lines.append(
            f"{plural(sum(groups.values()), 'row')} in {plural(len(found['stray']), 'table')} would be invisible, for their workspace"
            f" does not exist ({ids}{more}); they follow their workflow, else go to {home}"
        )
    for new in found["renames"]:
        lines.append(
            f"{new['table']} {new['id']}: name {new['old']!r} is taken where it goes, it becomes {new['new']!r}"
        )
    for slug, count in found["inactive"].items():
        lines.append(
            f"{plural(count, 'row')} of the suspended or deleted workspace {slug!r} stay in it, unseen as they are now"
        )
    if found["ownerless"]:
        lines.append(
            f"nobody is a member of {', '.join(map(repr, found['ownerless']))}, so nobody would see it: the owner of the bootstrap token becomes"
            " its owner; invite the others afterwards"
        )
    if found["tokens_without_workspace"]:
        count = plural(found["tokens_without_workspace"], "service token")
        lines.append(
            f"{count} without a workspace get their own, as the single-workspace mode had it"
            if found["single_workspace"]
            else f"{count} without a workspace: the new release refuses them in every workspace, mint new ones"
        )
    lines += _losses(found)
    return lines


def _losses(found: Mapping[str, Any]) -> list[str]:
    lines = []
    chat, trace = found["retention"]["chat_threads"], found["retention"]["traces"]
    if chat["rows"]:
        lines.append(
            f"{plural(chat['rows'], 'chat thread')} not updated for {chat['days']} days would be deleted by the app's first start:"
            " raise [app] chatkit_retention_days"
        )
    if trace["rows"]:
        lines.append(
            f"{plural(trace['rows'], 'execution')} older than {trace['days']} days: this release reads trace_retention_days and deletes none,"
            " a later one may"
        )
    if found["vault"] and found["vault"]["unreadable"]:
        lines.append(
            f"the vault key does not open {found['vault']['unreadable']} of {found['vault']['credentials']} credentials"
        )
    if found["attachment_files"]:
        lines.append(
            f"the contents of {plural(found['attachment_files'], 'chat attachment')} lie in files, from where the new release does not read them;"
            " they are brought into the database where the files are found"
        )
    if found["unfinished_runs"]:
        lines.append(
            f"{plural(found['unfinished_runs'], 'run')} pending or running: let them end first, or find them unfinished afterwards"
        )
    for session in found["sessions"]:
        lines.append(
            f"server process {session['pid']} ({session['application'] or 'no name'}, {session['state']}) works as the app"
        )
    if found["former_tables"]:
        lines.append(
            f"the new release has no {', '.join(found['former_tables'])}; the table and its rows stay as they are"
        )
    return lines


def human(found: Mapping[str, Any]) -> str:
    """The document of `inspect` for a person."""
    was, now = found["from"], found["to"]
    before = (
        f"orcheo {was['orcheo']} + orcheo-backend {was['orcheo_backend']}" if was["orcheo"] else "an unknown release"
    )
    head = f"  {found['database']} ({found['size_bytes'] / 2**20:.0f} MB), made by {before}; installed is orcheo {now['orcheo']} + orcheo-backend {now['orcheo_backend']}"
    return "\n".join([head, *(f"  - {line}" for line in found["hazards"] or ["nothing has to be changed"])])
