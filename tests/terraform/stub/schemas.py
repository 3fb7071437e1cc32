"""A provider's schema, out of its prebuilt binding for CDK Terrain (PyPI `cdktn-provider-…`), whose generated JavaScript says of every attribute what it is.

Where the registry can't be reached there is no provider binary for Google Cloud or Azure; the schema is all that `validate` and a mocked
`terraform test` ask of one. What only the provider's code knows (conflicts, value checks, defaults) is not in it.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

PRIMITIVES: dict[str, Any] = {
    "String": "string",
    "Number": "number",
    "Boolean": "bool",
    "List": ["list", "string"],
    "NumberList": ["list", "number"],
    "StringMap": ["map", "string"],
    "NumberMap": ["map", "number"],
    "BooleanMap": ["map", "bool"],
}
STORED = {f"{name[0].lower()}{name[1:]}": kind for name, kind in PRIMITIVES.items() if name != "List"} | {
    "stringList": ["list", "string"]
}
KINDS = {"TerraformResource": "resource", "TerraformDataSource": "data", "TerraformProvider": "provider"}

CLASS = re.compile(r"^class (\w+) extends cdktn\.(\w+) \{\n(.*?)^\}\n", re.M | re.S)
FLAGS = re.compile(r"^    // (\w+) - computed: (true|false), optional: (true|false), required: (true|false)\n", re.M)
NESTED = re.compile(r"= new (\w+?)(List|Map|OutputReference)\(this, \"\w+\"(?:, (true|false))?\)")
MAP = re.compile(r"new cdktn\.(String|Number|Boolean)Map\(")
GETTER = re.compile(r"(tolist\()?this\.get(\w+)Attribute\('(\w+)'\)")
# One entry of what is handed to Terraform: name, its value's expression, and what it is.
HANDED = re.compile(
    r"^(?: {8}| {12})(\w+): \{\n\s+value: (.*),\n\s+isBlock: (true|false),\n\s+type: \"(\w+)\",\n\s+storageClassType: \"(\w+)\"", re.M
)  # fmt: skip
TO_HCL = re.compile(r"^function (\w+)ToHclTerraform\(.*?^\}\n", re.M | re.S)
NESTING = {"list": "LIST", "set": "SET", "struct": "SINGLE", "map": "MAP"}


class SchemaError(Exception):
    """The binding says something that this module does not understand: it would make a schema that is not the provider's."""


@dataclass(frozen=True)
class Handed:
    """How an attribute is handed to Terraform."""

    block: bool = False
    kind: str = ""  # simple, list, set, map, struct
    storage: str = ""  # string, stringList, … or the class of a block
    write_only: bool = False


