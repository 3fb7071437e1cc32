"""The spec: what loads, and that every mistake is one line: where, key, bad value, what is accepted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcheo_db import __version__
from orcheo_db.errors import UserError
from orcheo_db.spec import DEFAULT_PATH, ENVIRONMENT, SpecError, format_memory, load_spec, parse_memory
from orcheo_db.tuning import check_overrides

TEXT = DEFAULT_PATH.read_text(encoding="utf-8")
MB, GB = 1 << 20, 1 << 30


def broken(tmp_path: Path, old: str, new: str, env: dict[str, str] | None = None) -> str:
    """The error of the committed spec with `old` replaced once by `new`, without the file's name."""
    assert TEXT.count(old) >= 1, old
    file = tmp_path / "spec.toml"
    file.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(file, env or {})
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith((f"{file}: ", "environment variable "))
    return message.removeprefix(f"{file}: ")


def test_the_committed_spec() -> None:
    spec = load_spec(env={})
    assert (spec.stack.project, spec.stack.size, spec.stack.port) == ("orcheo-db", "small", 6432)
    assert (spec.versions.postgresql, spec.versions.orcheo, spec.versions.orcheo_backend) == (
        17,
        "0.46.1",
        "0.39.0",
    )
    assert spec.database.extensions == ("uuid-ossp", "pgcrypto", "pg_trgm", "pg_stat_statements")
    assert list(spec.sizes) == ["small", "medium", "large"]
    assert [(size.memory // GB, size.cpus, size.max_connections) for size in spec.sizes.values()] == [
        (2, 2, 100),
        (8, 4, 200),
        (32, 8, 400),
    ]
    assert spec.source == "ops/spec.toml"
    assert spec.size() is spec.sizes["small"]
    assert spec.size("large").name == "large"


def test_image_tags_say_what_is_inside() -> None:
    assert load_spec(env={}).image_tags() == {
        "postgres": f"orcheo-db/postgres:17-{__version__}",
        "pgbouncer": f"orcheo-db/pgbouncer:{__version__}",
        "orcheo": f"orcheo-db/orcheo:0.46.1-0.39.0-{__version__}",
        "backup": f"orcheo-db/backup:17-0.46.1-0.39.0-{__version__}",
    }


def test_the_spec_is_frozen() -> None:
    spec = load_spec(env={})
    with pytest.raises(ValueError, match="frozen"):
        spec.stack.port = 1


def test_an_unknown_size_by_name() -> None:
    with pytest.raises(SpecError, match=r"^ops/spec\.toml: no size 'xl': expected one of small, medium, large"):
        load_spec(env={}).size("xl")


SIZE_FORMS = "expected a size such as 512MB or 2GB (units kB, MB, GB, TB; powers of 1024)"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # Unknown and missing keys.
        (
            "port = 6432",
            "prot = 6432",
            "stack.prot: unknown key; did you mean port? (accepted: project, size, bind_address, port, parts)",
        ),
        ("[app]", "[ap]", "ap: unknown key; did you mean app?"),
        ("cpus = 4", "cpus = 4\ncores = 4", "sizes.medium.cores: unknown key; did you mean"),
        ("port = 6432", "", "stack.port: missing; expected a whole number from 1 to 65535"),
        (
            "[sizes.medium]",
            "[sizes.tiny]\n[sizes.medium]",
            f"sizes.tiny.memory: missing; {SIZE_FORMS}, at least 512MB",
        ),
        # Numbers.
        ("port = 6432", "port = 0", "stack.port = 0: expected a whole number from 1 to 65535"),
        ("port = 6432", "port = 65536", "stack.port = 65536: expected a whole number from 1 to 65535"),
        ("port = 6432", 'port = "6432"', "stack.port = '6432': expected a whole number from 1 to 65535"),
        (
            "cpus = 4",
            "cpus = true",
            "sizes.medium.cpus = True: expected a whole number of cores from 1 to 1024",
        ),
        (
            "cpus = 4",
            "cpus = 2.5",
            "sizes.medium.cpus = 2.5: expected a whole number of cores from 1 to 1024",
        ),
        (
            "max_connections = 200",
            "max_connections = 5",
            "sizes.medium.max_connections = 5: expected a whole number",
        ),
        (
            "pool_timeout = 30",
            "pool_timeout = 0",
            "app.pool_timeout = 0: expected a whole number of seconds from 1",
        ),
        (
            "worker_processes = 2",
            "worker_processes = -1",
            "app.worker_processes = -1: expected a whole number",
        ),
        # Memory.
        ('memory = "8GB"', 'memory = "8"', f"sizes.medium.memory = '8': {SIZE_FORMS}"),
        ('memory = "8GB"', "memory = 8", f"sizes.medium.memory = 8: {SIZE_FORMS}"),
        ('memory = "8GB"', 'memory = "8 gallons"', f"sizes.medium.memory = '8 gallons': {SIZE_FORMS}"),
        (
            'memory = "8GB"',
            'memory = "511MB"',
            f"sizes.medium.memory = '511MB': {SIZE_FORMS}, at least 512MB",
        ),
        # Words and names.
        (
            'storage = "ssd"',
            'storage = "nvme"',
            "sizes.small.storage = 'nvme': expected one of ssd, hdd, san",
        ),
        (
            "[sizes.medium]",
            "[sizes.Medium]",
            "sizes.Medium: not a name for this table; expected a name of at most 31",
        ),
        ("[sizes.medium]", '[sizes.medium]\nname = "x"', "sizes.medium.name = 'x': expected no such key"),
        (
            'project = "orcheo-db"',
            'project = "My Stack"',
            "stack.project = 'My Stack': expected 1 to 50 of a-z",
        ),
        ('project = "orcheo-db"', 'project = "x\\n"', "stack.project = 'x\\n': expected 1 to 50 of a-z"),
        (
            'bind_address = "127.0.0.1"',
            'bind_address = "localhost"',
            "stack.bind_address = 'localhost': expected an IP address",
        ),
        (
            'name = "orcheo"',
            'name = "Or-cheo"',
            "database.name = 'Or-cheo': expected 1 to 63 of a-z, 0-9 and _",
        ),
        ('name = "orcheo"', f'name = "{"x" * 64}"', f"database.name = '{'x' * 56}...: expected 1 to 63"),
        (
            'name = "orcheo"',
            'name = "pgbouncer"',
            "database.name = 'pgbouncer': expected a name other than the reserved",
        ),
        (
            'name = "orcheo"',
            'name = "replication"',
            "database.name = 'replication': expected a name other than",
        ),
        (
            '"pgcrypto"',
            '"pg_trgm"',
            "database.extensions = ['uuid-ossp', 'pg_trgm', 'pg_trgm', 'pg_stat_statements']: expected each",
        ),
        ('"pgcrypto"', '"x; DROP"', "database.extensions.1 = 'x; DROP': expected an extension's name"),
        ("postgresql = 17", "postgresql = 16", "versions.postgresql = 16: expected 17"),
        (
            'orcheo = "0.46.1"',
            'orcheo = "latest"',
            "versions.orcheo = 'latest': expected a release number such as 0.46.1",
        ),
        (
            'base = "debian:trixie-slim"',
            'base = "debian trixie"',
            "images.base = 'debian trixie': expected an image reference",
        ),
        (
            'pgbouncer = "orcheo-db/pgbouncer"',
            'pgbouncer = "a/b:1"',
            "images.pgbouncer = 'a/b:1': expected an image name without a tag",
        ),
        (
            'locale_provider = "builtin"',
            'locale_provider = "glibc"',
            "cluster.locale_provider = 'glibc': expected one of builtin, icu, libc",
        ),
        # Settings: scalars, one line each (no second line smuggled into a configuration file).
        (
            'work_mem = "4MB"',
            'work_mem = ["4MB"]',
            "sizes.small.settings.work_mem = ['4MB']: expected a string, a number",
        ),
        (
            'work_mem = "4MB"',
            'work_mem = "4MB\\nssl=off"',
            "sizes.small.settings.work_mem = '4MB\\nssl=off': expected one line",
        ),
        (
            "[settings]",
            "[settings]\na.b = 1",
            "settings.a = {'b': 1}: expected a string, a number or a boolean",
        ),
        # Right alone, wrong together.
        (
            'size = "small"',
            'size = "tiny"',
            "stack.size = 'tiny': expected one of small, medium, large, or a [sizes.tiny] table",
        ),
        (
            "pool_min_size = 2",
            "pool_min_size = 21",
            "app.pool_min_size = 21: expected at most app.pool_max_size (20)",
        ),
        (
            'locale = "C.UTF-8"',
            'locale = "de_DE.UTF-8"',
            "cluster.locale = 'de_DE.UTF-8': expected C or C.UTF-8",
        ),
        (
            "max_connections = 100",
            "max_connections = 90",
            "sizes.small.settings.max_connections = '100': expected the same as",
        ),
        # Not a spec at all.
        ("[stack]", "[stack", "not valid TOML: "),
        ("[stack]", "[[stack]]", "stack = [{"),
    ],
)
def test_bad_input(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert broken(tmp_path, old, new).startswith(message)


@pytest.mark.parametrize("variable", sorted(ENVIRONMENT))
def test_each_override_applies_and_an_empty_one_does_not(variable: str) -> None:
    section, key = ENVIRONMENT[variable]
    values = {"port": "15432", "size": "large", "orcheo": "0.40.0", "orcheo_backend": "0.35.0", "storage": "sqlite"}
    value = values.get(key, "app" if key == "parts" else "another")
    found = getattr(getattr(load_spec(env={variable: value}), section), key)
    assert (found == ("app",)) if key == "parts" else (str(found) == value)
    assert load_spec(env={variable: ""}) == load_spec(env={})


def test_no_part_is_a_choice_too(tmp_path: Path) -> None:
    assert load_spec(env={"ORCHEO_DB_WITH": "none"}).stack.parts == ()
    assert load_spec(env={"ORCHEO_DB_WITH": "app none"}).stack.parts == ("app",)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('ORCHEO_VAULT_ENCRYPTION_KEY = "k"', "is a secret that the toolkit makes"),
        ("ORCHEO_POSTGRES_POOL_MAX_SIZE = 5", "is the spec's own: set app.pool_max_size"),
        ('ORCHEO_VAULT_BACKEND = "sqlite"', "is the spec's own: set app.storage"),
        ('ORCHEO_AUTH_MODE = "disabled"', "is fixed: whoever reaches the API needs a token"),
        ("ORCHEO_INPROCESS_EXECUTION = true", "is fixed: the worker executes runs"),
        ('lower = "x"', "expected a variable's name"),
    ],
)
def test_variables_of_the_app_that_are_not_to_be_set(tmp_path: Path, line: str, words: str) -> None:
    assert words in broken(tmp_path, "[app.environment]", f"[app.environment]\n{line}")


