"""One form for equal JSON values, another for any other, and digests that see each change and no order."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from orcheo_db.migrate.canonical import BITS, canonical, digest, total

FEW = settings(max_examples=100, deadline=None)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=6)
DIGITS = st.from_regex(r"-?(0|[1-9][0-9]{0,45})(\.[0-9]{1,45})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
NUMBERS = DIGITS.filter(lambda token: not (token.startswith("-") and Fraction(token) == 0))  # jsonb has no -0.0
FLAT = [
    "1",
    "1.0",
    "10",
    "1e1",
    "1e400",
    "10.00",
    "0.1",
    "0.10000000000000000555",
    "9007199254740993",
    "9007199254740992",
]
DEEP = 300  # deeper than orjson writes


def exact(document: str) -> Any:
    """A document as a value that is equal to equal ones alone: no digit is lost, and an integer is no float."""
    return json.loads(document, parse_int=lambda d: ("integer", int(d)), parse_float=lambda d: ("float", Fraction(d)))


class Spelling:
    """Writes a value down, another way each time."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def write(self, value: Any) -> str:
        space = self.random.choice(["", " ", "\n\t"])
        if isinstance(value, dict):
            items = [f"{self.write(key)}{space}:{space}{self.write(value[key])}" for key in self.order(value)]
            return f"{{{space}{f'{space},{space}'.join(items)}{space}}}"
        if isinstance(value, list):
            return f"[{space}{f',{space}'.join(map(self.write, value))}{space}]"
        if isinstance(value, Decimal):
            return self.number(value)
        if isinstance(value, str):
            return "".join(map(self.character, value)).join('""')
        return json.dumps(value)

    def order(self, value: dict[str, Any]) -> list[str]:
        return self.random.sample(list(value), len(value))

    def number(self, value: Decimal) -> str:
        sign, digits, exponent = value.as_tuple()
        assert isinstance(exponent, int)
        zeros = self.random.randrange(20)
        whole = f"{'-' if sign else ''}{''.join(map(str, digits))}{'0' * zeros}"
        spelt = [f"{whole}.{'0' * self.random.randrange(1, 9)}e{exponent - zeros}", f"{whole}E{exponent - zeros:+04d}"]
        plain = format(value, "f")
        return self.random.choice([*spelt, plain if "." in plain else f"{plain}.0"])

    def character(self, one: str) -> str:
        forms = [json.dumps(one)[1:-1], json.dumps(one, ensure_ascii=False)[1:-1]]
        return self.random.choice([*forms, f"\\u{ord(one):04X}"] if ord(one) < 0x10000 else forms)


REALS = NUMBERS.map(Decimal).filter(lambda number: bool(number.as_tuple().digits[0]))
SPELT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**200), 2**200) | TEXTS | REALS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)


@given(SPELT, st.randoms(use_true_random=False), st.sampled_from([0, 3, DEEP]))
@FEW
def test_equal_values_have_one_form_however_they_are_written(value: Any, random: Random, depth: int) -> None:
    first, second = ("[" * depth + Spelling(random).write(value) + "]" * depth for _ in range(2))
    assert canonical(first) == canonical(second)


DOCUMENTS = st.recursive(
    st.sampled_from(["null", "true", "false", '"1"', '""', '"\\u0000"', *FLAT]) | NUMBERS,
    lambda inner: (
        st.lists(inner, max_size=2).map(lambda found: f"[{','.join(found)}]")
        | st.dictionaries(st.sampled_from(["a", "b", ""]), inner, max_size=2).map(
            lambda found: f"{{{','.join(f'{json.dumps(key)}:{value}' for key, value in found.items())}}}"
        )
    ),
    max_leaves=4,
)


@given(DOCUMENTS, DOCUMENTS, st.sampled_from([0, DEEP]))
@settings(max_examples=250, deadline=None)
def test_other_values_have_another_form(first: str, second: str, depth: int) -> None:
    forms = [canonical("[" * depth + one + "]" * depth) for one in (first, second)]
    assert (forms[0] == forms[1]) == (exact(first) == exact(second))


