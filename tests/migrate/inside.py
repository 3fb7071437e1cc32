"""What the programs that run inside an old release's image share; the host imports it too, so standard library only.

The release's packages are imported by name while a program runs: no other environment has them.
"""

from __future__ import annotations

import enum
import importlib
import importlib.metadata
import json
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any, NoReturn

TOKEN = "bootstrap-of-the-tests"
FILES = {
    "ORCHEO_REPOSITORY_SQLITE_PATH": "workflows.sqlite",
    "ORCHEO_SQLITE_PATH": "checkpoints.sqlite",
    "ORCHEO_GRAPH_STORE_SQLITE_PATH": "graph_store.sqlite",
    "ORCHEO_WORKSPACE_SQLITE_PATH": "workspaces.sqlite",
    "ORCHEO_CHATKIT_SQLITE_PATH": "chatkit.sqlite",
    "ORCHEO_CHATKIT_STORAGE_PATH": "chatkit",
    "ORCHEO_VAULT_LOCAL_PATH": "vault.sqlite",
    "ORCHEO_AUTH_SERVICE_TOKEN_DB_PATH": "service_tokens.sqlite",
}


def environment(folder: str, *, vault_key: str | None = None, workspaces: str = "sqlite") -> dict[str, str]:
    """The release's settings: all its files in one folder, no server beside it."""
    return {
        **{name: f"{folder}/{file}" for name, file in FILES.items()},
        **({"ORCHEO_VAULT_ENCRYPTION_KEY": vault_key} if vault_key else {}),
        "HOME": "/tmp",
        "ORCHEO_WORKSPACE_BACKEND": workspaces,
        "ORCHEO_AUTH_MODE": "required",
        "ORCHEO_AUTH_BOOTSTRAP_SERVICE_TOKEN": TOKEN,
        "ORCHEO_AUTH_JWT_SECRET": "jwt-secret-of-the-tests-long-enough-for-hs256",
        "ORCHEO_CHATKIT_TOKEN_SIGNING_KEY": "chatkit-key-of-the-tests-long-enough-for-hs256",
        "ORCHEO_CHATKIT_RETENTION_DAYS": "36500",  # it deletes old threads when it starts
    }


def get(module: str, name: str) -> Any:
    """Something of the release's packages."""
    return getattr(importlib.import_module(module), name)


def call(module: str, name: str, /, *arguments: Any, **named: Any) -> Any:
    """The result of one of its functions."""
    return get(module, name)(*arguments, **named)


def repository() -> Any:
    """The app's store of workflows and runs."""
    return call("orcheo_backend.app.dependencies", "get_repository")


def is_bridge() -> bool:
    """Whether this release has handles, workspaces, listeners, plugins and LangGraph's store (0.15.0 has none of them)."""
    return importlib.metadata.version("orcheo") != "0.15.0"


def program(work: Callable[[dict[str, Any]], Any]) -> NoReturn:
    """Do the work with what stands on stdin, in the release's environment; its answer is all that stands on stdout."""
    answer = os.dup(1)
    os.dup2(2, 1)  # the release logs and prints where it likes
    sys.setrecursionlimit(20000)  # for documents of depth 200
    given = json.load(sys.stdin)
    os.environ.update(given["environment"])
    try:
        result = json.dumps(work(given), sort_keys=True)
    except BaseException:
        importlib.import_module("traceback").print_exc()
        sys.stderr.flush()
        os._exit(1)
    with os.fdopen(answer, "w") as out:
        out.write(result)
    os._exit(0)  # the release's threads (aiosqlite, Celery) outlive their work


def exact(value: Any) -> Any:
    """Any value as JSON that loses nothing: what JSON or UTF-8 can't hold stands in an object with one `$` key."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return exact(value.value)
    for kind, form in PLAIN:
        if isinstance(value, kind):
            return form(value)
    return _exact_of_many(value)


def _text(value: str) -> Any:
    # A surrogate alone is no character; the backslash is doubled so that its escape stays unambiguous.
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        return {"$escaped": value.encode("unicode_escape").decode("ascii")}
    return str(value)


PLAIN: list[tuple[type, Callable[[Any], Any]]] = [
    (str, _text),
    (int, int),
    (float, lambda value: value if value - value == 0 else {"$float": repr(value)}),
    (bytes, lambda value: {"$bytes": value.hex()}),
    (datetime, lambda value: {"$time": value.isoformat()}),
    (uuid.UUID, str),
]


def _exact_of_many(value: Any) -> Any:
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and exact(key) == key and not key.startswith("$") for key in value):
            return {key: exact(each) for key, each in value.items()}
        pairs = [[exact(key), exact(each)] for key, each in value.items()]
        return {"$items": sorted(pairs, key=json.dumps)}
    if isinstance(value, (set, frozenset)):
        return sorted((exact(each) for each in value), key=json.dumps)
    if isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        return [exact(each) for each in value]
    # A Pydantic model (Orcheo's, ChatKit's or LangChain's), a dataclass, or LangGraph's store item.
    names: Any = getattr(type(value), "model_fields", None) or getattr(type(value), "__slots__", ())
    if is_dataclass(value):
        names = [each.name for each in fields(value)]
    kept = {name: exact(getattr(value, name)) for name in names} if names else {"text": str(value)}
    return {"$type": type(value).__name__} | kept
