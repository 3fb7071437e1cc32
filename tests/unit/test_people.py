"""Export and import for people, as far as no server is needed: lines and records, the manifest, the directory, the refusals."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import stat
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql

from orcheo_db.errors import UserError
from orcheo_db.migrate import people, people_manifest, people_rows, people_tables
from orcheo_db.migrate.people_import import load
from orcheo_db.migrate.people_manifest import ColumnEntry, Manifest, TableEntry
from orcheo_db.migrate.people_rows import Column, NotARow, fields, kind, lines, records, values
from orcheo_db.migrate.people_tables import Table, ordered

COLUMNS = [
    Column("id", "uuid"), Column("text", "text"), Column("n", "numeric(40,2)"), Column("i", "bigint"), Column("ok", "boolean"),
    Column("doc", "jsonb"), Column("blob", "bytea"), Column("tags", "text[]"), Column("at", "timestamp with time zone"),
    Column("span", "interval"), Column("docs", "jsonb[]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("type", "expected"),
    [
        ("text", "native"), ("numeric(10,2)", "native"), ("character varying(20)", "native"), ("timestamp(3) with time zone", "native"),
        ("jsonb", "json"), ("json", "json"), ("bytea", "bytea"), ("bytea[]", "array"), ("numeric(10,2)[]", "array"), ("uuid[]", "array"),
        ("jsonb[]", "text"), ("interval", "text"), ("inet", "text"), ("mood", "text"), ("mood[]", "text"),
    ],
)  # fmt: skip
def test_the_kind_of_a_type(type, expected):
    assert kind(type) == expected


# --- lines of JSON -----------------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
DOCUMENT = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
)
ITEM = st.none() | TEXT


def document(doc: str | None) -> str:
    """A jsonb as `people_rows.copy_out` has PostgreSQL write it."""
    if doc is None:
        return "null"
    value = json.loads(doc) if '"$json"' in doc or doc == "null" else 0
    marked = value is None or (isinstance(value, dict | list) and "$json" in value) or value == "$json"
    return f'{{"$json": {doc}}}' if marked else doc


def literal(items: list[str | None]) -> str:
    """PostgreSQL's text of a text[]."""
    quoted = ["NULL" if i is None else '"' + i.replace("\\", "\\\\").replace('"', '\\"') + '"' for i in items]
    return "{" + ",".join(quoted) + "}"


@settings(deadline=None)
@given(
    text=TEXT | st.none(), number=st.decimals(allow_nan=False, allow_infinity=False) | st.none(), integer=st.integers(-(2**63), 2**63 - 1),
    ok=st.booleans() | st.none(), doc=(DOCUMENT | st.just({"$json": 1})).map(json.dumps) | st.none(), blob=st.binary() | st.none(),
    tags=st.lists(ITEM) | st.none(), ascii=st.booleans(),
)  # fmt: skip
def test_a_row_comes_back_as_it_was_written(text, number, integer, ok, doc, blob, tags, ascii):
    def js(value: object) -> str:
        return json.dumps(value, ensure_ascii=ascii)

    plain = None if number is None else format(number, "f")
    raw = {
        "id": js("8a5e3a52-0000-4000-8000-000000000001"), "text": js(text), "n": "null" if plain is None else plain, "i": str(integer),
        "ok": js(ok), "doc": document(doc), "blob": js(None if blob is None else {"$base64": base64.b64encode(blob).decode()}),
        "tags": js(tags), "at": js("2026-11-25T10:00:00.1+00:00"), "span": js("1 day"), "docs": js('{"{\\"a\\": 1.10}",NULL}'),
    }  # fmt: skip
    line = "{" + ",".join(f"{js(key)}:{value}" for key, value in raw.items()) + "}\n"
    assert values(line, COLUMNS) == [
        "8a5e3a52-0000-4000-8000-000000000001", text, plain, str(integer), None if ok is None else str(ok).lower(), doc, blob,
        None if tags is None else literal(tags), "2026-11-25T10:00:00.1+00:00", "1 day", '{"{\\"a\\": 1.10}",NULL}',
    ]  # fmt: skip