def test_the_apps_port_is_its_own_where_it_runs(tmp_path: Path) -> None:
    text = DEFAULT_PATH.read_text().replace("port = 8000 ", "port = 6432 ")
    (tmp_path / "spec.toml").write_text(text)
    assert load_spec(tmp_path / "spec.toml", env={}).app.port == 6432
    with pytest.raises(SpecError, match=r"app\.port = 6432: expected another port"):
        load_spec(tmp_path / "spec.toml", env={"ORCHEO_DB_WITH": "app"})


@pytest.mark.parametrize("key", ["backend_processes", "worker_processes"])
def test_an_app_that_runs_here_has_processes(tmp_path: Path, key: str) -> None:
    number = {"backend_processes": 1, "worker_processes": 2}[key]
    (tmp_path / "spec.toml").write_text(DEFAULT_PATH.read_text().replace(f"{key} = {number} ", f"{key} = 0 "))
    assert getattr(load_spec(tmp_path / "spec.toml", env={}).app, key) == 0
    with pytest.raises(SpecError, match=rf"app\.{key} = 0: expected at least 1"):
        load_spec(tmp_path / "spec.toml", env={"ORCHEO_DB_WITH": "app"})


def test_the_apps_variables_read_true_not_on(tmp_path: Path) -> None:
    text = DEFAULT_PATH.read_text().replace(
        "[app.environment]", "[app.environment]\nORCHEO_HOSTED_APPS_ENABLED = true\nN = 3"
    )
    (tmp_path / "spec.toml").write_text(text)
    assert load_spec(tmp_path / "spec.toml", env={}).app.environment == {"ORCHEO_HOSTED_APPS_ENABLED": "true", "N": "3"}


