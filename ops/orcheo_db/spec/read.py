"""Reading the spec's file and the environment, and saying in one line what is wrong with them."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from orcheo_db.spec.models import BACKENDS, DEFAULT_NAME, SecondRepository, Size, Spec
from orcheo_db.spec.values import SpecError

DEFAULT_PATH = Path(__file__).resolve().parents[2] / "spec.toml"
M = TypeVar("M", bound=BaseModel)
MISSING = object()

# Environment variable -> the key it overrides. An empty variable counts as not set.
ENVIRONMENT: dict[str, tuple[str, str]] = {
    "ORCHEO_DB_PROJECT": ("stack", "project"),
    "ORCHEO_DB_PORT": ("stack", "port"),
    "ORCHEO_DB_SIZE": ("stack", "size"),
    "ORCHEO_DB_WITH": ("stack", "parts"),
    "ORCHEO_DB_APP_PORT": ("app", "port"),
    "ORCHEO_DB_APP_STORAGE": ("app", "storage"),
    "ORCHEO_DB_BASE_IMAGE": ("images", "base"),
    "ORCHEO_VERSION": ("versions", "orcheo"),
    "ORCHEO_BACKEND_VERSION": ("versions", "orcheo_backend"),
}


_SECRET = "is a secret that the toolkit makes and keeps; it is no setting"  # noqa: S105 - a message
_KEY = "is the spec's own: set {} instead"
# What pgBackRest needs for each kind of bucket beside its credentials.
SECOND_NEEDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "s3": ("bucket", "endpoint", "region"),
    "azure": ("bucket",),
    "gcs": ("bucket",),
}
# Variables that [app.environment] may not set, with the reason.
OWNED_VARIABLES: dict[str, str] = {
    "ORCHEO_VAULT_ENCRYPTION_KEY": _SECRET,
    "ORCHEO_AUTH_BOOTSTRAP_SERVICE_TOKEN": _SECRET,
    "ORCHEO_AUTH_JWT_SECRET": _SECRET,
    "ORCHEO_CHATKIT_TOKEN_SIGNING_KEY": _SECRET,
    "ORCHEO_POSTGRES_DSN": _SECRET,
    "REDIS_URL": _SECRET,
    "ORCHEO_REDIS_URL": _SECRET,
    "ORCHEO_POSTGRES_POOL_MIN_SIZE": _KEY.format("app.pool_min_size"),
    "ORCHEO_POSTGRES_POOL_MAX_SIZE": _KEY.format("app.pool_max_size"),
    "ORCHEO_POSTGRES_POOL_TIMEOUT": _KEY.format("app.pool_timeout"),
    "ORCHEO_POSTGRES_POOL_MAX_IDLE": _KEY.format("app.pool_max_idle"),
    "ORCHEO_WORKFLOW_TRUST_MODE": _KEY.format("app.workflow_trust_mode"),
    "ORCHEO_CHATKIT_RETENTION_DAYS": _KEY.format("app.chatkit_retention_days"),
    "ORCHEO_TRACE_RETENTION_DAYS": _KEY.format("app.trace_retention_days"),
    **{f"ORCHEO_{name}_BACKEND": _KEY.format("app.storage") for name in BACKENDS},
    "ORCHEO_AUTH_MODE": "is fixed: whoever reaches the API needs a token",
    "ORCHEO_INPROCESS_EXECUTION": "is fixed: the worker executes runs",
    "ORCHEO_INPROCESS_CRON": "is fixed: beat starts cron triggers",
}


def load_spec(path: Path | None = None, env: Mapping[str, str] | None = None) -> Spec:
    """Read and validate the spec.

    Args:
        path: the file; by default $ORCHEO_DB_SPEC, else the repository's ops/spec.toml.
        env: whose overrides apply (see ENVIRONMENT); by default those of os.environ. {}: the file alone.

    Raises:
        SpecError: the file can't be read, or a value or key in it or in the environment is wrong.
    """
    env = os.environ if env is None else env
    if path is None:
        path = Path(env["ORCHEO_DB_SPEC"]) if env.get("ORCHEO_DB_SPEC") else DEFAULT_PATH
    source = DEFAULT_NAME if path == DEFAULT_PATH else str(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{source}: can't be read: {error.strerror}; name another file with ORCHEO_DB_SPEC") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{source}: not UTF-8 text (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{source}: not valid TOML: {' '.join(str(error).split())}") from None
    overridden = _override(data, env)
    spec = validated(Spec, data, source, overridden)
    for loc, value, accepted in _contradictions(spec):
        raise SpecError(_line(source, loc, value, accepted, overridden))
    spec._source = source
    return spec


def _override(data: dict[str, Any], env: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Put the environment's values into `data`; returns which keys were overridden by which variable."""
    overridden: dict[tuple[str, ...], str] = {}
    for variable, (section, key) in ENVIRONMENT.items():
        text = env.get(variable, "")
        if text and isinstance(data.get(section, {}), dict):
            data.setdefault(section, {})[key] = _from_environment(key, text)
            overridden[(section, key)] = variable
    return overridden


