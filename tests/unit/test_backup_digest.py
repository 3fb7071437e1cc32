"""What of a restore drill's moment needs no server: the plan of reading, the window of a snapshot, the document."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcheo_db.backup import digest, moment
from orcheo_db.backup.digest import LAST, Moving, Piece, Table, Window
from orcheo_db.backup.moment import RANGE, STEP, Moment, Sequence_, Sized, plan, window_of

BLOCK = 8192
TAKEN = Moment(
    name="drill-1", lsn="0/4134C78", snapshot="1793:1957:1793,1808", system=7561234567890123456, database="orcheo", at="2026-11-25T09:00:00Z",
    seed="s", window=Window(1793, 1957, 1960, [1793, 1808], 1950, [1793, 1795, 1808]), seen=[1951],
    tables=[
        Table(16400, "public", 'odd "name"', 16400, ["id", "b"], 3, True,
              [Piece(0, LAST, 12, (2**70 + 1, -(2**65)), 300, 0, [Moving("(0,3)", (2**62 + 1, -(2**63)), [1795])])]),
        Table(16401, "public", "held", 16401, [], note="not read: it was locked all the time"),
    ],
    sequences=[Sequence_(16402, "public.s", 1, 1, 5, 9)], notes=["a note"], seconds=0.5,
)  # fmt: skip


def test_the_document_keeps_everything_to_the_last_digit() -> None:
    assert Moment.from_json(TAKEN.to_json()) == TAKEN
    assert "\n" not in TAKEN.to_json()


@pytest.mark.parametrize("text", ["[]", "{}", '{"format":1}', "", "{"])
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Moment.from_json(text)


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format"):
        Moment.from_json(json.dumps(json.loads(TAKEN.to_json()) | {"format": 2}))


def test_a_window_is_read_from_a_snapshot() -> None:
    found = window_of("100:120:100,105", 130, 115, [90, 100, 101, 105])
    assert found == Window(100, 120, 130, [100, 105], 115, [100, 101, 105])
    assert window_of("100:100:", 100, 100, []) == Window(100, 100, 100, [], 100, [])


@given(st.integers(3, 2**40), st.integers(0, 2**20))
def test_the_next_id_is_found_in_every_epoch(xmax: int, ahead: int) -> None:
    """age() is a signed number of 32 bits, and ids have 64."""
    age = (xmax + ahead - 3) & 0xFFFFFFFF
    signed = age - (1 << 32) if age >= 1 << 31 else age
    assert window_of(f"{xmax}:{xmax}:", signed + 3, xmax, []).next == xmax + ahead


def test_small_tables_are_read_whole_and_without_an_end() -> None:
    found = plan([Sized(1, 0, 0), Sized(2, STEP + 1, (STEP + 1) * BLOCK)], 1 << 30, "s")
    assert found[1].ranges == [(0, LAST)]
    assert found[2].ranges == [(0, STEP), (STEP, LAST)]
    assert all(one.whole and one.wanted == len(one.ranges) for one in found.values())


def test_a_large_table_gives_other_ranges_at_each_seed() -> None:
    sizes = [Sized(1, 10, 10 * BLOCK), Sized(2, 1_000_000, 1_000_000 * BLOCK)]
    first, again, other = (plan(sizes, 64 << 20, seed)[2] for seed in ("a", "a", "b"))
    assert first == again
    assert first.ranges != other.ranges
    assert not first.whole
    assert 0 < first.wanted * RANGE * BLOCK <= 65 << 20
    assert len(set(first.ranges)) == len(first.ranges) == 2 * first.wanted


@given(st.lists(st.tuples(st.integers(0, 5_000_000), st.integers(1, 40)), max_size=30), st.integers(0, 1 << 33))
def test_a_plan_never_overlaps_and_keeps_to_the_budget(tables: list[tuple[int, int]], budget: int) -> None:
    sizes = [Sized(oid, blocks, blocks * BLOCK * toast) for oid, (blocks, toast) in enumerate(tables)]
    read = 0
    for oid, one in plan(sizes, budget, "s").items():
        blocks, size = sizes[oid].blocks, sizes[oid].bytes
        ranges = sorted(one.ranges)
        assert all(start < end for start, end in ranges)
        assert all(left[1] <= right[0] for left, right in itertools.pairwise(ranges))
        assert one.wanted >= 1
        if one.whole:
            assert (ranges[0][0], ranges[-1][1]) == (0, LAST)
            read += size if blocks > RANGE else 0
        else:
            read += max(0, one.wanted - 1) * RANGE * size // blocks  # one range is read whatever the budget is
    assert read <= budget * 1.5 + RANGE * BLOCK * 40


@pytest.mark.parametrize(("before", "after", "kept"), [(5, 9, True), (5, 5, True), (9, 5, False)])
def test_a_sequence_that_was_set_back_has_no_bounds(before: int, after: int, kept: bool) -> None:
    one = Sequence_(1, "s", 1, 1, before, before)
    found = moment._between({1: one}, {1: replace(one, after=after)})
    assert found == ([Sequence_(1, "s", 1, 1, before, after)] if kept else [])
    assert moment._between({1: one}, {}) == []


def test_positions_in_the_wal_are_numbers() -> None:
    assert digest._number("1/10") == (1 << 32) + 16
    assert digest._number("") == 0


def test_nothing_of_the_kind_named_t_or_quoted_breaks_the_query() -> None:
    text = digest.rows(TAKEN.tables[0], digest.IN_BLOCKS).as_string(None)
    assert 'FROM ONLY "public"."odd ""name""" t' in text
    assert 'ROW("t"."id", "t"."b")::text' in text