@pytest.mark.parametrize(
    ("variable", "value", "accepted"),
    [
        ("ORCHEO_DB_PORT", "http", "a whole number from 1 to 65535"),
        ("ORCHEO_DB_PORT", "70000", "a whole number from 1 to 65535"),
        ("ORCHEO_DB_PORT", "6432\n", "a whole number from 1 to 65535"),
        ("ORCHEO_DB_SIZE", "xl", "one of small, medium, large"),
        ("ORCHEO_DB_PROJECT", "A B", "1 to 50 of a-z"),
        ("ORCHEO_DB_BASE_IMAGE", "a b", "an image reference"),
        ("ORCHEO_VERSION", "newest", "a release number"),
        ("ORCHEO_DB_APP_STORAGE", "mysql", "postgres, or sqlite"),
        ("ORCHEO_DB_WITH", "ap", r"app \(Orcheo itself\), or none"),
        ("ORCHEO_BACKEND_VERSION", "0", "a release number"),
    ],
)
def test_a_bad_override_names_the_variable(variable: str, value: str, accepted: str) -> None:
    pattern = f"^environment variable {variable} = '?{re.escape(repr(value)[1:-1])}'?: expected {accepted}"
    with pytest.raises(SpecError, match=pattern):
        load_spec(env={variable: value})


