"""A provider that has a schema and nothing else: run by Terraform, with the schema's file and the plugin library's Python (tests/tools.py, `tf`).

It answers what `validate` and a mocked `test` ask. It never plans, reads or applies: a test that would need that fails here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tf.provider
import tf.runner
from tf.gen import tfplugin_pb2 as pb
from tf.gen import tfplugin_pb2_grpc as rpc

WRITE_ONLY = (
    b"\x58\x01"  # field 11 of Schema.Attribute, true: this library's protocol is older than write-only attributes
)
NESTING = pb.Schema.NestedBlock.NestingMode


def block(found: dict[str, Any]) -> Any:
    attributes = []
    for name, each in found["attributes"].items():
        given = {key: True for key in ("computed", "optional", "required") if each[key]}
        one = pb.Schema.Attribute(name=name, type=json.dumps(each["type"]).encode(), **given)
        if each["write_only"]:
            one.MergeFromString(WRITE_ONLY)
        attributes.append(one)
    nested = [
        pb.Schema.NestedBlock(
            type_name=name,
            block=block(each["block"]),
            nesting=getattr(NESTING, each["nesting"]),
            min_items=each["min"],
            max_items=each["max"],
        )
        for name, each in found["blocks"].items()
    ]
    return pb.Schema.Block(version=0, attributes=attributes, block_types=nested)


def schema(found: dict[str, Any]) -> Any:
    return pb.Schema(version=0, block=block(found))


class Servicer(rpc.ProviderServicer):  # type: ignore[misc]
    """The calls that `validate` and a mocked `test` make."""

    found: dict[str, Any] = {}  # noqa: RUF012 - the one that this process serves

    def __init__(self, _provider: object) -> None:
        """As the library's own, which takes a provider."""

    def GetMetadata(self, request: Any, context: Any) -> Any:
        return pb.GetMetadata.Response(
            data_sources=[pb.GetMetadata.DataSourceMetadata(type_name=name) for name in self.found["data"]],
            resources=[pb.GetMetadata.ResourceMetadata(type_name=name) for name in self.found["resources"]],
        )

    def GetProviderSchema(self, request: Any, context: Any) -> Any:
        return pb.GetProviderSchema.Response(
            provider=schema(self.found["provider"]),
            resource_schemas={name: schema(each) for name, each in self.found["resources"].items()},
            data_source_schemas={name: schema(each) for name, each in self.found["data"].items()},
        )

    def ValidateProviderConfig(self, request: Any, context: Any) -> Any:
        return pb.ValidateProviderConfig.Response()

    def ValidateResourceConfig(self, request: Any, context: Any) -> Any:
        return pb.ValidateResourceConfig.Response()

    def ValidateDataResourceConfig(self, request: Any, context: Any) -> Any:
        return pb.ValidateDataResourceConfig.Response()

    def StopProvider(self, request: Any, context: Any) -> Any:
        return pb.StopProvider.Response()


class Named:
    """What the library asks of a provider."""

    def full_name(self) -> str:
        return "schema-only"


def main() -> None:
    Servicer.found = json.loads(Path(sys.argv[1]).read_text())
    tf.provider.ProviderServicer = Servicer
    tf.runner.run_provider(Named(), argv=[sys.argv[0]])


if __name__ == "__main__":
    main()
