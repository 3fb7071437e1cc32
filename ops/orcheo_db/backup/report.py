"""The drills for people: a few lines for a terminal, one self-contained page for a browser.

Both take records as `evidence.load_all` gives them, oldest first, and what `evidence.verify` found (None: not asked). Nothing of a record
is trusted: control characters don't reach the terminal, and everything is escaped in the page.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from orcheo_db.backup.chart import CSS as CHART_CSS
from orcheo_db.backup.chart import Point, chart
from orcheo_db.backup.record import Record, file_name, moment

SHOWN = 50  # rows of the table that are open at once
LONG = 200  # characters of a value that a check found; all of it is in the record
CSS = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --text: #1b1f24; --muted: #57606a; --line: #d5d9de; --pass: #0b5cad;
  --fail: #b3261e; --fail-back: #fdeceb; --pass-back: #e8f1fb; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1d2126; --text: #e8eaed; --muted: #a5adb6; --line: #3a4048;
  --pass: #7ab7ff; --fail: #ff8a80; --fail-back: #3a1d1b; --pass-back: #16283c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 20px 60px; max-width: 1120px; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 0 0 8px; } .sub, .none { color: var(--muted); margin: 0 0 18px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 16px 18px; margin: 0 0 16px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 0 0 16px; }
.cards section { margin: 0; } .cards h2 { font-size: 13px; font-weight: 600; color: var(--muted); margin: 0 0 2px; }
.cards b { font-size: 19px; display: block; white-space: nowrap; } .cards p { color: var(--muted); font-size: 13px; margin: 2px 0 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 12px; margin: 0 0 16px; }
.charts section { margin: 0; } .legend { color: var(--muted); font-size: 13px; margin: 6px 0 0; }
.mark { display: inline-block; padding: 1px 8px; border-radius: 10px; font-size: 13px; font-weight: 600; white-space: nowrap; }
.mark.pass { color: var(--pass); background: var(--pass-back); } .mark.fail { color: var(--fail); background: var(--fail-back); }
.cards .pass, .legend .pass { color: var(--pass); } .cards .fail, .legend .fail { color: var(--fail); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 7px 10px; border-top: 1px solid var(--line); } thead th { border-top: 0;
  color: var(--muted); font-size: 13px; } td.number { white-space: nowrap; font-variant-numeric: tabular-nums; } td.time { white-space: nowrap; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.4 ui-monospace, "Liberation Mono", monospace; }
pre.fail { color: var(--fail); } ul { margin: 4px 0 0; padding-left: 20px; } li { overflow-wrap: anywhere; }
summary { cursor: pointer; } .small { font-size: 13px; color: var(--muted); }
"""


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 0.4 s, 4 min 10 s, 2 h 5 min, 3 d 4 h."""
    if seconds is None:
        return "unknown"
    whole = round(abs(seconds))
    sign = "-" if seconds < 0 else ""
    if whole < 60:
        return f"{seconds:.1f} s" if abs(seconds) < 10 else f"{sign}{whole} s"
    for large, small, names in ((86400, 3600, ("d", "h")), (3600, 60, ("h", "min")), (60, 1, ("min", "s"))):
        if whole >= large:
            rest = whole % large // small
            return f"{sign}{whole // large} {names[0]}" + (f" {rest} {names[1]}" if rest else "")
    return f"{seconds} s"


def size(value: float) -> str:
    """Bytes as PostgreSQL writes them (1 kB is 1024 bytes)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(value) < 10240:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.0f} TB"


def when(record: Record) -> str:
    """The drill's start: 2026-07-01 02:15 UTC."""
    return f"{record['started_at'][:16].replace('T', ' ')} UTC"