@pytest.mark.parametrize(
    "doc",
    [
        "1.10", "-0.0", "1e400", str(2**200), str(Decimal(2) ** -60), '"\\ud83d\\ude00 \\"quoted\\" \\\\"', "[]", "{}", '[1.0, {"a": [null]}]',
        "[" * 5000 + "]" * 5000, '{"a":' * 3000 + "1.10" + "}" * 3000, '{"$json": 1, "more": 2}', '{"a": {"$json": null}}', '"]}{["',
    ],
    ids=lambda doc: doc[:20],
)  # fmt: skip
def test_json_keeps_its_text(doc):
    assert values(f'{{"doc" : {document(doc)} }}', [Column("doc", "jsonb")]) == [doc]
    # What another program marked needs no mark, and loses it all the same.
    assert values(f'{{"doc": {{"$json": {doc}}}}}', [Column("doc", "jsonb")]) == [doc]


def test_nothing_is_json_null_or_sql_null():
    column = [Column("doc", "jsonb")]
    assert values('{"doc":null}', column) == [None]
    assert values('{"doc":{"$json": null}}', column) == ["null"]
    assert values('{"doc":{"$json": {"$json": null}}}', column) == ['{"$json": null}']


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "no JSON object"), ("[1]", "no JSON object"), ('{"id":1', "no JSON object"), ('{"id":1} {}', "no JSON object"),
        ('{"id":1,}', "no JSON object"), ('{"id":1,"id":2}', "no JSON object"), ('{"id":"a', "no JSON object"), ('{"id":NaN}', "no JSON object"),
        ('{"blob":null}', "no value for column id"), ('{"id":1,"blob":null,"secret":"s3cret"}', "secret, which is no column"),
        ('{"id":{"a":"s3cret"},"blob":null}', "column id that is none of type bigint"),
        ('{"id":1,"blob":"s3cret"}', "column blob that is none of type bytea"), ('{"id":1,"blob":{"$base64":"?s3cret"}}', "column blob"),
        ('{"id":1,"blob":{"$base64":null}}', "column blob"),
    ],
)  # fmt: skip
def test_what_is_no_row_is_said_without_its_values(line, words):
    with pytest.raises(NotARow) as refused:
        values(line, [Column("id", "bigint"), Column("blob", "bytea")])
    assert words in str(refused.value) and "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("[]", "{}"), ("[[1.10,2],[null,3]]", "{{1.10,2},{NULL,3}}"), ('["NULL",null,"a,b","c\\"d","\\\\"]', '{"NULL",NULL,"a,b","c\\"d","\\\\"}'),
        ('"[0:1]={1,2}"', "[0:1]={1,2}"), ("[true,false]", "{true,false}"),
    ],
)  # fmt: skip
def test_arrays(given, expected):
    assert values(f'{{"a":{given}}}', [Column("a", "numeric[]")]) == [expected]


# --- CSV -------------------------------------------------------------------------------------------------------------------------


def record(row: list[str | None]) -> bytes:
    """As PostgreSQL writes it: what is empty and not NULL in quotes."""
    quoted = [
        ""
        if value is None
        else value
        if value and not set(value) & set(',"\n\r')
        else '"' + value.replace('"', '""') + '"'
        for value in row
    ]
    return (",".join(quoted) + "\n").encode()


ROWS = st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(ITEM, min_size=width, max_size=width)))


@settings(deadline=None)
@given(rows=ROWS, cut=st.integers(1, 9))
def test_records_come_back_as_they_were_written(rows, cut):
    written = b"".join(record(row) for row in rows)
    blocks = [written[i : i + cut] for i in range(0, len(written), cut)]
    found = [[None if v is None else v.decode() for v in fields(one)] for one in records(blocks)]
    assert found == rows
    assert b"".join(lines(blocks)) == written
    # A reader of RFC 4180 sees the same, but for NULL.
    read = [row or [""] for row in csv.reader(io.StringIO(written.decode(), newline=""), lineterminator="\n")]
    assert read == [[value or "" for value in row] for row in rows]


@pytest.mark.parametrize("bad", [b'"a\n', b'a"b,c\n', b"a,b", b'"a"b,c\n', b""])
def test_what_is_no_record(bad):
    with pytest.raises(NotARow):
        fields(bad)


