"""`python -m orcheo_db.hosts`: the playbook's document on stdin, one JSON document on stdout; exit code 2 and one line if something is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from orcheo_db import rotate
from orcheo_db.errors import UserError
from orcheo_db.hosts.prepare import note, prepare, told
from orcheo_db.secrets import Store


def main() -> int:
    """Prepare what the document says; returns the exit code."""
    try:
        document = json.load(sys.stdin)
        if isinstance(document, dict) and "installed" in document:
            print(json.dumps(note(Path(document["state"]) / document["project"], document["installed"])))
            return 0
        if isinstance(document, dict) and "rotate" in document:
            step = {"begin": rotate.begin, "finish": rotate.finish}[document["rotate"]]
            print(json.dumps(step(Store(Path(document["state"]) / document["project"]))))
            return 0
        state, hosts, check = told(document)
        print(json.dumps(prepare(state, hosts, check=check)))
    except (UserError, ValueError, OSError) as error:
        print(f"orcheo-db hosts: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
