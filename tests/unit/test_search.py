"""Search without a server: cursors, arguments, the SQL's shape."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcheo_db.errors import UserError
from orcheo_db.search import pages, request
from orcheo_db.search.pages import Scope
from orcheo_db.search.request import Request

OPTIONS: dict[str, Any] = {"filter": None, "limit": 20, "after": None, "similar": False}


def read(
    *words: str, wanted: str | None = None, since: str | None = None, until: str | None = None, **more: Any
) -> Request:
    return request.read(words, wanted, (None, None), (since, until), OPTIONS | more)


@given(st.datetimes(), st.integers(0, 10**17))
def test_a_cursor_comes_back(at, number):
    text = f"{at.year:04d}" + at.isoformat(" ", "microseconds")[4:]
    assert request.decode(request.encode(text, number)) == (text, number)


@pytest.mark.parametrize("at", ["0001-01-01 00:00:00 BC", "infinity", "-infinity", "10000-01-01 00:00:00"])
def test_a_cursor_holds_times_that_python_lacks(at):
    assert request.decode(request.encode(at, 7)) == (at, 7)


@given(st.text())
def test_any_other_text_is_refused_in_one_line(text):
    try:
        request.decode(text)
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"filter": "{x"}, "--filter is not JSON"),
        ({"filter": "[1]"}, "must be a JSON object"),
        ({"filter": "{}"}, "must be a JSON object"),
        ({"filter": '{"a": NaN}'}, "--filter is not JSON"),
        ({"filter": '{"a": "\\u0000"}'}, "can't hold"),
        ({"filter": '{"a": "\\ud800"}'}, "can't hold"),
        ({"filter": "[" * 100000}, "--filter is not JSON"),
        ({"limit": 0}, "--limit 0"),
        ({"limit": 201}, "--limit 201"),
        ({"after": "!!"}, "--after"),
        ({"after": request.encode("'; DROP TABLE x", 1)}, "--after"),
        ({"wanted": "runs,nope"}, "'nope' is unknown"),
        ({"wanted": ""}, "is unknown"),
        ({"since": "yesterday"}, "--since 'yesterday' is not a time"),
        ({"since": "2026-02-01", "until": "2026-01-01"}, "is not before"),
        ({"similar": True}, "--similar needs words"),
    ],
)
def test_bad_input_is_one_line(options, words):
    with pytest.raises(UserError, match=words) as caught:
        read(**options)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_good_input():
    found = read("disk", "full", wanted="runs,steps", since="2026-01-01", filter='{"a": "ä"}')
    assert found.query == "disk full" and found.kinds == ("run", "step")
    assert found.since == "2026-01-01T00:00:00+00:00" and found.filter == '{"a": "\\u00e4"}'


def text(scope: Scope, window: tuple[int, int] | None = None) -> str:
    return pages.statement(scope, scope.request.after, 42, window=window)[0].as_string(None)


def test_the_window_is_read_in_order_and_the_rest_by_the_inverted_index():
    scope = Scope(Request("x", after=("2026-01-01 00:00:00", 3)), "'x'", "w1", ("f1",))
    recent, rest = text(scope, (0, pages.WINDOW)), text(scope)
    assert f"LIMIT {pages.WINDOW}" in recent and "MATERIALIZED" not in recent
    assert "MATERIALIZED" in rest and '"d".tsv @@' in rest
    for query in (recent, rest):
        assert "(d.at, d.id) <" in query and "d.workspace_id =" in query and "d.workflow_id =" in query


def test_values_never_become_text():
    scope = Scope(Request("x", filter='{"a": 1}', kinds=("message",), since="s", until="u"), "'x'", "w'1", ("f'1",))
    query, values = pages.statement(scope, None, 42)
    assert "f'1" not in query.as_string(None) and "w'1" not in query.as_string(None)
    assert values["workflow"] == "f'1" and values["workspace"] == "w'1" and values["filter"] == '{"a": 1}'