def test_statements_name_their_columns():
    form = people_rows.copy_out("jsonl", sql.Identifier("t"), COLUMNS).as_string(None)
    assert "row_to_json" in form and '"$json"' not in form and "base64" in form and "translate(row_to_json" not in form
    assert "translate(row_to_json" in people_rows.copy_out(
        "jsonl", sql.Identifier("t"), [Column("a", "json")]
    ).as_string(None)
    assert (
        people_rows.copy_in("csv", sql.Identifier("t"), [Column('q"', "text")])
        .as_string(None)
        .startswith('COPY "t" ("q""") FROM STDIN')
    )


# --- order -----------------------------------------------------------------------------------------------------------------------


def tables(**references: dict[str, bool]) -> dict[str, Table]:
    return {name: Table(name, True, references=parents) for name, parents in references.items()}


def test_parents_come_first_and_what_can_wait_waits():
    found = ordered(tables(a={"b": False, "a": False}, b={"c": False}, c={"a": True}))
    assert found == ["c", "b", "a"]


def test_a_circle_is_cut():
    assert sorted(ordered(tables(a={"b": False}, b={"a": False}, c={"a": False}))) == ["a", "b", "c"]


# --- the manifest ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """An export of one table with two rows, as files."""
    directory = tmp_path / "export"
    directory.mkdir()
    write(directory, b'{"id":1,"name":"a"}\n{"id":2,"name":null}\n', "jsonl")
    return directory


def write(directory: Path, content: bytes, form: str, **changed: object) -> None:
    (directory / f"users.{form}").write_bytes(content)
    columns = [ColumnEntry(name="id", type="bigint"), ColumnEntry(name="name", type="text")]
    sha256 = hashlib.sha256(content).hexdigest()
    table = TableEntry(
        file=f"users.{form}", rows=2, bytes=len(content), sha256=sha256, columns=columns, primary_key=["id"], references=[], sequences={"id": 7},
    )  # fmt: skip
    whole: dict[str, object] = {
        "format": 1, "kind": "orcheo-db export", "rows": form, "legend": people_rows.LEGEND[form], "database": "orcheo", "server": "17.6",
        "toolkit": "0.1.0", "releases": {"orcheo": "0.46.1"}, "moment": "2026-11-25T10:00:00+00:00", "lsn": None, "order": ["users"],
        "tables": {"users": table},
    }  # fmt: skip
    (directory / "manifest.json").write_text(people_manifest.text(Manifest.model_validate(whole | changed)))


def no_report(_: int, __: str) -> None:
    pass


def test_a_manifest_comes_back(made):
    found = people_manifest.read(made)
    assert found.tables["users"].listed == [Column("id", "bigint"), Column("name", "text")] and found.tables[
        "users"
    ].sequences == {"id": 7}
    people_manifest.check(made, found, ["users"], no_report)
    assert (
        people_manifest.chosen(found.order, [], "x")
        == ["users"]
        == people_manifest.chosen(found.order, ["users", "users"], "x")
    )


def edit(directory: Path, old: str, new: str) -> None:
    path = directory / "manifest.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


