"""A migration through the toolkit's command line, there and back, for targets that are not Compose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import Installation
from tests.migrate.sources import history


def there_and_back(own: Installation, place: Path, pooler: str) -> None:
    """Run, verify, cut over and roll back a small directory; the app's stores are asked. pooler: HOST:PORT that the new app is told.

    Raises:
        AssertionError: a step fails, or says less than it should.
    """
    directory = place / "data"
    history(directory, 40)
    own.extra["ORCHEO_VAULT_ENCRYPTION_KEY"] = "a-key-of-the-old-installation-0123456789"

    def migrate(command: str, *more: str) -> Any:
        return own.ok("migrate", command, str(directory), *more, "--json").json

    try:
        assert migrate("run")["rows"] >= 240
        found = migrate("verify")
        assert found["ok"] and found["app"]["seen"]
        cut = migrate("cutover")
        assert cut["downtime_seconds"] > 0
        assert pooler in Path(cut["environment"]).read_text()
        rolled = migrate("rollback", "--to", str(place / "back"))
        assert sum(rolled["rows"].values()) >= 240 and (place / "back" / "workflows.sqlite").is_file()
    finally:
        own.extra.pop("ORCHEO_VAULT_ENCRYPTION_KEY")
