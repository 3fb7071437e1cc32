"""A drill's record: what it holds, how it is spelt, how it is checked.

`evidence/<started_at>-<id>.json`, for example 20260701T021500Z-4f1c9a2e.json, is `spell(record)`:

    format            "orcheo-db-drill/1"
    id                text: letters, digits, - and _ (made by `append` if missing)
    kind              text: what was drilled, for example "restore"
    started_at        UTC, YYYY-MM-DDTHH:MM:SSZ; fractions of a second allowed
    finished_at       the same, not before started_at
    result            "pass" or "fail"
    failure           the exact text of what failed; null if and only if result is "pass"
    installation_id   text
    versions          object: program -> version
    backup            object: label, type, size (bytes), stop_lsn, …; empty if none was found
    target            object: restore_point, lsn, time, …
    rto_seconds       number >= 0: from the restore's start to a database that answers; null if it never was (only with "fail")
    rpo_seconds       number >= 0: from the marker's commit until its WAL was in the repository; null if not measured
    durations         object: step -> seconds
    sizes             object: what -> number (bytes, rows, …), for example of the sample that was compared
    checks            list of objects {name: text, ok: true or false, found: anything, …}; of a "pass" at least one and all ok
    previous          sha256 (hex) of the bytes of the record's file before this one; null in the first
    signature         Ed25519, base64, over `canonical(record)`: the record without this field
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from typing import Any

FORMAT = "orcheo-db-drill/1"
NAME = re.compile(r"\d{8}T\d{6}Z-[A-Za-z0-9_-]{1,64}\.json")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": str, "id": str, "kind": str, "started_at": str, "finished_at": str, "result": str, "failure": (str, type(None)),
    "installation_id": str, "versions": dict, "backup": dict, "target": dict, "rto_seconds": (int, float, type(None)),
    "rpo_seconds": (int, float, type(None)), "durations": dict, "sizes": dict, "checks": list, "previous": (str, type(None)),
    "signature": str,
}  # fmt: skip
MADE = ("format", "previous", "signature")  # what `append` fills in

Record = dict[str, Any]


def canonical(record: Record) -> bytes:
    """The bytes that are signed: JSON with sorted keys and no spaces, UTF-8, without the signature."""
    unsigned = {key: value for key, value in record.items() if key != "signature"}
    return json.dumps(unsigned, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def spell(record: Record) -> bytes:
    """The one way in which a record is written: sorted, indented, ASCII. Another spelling counts as edited."""
    return (json.dumps(record, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def moment(text: str) -> float:
    """A record's time in Unix seconds.

    Raises:
        ValueError: not written as the schema says, or no such day.
    """
    if not TIME.fullmatch(text):
        raise ValueError(f"{text!r} is no UTC time like 2026-07-01T02:15:00Z")
    return dt.datetime.fromisoformat(text).timestamp()


def file_name(record: Record) -> str:
    """The record's file: its start to the second, and its id."""
    return f"{re.sub(r'[-:]|[.][0-9]+', '', str(record['started_at']))}-{record['id']}.json"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def validate(record: object) -> list[str]:
    """What is wrong with a record by the schema above; empty if nothing is."""
    if not isinstance(record, dict):
        return ["is no JSON object"]
    wrong = [f"{key} is missing" for key in FIELDS if key not in record]
    wrong += [f"{key!r} is no field of a drill's record" for key in record if key not in FIELDS]
    wrong += [
        f"{key} has the wrong type"
        for key, kind in FIELDS.items()
        if key in record and not isinstance(record[key], kind)
    ]
    if wrong:
        return wrong
    if record["format"] != FORMAT:
        return [f"format is {record['format']!r}, not {FORMAT!r}"]
    wrong += [f"{key} is empty" for key in ("kind", "installation_id") if not record[key]]
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", record["id"]):
        wrong.append("id is not 1 to 64 letters, digits, - and _")
    if record["previous"] is not None and not re.fullmatch(r"[0-9a-f]{64}", record["previous"]):
        wrong.append("previous is no sha256")
    for key in ("rto_seconds", "rpo_seconds"):
        if record[key] is not None and not (_is_number(record[key]) and record[key] >= 0):
            wrong.append(f"{key} is no number of seconds")
    for key in ("durations", "sizes"):
        wrong += [f"{key}.{name} is no number" for name, value in record[key].items() if not _is_number(value)]
    return wrong + _wrong_times(record) + _wrong_result(record)


def _wrong_times(record: Record) -> list[str]:
    try:
        if moment(record["finished_at"]) < moment(record["started_at"]):
            return ["finished_at is before started_at"]
    except ValueError as error:
        return [str(error)]
    return []


def _wrong_result(record: Record) -> list[str]:
    wrong = []
    for number, check in enumerate(record["checks"]):
        found = isinstance(check, dict) and {"name", "ok", "found"} <= set(check)
        if not found or not isinstance(check["name"], str) or not isinstance(check["ok"], bool):
            wrong.append(f"checks[{number}] is not {{name, ok, found}}")
    if wrong:
        return wrong
    if record["result"] == "fail":
        return [] if record["failure"] else ["a drill that failed says what failed"]
    if record["result"] != "pass":
        return [f"result is {record['result']!r}, not pass or fail"]
    if record["failure"] is not None:
        wrong.append("a drill that passed has no failure")
    if record["rto_seconds"] is None:
        wrong.append("a drill that passed has rto_seconds")
    if not record["checks"] or not all(check["ok"] for check in record["checks"]):
        wrong.append("a drill that passed has checks, and all are ok")
    return wrong
