"""Text, JSON and time on their way to PostgreSQL and back: nothing there that it refuses, and nothing lost."""

from __future__ import annotations

import json
import math
import re
import sys
import tracemalloc
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orcheo_db.migrate import text
from orcheo_db.migrate.text import (
    DUPLICATE,
    EPOCH,
    MARK,
    MARKED,
    NAIVE,
    NEGATIVE_ZERO,
    NO_TIME,
    NOT_FINITE,
    NOT_UTC,
    NUL,
    RANGE,
    SURROGATE,
    NotJson,
    clean,
    from_jsonb,
    from_timestamp,
    restore,
    to_jsonb,
    to_timestamp,
)  # fmt: skip
from tests.unit.migrate_files import jsonb, seen, timestamptz

FEW = settings(max_examples=100, deadline=None)
# Everything that Python's str holds, with the characters of the rule itself far more often than by chance.
PARTS = st.one_of(
    st.characters(exclude_categories=()),
    st.sampled_from(["\x00", MARK, "\u2400", "\ufffd", "d83d", "\ud83d", "\ude00", "\U0001f600", "#NaN", "\\", '"', "\\u0000", "\\ufdd0"]),
)  # fmt: skip
TEXTS = st.lists(PARTS, max_size=12).map("".join)
NUMBERS = st.one_of(
    st.integers(), st.integers(-(2**220), 2**220), st.floats(), st.sampled_from([-0.0, 1e23, 5e-324, math.inf, -math.inf, math.nan])
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
ZURICH, KATHMANDU = ZoneInfo("Europe/Zurich"), timezone(timedelta(hours=5, minutes=45))


def there_and_back(document: str) -> tuple[str, set[str]]:
    shown, reasons = to_jsonb(document)
    return from_jsonb(jsonb(shown)), reasons


# --- text -------------------------------------------------------------------------------------------------------------------


@given(TEXTS)
@example(MARK + "\u2400")
@example(MARK + MARK)
@example(MARK + "\ufffdd83d")
@FEW
def test_text_is_cleaned_and_comes_back(value: str) -> None:
    shown, reasons = clean(value)
    shown.encode()
    assert "\x00" not in shown
    assert restore(shown) == value
    assert (NUL in reasons) == ("\x00" in value)
    assert (SURROGATE in reasons) == bool(re.search("[\ud800-\udfff]", value))


@given(TEXTS, TEXTS)
@FEW
def test_two_texts_never_become_one(first: str, second: str) -> None:
    assert (clean(first)[0] == clean(second)[0]) == (first == second)


def test_plain_text_is_passed_on_as_it_is() -> None:
    value = "as it is: ä \U0001f600 \u2400 \ufffd"
    assert clean(value)[0] is value and restore(value) is value
    assert clean("a\x00b") == (f"a{MARK}\u2400b", {NUL})
    assert clean("\udc80") == (f"{MARK}\ufffddc80", {SURROGATE})


# --- JSON -------------------------------------------------------------------------------------------------------------------


@given(VALUES, st.booleans())
@example("\ud800\udc00", True)
@FEW
def test_json_comes_back_equal(value: Any, ascii_only: bool) -> None:
    document = json.dumps(value, ensure_ascii=ascii_only)
    try:
        document.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8: no JSON for the app either
        with pytest.raises(NotJson):
            to_jsonb(document)
        return
    back, reasons = there_and_back(document)
    assert seen(json.loads(back)) == seen(json.loads(document))
    read = json.dumps(json.loads(document), ensure_ascii=False)  # two halves of a pair are one character there
    assert (SURROGATE in reasons) == bool(re.search("[\ud800-\udfff]", read))
    assert (NUL in reasons) == ("\x00" in "".join(_strings(value)))


@given(VALUES, st.booleans())
@example({"id": "00000000-0000-4e00-8000-1e5000000000", "-0": [0.0, -1, 1.5]}, True)
@FEW
def test_what_the_fast_look_passes_the_thorough_one_leaves_alone(value: Any, ascii_only: bool) -> None:
    document = json.dumps(value, ensure_ascii=ascii_only)
    if text._is_plain(document):
        reasons: set[str] = set()
        assert text._TOKEN.sub(lambda match: text._token(match[0], reasons), document) == document
        assert not reasons


@pytest.mark.parametrize(
    "document",
    ["1e5", "[1E-3]", "-0.0", '{"a": NaN}', "[-Infinity]", '{"a": 1, "a": 1}', '"\\u0000"', '"\\uD83d\\uDe00"', '"\\uFDD0"',
     '"\ufdd0"', "1" * 2000, "0." + "1" * 2000],
    ids=lambda document: ascii(document[:12]),
)  # fmt: skip
def test_what_needs_a_thorough_look_gets_one(document: str) -> None:
    assert not text._is_plain(document)


@pytest.mark.parametrize(
    "document", ['"00000000-0000-4e00-8000-1e5000000000"', '"-0.0"', '"NaN"', "-0", "-0.1", '"\\u00e4"', '"\U0001f600"']
)  # fmt: skip
def test_what_only_looks_odd_is_passed_at_once(document: str) -> None:
    assert text._is_plain(document)


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value if isinstance(value, list) else (*value, *value.values()) if isinstance(value, dict) else ()
    return [found for one in inner for found in _strings(one)]


@pytest.mark.parametrize(
    ("value", "reasons"),
    [
        (math.nan, {NOT_FINITE}), (math.inf, {NOT_FINITE}), (-math.inf, {NOT_FINITE}), (2**53 + 1, set()), (2**63, set()), (2**200, set()),
        (-(2**200), set()), (1e23, set()), (sys.float_info.max, set()), (-sys.float_info.max, set()), (5e-324, set()),
        (-0.0, {NEGATIVE_ZERO}), (1.0, set()), (1e5, set()), ("a\x00b", {NUL}), ("\ud83d", {SURROGATE}), ("\U0001f600", set()),
        ("\\u0000 as text", set()), ("NaN", set()), ("", set()), (f"{MARK}#NaN", {MARKED}), (f"{MARK}{MARK}\u2400", {MARKED}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["{}", '{{"a": [{}, "NaN"]}}', '{{"a":{}}}'])
def test_each_strange_value_comes_back(value: Any, reasons: set[str], form: str) -> None:
    document = form.format(json.dumps(value))
    back, found = there_and_back(document)
    assert seen(json.loads(back)) == seen(json.loads(document))
    assert found == reasons


@pytest.mark.parametrize("key", ["a\x00b", "\ud83d", "\ude00\ud83d", MARK, f"{MARK}#NaN", "", "\x00"])
def test_keys_come_back(key: str) -> None:
    document = json.dumps({"a": {key: 1, key + "x": 2}})
    assert json.loads(there_and_back(document)[0]) == json.loads(document)


@pytest.mark.parametrize(
    "escaped", [r"\ufdd0", r"\uFDD0", r"\uFdd0", r"\ufDd0", r"\ufdD0", r"\ufDD0", r"\uFDd0", r"\uFdD0", MARK]
)
def test_the_mark_comes_back_however_it_is_written(escaped: str) -> None:
    for document in (f'["{escaped}{escaped}"]', f'["{escaped}\u2400"]', f'{{"{escaped}#NaN": "{escaped}#NaN"}}'):
        assert json.loads(there_and_back(document)[0]) == json.loads(document)


@pytest.mark.parametrize("document", [r'["\uD83D"]', r'{"\uDE00\uD83D": "\uD83D\uDE00"}', r'"\uDBFF"', r'["\ud83D"]'])
def test_surrogates_come_back_however_they_are_written(document: str) -> None:
    assert json.loads(there_and_back(document)[0]) == json.loads(document)


@pytest.mark.parametrize("bottom", ["1", "1e5", "NaN", '"\\u0000"', "1.10"])
def test_depth_200(bottom: str) -> None:
    document = "[" * 100 + '{"down":' * 100 + bottom + "}" * 100 + "]" * 100
    assert seen(json.loads(there_and_back(document)[0])) == seen(json.loads(document))


@given(
    st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.sampled_from(["{}", "[{}]", '{{"a" : {}}}']),
)
@example("1e400", "{}")
@example("-1E+400", "[{}]")
@example("1e-400", "[{}]")
@example("1e5", "{}")
@example("-0", "[{}]")
@example("-0.00", "[{}]")
@FEW
def test_numbers_keep_every_digit_and_their_kind(token: str, form: str) -> None:
    document = form.format(token)
    shown, _ = to_jsonb(document)
    (stored,) = re.findall(r"-?[0-9][0-9.eE+-]*", jsonb(shown))
    assert Decimal(stored) == Decimal(token)
    back = from_jsonb(jsonb(shown))
    assert seen(json.loads(back)) == seen(json.loads(document))


TOO_LONG = [
    "1e99999",
    f"1e{'9' * 5000}",
    f"0.{'1' * 20000}e5",
    f"{'1' * 2000}e5",
    f"1e-{'9' * 5000}",
    "1e-1101",
    "1" * 140000,
]
LONG = ["1" * 1101, "1" * 131072, f"0.{'1' * 16383}", "1.5e300", "1e308", "1e-308"]


@pytest.mark.parametrize("token", TOO_LONG, ids=lambda token: token[:9])
def test_a_number_that_no_numeric_holds_is_kept_as_it_is_written(token: str) -> None:
    shown, reasons = to_jsonb(token)
    assert reasons == {NOT_FINITE}
    assert from_jsonb(jsonb(shown)) == token


@pytest.mark.parametrize("token", LONG, ids=lambda token: token[:9])
def test_a_number_that_a_numeric_holds_stays_a_number(token: str) -> None:
    shown, reasons = to_jsonb(token)
    assert not reasons and not shown.startswith('"')


def test_duplicate_keys_last_wins_and_the_reason_is_kept() -> None:
    document = '{"a": 1, "a": 1e5, "b": {"c": 1, "c": 2}}'
    back, reasons = there_and_back(document)
    assert reasons == {DUPLICATE}
    assert json.loads(back) == {"a": 1e5, "b": {"c": 2}}
    assert to_jsonb('{"a": 1, "a": 2}') == ('{"a": 1, "a": 2}', {DUPLICATE})
    assert to_jsonb('{"a": {"b": 1}, "b": {"a": 1}}')[1] == set()


@pytest.mark.parametrize(
    "document", ['{"a": [1, 1.5, "x", null, true], "b-0": "2026-01-01"}', "[]", '"ä"', "{}", '[-1, "-0", 0.1]']
)
def test_plain_json_is_the_same_object(document: str) -> None:
    shown, reasons = to_jsonb(document)
    assert shown is document and not reasons
    assert from_jsonb(document) is document


@pytest.mark.parametrize(
    "document",
    ["", "{", "{'a': 1}", "[1]]", "nul", "[01]", '["\x00"]', '["\udc80"]', '{"a" 1}', "-", "[" * 100000, "[-Infinit]"],
    ids=lambda document: ascii(document[:9]),
)
def test_what_the_app_could_not_read_is_no_json(document: str) -> None:
    with pytest.raises(NotJson):
        to_jsonb(document)


@pytest.mark.parametrize("document", ["", "NaN1", '["\x00"]', '["\udc80"]', '["\\u0000]', "1e", '["\\ud800"'])
def test_what_postgresql_would_refuse_in_its_own_words_is_seen_before(document: str) -> None:
    with pytest.raises(NotJson):
        to_jsonb(document)


def test_which_reasons_lose_something() -> None:
    assert text.lossy([EPOCH, NUL]) and text.lossy([NO_TIME]) and text.lossy([RANGE])
    assert not text.lossy([EPOCH, NAIVE, NOT_UTC, DUPLICATE, NEGATIVE_ZERO])


@given(VALUES)
@FEW
def test_python_style_is_what_python_writes(value: Any) -> None:
    document = json.dumps(value)
    assert text.python_style(json.dumps(value, separators=(",", ":"))) == document


@pytest.mark.parametrize(
    "document", ["[1.00000000000000000001]", "[1" + "0" * 400 + ".0]", "9" * 5000], ids=lambda d: d[:9]
)
def test_python_style_leaves_what_python_would_round(document: str) -> None:
    assert text.python_style(document) == document
    assert text.python_style('{"a":1.10,"b":"ä"}') == '{"a": 1.1, "b": "\\u00e4"}'


# --- time -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown", "reason"),
    [
        ("2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00", None),
        ("2026-01-01T00:00:00.120000+00:00", "2026-01-01T00:00:00.120000+00:00", None),
        ("2026-01-01T00:00:00.12+00:00", "2026-01-01T00:00:00.120000+00:00", NOT_UTC),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00+00:00", NOT_UTC),
        ("2026-01-01T05:45:00+05:45", "2026-01-01T00:00:00+00:00", NOT_UTC),
        ("2026-01-01 00:00:00", "2025-12-31T23:00:00+00:00", NAIVE),
        ("2026-07-01T00:00:00", "2026-06-30T22:00:00+00:00", NAIVE),
        ("2026-01-01", "2025-12-31T23:00:00+00:00", NAIVE),
        ("0001-01-01T00:00:00+00:00", "0001-01-01T00:00:00+00:00", None),
        ("0001-01-01T00:00:00+05:45", "0001-01-01T00:00:00+00:00", RANGE),
        ("9999-12-31T23:59:59.999999+00:00", "9999-12-31T23:59:59.999999+00:00", None),
        ("9999-12-31T23:59:59-05:45", "9999-12-31T23:59:59.999999+00:00", RANGE),
        (1712011512, "2024-04-01T22:45:12+00:00", EPOCH), (1712011512304, "2024-04-01T22:45:12.304000+00:00", EPOCH),
        (1712011512304999, "2024-04-01T22:45:12.304999+00:00", EPOCH), (1712011512.5, "2024-04-01T22:45:12.500000+00:00", EPOCH),
        ("1712011512", "2024-04-01T22:45:12+00:00", EPOCH), ("1712011512304", "2024-04-01T22:45:12.304000+00:00", EPOCH),
        ("1712011512304999", "2024-04-01T22:45:12.304999+00:00", EPOCH), ("1712011512.5", "2024-04-01T22:45:12.500000+00:00", EPOCH),
        ("20240401", "2024-03-31T22:00:00+00:00", NAIVE), (0, "1970-01-01T00:00:00+00:00", EPOCH), (-1, "1969-12-31T23:59:59+00:00", EPOCH),
        ("", None, NO_TIME), ("yesterday", None, NO_TIME), ("2026-13-01", None, NO_TIME), ("nan", None, NO_TIME), ("inf", None, NO_TIME),
        (math.inf, None, NO_TIME), (10**400, None, NO_TIME), (-(10**11) + 1, None, NO_TIME), (b"2026-01-01", None, NO_TIME),
        ("\udc80", None, NO_TIME), ("\x00", None, NO_TIME), (None, None, None),
    ],
)  # fmt: skip
def test_a_time_of_any_form(value: object, shown: str | None, reason: str | None) -> None:
    assert to_timestamp(value, ZURICH) == (shown, reason)


@pytest.mark.parametrize(
    ("value", "shown", "reason"),
    [
        ("2026-01-01 00:00:00", "2026-01-01T00:00:00+00:00", None),
        ("2026-01-01 00:00:00.120000+00:00", "2026-01-01T00:00:00.120000+00:00", None),
        ("2026-01-01T00:00:00", "2026-01-01T00:00:00+00:00", NAIVE),
        ("2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00", NOT_UTC),
        ("2026-01-01 05:45:00+05:45", "2026-01-01T00:00:00+00:00", NOT_UTC),
    ],
)
def test_a_time_by_sqlite(value: str, shown: str, reason: str | None) -> None:
    assert to_timestamp(value, ZURICH, sqlite_style=True) == (shown, reason)


@given(st.datetimes())
@FEW
def test_a_time_as_the_app_writes_it_comes_back_as_the_same_text(when: datetime) -> None:
    iso = when.replace(tzinfo=UTC).isoformat()
    found = to_timestamp(iso, KATHMANDU)
    assert found == text.Time(iso, None)
    assert from_timestamp(timestamptz(str(found.text))) == iso
    spaced = when.isoformat(sep=" ")
    found = to_timestamp(spaced, KATHMANDU, sqlite_style=True)
    assert found == text.Time(iso, None)
    assert from_timestamp(timestamptz(str(found.text)), sqlite_style=True) == spaced
    assert from_timestamp(timestamptz(str(found.text)), sqlite_style=True, zone=True) == f"{spaced}+00:00"


@given(st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)), st.integers(-23 * 60, 23 * 60), st.booleans())
@FEW
def test_a_time_of_any_zone_is_the_same_moment(when: datetime, minutes: int, naive: bool) -> None:
    zone = timezone(timedelta(minutes=minutes))
    found = to_timestamp(when.isoformat() if naive else when.replace(tzinfo=zone).isoformat(), zone)
    assert datetime.fromisoformat(str(found.text)) == when.replace(tzinfo=zone)
    assert found.reason == (NAIVE if naive else NOT_UTC if minutes else None)


