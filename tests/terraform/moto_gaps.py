"""moto's server with three gaps filled: run by moto's own Python, with the server's options.

- RDS says of each parameter whether a user has set it; moto says nothing, and Terraform then takes every one of them for missing.
- A restore asked for without deletion protection has none; in moto the copy has its original's.
- A drill's copy is a real PostgreSQL: COPY_ADDRESS (HOST:PORT), if it is set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from moto.rds.models import DBInstance, DBParameterGroup, RDSBackend
from moto.server import main

update = DBParameterGroup.update_parameters
restore = RDSBackend.restore_db_instance_to_point_in_time
endpoint = DBInstance.endpoint


def with_source(group: Any, new_parameters: Iterable[dict[str, Any]]) -> None:
    update(group, [{**each, "Source": "user"} for each in new_parameters])


def unprotected(backend: Any, source: str, target: str, overrides: dict[str, Any]) -> Any:
    copy = restore(backend, source, target, overrides)
    copy.deletion_protection = bool(overrides.get("deletion_protection"))
    return copy


def real(instance: Any) -> dict[str, Any]:
    if "-drill-" in instance.db_instance_identifier and (at := os.environ.get("COPY_ADDRESS")):
        host, _, port = at.rpartition(":")
        return {"Address": host, "Port": int(port)}
    found: dict[str, Any] = endpoint.fget(instance)
    return found


if __name__ == "__main__":
    DBParameterGroup.update_parameters = with_source
    RDSBackend.restore_db_instance_to_point_in_time = unprotected
    DBInstance.endpoint = property(real)
    sys.exit(main(sys.argv[1:]))