def test_the_environment_is_the_process_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORCHEO_DB_PORT", "7777")
    assert load_spec().stack.port == 7777
    file = tmp_path / "other.toml"
    file.write_text(TEXT.replace("port = 6432", "port = 7000"), encoding="utf-8")
    assert load_spec(env={"ORCHEO_DB_SPEC": str(file)}).stack.port == 7000
    assert load_spec(env={"ORCHEO_DB_SPEC": str(file)}).source == str(file)


def test_files_that_are_no_spec(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nothing\.toml: can't be read: No such file or directory; name another"):
        load_spec(tmp_path / "nothing.toml", {})
    with pytest.raises(SpecError, match="can't be read: Is a directory"):
        load_spec(tmp_path, {})
    (tmp_path / "latin1.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(SpecError, match=r"not UTF-8 text \(byte 5\)"):
        load_spec(tmp_path / "latin1.toml", {})
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(SpecError, match=r"stack: missing"):
        load_spec(tmp_path / "empty.toml", {})


def test_it_is_the_users_mistake() -> None:
    assert issubclass(SpecError, UserError)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MB", 512 * MB),
        ("2GB", 2 * GB),
        ("2 gb", 2 * GB),
        ("1.5GiB", 1536 * MB),
        ("64kB", 65536),
        ("8192B", 8192),
        ("1t", 1 << 40),
    ],
)
def test_memory_is_binary(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "2", "GB", "-1GB", "2PB", "1e3MB", "0.3B", "2GB 1MB", "٢GB", "1,5GB"])
def test_memory_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as"):
        parse_memory(text)


@given(st.integers(min_value=0, max_value=1 << 60))
def test_printed_memory_reads_back(size: int) -> None:
    printed = format_memory(size)
    assert parse_memory(printed) == size
    assert re.fullmatch(r"[0-9]+(B|kB|MB|GB|TB)", printed)


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ("15 1 * * 8", "numbers from 0 to 7 in the field '8'"),
        ("60 1 * * *", "numbers from 0 to 59 in the field '60'"),
        ("5-1 1 * * *", "in the field '5-1'"),
        ("*/0 1 * * *", "in the field '*/0'"),
        ("15 1 * *", "cron's five fields"),
        ("15 1 * * SUN", "cron's five fields"),
        ("@daily", "cron's five fields"),
    ],
)
def test_a_wrong_schedule(tmp_path: Path, new: str, words: str) -> None:
    message = broken(tmp_path, 'full = "15 1 * * 0"', f'full = "{new}"')
    assert message.startswith("backup.schedule.full") and words in message


@pytest.mark.parametrize("name", ["archive_mode", "archive_command", "archive_timeout", "archive_library"])
def test_archiving_is_not_a_setting(tmp_path: Path, name: str) -> None:
    file = tmp_path / "spec.toml"
    file.write_text(TEXT.replace("\n[settings]\n", f'\n[settings]\n{name} = "5"\n'), encoding="utf-8")
    spec = load_spec(file, {})
    with pytest.raises(SpecError, match=rf"settings\.{name}.*backup"):
        check_overrides(spec.size(), spec)
