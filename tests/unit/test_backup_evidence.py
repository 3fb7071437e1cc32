"""The drills' evidence: what is written stays, and whoever edits or removes a record is seen."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from orcheo_db.backup import evidence
from orcheo_db.backup.record import canonical, file_name, moment, spell, validate
from orcheo_db.errors import CheckFailed, UserError

KEY = evidence.generate_key()
PUBLIC = evidence.public_key(KEY)
DAY = 86400


def record(day=1, passed=True, **changes):
    made = {
        "kind": "restore",
        "started_at": f"2026-07-{day:02}T04:15:00Z",
        "finished_at": f"2026-07-{day:02}T04:21:30Z",
        "result": "pass" if passed else "fail",
        "failure": None if passed else "pgbackrest: ERROR: [039]",
        "installation_id": "7a1c",
        "versions": {"postgresql": "17.6"},
        "backup": {"label": "20260701-011500F", "type": "full", "size": 1000, "stop_lsn": "0/3000000"},
        "target": {"restore_point": "drill", "lsn": "0/4000000", "time": "2026-07-01T04:15:00Z"},
        "rto_seconds": 250.5,
        "rpo_seconds": 0,
        "durations": {"restore": 200.0},
        "sizes": {"sample_bytes": 5},
        "checks": [{"name": "rows", "ok": passed, "found": 12}],
    }
    return made | changes


@pytest.fixture
def five(tmp_path):
    directory = tmp_path / "evidence"
    return directory, [evidence.append(directory, record(day, passed=day != 3), KEY) for day in range(1, 6)]


def wrong(directory, key=PUBLIC):
    found = evidence.verify(directory, key)
    assert all("\n" not in line and line.partition(": ")[0].endswith(".json") for line in found)
    return found


def edit(path: Path, **changes):
    found = json.loads(path.read_bytes()) | changes
    path.write_bytes(spell(found))


def test_records_are_chained_signed_readable_by_their_owner_only_and_verify(five):
    directory, paths = five
    assert wrong(directory) == []
    assert [file_name(found) for found in evidence.load_all(directory)] == [path.name for path in paths]
    assert paths[0].name.startswith("20260701T041500Z-")
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    first, second = (json.loads(path.read_bytes()) for path in paths[:2])
    assert first["previous"] is None
    assert second["previous"] == hashlib.sha256(paths[0].read_bytes()).hexdigest()


def test_a_signature_is_ed25519_over_the_canonical_json_for_any_other_program(five):
    found = json.loads(five[1][2].read_bytes())
    signature = base64.b64decode(found.pop("signature"))
    key = serialization.load_pem_public_key(PUBLIC)
    assert isinstance(key, Ed25519PublicKey)
    key.verify(signature, json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
    assert canonical(found | {"signature": "x"}) == canonical(found)


def test_nothing_yet_is_no_problem(tmp_path):
    assert evidence.load_all(tmp_path / "none") == []
    assert wrong(tmp_path / "none") == []
    assert evidence.prune(tmp_path / "none", 30, 0, KEY) == []


@pytest.mark.parametrize("number", range(4))
def test_a_removed_record_is_seen(five, number):
    directory, paths = five
    paths[number].unlink()
    (line,) = wrong(directory)
    assert line.startswith(f"{paths[number + 1].name}: the record before it is missing")


def test_a_removed_newest_record_is_seen_and_not_forgotten_by_the_next_drill(five):
    directory, paths = five
    paths[4].unlink()
    (line,) = wrong(directory)
    assert line.startswith(f"{paths[4].name}: is missing")
    later = evidence.append(directory, record(6), KEY)
    (line,) = wrong(directory)
    assert line.startswith(f"{later.name}: the record before it is missing")


def test_all_records_removed_but_the_chain_is_seen(five):
    for path in five[1]:
        path.unlink()
    assert len(wrong(five[0])) == 1


@pytest.mark.parametrize("number", range(5))
def test_an_edited_record_is_seen_also_after_the_next_drill(five, number):
    directory, paths = five
    edit(paths[number], result="pass", failure=None, checks=[{"name": "rows", "ok": True, "found": 12}], rto_seconds=1)
    assert f"{paths[number].name}: its signature is wrong: edited, or signed with another key" in wrong(directory)
    evidence.append(directory, record(6), KEY)
    found = wrong(directory)
    assert any(line.startswith(f"{paths[number].name}: its signature") for line in found)
    assert any("the record before it is missing or was edited" in line for line in found)


def test_another_spelling_of_the_same_record_is_seen(five):
    directory, paths = five
    paths[4].write_bytes(json.dumps(json.loads(paths[4].read_bytes())).encode())
    assert f"{paths[4].name}: was edited: it is not spelt as the drill wrote it" in wrong(directory)


def test_a_key_that_hides_behind_a_second_one_of_its_name_is_seen(five):
    directory, paths = five
    text = paths[2].read_text().replace('"result": "fail"', '"result": "pass",\n "result": "fail"')
    paths[2].write_text(text)
    assert any(line.startswith(f"{paths[2].name}: was edited") for line in wrong(directory))


def test_a_renamed_record_a_foreign_file_and_a_copy_are_seen(five):
    directory, paths = five
    (directory / "notes.json").write_text("{}")
    paths[1].rename(directory / "20260702T000000Z-x.json")
    found = wrong(directory)
    assert "notes.json: is no drill's record" in found
    assert any(line.startswith("20260702T000000Z-x.json: was renamed") for line in found)
    (directory / "20260731T000000Z-x.json").write_bytes(paths[3].read_bytes())
    assert any("follows the same record as" in line for line in wrong(directory))


@pytest.mark.parametrize("content", [b"", b'{"format": "orcheo-db-dr', b"\xff\x00", b"[]", b"[" * 100_000, b"{}"])
def test_an_unreadable_record_is_one_line_and_the_others_are_read(five, content):
    directory, paths = five
    paths[2].write_bytes(content)
    found = wrong(directory)
    assert any(line.startswith(f"{paths[2].name}: ") for line in found)
    assert len(evidence.load_all(directory)) == 4
    evidence.append(directory, record(6), KEY)
    assert len(evidence.load_all(directory)) == 5


def test_a_record_that_is_a_directory_is_unreadable(five):
    directory, paths = five
    paths[2].unlink()
    paths[2].mkdir()
    assert any(line.startswith(f"{paths[2].name}: can't be read") for line in wrong(directory))


def test_another_key_signs_in_vain_but_a_former_one_may_be_named(five):
    directory, _ = five
    other = evidence.generate_key()
    forged = evidence.append(directory, record(6), other)
    found = wrong(directory)
    assert f"{forged.name}: its signature is wrong: edited, or signed with another key" in found
    assert any(line.startswith("chain.json: ") for line in found)
    assert wrong(directory, PUBLIC + evidence.public_key(other)) == []


@pytest.mark.parametrize("damage", [None, b"", b"[]", b"{}"])
def test_a_chain_file_that_is_gone_or_damaged_is_seen_and_the_next_drill_finds_the_end(five, damage):
    directory, _ = five
    chain = directory / "chain.json"
    chain.unlink() if damage is None else chain.write_bytes(damage)
    (line,) = wrong(directory)
    assert line.startswith("chain.json: ")
    evidence.append(directory, record(6), KEY)
    assert wrong(directory) == []


def test_an_edited_chain_file_is_seen(five):
    directory, _ = five
    edit(directory / "chain.json", anchor={"file": "x", "sha256": "0" * 64, "pruned": 1})
    assert wrong(directory) == ["chain.json: was edited, or signed with another key"]


def test_a_writer_killed_between_or_in_the_writes_leaves_a_chain_that_goes_on(five):
    directory, _ = five
    before = (directory / "chain.json").read_bytes()
    evidence.append(directory, record(6), KEY)
    (directory / "chain.json").write_bytes(before)  # killed before it could say that there is a sixth
    (directory / ".20260707T041500Z-aa.json.new").write_bytes(b'{"half')
    (directory / ".chain.json.new").write_bytes(b'{"half')
    assert wrong(directory) == []
    evidence.append(directory, record(7, id="aa"), KEY)
    assert wrong(directory) == []
    assert len(evidence.load_all(directory)) == 7
    assert not list(directory.glob(".*"))


def test_a_clock_set_back_keeps_the_chain(five):
    directory, _ = five
    evidence.append(directory, record(2, id="late"), KEY)
    evidence.append(directory, record(9), KEY)
    assert wrong(directory) == []


def test_evidence_is_never_overwritten(five):
    directory, _ = five
    path = evidence.append(directory, record(6, id="same"), KEY)
    before = path.read_bytes()
    with pytest.raises(UserError, match="never overwritten"):
        evidence.append(directory, record(6, id="same", rto_seconds=1), KEY)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"result": "maybe"}, "not pass or fail"),
        ({"failure": "x"}, "has no failure"),
        ({"result": "fail"}, "says what failed"),
        ({"checks": []}, "has checks"),
        ({"checks": [{"name": "a", "ok": False, "found": None}]}, "all are ok"),
        ({"checks": [{"name": "a", "ok": 1, "found": None}]}, r"checks\[0\]"),
        ({"rto_seconds": None}, "rto_seconds"),
        ({"rto_seconds": -1}, "rto_seconds"),
        ({"rpo_seconds": True}, "rpo_seconds"),
        ({"rto_seconds": float("nan")}, "rto_seconds"),
        ({"durations": {"a": "1"}}, r"durations\.a"),
        ({"started_at": "2026-07-01 04:15"}, "no UTC time"),
        ({"started_at": "2026-02-30T04:15:00Z"}, "day"),
        ({"finished_at": "2026-06-01T04:15:00Z"}, "before started_at"),
        ({"id": "../../etc/x"}, "id is not"),
        ({"moood": 1}, "no field"),
        ({"versions": []}, "versions has the wrong type"),
        ({"installation_id": ""}, "installation_id is empty"),
    ],
)
def test_a_wrong_record_is_refused_and_nothing_is_written(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        evidence.append(tmp_path, record() | changes, KEY)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_drill_needs_no_measures():
    found = record(passed=False, rto_seconds=None, rpo_seconds=None, checks=[], backup={}, target={}, id="a")
    assert validate(found | {"format": "orcheo-db-drill/1", "previous": None, "signature": ""}) == []
    assert validate([]) == ["is no JSON object"]
    assert "failure is missing" in validate({})


def test_keys_that_are_none_are_one_line():
    elliptic = ec.generate_private_key(ec.SECP256R1())
    other = elliptic.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for key in (b"", b"x", other, PUBLIC):
        with pytest.raises(UserError, match="signing key"):
            evidence.public_key(key)
    for key in (b"", KEY, b"-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----"):
        with pytest.raises(UserError, match="public key"):
            evidence.verify(Path("/nowhere"), key)


def test_pruning_keeps_the_chain_verifiable_and_removals_visible(five):
    directory, paths = five
    now = moment("2026-07-05T04:21:30Z")
    assert evidence.prune(directory, 2.5, now, KEY) == [path.name for path in paths[:2]]
    assert wrong(directory) == []
    assert evidence.prune(directory, 2.5, now, KEY) == []
    evidence.append(directory, record(6), KEY)
    assert evidence.prune(directory, 1.5, now, KEY) == [paths[2].name]
    anchor = json.loads((directory / "chain.json").read_bytes())["anchor"]
    assert (anchor["file"], anchor["pruned"]) == (paths[2].name, 3)
    assert wrong(directory) == []
    paths[3].unlink()
    assert wrong(directory)[0].startswith(f"{paths[4].name}: the record before it is missing")


def test_pruning_never_takes_the_newest_success_or_what_came_after_it(five):
    directory, paths = five
    for day in (6, 7):
        evidence.append(directory, record(day, passed=False), KEY)
    assert evidence.prune(directory, 1, moment("2027-01-01T00:00:00Z"), KEY) == [path.name for path in paths[:4]]
    assert [found["result"] for found in evidence.load_all(directory)] == ["pass", "fail", "fail"]
    assert wrong(directory) == []


def test_pruning_with_failures_only_keeps_the_newest(tmp_path):
    for day in (1, 2, 3):
        evidence.append(tmp_path, record(day, passed=False), KEY)
    assert len(evidence.prune(tmp_path, 1, moment("2027-01-01T00:00:00Z"), KEY)) == 2
    assert wrong(tmp_path) == []


def test_a_prune_that_was_killed_verifies_and_is_finished_by_the_next(five, monkeypatch):
    directory, paths = five
    unlink, calls = Path.unlink, []

    def killed(path, missing_ok=False):
        if path.name in {each.name for each in paths}:
            calls.append(path)
            if len(calls) == 2:
                raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    now = moment("2026-07-05T04:21:30Z")
    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        evidence.prune(directory, 1.5, now, KEY)
    monkeypatch.undo()
    assert not paths[0].exists()
    assert paths[1].exists()
    assert wrong(directory) == []
    assert evidence.prune(directory, 1.5, now, KEY) == [paths[1].name, paths[2].name]
    assert wrong(directory) == []
    assert json.loads((directory / "chain.json").read_bytes())["anchor"]["pruned"] == 3


def test_nothing_is_pruned_while_the_evidence_does_not_verify(five):
    directory, paths = five
    paths[1].unlink()
    with pytest.raises(CheckFailed, match=paths[2].name):
        evidence.prune(directory, 1, moment("2027-01-01T00:00:00Z"), KEY)
    assert paths[0].exists()
