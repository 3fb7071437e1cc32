"""The evidence of the drills: signed, chained records, of which nobody can edit or remove one unseen.

Each drill's record (`record`) is a file `evidence/<started_at>-<id>.json`. `evidence/chain.json`, signed likewise, holds the two ends of
the chain, without which a missing end could not be seen:

    format            "orcheo-db-drill-chain/1"
    anchor            null, or {file, sha256, pruned}: the last record that `prune` took away, and how many it took in all
    newest            {file, sha256}
    signature

What this can't show: who holds the signing key can write what he likes; who can write the directory can put an old copy of all of it
back, or remove all of it; and that chain.json was removed is seen only until the next drill, which writes it anew.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from orcheo_db.backup.record import FORMAT, NAME, Record, canonical, file_name, moment, spell, validate
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.secrets import write_private

CHAIN_FORMAT = "orcheo-db-drill-chain/1"
CHAIN = "chain.json"


def generate_key() -> bytes:
    """A new signing key (PEM, PKCS8, not encrypted)."""
    none = serialization.NoEncryption()
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, none
    )


def public_key(private_key_pem: bytes) -> bytes:
    """What verifies the signatures of a key (PEM), to be kept elsewhere.

    Raises:
        UserError: no Ed25519 key in PEM.
    """
    public = _private(private_key_pem).public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _private(pem: bytes) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        raise UserError("the evidence's signing key is no unencrypted key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError("the evidence's signing key is no Ed25519 key")
    return key


def _public(pem: bytes) -> list[Ed25519PublicKey]:
    """All keys of a PEM file: the present one and those before it."""
    blocks = re.findall(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", pem, re.DOTALL)
    try:
        keys = [serialization.load_pem_public_key(block) for block in blocks]
    except ValueError:
        keys = []
    found = [key for key in keys if isinstance(key, Ed25519PublicKey)]
    if not found or len(found) != len(keys):
        raise UserError("the evidence's public key is no Ed25519 key in PEM")
    return found


def _sign(record: Record, key: Ed25519PrivateKey) -> Record:
    return record | {"signature": base64.b64encode(key.sign(canonical(record))).decode()}


def _is_signed(record: Record, keys: list[Ed25519PublicKey]) -> bool:
    try:
        signature, signed = base64.b64decode(record["signature"], validate=True), canonical(record)
    except (KeyError, ValueError, TypeError):
        return False
    for key in keys:
        with contextlib.suppress(InvalidSignature):
            key.verify(signature, signed)
            return True
    return False


@dataclass
class _File:
    """One file of the directory as it was read."""

    name: str
    sha256: str = ""
    record: Record | None = None
    problems: list[str] = field(default_factory=list)


def _read(path: Path) -> _File:
    try:
        content = path.read_bytes()
    except OSError as error:
        return _File(path.name, problems=[f"can't be read ({error.strerror})"])
    found = _File(path.name, hashlib.sha256(content).hexdigest())
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        found.problems.append("is no JSON: damaged or edited")
        return found
    found.problems += validate(record)
    if not found.problems:
        found.record = record
        if spell(record) != content:
            found.problems.append("was edited: it is not spelt as the drill wrote it")
        if file_name(record) != path.name:
            found.problems.append(f"was renamed: its record belongs in {file_name(record)}")
    return found


def _records(directory: Path) -> dict[str, _File]:
    """Every record's file, by name, which is by start. What a killed writer left (.NAME.new) is none."""
    if not directory.is_dir():
        return {}
    return {path.name: _read(path) for path in sorted(directory.glob("*.json")) if NAME.fullmatch(path.name)}


def _chain(directory: Path, keys: list[Ed25519PublicKey]) -> tuple[Record, list[str]]:
    """chain.json and what is wrong with it; empty if it is missing or can't be trusted."""
    try:
        found = json.loads((directory / CHAIN).read_bytes())
    except FileNotFoundError:
        return {}, [f"{CHAIN}: is missing, so a removed newest or oldest record would not be seen"]
    except (OSError, ValueError):
        return {}, [f"{CHAIN}: can't be read: damaged or edited"]
    if not isinstance(found, dict) or found.get("format") != CHAIN_FORMAT or not _is_signed(found, keys):
        return {}, [f"{CHAIN}: was edited, or signed with another key"]
    return found, []


def load_all(directory: Path) -> list[Record]:
    """Every record that can be read, oldest first; whether they are genuine is for `verify` to say."""
    found = [file.record for file in _records(directory).values() if file.record is not None]
    return sorted(found, key=lambda record: (moment(record["started_at"]), record["id"]))


def append(directory: Path, record: Record, private_key_pem: bytes) -> Path:
    """Write a drill's record behind the newest one; the caller holds the lock. It is there whole or not at all.

    What was removed or edited before stays visible: the new record names the hash that the newest one had when it was written.

    Args:
        record: the fields above; format, previous and signature are made here, and id if it is missing.

    Raises:
        UserError: the record is not as the schema says, its file is there already, or the key is none.
        OSError: it can't be written.
    """
    key = _private(private_key_pem)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = _records(directory)
    chain, _ = _chain(directory, [key.public_key()])
    newest = _newest(files, chain)
    full = {"id": secrets.token_hex(4)} | record | {"format": FORMAT, "previous": newest["sha256"] if newest else None}
    full = full | {"signature": ""}
    if wrong := validate(full):
        raise UserError(f"the drill's record is wrong: {'; '.join(wrong)}")
    full = _sign(full, key)
    path = directory / file_name(full)
    if path.exists():
        raise UserError(f"{path} is there already; evidence is never overwritten")
    content = spell(full)
    write_private(path, content)
    written = {"file": path.name, "sha256": hashlib.sha256(content).hexdigest()}
    _write_chain(directory, {"anchor": chain.get("anchor"), "newest": written}, key)
    return path