@given(
    TEXTS
    | st.text("0123456789-:T+Z. ", max_size=30)
    | st.integers()
    | st.floats(allow_nan=False)
    | st.binary(max_size=9)
)
@FEW
def test_no_value_is_too_strange_for_a_time(value: object) -> None:
    shown, reason = to_timestamp(value, ZURICH)
    if shown is None:
        assert reason == NO_TIME
    else:
        assert datetime.fromisoformat(shown).tzinfo == UTC and text.iso(timestamptz(shown)) == shown


# --- what the newest app writes knows nothing of escapes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own",
    [f"hi {MARK}", MARK, f"{MARK}{MARK}{MARK}", f"a{MARK}\u2400b{MARK}", f"{MARK}#1", f"{MARK}#1, x", f"{MARK}#NaN"],
)
def test_a_text_of_the_apps_own_stays_as_it_is(own: str) -> None:
    document = json.dumps({"a": own, own: 1}, ensure_ascii=False)
    assert text.there_and_back("text", own, escaped=False) == clean(own)[0]
    assert json.loads(text.there_and_back("jsonb", document, escaped=False)) == {"a": clean(own)[0], clean(own)[0]: 1}


def test_what_no_escape_can_be_is_left_alone_among_escapes() -> None:
    """A row that the migration had escaped, to which the app added U+FDD0."""
    assert restore(f"a{MARK}\u2400") == "a\x00" and restore(f"a{MARK}\u2400 {MARK}") == f"a{MARK}\u2400 {MARK}"
    document = json.dumps({"n": f"{MARK}#NaN", "no": f'{MARK}#1, "x": 2', f"{MARK}#1": 2}, ensure_ascii=False)
    found = json.loads(from_jsonb(document))
    assert math.isnan(found.pop("n")) and found == {"no": f'{MARK}#1, "x": 2', f"{MARK}#1": 2}


@given(st.text(alphabet=st.sampled_from(["a", MARK, "\u2400", "\ufffd", "d", "8", "3", "#"])), st.booleans())
def test_there_and_back_is_one_value_for_each(own: str, escaped: bool) -> None:
    """Two values of the app's never become one on the way to SQLite, whatever they look like."""
    written = restore(own) if escaped else own
    assert text.there_and_back("text", own, escaped=escaped) == clean(written)[0]
    assert written == own or clean(written)[0] == own


def test_a_long_string_takes_no_more_than_some_copies_of_it() -> None:
    """The expression that finds strings remembered every character of one: a hundred times its size."""
    document = json.dumps({"a": math.nan, "b": "x" * 3_000_000})
    tracemalloc.start()
    shown, reasons = to_jsonb(document)
    from_jsonb(shown)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reasons == {NOT_FINITE} and peak < 12 * len(document)
