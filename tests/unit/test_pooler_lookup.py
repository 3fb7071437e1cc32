"""The auth_query function has two homes (our own server's first boot, and the init job on servers of others): they must not drift."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = ("compose/images/postgres/superuser.sql", "ops/orcheo_db/bootstrap/sql/pooler_lookup.sql")


def definition(name: str) -> str:
    match = re.search(
        r"CREATE OR REPLACE FUNCTION orcheo_pooler\.user_lookup.*?\n\$\$;", (ROOT / name).read_text(), re.DOTALL
    )
    assert match is not None, name
    return match[0]


def test_both_files_define_the_same_function():
    own, others = map(definition, FILES)
    assert own == others
    for word in ("SECURITY DEFINER", "SET search_path = pg_catalog, pg_temp", "NOT rolsuper"):
        assert word in own