def _plain(value: object) -> str:
    """Anything that a record holds as one readable text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _sizes(record: Record) -> list[str]:
    """`sizes` in words: what is named …bytes is bytes, else a number of what it is named."""
    found = []
    for name, value in record["sizes"].items():
        words = name.replace("_", " ")
        found.append(
            f"{words.removesuffix(' bytes')} {size(value)}" if name.endswith("bytes") else f"{words} {_plain(value)}"
        )
    return found


def _restored(record: Record) -> str:
    backup, target = record["backup"], record["target"]
    parts = [_plain(backup.get("label") or "no backup")]
    about = [_plain(backup[key]) for key in ("type",) if backup.get(key)]
    about += [size(backup["size"])] if isinstance(backup.get("size"), int | float) else []
    parts += [f"({', '.join(about)})"] if about else []
    to = [_plain(target[key]) for key in ("restore_point", "lsn", "time") if target.get(key)]
    return " ".join(parts + ([f"to {', '.join(to)}"] if to else []))


def _chain(records: Sequence[Record], problems: Sequence[str] | None) -> str:
    if problems is None or not (records or problems):
        return f"{len(records)} record(s), not verified" if records else "no records yet"
    return f"{len(problems)} problem(s)" if problems else f"{len(records)} record(s), all signed and chained"


def _ago(record: Record, now: float) -> str:
    return f"{duration(max(0.0, now - moment(record['finished_at'])))} ago"


def _last_success(records: Sequence[Record]) -> Record | None:
    return next((record for record in reversed(records) if record["result"] == "pass"), None)


def _shown(text: str, indent: str = "") -> str:
    """Text that can't speak to the terminal: control characters are spelt out, further lines are indented."""
    lines = text.replace("\r\n", "\n").split("\n")
    clean = ["".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in line) for line in lines]
    return f"\n{indent}".join(clean)


def text(records: Sequence[Record], problems: Sequence[str] | None = None, now: float | None = None) -> str:
    """The last drill, and how it stands with all of them, for a terminal.

    Args:
        now: Unix seconds, for ages; the present if not given.
    """
    now = time.time() if now is None else now
    if not records:
        lines = ["No drill has run yet."] + ([f"  evidence   {_chain(records, problems)}"] if problems else [])
        return "\n".join([*lines, *(f"             {_shown(problem)}" for problem in problems or ())]) + "\n"
    last, good = records[-1], _last_success(records)
    passed = sum(record["result"] == "pass" for record in records)
    ok = sum(check["ok"] for check in last["checks"])
    sizes = "; ".join(_sizes(last))
    fields = [
        ("failure", last["failure"] or ""),
        ("restored", _restored(last)),
        ("RTO", f"{duration(last['rto_seconds'])} (from the restore's start to a database that answers)"),
        (
            "RPO",
            f"{duration(last['rpo_seconds'])} (until the marker was in the repository: a server lost then would have lost as much)",
        ),
        ("compared", f"{ok} of {len(last['checks'])} checks ok" + (f"; {sizes}" if sizes else "")),
        *(
            ("", f"{'ok  ' if check['ok'] else 'FAIL'} {check['name']}: {_plain(check['found'])[:LONG]}")
            for check in last["checks"]
        ),
        ("versions", _versions(last)),
        (
            "all drills",
            f"{passed} of {len(records)} passed; last success {f'{when(good)}, {_ago(good, now)}' if good else 'never'}",
        ),
        ("evidence", _chain(records, problems)),
        *(("", problem) for problem in problems or ()),
    ]
    head = f"Drill {last['id']} ({last['kind']}): {last['result'].upper()}, {when(last)}, {_ago(last, now)}"
    return (
        "\n".join([_shown(head), *(f"  {name:<11}{_shown(value, ' ' * 13)}" for name, value in fields if value)]) + "\n"
    )


def _mark(passed: bool, words: tuple[str, str] = ("✓ pass", "✕ fail")) -> str:
    return f'<span class="mark {"pass" if passed else "fail"}">{words[0] if passed else words[1]}</span>'


def _card(title: str, value: str, note: str, state: str = "") -> str:
    return f'<section><h2>{escape(title)}</h2><b class="{state}">{escape(value)}</b><p>{escape(note)}</p></section>'


def _cards(records: Sequence[Record], problems: Sequence[str] | None, now: float) -> str:
    good = _last_success(records)
    last = records[-1] if records else None
    state = "" if last is None else "pass" if last["result"] == "pass" else "fail"
    result = {"": "none yet", "pass": "✓ passed", "fail": "✕ failed"}[state]
    intact = None if problems is None or not (records or problems) else not problems
    chained = {None: "not verified" if records else "none yet", True: "✓ intact", False: "✕ broken"}[intact]
    cards = [
        _card("Last drill", result, when(last) if last else "", state),
        _card(
            "Last success",
            _ago(good, now) if good else "never",
            when(good) if good else "",
            "" if good or not records else "fail",
        ),
        _card(
            "Restore takes (RTO)",
            duration(good["rto_seconds"]) if good else "unknown",
            "start to usable database, last success",
        ),
        _card(
            "Data lost (RPO)",
            duration(good["rpo_seconds"]) if good else "unknown",
            "how old the restored state is, last success",
        ),
        _card(
            "Evidence", chained, _chain(records, problems), "" if problems is None else "fail" if problems else "pass"
        ),
    ]
    return f'<div class="cards">{"".join(cards)}</div>'


