"""ansible/HARDENING.md's table: every test that it names is there, and every item that is tested is in it."""

from __future__ import annotations

import re

from tests.ansible.test_hardening import ROW, SERVER, SHELL, TABLE
from tests.conftest import ROOT


def test_every_row_has_its_test():
    rows = ROW.findall(TABLE.read_text(encoding="utf-8"))
    assert len(rows) == len([line for line in TABLE.read_text().splitlines() if re.match(r"\| \d", line)])
    for item, file, function, parameter in rows:
        assert f"def {function}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), item
        assert not parameter or parameter == item
    assert {item for item, _, _, parameter in rows if parameter} == {*SHELL, *SERVER}
