"""Settings as written and as pg_settings reports them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from orcheo_db.effective import Difference, compare, quantity, same


@pytest.mark.parametrize(
    ("meant", "actual", "unit", "vartype", "equal"),
    [
        ("256MB", "32768", "8kB", "integer", True),
        ("255MB", "32768", "8kB", "integer", False),
        ("1GB", "1024", "MB", "integer", True),
        ("4MB", "4096", "kB", "integer", True),
        ("15min", "900", "s", "integer", True),
        ("250ms", "250", "ms", "integer", True),
        ("1s", "1000", "ms", "integer", True),
        ("0", "0", "ms", "integer", True),
        ("-1", "-1", "kB", "integer", True),
        ("0", "-1", "ms", "integer", False),
        ("100", "100", None, "integer", True),
        ("0700", "448", None, "integer", True),
        ("0770", "448", None, "integer", False),
        ("0.9", "0.9", None, "real", True),
        ("1.1", "1.1", None, "real", True),
        ("2ms", "2", "ms", "real", True),
        ("on", "on", None, "bool", True),
        ("off", "on", None, "bool", False),
        ("yes", "on", None, "bool", True),
        ("maybe", "off", None, "bool", False),
        ("replica", "replica", None, "enum", True),
        ("pg_stat_statements,auto_explain", "pg_stat_statements, auto_explain", None, "string", True),
        ("auto_explain", "pg_stat_statements", None, "string", False),
    ],
)
def test_same(meant, actual, unit, vartype, equal):
    assert same(meant, actual, unit, vartype) is equal


def test_quantity_refuses_what_is_no_number():
    for text in ("", "MB", "1 parsec", "1..2"):
        with pytest.raises(ValueError, match="quantity|unit"):
            quantity(text, None)
    assert quantity("16", "16MB") == Decimal(16 * 16 * 1024 * 1024)


def test_compare_names_what_differs():
    rows = [
        ("work_mem", "4096", "kB", "integer", False),
        ("jit", "off", None, "bool", False),
        ("port", "5432", None, "integer", True),
    ]
    found = compare([("work_mem", "8MB"), ("jit", "off"), ("port", "5432"), ("nonsense", "1")], rows)
    assert found == [
        Difference("work_mem", "8MB", "4096kB"),
        Difference("port", "5432", "5432", True),
        Difference("nonsense", "1", None),
    ]
    assert "waits for a restart" in str(found[1]) and "unknown to the server" in str(found[2])
