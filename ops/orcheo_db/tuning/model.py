"""What tuning gives: settings with their reasons."""

from __future__ import annotations

from dataclasses import dataclass

# Not a server setting: what the bootstrap sets for its own DDL (`SET lock_timeout`). A server-wide value
# would also fail the app's own waits; DDL that queues behind a long transaction blocks everybody behind it,
# so it gives up.
DDL_LOCK_TIMEOUT = "10s"


@dataclass(frozen=True)
class Setting:
    """One setting. `value` is a string as the configuration file wants it, before that file's quoting."""

    name: str
    value: str
    reason: str
    group: str = ""
