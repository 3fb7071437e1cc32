"""One measure of the drills over time, as inline SVG: axes with units, a circle for a drill that passed, a cross for one that failed."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 210  # units of the viewBox; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 12, 32  # room for the axes' labels
MANY = 120  # points, beyond which they are drawn small
UNITS = ((3 * 86400.0, 86400.0, "days"), (7200.0, 3600.0, "hours"), (180.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
DAY = 86400.0
CSS = """
svg.chart { width: 100%; height: auto; display: block; }
svg.chart text { fill: var(--muted); font-size: 12px; }
svg.chart .grid { stroke: var(--line); stroke-width: 1; }
svg.chart .axis { stroke: var(--muted); stroke-width: 1; }
svg.chart .trend { fill: none; stroke: var(--pass); stroke-width: 1.5; opacity: .55; }
svg.chart .dense { stroke-width: 1; opacity: .3; }
svg.chart .pass { fill: var(--pass); stroke: var(--card); stroke-width: 1; }
svg.chart .fail { stroke: var(--fail); stroke-width: 2.5; stroke-linecap: round; }
"""


@dataclass(frozen=True)
class Point:
    """A drill: when (Unix seconds), the measure in seconds if it has one, whether it passed, what a pointer over it shows."""

    at: float
    seconds: float | None
    passed: bool
    label: str


def steps(most: float, wanted: int = 4) -> list[float]:
    """Round numbers from 0 to at least `most`, about `wanted` of them above 0."""
    most = most if most > 0 else 1.0
    raw = most / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    return [step * number for number in range(math.ceil(most / step * 0.999) + 1)]


def dates(first: float, last: float, wanted: int = 5) -> list[tuple[float, str]]:
    """Moments between two (Unix seconds, at full hours, midnights or months' beginnings) and how they are written, few of them."""
    span = last - first
    if span > 120 * DAY:
        return _months(
            first, last, next((count for count in (1, 2, 3, 6, 12) if span / (count * 30 * DAY) <= wanted + 1), 24)
        )
    step = next(
        (hours * 3600.0 for hours in (1, 2, 3, 6, 12, 24, 48, 72, 168, 336) if span / (hours * 3600.0) <= wanted),
        720 * 3600.0,
    )
    written = "%-d %b" if step >= DAY else "%-d %b %H:%M"
    begin = math.ceil(first / step) * step
    ticks = [begin + step * number for number in range(int((last - begin) // step) + 1)]
    return [(tick, dt.datetime.fromtimestamp(tick, dt.UTC).strftime(written)) for tick in ticks]


def _months(first: float, last: float, every: int) -> list[tuple[float, str]]:
    """The beginnings of each `every`th month."""
    found = []
    for number in range(
        dt.datetime.fromtimestamp(first, dt.UTC).year * 12, dt.datetime.fromtimestamp(last, dt.UTC).year * 12 + 12
    ):
        begin = dt.datetime(number // 12, number % 12 + 1, 1, tzinfo=dt.UTC)
        if number % every == 0 and first <= begin.timestamp() <= last:
            found.append((begin.timestamp(), begin.strftime("%b %Y")))
    return found


def chart(title: str, points: Sequence[Point]) -> str:
    """The SVG of the points, oldest first. A failed drill without a measure is a cross on the time axis."""
    measured = [point.seconds for point in points if point.seconds is not None]
    if not points:
        return '<p class="none">Nothing to draw yet.</p>'
    _, unit, unit_name = next(each for each in UNITS if max(measured, default=0.0) >= each[0])
    ticks = steps(max(measured, default=0.0) / unit)
    first, last = points[0].at, max(point.at for point in points)
    margin = max(
        (last - first) * 0.02, DAY / 2 if last - first < 3600 else 0
    )  # one drill stands in the middle of a day
    first, last = min(point.at for point in points) - margin, last + margin

    def across(at: float) -> float:
        return LEFT + (at - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def up(seconds: float) -> float:
        return HEIGHT - BOTTOM - seconds / unit / ticks[-1] * (HEIGHT - TOP - BOTTOM)

    base = HEIGHT - BOTTOM
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title} in {unit_name} over time")}">'
    ]
    for tick in ticks:
        y = up(tick * unit)
        parts.append(
            f'<line class="{"grid" if tick else "axis"}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    middle = (TOP + base) / 2
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{unit_name}</text>'
    )
    for at, written in dates(first, last):
        x = across(at)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 5}"/>')
        anchor = "end" if x > WIDTH - 40 else "start" if x < LEFT + 20 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{base + 20}" text-anchor="{anchor}">{written}</text>')
    parts += _marks(points, across_up=[(across(point.at), up(point.seconds or 0.0)) for point in points])
    return "".join([*parts, "</svg>"])


def _marks(points: Sequence[Point], across_up: Sequence[tuple[float, float]]) -> list[str]:
    size = 2.4 if len(points) > MANY else 4.2
    places = list(zip(points, across_up, strict=True))
    line = [f"{x:.1f},{y:.1f}" for point, (x, y) in places if point.passed and point.seconds is not None]
    parts = (
        [f'<polyline class="trend{" dense" if len(points) > MANY else ""}" points="{" ".join(line)}"/>']
        if len(line) > 1
        else []
    )
    for point, (x, y) in places:
        label = f"<title>{escape(point.label)}</title>"
        if point.passed and point.seconds is not None:
            parts.append(f'<circle class="pass" cx="{x:.1f}" cy="{y:.1f}" r="{size}">{label}</circle>')
    for point, (x, y) in places:  # on top: a failure is not hidden by what passed
        if not point.passed:
            arm = max(size, 4.0)
            path = f"M{x - arm:.1f} {y - arm:.1f}L{x + arm:.1f} {y + arm:.1f}M{x - arm:.1f} {y + arm:.1f}L{x + arm:.1f} {y - arm:.1f}"
            parts.append(f'<path class="fail" d="{path}"><title>{escape(point.label)}</title></path>')
    return parts