def _from_environment(key: str, text: str) -> object:
    """A variable's text as the file would have it: a port is a number, parts are words ("none": no part)."""
    if key == "port" and re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        return int(text)
    if key == "parts":
        return [word for word in text.split() if word != "none"]
    return text


def _contradictions(spec: Spec) -> Iterator[tuple[tuple[str, ...], object, str]]:
    """Values that are right by themselves and wrong together: key, value, what is accepted."""
    if spec.stack.size not in spec.sizes:
        yield (
            ("stack", "size"),
            spec.stack.size,
            f"one of {', '.join(spec.sizes)}, or a [sizes.{spec.stack.size}] table",
        )
    app, cluster = spec.app, spec.cluster
    if app.pool_min_size > app.pool_max_size:
        yield ("app", "pool_min_size"), app.pool_min_size, f"at most app.pool_max_size ({app.pool_max_size})"
    if "app" in spec.stack.parts:
        if app.port == spec.stack.port:
            yield ("app", "port"), app.port, "another port than PgBouncer's (stack.port)"
        for processes in ("backend_processes", "worker_processes"):  # none is for an app that runs elsewhere
            if getattr(app, processes) == 0:
                yield ("app", processes), 0, "at least 1, because the app runs here (stack.parts)"
    for name in app.environment:
        if name in OWNED_VARIABLES:
            yield ("app", "environment", name), MISSING, OWNED_VARIABLES[name]
    if cluster.locale_provider == "builtin" and cluster.locale not in ("C", "C.UTF-8"):
        yield (
            ("cluster", "locale"),
            cluster.locale,
            "C or C.UTF-8, which are all that locale_provider builtin has",
        )
    yield from _second(spec.backup.second)
    for name, size in spec.sizes.items():
        if size.name != name:
            yield (
                ("sizes", name, "name"),
                size.name,
                f"no such key: the table's own name, {name}, is the size's",
            )
        meant = size.settings.get("max_connections", str(size.max_connections))
        if meant != str(size.max_connections):
            key = ("sizes", name, "settings", "max_connections")
            yield key, meant, f"the same as sizes.{name}.max_connections ({size.max_connections})"


def _second(second: SecondRepository) -> Iterator[tuple[tuple[str, ...], object, str]]:
    for name in SECOND_NEEDS[second.type]:
        if not getattr(second, name):
            yield ("backup", "second", name), "", f"a value, because backup.second.type is {second.type}"


def validated(model: type[M], data: object, source: str, overridden: Mapping[tuple[str, ...], str] | None = None) -> M:
    """`data` as `model`; errors name `source`, or the variable that a key was `overridden` by.

    Raises:
        SpecError: the first mistake, in one line.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # An unknown key is reported before the missing one that it was meant to be.
        first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        *parents, last = first["loc"] or ("the file",)
        if last == "[key]":  # a table's name, not what is in it
            names = _schema(model, (*parents[:-1], "[key]"))[1]
            words = f"not a name for this table; expected {names.description}"
            raise SpecError(_line(source, parents, MISSING, words, {})) from None
        loc = (*parents, last)
        raise SpecError(_line(source, loc, *_explain(model, loc, first), overridden or {})) from None


def _explain(model: type[BaseModel], loc: tuple[Any, ...], error: Any) -> tuple[object, str]:
    """The bad value (MISSING if it is the key that is wrong) and what would be accepted."""
    fields, field = _schema(model, loc)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1]), fields, n=1, cutoff=0.0)
        return MISSING, f"unknown key; did you mean {near[0]}? (accepted: {', '.join(fields)})"
    accepted = field.description or "a table of keys"
    if error["type"] == "missing":
        return MISSING, f"missing; expected {accepted}"
    if error["type"] == "value_error" and accepted not in (message := str(error["ctx"]["error"])):
        accepted = message.removeprefix("expected ")
    return error["input"], accepted


def _schema(model: type[BaseModel], loc: tuple[Any, ...]) -> tuple[list[str], FieldInfo]:
    """The keys accepted beside the last part of `loc`, and the field it names ("[key]": a table's names)."""
    found: Any = model
    names, field = list(model.model_fields), FieldInfo()
    for part in loc:
        if isinstance(found, type) and issubclass(found, BaseModel):
            names = [name for name in found.model_fields if found is not Size or name != "name"]
            field = found.model_fields.get(str(part), FieldInfo())
        elif get_origin(found) in (dict, tuple):  # a table's names or values, or a list's items
            inner = get_args(found)[1 if get_origin(found) is dict and part != "[key]" else 0]
            names, field = [], FieldInfo.from_annotation(inner)
        found = field.annotation
    return names, field


def _line(
    source: str,
    loc: Sequence[object],
    value: object,
    accepted: str,
    overridden: Mapping[tuple[str, ...], str],
) -> str:
    """The one line of an error: where, key, bad value, what is accepted."""
    key = ".".join(map(str, loc))
    variable = overridden.get(tuple(map(str, loc[:2])))  # a variable sets a section's key, with all that is in it
    where = f"environment variable {variable}" if variable else f"{source}: {key}"
    return f"{where}: {accepted}" if value is MISSING else f"{where} = {_shown(value)}: expected {accepted}"


def _shown(value: object) -> str:
    text = " ".join(repr(list(value) if isinstance(value, tuple) else value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