def _newest(files: dict[str, _File], chain: Record) -> dict[str, str] | None:
    """The end of the chain: what chain.json says, and beyond it if a writer was killed before he could say so."""
    end: dict[str, str] | None = chain.get("newest")
    if end is None:  # no trustworthy chain.json: the last that no other one follows
        followed = {file.record["previous"] for file in files.values() if file.record}
        ends = [file for file in files.values() if file.sha256 and file.sha256 not in followed]
        end = {"file": ends[-1].name, "sha256": ends[-1].sha256} if ends else None
    after = {file.record["previous"]: file for file in files.values() if file.record}
    while end is not None and (next_file := after.get(end["sha256"])):
        end = {"file": next_file.name, "sha256": next_file.sha256}
    return end


def _write_chain(directory: Path, ends: Record, key: Ed25519PrivateKey) -> None:
    write_private(directory / CHAIN, spell(_sign({"format": CHAIN_FORMAT} | ends, key)))
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)  # the renames themselves
    finally:
        os.close(handle)


def verify(directory: Path, public_key_pem: bytes) -> list[str]:
    """What is wrong with the evidence, each in one line that begins with the file's name; empty if nothing is.

    Args:
        public_key_pem: of the key that signs, and of those before it, one after the other.

    Raises:
        UserError: no Ed25519 public key in PEM.
    """
    keys = _public(public_key_pem)
    files = _records(directory)
    others = sorted(path.name for path in directory.glob("*.json") if path.name not in files and path.name != CHAIN)
    wrong = [f"{name}: is no drill's record" for name in others]
    for file in files.values():
        wrong += [f"{file.name}: {problem}" for problem in file.problems]
        if file.record is not None and not _is_signed(file.record, keys):
            wrong.append(f"{file.name}: its signature is wrong: edited, or signed with another key")
    if not files and not (directory / CHAIN).exists():
        return wrong
    chain, problems = _chain(directory, keys)
    return wrong + problems + _gaps(files, chain)


def _gaps(files: dict[str, _File], chain: Record) -> list[str]:
    """Where the chain does not hold."""
    anchor: str | None = (chain.get("anchor") or {}).get("sha256")
    by_hash = {file.sha256: file for file in files.values() if file.sha256}
    pruned = {file.name for file in _back(by_hash, anchor)}  # what a prune that was killed has left
    wrong, followed = [], dict[str | None, str]()
    for file in files.values():
        if file.record is None:
            continue
        previous: str | None = file.record["previous"]
        if previous in followed:
            what = "follows the same record as" if previous else "is the first record, as is"
            wrong.append(f"{file.name}: {what} {followed[previous]}")
        followed[previous] = file.name
        if previous is not None and previous not in by_hash and previous != anchor and file.name not in pruned:
            wrong.append(
                f"{file.name}: the record before it is missing or was edited (none has the sha256 {previous[:12]}…)"
            )
    newest = chain.get("newest")
    if newest and newest["sha256"] not in by_hash and newest["sha256"] != anchor:
        wrong.append(f"{newest['file']}: is missing or was edited; {CHAIN} names it as the newest")
    return wrong


def _back(by_hash: dict[str, _File], end: str | None) -> list[_File]:
    """The records from the one with this hash back to the oldest that is there, newest first."""
    found = []
    while end is not None and (file := by_hash.get(end)) and file.record is not None:
        found.append(file)
        end = file.record["previous"]
    return found


def prune(
    directory: Path, keep_days: float, now: float, private_key_pem: bytes, public_key_pem: bytes | None = None
) -> list[str]:
    """Remove records that ended more than `keep_days` before `now` (Unix seconds); returns their files' names, oldest first.

    Only from the chain's beginning, and never the newest record or the newest that passed, or what came after that one. The caller holds
    the lock. A prune that was killed is finished by the next one.

    Args:
        public_key_pem: as for `verify`, if keys before this one signed too.

    Raises:
        CheckFailed: the evidence doesn't verify; nothing is removed then, for that would hide what is wrong.
        UserError: the key is none.
        OSError: a file can't be written or removed.
    """
    key = _private(private_key_pem)
    if wrong := verify(directory, public_key_pem or public_key(private_key_pem)):
        raise CheckFailed(f"no evidence is removed while it doesn't verify: {wrong[0]}")
    files = _records(directory)
    if not files:
        return []
    chain, _ = _chain(directory, _public(public_key_pem or public_key(private_key_pem)))
    by_hash = {file.sha256: file for file in files.values()}
    anchor = chain["anchor"] or {"sha256": None, "pruned": 0}
    gone = list(reversed(_back(by_hash, anchor["sha256"])))
    newest = _newest(files, chain)
    order = [file for file in reversed(_back(by_hash, newest["sha256"] if newest else None)) if file not in gone]
    passed = [number for number, file in enumerate(order) if file.record and file.record["result"] == "pass"]
    limit = min([len(order) - 1, *passed[-1:]])
    old: list[_File] = []
    for file in order[: max(limit, 0)]:
        if file.record is None or moment(file.record["finished_at"]) >= now - keep_days * 86400:
            break
        old.append(file)
    if old:
        last = {"file": old[-1].name, "sha256": old[-1].sha256, "pruned": anchor["pruned"] + len(old)}
        _write_chain(directory, {"anchor": last, "newest": newest}, key)
    for file in [*gone, *old]:
        (directory / file.name).unlink()
    return [file.name for file in [*gone, *old]]
