"""Cron's five fields as systemd's calendar events (systemd.time(7))."""

from __future__ import annotations

DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def on_calendar(schedule: str) -> list[str]:
    """The events of a timer, for its OnCalendar= lines.

    Cron runs a job when the day of the month or the weekday matches, if both are restricted; systemd wants both. So that is two events.
    """
    minute, hour, day, month, weekday = schedule.split()
    time = f"{_field(hour, 0)}:{_field(minute, 0)}:00 UTC"
    by_day = f"*-{_field(month, 1)}-{_field(day, 1)} {time}"
    by_weekday = f"{_weekdays(weekday)} *-{_field(month, 1)}-* {time}"
    if weekday == "*":
        return [by_day]
    return [by_weekday] if day == "*" else [by_day, by_weekday]


def _field(text: str, least: int) -> str:
    """Numbers, ranges, lists and steps. Two digits, as systemd writes them."""
    return ",".join(_part(part, least) for part in text.split(","))


def _part(text: str, least: int) -> str:
    span, _, every = text.partition("/")
    first, _, last = span.partition("-")
    if span == "*":
        return f"{least:02}/{every}" if every and every != "1" else "*"
    words = f"{int(first):02}" + (f"..{int(last):02}" if last else "")
    return f"{words}/{every}" if every else words


def _weekdays(text: str) -> str:
    found = set[int]()
    for part in text.split(","):
        span, _, every = part.partition("/")
        first, _, last = span.partition("-")
        low, high = (0, 6) if span == "*" else (int(first), int(last or first))
        if every and not last and span != "*":
            high = 7
        found |= {number % 7 for number in range(low, high + 1, int(every or 1))}
    return ",".join(DAYS[number] for number in sorted(found))