@dataclass
class Binding:
    """One file of a binding: its classes by name, and what each hands to Terraform."""

    classes: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> (base, body)
    handed: dict[str, dict[str, Handed]] = field(default_factory=dict)  # class -> attribute

    @classmethod
    def of(cls, text: str) -> Binding:
        found = cls({name: (base, body) for name, base, body in CLASS.findall(text)})
        for match in TO_HCL.finditer(text):
            name = match[1]
            found.handed[name[0].upper() + name[1:]] = _handed(match[0])
        for name, (_, body) in found.classes.items():
            if "synthesizeHclAttributes()" in body:
                found.handed[name] = _handed(body[body.index("synthesizeHclAttributes()") :])
        return found

    def top(self) -> tuple[str, str]:
        """The resource's, data source's or provider's own class, and its kind."""
        ((name, kind),) = [(name, KINDS[base]) for name, (base, _) in self.classes.items() if base in KINDS]
        return name, kind

    def block(self, name: str, own: str | None = None) -> dict[str, Any]:
        """The block of a class: {"attributes": {name: …}, "blocks": {name: …}}.

        Args:
            own: the name under which its attributes are handed on, where it is not the class' own.
        """
        attributes: dict[str, Any] = {}
        blocks: dict[str, Any] = {}
        handed = self.handed.get(own or name, {})
        for key, computed, optional, required, body in self._members(name):
            how = handed.get(key, Handed())
            flags = {"computed": computed, "optional": optional, "required": required, "write_only": how.write_only}
            nested = NESTED.search(body)
            if nested is None and how.block:
                blocks[key] = self._plain(how, least=int(required))
                continue
            if nested is None or not how.block:
                attributes[key] = {"type": self._type(key, body, how), **flags}
                continue
            blocks[key] = {
                "nesting": NESTING[how.kind],
                "min": int(required),
                "max": int(how.kind in ("list", "set") and nested[2] == "OutputReference"),
                "block": self.block(f"{nested[1]}OutputReference", nested[1]),
            }
        return {"attributes": attributes, "blocks": blocks}

    def _plain(self, how: Handed, least: int = 0) -> dict[str, Any]:
        """A block of the provider's own configuration, of whose attributes the binding says the types alone: nothing in it is required."""
        attributes: dict[str, Any] = {}
        blocks: dict[str, Any] = {}
        for key, each in self.handed[how.storage.removesuffix("List")].items():
            if each.block:
                blocks[key] = self._plain(each)
            else:
                flags = {"computed": False, "optional": True, "required": False, "write_only": each.write_only}
                attributes[key] = {"type": self._type(key, "", each), **flags}
        block = {"attributes": attributes, "blocks": blocks}
        return {"nesting": NESTING[how.kind], "min": least, "max": int(how.kind in ("list", "set")), "block": block}

    def _members(self, name: str) -> Iterable[tuple[str, bool, bool, bool, str]]:
        _, body = self.classes[name]
        flags = list(FLAGS.finditer(body))
        for at, match in enumerate(flags):
            until = flags[at + 1].start() if at + 1 < len(flags) else len(body)
            computed, optional, required = (word == "true" for word in match.groups()[1:])
            yield match[1], computed, optional, required, body[match.end() : until]

    def _type(self, key: str, body: str, how: Handed) -> Any:
        """An attribute's type, as Terraform writes it.

        Raises:
            SchemaError: the binding reads it in a way that is not known here.
        """
        nested, getter = NESTED.search(body), GETTER.search(body)
        if nested:
            members = self._members(f"{nested[1]}OutputReference")
            more = self.handed.get(nested[1], {})
            of = ["object", {each: self._type(each, text, more.get(each, Handed())) for each, *_, text in members}]
            kinds = {"OutputReference": of, "Map": ["map", of], "List": ["set" if nested[3] == "true" else "list", of]}
            return kinds[nested[2]]
        if how.storage in STORED:
            found = STORED[how.storage]
            return ["set", found[1]] if how.kind == "set" else found
        if map_of := MAP.search(body):
            return PRIMITIVES[f"{map_of[1]}Map"]
        if "interpolationForAttribute" in body:  # a type that the binding does not model
            return "dynamic"
        if getter is None or getter[2] not in PRIMITIVES:
            raise SchemaError(f"{key}: {body.strip()[:200]}")
        found = PRIMITIVES[getter[2]]
        return ["set", found[1]] if getter[1] and isinstance(found, list) else found


def _handed(text: str) -> dict[str, Handed]:
    return {
        name: Handed(block == "true", kind, storage, "markWriteOnly" in value)
        for name, value, block, kind, storage in HANDED.findall(text)
    }


def read(wheel: Path, provider: str, names: Iterable[str]) -> dict[str, Any]:
    """The schema of a provider with these of its resources and data sources ("data.NAME").

    Raises:
        SchemaError: there is no such resource, or it can't be understood.
    """
    wanted = {"provider": "provider"}
    for name in names:
        kind, _, own = name.rpartition(".")
        folder = own.removeprefix(f"{provider}_").replace("_", "-")
        wanted[f"data-{provider}-{folder}" if kind else folder] = name
    found: dict[str, Any] = {"name": provider, "resources": {}, "data": {}, "provider": None}
    with zipfile.ZipFile(wheel) as archive:
        (inner,) = [each for each in archive.namelist() if each.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=BytesIO(archive.read(inner))) as files:
            for member in files:
                parts = member.name.split("/")
                if parts[-1] != "index.js" or len(parts) != 4 or parts[2] not in wanted:
                    continue
                file = files.extractfile(member)
                assert file is not None
                name = wanted.pop(parts[2])
                text = file.read().decode()
                _put(found, name, text)
    if wanted:
        raise SchemaError(f"provider {provider} has no {', '.join(sorted(wanted.values()))}")
    return found


def _put(found: dict[str, Any], name: str, text: str) -> None:
    binding = Binding.of(text)
    own, kind = binding.top()
    block = binding.block(own)
    version = re.search(r"providerVersion: '([^']+)'", text)
    if version:
        found["version"] = version[1]
    match kind:
        case "provider":
            found["provider"] = block
        case "data":
            found["data"][name.removeprefix("data.")] = block
        case _:
            found["resources"][name] = block