BAD_MANIFESTS = {
    "gone": (lambda d: (d / "manifest.json").unlink(), ["does not exist", "no whole export"]),
    "no JSON": (lambda d: (d / "manifest.json").write_text('{"format": 1'), ["is no JSON"]),
    "another's": (lambda d: (d / "manifest.json").write_text('{"format": 1}'), ["something else"]),
    "newer": (lambda d: edit(d, '"format": 1', '"format": 2'), ["of format 2", "reads up to 1", "0.1.0"]),
    "a count": (lambda d: edit(d, '"rows": 2', '"rows": 3'), ["changed or damaged"]),
    "a type": (lambda d: edit(d, '"rows": 2', '"rows": "2"'), ["tables.users.rows"]),
    "no column": (lambda d: edit(d, '"toolkit"', '"toolkits"'), ["toolkit"]),
    "no checksum": (lambda d: edit(d, '"sha256": "', '"sha257": "'), ["sha256"]),
    "elsewhere": (lambda d: write(d, b"", "jsonl", tables={"users": {**vars(people_manifest.read(d).tables["users"]), "file": "../users.jsonl"}}), ["not its own"]),
    "another order": (lambda d: write(d, b"", "jsonl", order=["teams"]), ["order"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_a_wrong_manifest_is_one_line(made, case):
    spoil, words = BAD_MANIFESTS[case]
    spoil(made)
    with pytest.raises(UserError) as refused:
        load("", made, [])
    text = str(refused.value)
    assert all(word in text for word in words) and "\n" not in text, text


def flipped(content: bytes) -> bytes:
    return content[:9] + bytes([content[9] ^ 1]) + content[10:]


BAD_FILES = {
    "missing": (None, "is missing"),
    "cut off": (lambda content: content[:-3], "was cut off: it has 38 bytes, not 41"),
    "appended": (lambda content: content + b"\n", "something appended"),
    "a flipped bit": (flipped, "sha256 differs"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_damaged_file_is_one_line(made, case):
    spoil, words = BAD_FILES[case]
    path = made / "users.jsonl"
    path.write_bytes(spoil(path.read_bytes())) if spoil else path.unlink()
    with pytest.raises(UserError) as refused:
        load("", made, [])
    assert words in str(refused.value) and str(path) in str(refused.value)


def test_a_csv_file_has_the_columns_of_the_manifest(tmp_path):
    write(tmp_path, b"id,other\n1,a\n2,\n", "csv")
    with pytest.raises(UserError, match="another header"):
        load("", tmp_path, [])


@pytest.mark.parametrize(
    ("name", "words"), [("export", "no directory"), ("export.part", "was cut off"), ("other", "no whole export")]
)
def test_a_directory_that_is_no_export(tmp_path, name, words):
    if name != "export":
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=words):
        load("", tmp_path / name, [])


def test_a_table_that_is_not_in_the_export(made):
    with pytest.raises(UserError, match="--table teams: .* has no such table"):
        load("", made, ["teams"])


def test_what_the_target_must_have(made):
    manifest = people_manifest.read(made)

    def target(*columns: Column, demanded: str = "") -> dict[str, Table]:
        return {"users": Table("users", True, list(columns), {demanded} if demanded else set())}

    whole = [Column("id", "bigint"), Column("name", "text")]
    people_tables.fits(manifest, ["users"], target(*whole, Column("extra", "text")), "orcheo")
    for wrong, words in (
        ({}, "has no table users"),
        (target(whole[0]), "has no column name"),
        (target(whole[0], Column("name", "uuid")), "users.name is uuid .* and text in the export"),
        (target(*whole, Column("extra", "text"), demanded="extra"), "users.extra .* must have a value"),
    ):
        with pytest.raises(UserError, match=words) as refused:
            people_tables.fits(manifest, ["users"], wrong, "orcheo")
        assert "orcheo 0.46.1" in str(refused.value)


# --- the directory ---------------------------------------------------------------------------------------------------------------


def test_a_directory_that_is_there_is_left_alone(tmp_path):
    with pytest.raises(UserError, match="exists"):
        people.export("", tmp_path, "jsonl", [])
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists"):
        people.export("", tmp_path / "link", "jsonl", [])


def test_a_part_is_private_and_of_one_export(tmp_path):
    out, part = tmp_path / "out", tmp_path / "out.part"
    with people._part(out) as given:
        assert given == part and stat.S_IMODE(part.stat().st_mode) == 0o700
        people._keep(part / "a.jsonl", [b"a"])
        assert stat.S_IMODE((part / "a.jsonl").stat().st_mode) == 0o600
        with pytest.raises(UserError, match="is at work"), people._part(out):
            pass
        assert (part / "a.jsonl").exists()
    # As a killed one leaves it: the next begins anew.
    with people._part(out) as given:
        assert [path.name for path in given.iterdir()] == [people.MARKER]
    with pytest.raises(RuntimeError), people._part(out):
        raise RuntimeError("disk full")
    assert not part.exists()


def test_a_part_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "mine").touch()
    with pytest.raises(UserError, match="no export left it"), people._part(tmp_path / "out"):
        pass
    assert (tmp_path / "out.part" / "mine").exists()
    with pytest.raises(UserError, match="can't be made"), people._part(tmp_path / "no" / "such" / "out"):
        pass


@settings(max_examples=20, deadline=None)
@given(secret=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(lambda text: f"s3cret{text}"))
def test_errors_name_no_value(secret):
    for said in ('invalid input syntax for type uuid: "{}"', 'value "{}" is out of range for type integer'):
        found = people.words(psycopg.DataError(said.format(secret)))
        assert "s3cret" not in found and ("uuid" in found or "out of range" in found)