@given(NUMBERS, st.data())
@example("0." + "1" * 40, None)
@example("1" * 40, None)
@example("1" * 16, None)
@example("1e-400", None)
@example("1" + "0" * 400 + ".5", None)
@FEW
def test_one_changed_digit_is_seen(token: str, data: Any) -> None:
    """Also beyond what a double keeps, beyond Decimal's own 28 digits, and where a double is infinite or zero."""
    mantissa = len(token.lower().partition("e")[0])
    places = [i for i, char in enumerate(token[:mantissa]) if char.isdigit()]
    at = places[-1] if data is None else data.draw(st.sampled_from(places))
    other = f"{token[:at]}{(int(token[at]) + 1) % 10}{token[at + 1 :]}"
    assume(re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?([eE].*)?", other) and exact(other) != exact(token))
    for before, after in (("", ""), ('{"a":[1,', "]}"), ("[" * DEEP, "]" * DEEP)):
        assert canonical(before + token + after) != canonical(before + other + after)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1.10", "1.1"), ("1e5", "100000.0"), ("1E+05", "1000e2"), ("1e400", "1" + "0" * 400 + ".0"), ("-0", "0"), ("1e23", "1" + "0" * 23 + ".0"),
        ('{"a":1,"b":2}', '{ "b" : 2, "a" : 1 }'), ('"\\u00e4\\/\\u0041"', '"ä/A"'), ('"\\ud83d\\ude00"', '"\U0001f600"'),
        ('{"a":1,"a":2}', '{"a":2}'), ("5e-324", "0." + "0" * 323 + "5"), ("9" * 30, " " + "9" * 30),
    ],
)  # fmt: skip
def test_equal(first: str, second: str) -> None:
    for form in ("{}", "[[{}]]", f"{'[' * DEEP}{{}}{']' * DEEP}"):
        assert canonical(form.format(first)) == canonical(form.format(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1", "1.0"), ("100000", "1e5"), ("1", '"1"'), ("1", "true"), ("0", "false"), ("null", '""'), ("null", "{}"), ("[]", "{}"), ("[]", "[[]]"),
        ("1e400", "null"), ("1e400", "1e401"), ("1e-400", "0.0"), ("1e-400", "1e-401"), ("0.1", "0.10000000000000000555"),
        ("9007199254740993", "9007199254740992"), ("9007199254740993.0", "9007199254740992.0"), ('"a"', '"A"'), ('"a"', '"a "'), ('"ä"', '"a\u0308"'),
        ('{"a":null}', "{}"), ('{"a":1}', '{"b":1}'), ("[1,2]", "[2,1]"), ("[1,2]", "[12]"), ('["a","b"]', '["a,b"]'), ("-1", "1"),
        ("1" + "0" * 400 + ".0", "1" + "0" * 399 + "1.0"), ('{"":1}', '{" ":1}'), ("1e15", "1000000000000001.0"),
    ],
)  # fmt: skip
def test_different(first: str, second: str) -> None:
    for form in ("{}", "[[{}]]", f"{'[' * DEEP}{{}}{']' * DEEP}"):
        assert canonical(form.format(first)) != canonical(form.format(second))


@given(st.binary(min_size=1, max_size=40), st.data())
@FEW
def test_a_flipped_bit_in_a_string_is_seen(content: bytes, data: Any) -> None:
    at, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    flipped = bytearray(content)
    flipped[at] ^= 1 << bit
    forms = {canonical(json.dumps({"a": bytes(one).decode("latin-1")})) for one in (content, flipped)}
    assert len(forms) == 2


@pytest.mark.parametrize(
    "document", ["", "{", "NaN", "[Infinity]", "[1.5e3,NaN]", "[01]", "'a'", "[" * 100000, "[" * DEEP, "1" * 20 + "x"]
)
def test_what_is_no_json_has_no_form(document: str) -> None:
    with pytest.raises(ValueError):
        canonical(document)


@pytest.mark.parametrize("depth", [200, 254, 255, 256, 900])
def test_any_depth_that_python_reads_has_a_form(depth: int) -> None:
    one, other, third = (
        canonical('{"a":[' * (depth // 2) + end + "]}" * (depth // 2)) for end in ("1.10", "1.1", "1.11")
    )
    assert one == other != third


# --- digests ----------------------------------------------------------------------------------------------------------------

CELLS = st.lists(st.none() | st.sampled_from([b"", b"\x00", b"a", b"b", b"ab", b"a\x01b"]), max_size=4)


@given(CELLS, CELLS)
@example([b"a", b"b"], [b"a\x01b"])
@example([None], [b"\x00"])
@FEW
def test_two_rows_have_one_digest_only_if_they_are_equal(first: list[bytes | None], second: list[bytes | None]) -> None:
    assert (digest(first) == digest(second)) == (first == second)
    assert 0 <= digest(first) < 1 << BITS


@given(st.lists(st.integers(0, (1 << BITS) - 1), max_size=8), st.data())
@FEW
def test_a_total_has_no_order_and_counts_each_row(digests: list[int], data: Any) -> None:
    shuffled = data.draw(st.permutations(digests))
    cut = data.draw(st.integers(0, len(digests)))
    assert total(shuffled) == total(digests) == total((total(shuffled[:cut]), total(shuffled[cut:])))
    assert 0 <= total(digests) < 1 << BITS
    for one in digests:
        assert total([*digests, one]) != total(digests) or one == 0


def test_a_row_twice_is_not_a_row_once_nor_none() -> None:
    row, other = digest([b"a", None]), digest([b"b", None])
    assert (
        len({total([]), total([row]), total([row, row]), total([row, row, row]), total([row, other]), total([other])})
        == 6
    )
