"""What uvicorn imports, in this process or in each of several: the app with its environment and the workarounds in place."""

from __future__ import annotations

from orcheo_db.runtime import processes

processes.prepare()

from orcheo_backend.app import app  # noqa: E402 - the app reads its environment while it is imported

__all__ = ["app"]
