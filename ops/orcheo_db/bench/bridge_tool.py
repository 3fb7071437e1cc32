"""Runs inside the bridge release's image: Orcheo's own migration tool, with the one repair without which it can't finish.

Its manifest lists the tables by name (chat_messages before chat_threads), which the foreign keys refuse: here they are in the order of
the tool's own list. Settings come as JSON on stdin, the answer goes to stdout as JSON. Only the tool's own work is timed, not its imports.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


def migrate(given: dict[str, Any]) -> dict[str, Any]:
    """Export, import and count, as the tool does; `order` are the tables as they were imported."""
    import psycopg  # noqa: PLC0415 - these want the environment that was given
    from orcheo.tooling import postgres_migration as tool  # noqa: PLC0415
    from orcheo_backend.app.agentensor.checkpoint_store import POSTGRES_CHECKPOINT_MIGRATION  # noqa: PLC0415

    with psycopg.connect(given["dsn"]) as connection:
        connection.execute(
            POSTGRES_CHECKPOINT_MIGRATION
        )  # the one table of the tool's that the app makes only when it is used

    data, out = Path(given["data"]), Path(given["out"])
    tokens = data / "service_tokens.sqlite"
    specs = tool.build_table_specs(
        repository_sqlite=data / "workflows.sqlite",
        chatkit_sqlite=data / "chatkit.sqlite",
        service_token_sqlite=tokens if tokens.exists() else None,
    )
    begun = time.monotonic()
    tool.export_all(specs, out, batch_size=1000)  # its own default
    exported = time.monotonic()
    file = out / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["tables"] = {spec.name: manifest["tables"][spec.name] for spec in specs}
    file.write_text(json.dumps(manifest))
    again = time.monotonic()
    tool.import_manifest(file, given["dsn"])
    imported = time.monotonic()
    valid = tool.validate_manifest(file, given["dsn"])
    return {
        "order": list(manifest["tables"]),
        "rows": sum(table["row_count"] for table in manifest["tables"].values()),
        "export_seconds": round(exported - begun, 2),
        "import_seconds": round(imported - again, 2),
        "valid": valid["ok"],
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


if __name__ == "__main__":
    answer = os.dup(1)
    os.dup2(2, 1)  # the release logs where it likes
    told = json.load(sys.stdin)
    os.environ.update(told["environment"])
    with os.fdopen(answer, "w") as stream:
        json.dump(migrate(told), stream)