def _chart(title: str, key: str, records: Sequence[Record]) -> str:
    points = []
    for record in records:
        value = record[key] if record["result"] == "pass" or record[key] is not None else None
        label = f"{when(record)}: {record['result']}, {duration(value)}"
        points.append(Point(moment(record["started_at"]), value, record["result"] == "pass", label))
    legend = (
        '<p class="legend"><span class="pass">●</span> passed &ensp; <span class="fail">✕</span> failed (on the time axis if it got no further)</p>'
        if records
        else ""
    )
    return f"<section><h2>{escape(title)}</h2>{chart(title, points)}{legend}</section>"


def _checks(record: Record) -> str:
    """What was compared, the failed ones open, and with which versions."""

    def items(checks: Iterable[dict[str, Any]]) -> str:
        return "".join(
            f"<li>{'✓' if c['ok'] else '✕'} {escape(c['name'])}: {escape(_plain(c['found'])[:LONG])}</li>"
            for c in checks
        )

    checks = record["checks"]
    failed = [check for check in checks if not check["ok"]]
    sizes = f'<div class="small">{escape("; ".join(_sizes(record)))}</div>' if record["sizes"] else ""
    words = f"{len(checks) - len(failed)} of {len(checks)} checks ok" if checks else "no checks"
    versions = f'<div class="small">{escape(_versions(record))}</div>'
    folded = f"<details><summary>{words}</summary><ul>{items(checks)}</ul>{versions}</details>"
    return (f"<ul>{items(failed)}</ul>" if failed else "") + folded + sizes


def _versions(record: Record) -> str:
    return ", ".join(f"{program} {_plain(version)}" for program, version in record["versions"].items())


def _row(record: Record, wrong: dict[str, list[str]]) -> str:
    failure = f'<pre class="fail">{escape(record["failure"])}</pre>' if record["failure"] else ""
    name = file_name(record)
    evidence = "".join(f'<pre class="fail">{escape(problem)}</pre>' for problem in wrong.get(name, ()))
    cells = [
        f'<td class="time">{escape(when(record))}<div class="small">{escape(record["id"])}, {escape(record["kind"])}</div></td>',
        f"<td>{_mark(record['result'] == 'pass')}</td>",
        *(f'<td class="number">{escape(duration(record[key]))}</td>' for key in ("rto_seconds", "rpo_seconds")),
        f"<td>{escape(_restored(record))}</td>",
        f"<td>{failure}{_checks(record)}{evidence}</td>",
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _table(records: Sequence[Record], wrong: dict[str, list[str]]) -> str:
    head = "".join(
        f"<th>{name}</th>" for name in ("Started", "Result", "RTO", "RPO", "Restored", "Failure; what was compared")
    )
    newest = list(reversed(records))
    tables = [
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(_row(record, wrong) for record in part)}</tbody></table></div>'
        for part in (newest[:SHOWN], newest[SHOWN:])
        if part
    ]
    if len(tables) > 1:
        tables[1] = f"<details><summary>{len(newest) - SHOWN} earlier drills</summary>{tables[1]}</details>"
    return f"<section><h2>Drills</h2>{''.join(tables) or '<p class=none>No drill has run yet.</p>'}</section>"


def html(records: Sequence[Record], problems: Sequence[str] | None = None, now: float | None = None) -> str:
    """The page: how it stands, RTO and RPO over time, every drill with the exact text of its failure.

    Args:
        now: Unix seconds, for ages; the present if not given.
    """
    now = time.time() if now is None else now
    wrong: dict[str, list[str]] = {}
    for problem in problems or ():
        wrong.setdefault(problem.partition(": ")[0], []).append(problem)
    listed = "".join(f"<li>{escape(problem)}</li>" for problem in problems or ())
    broken = (
        f"<section><h2>{_mark(False, ('', '✕ evidence'))} What is wrong with the evidence</h2><ul>{listed}</ul></section>"
        if listed
        else ""
    )
    drawn = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    installation = f", installation {records[-1]['installation_id']}" if records else ""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Restore drills</title><style>{CSS}{CHART_CSS}</style></head><body>",
        f'<h1>Restore drills</h1><p class="sub">As of {escape(drawn + installation)}. All times are UTC.</p>',
        _cards(records, problems, now),
        broken,
        f'<div class="charts">{_chart("RTO: how long a restore takes", "rto_seconds", records)}',
        f"{_chart('RPO: how much is lost', 'rpo_seconds', records)}</div>",
        _table(records, wrong),
        "</body></html>",
    ]
    return "".join(parts) + "\n"
