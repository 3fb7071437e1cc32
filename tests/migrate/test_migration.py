"""Real rows of both old releases to PostgreSQL, the newest app on them, more written, and back to the old release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orcheo_db import app_secrets
from tests.conftest import Installation
from tests.e2e.api import SCRIPT, Api, first_party_token
from tests.e2e.conftest import caller
from tests.migrate import releases
from tests.migrate.conftest import empty, fingerprint, query

pytestmark = pytest.mark.disruptive
# A run has the newest app look at its credentials, which it notes in them; what people do in a workspace becomes its events.
GROWING = {"credentials": ("updated_at", "audit_log", "health"), "workspaces": ("audit events",)}


class Journey:
    """One release's way there and back; each test is a stage of it."""

    def __init__(self, own: Installation, name: str, directory: Path) -> None:
        self.own, self.name, self.directory = own, name, directory
        self.made: dict[str, Any] = {}
        self.before: dict[str, Any] = {}
        self.files: dict[str, str] = {}
        self.added: dict[str, str] = {}
        self.back = directory.with_name("back")

    def run(self, command: str, *arguments: str) -> Any:
        return self.own.ok("migrate", command, str(self.directory), *arguments, "--json").json


@pytest.fixture(scope="module", params=list(releases.RELEASES))
def journey(request: pytest.FixtureRequest, stack: Installation, tmp_path_factory: pytest.TempPathFactory) -> Any:
    empty(stack)
    way = Journey(stack, request.param, tmp_path_factory.mktemp("old") / "data")
    way.made = releases.make_rows(request.param, way.directory)
    yield way
    stack.ok("up", "--with", "none")
    empty(stack)


def slugs(journey: Journey) -> list[str]:
    return ["default"] if journey.name == "0.15.0" else ["default", "alpha-team"]


def test_a_plan_names_what_is_there_and_changes_nothing(journey: Journey):
    before = fingerprint(journey.directory)
    ran = journey.own.run("migrate", "plan", str(journey.directory), "--json")
    assert ran.code == 1 and "want a decision" in ran.message, ran.stderr  # the rows hold NULs, naive times and strays
    found = ran.json
    assert found["release"] == ("0.15" if journey.name == "0.15.0" else "0.34")
    rows = {table["table"]: table["rows"] for table in found["tables"]}
    assert rows["workflows"] >= 4 and rows["chat_messages"] > 20 and rows["checkpoints"] > 20
    text = "\n".join(hazard["text"] for hazard in found["hazards"])
    for words in (
        "NUL",
        "lone surrogate",
        "NaN or Infinity",
        "timestamp without zone",
        "beyond 2^53",
        "would be invisible",
    ):
        assert words in text
    if journey.name == "0.34.0":
        assert "no workflow_run_remediations" in text
    assert fingerprint(journey.directory) == before


def test_a_wrong_vault_key_is_refused(journey: Journey):
    journey.own.extra["ORCHEO_VAULT_ENCRYPTION_KEY"] = "another"
    try:
        ran = journey.own.run("migrate", "run", str(journey.directory))
    finally:
        del journey.own.extra["ORCHEO_VAULT_ENCRYPTION_KEY"]
    assert (
        ran.code == 2
        and "the vault key opens 0 of" in ran.message
        and "another" not in ran.stderr.split("give the one")[0]
    )
    assert query(journey.own, "SELECT count(*) FROM credentials") == [(0,)]


def test_copy_and_compare_while_the_old_app_goes_on(journey: Journey):
    with releases.OldApp(journey.name, journey.directory, copy=False) as old:
        copied = journey.run("run")
        assert copied["rows"] > 400
        made = old.api.call(
            "POST",
            "/api/workflows",
            {"name": "Late", **({"handle": "late"} if journey.name != "0.15.0" else {}), "actor": "late"},
        )
        journey.added["late"] = made["id"]
        old.api.call("DELETE", f"/api/workflows/{journey.made['workflows']['second']}?actor=late")
        verified = journey.run("verify")  # with the snapshot that was copied
        assert verified["ok"] and all(table["digest_source"] == table["digest_target"] for table in verified["tables"])
        assert {table["table"] for table in verified["tables"]} >= {
            "checkpoints",
            "writes",
            "credentials",
            "chat_messages",
            "service_tokens",
        }
        seen = verified["app"]["seen"]
        rows = {table["table"]: table["rows"] for table in verified["tables"]}
        assert seen["credentials decrypted"] == rows["credentials"] >= len(journey.made["credentials"])
        assert seen["LangGraph threads"] > 10
        ran = journey.own.run("migrate", "cutover", str(journey.directory))
        assert ran.code == 2 and "the old app still runs: process " in ran.message
    journey.before = releases.read_rows(journey.name, journey.directory)
    journey.files = fingerprint(journey.directory)


def test_cutover_brings_what_was_written_meanwhile(journey: Journey):
    found = journey.run("cutover")
    assert found["downtime_seconds"] < 60 and found["fully_verified"] and "workflows" in found["changed"]
    assert query(journey.own, "SELECT count(*) FROM workflows WHERE id = %s", journey.added["late"]) == [(1,)]
    archived = query(
        journey.own, "SELECT is_archived FROM workflows WHERE id = %s", journey.made["workflows"]["second"]
    )
    assert archived == [(True,)]  # 0.15 has it in the payload alone
    file = Path(found["environment"])
    values = dict(line.split("=", 1) for line in file.read_text().splitlines())
    assert file.stat().st_mode & 0o777 == 0o600
    assert values["ORCHEO_VAULT_ENCRYPTION_KEY"] == journey.made["vault_key"]
    assert values["ORCHEO_POSTGRES_DSN"].startswith("postgresql://orcheo_app_")
    assert journey.own.run("migrate", "run", str(journey.directory)).code == 2  # its rows are the app's now


def test_the_newest_app_shows_every_row_and_writes_more(journey: Journey):
    journey.own.ok("up", "--with", "app")
    callers = {slug: _caller(journey, slug) for slug in slugs(journey)}
    shown: dict[str, str] = {}
    for slug, api in callers.items():
        for workflow in api.call("GET", "/api/workflows?include_archived=true"):
            shown[workflow["id"]] = slug
    wanted = {row["id"] for row in journey.before["workflows"].values()}
    assert wanted <= set(shown)
    main = journey.made["workflows"]["main"]
    api = callers[shown[main]]
    assert len(api.call("GET", f"/api/workflows/{main}/versions")) >= 1
    runs = {run["id"] for run in api.call("GET", f"/api/workflows/{main}/runs")}
    assert set(journey.made["runs"]["succeeded"]) & runs
    for key, secret in journey.made["credentials"].items():
        assert _secret(callers, journey.made["workflows"], key) == secret
    _write_more(journey, callers["default"])


def _caller(journey: Journey, slug: str) -> Api:
    """Somebody who belongs to a workspace: the owner of the bootstrap token, or its own member."""
    members = query(
        journey.own,
        "SELECT m.user_id FROM workspace_memberships m JOIN workspaces w ON w.id = m.workspace_id WHERE w.slug = %s",
        slug,
    )
    api = caller(journey.own)
    if ("bootstrap",) not in members:
        api.token = first_party_token(app_secrets.read(journey.own.target().store, "jwt.secret"), members[0][0])
    api.workspace = slug
    return api


def _secret(callers: dict[str, Api], workflows: dict[str, str], key: str) -> str:
    """A credential's secret, from whichever workspace has it; a scoped one tells it to its workflow alone."""
    answers = []
    for slug, api in callers.items():
        for scope in ("", *(f"?workflow_id={workflow}" for workflow in workflows.values())):
            answer = api.send("GET", f"/api/credentials/{key}/secret{scope}")
            if answer.ok:
                return str(answer.json()["secret"])
            answers.append(f"{slug}{scope}: {answer.status_code} {answer.text[:200]}")
    raise AssertionError(answers)


def _write_more(journey: Journey, api: Api) -> None:
    made = api.workflow("written-since")
    journey.added |= {"workflow": made["id"], "run": api.dispatch(made["id"], n=1)}
    assert api.finished(journey.added["run"])["status"] == "succeeded"
    body = {
        "name": "since",
        "provider": "smtp",
        "secret": "since-secret",
        "actor": "e2e",
        "scopes": [],
        "access": "shared",
    }
    journey.added["credential"] = api.call("POST", "/api/credentials", body)["id"]
    token = api.call("POST", "/api/admin/service-tokens", {"name": "since", "scopes": ["workflows:read"]})
    journey.added["token"] = token["identifier"]
    api.call(
        "PUT",
        f"/api/workflows/{journey.made['workflows']['main']}?actor=e2e",
        {"name": "Renamed since", "actor": "e2e"},
    )


def test_a_rollback_keeps_all_of_it_and_the_old_release_starts_on_it(journey: Journey):
    found = journey.run("rollback", "--to", str(journey.back))
    assert all(table["ok"] for table in found["tables"])
    assert fingerprint(journey.directory) == journey.files  # the user's own files are as the old app left them
    after = releases.read_rows(journey.name, journey.back)
    for kind, rows in journey.before.items():
        for key, row in rows.items() if isinstance(rows, dict) else ():
            if kind == "workflows" and key == journey.made["workflows"]["main"]:
                assert after[kind][key]["name"] == "Renamed since"
                continue
            apart = GROWING.get(kind, ())
            if kind == "workspaces":
                events = after[kind][key]["audit events"]
                assert all(event in events for event in row["audit events"])
            assert _less(after[kind][key], apart) == _less(row, apart), (kind, key)
    assert journey.added["workflow"] in after["workflows"] and journey.added["run"] in after["runs"]
    assert after["credentials"][journey.added["credential"]]["revealed"]["secret"] == "since-secret"
    assert journey.added["token"] in after["tokens"]
    with releases.OldApp(journey.name, journey.back) as old:
        listed = {workflow["id"] for workflow in old.api.call("GET", "/api/workflows")}
        assert {journey.added["workflow"], journey.made["workflows"]["main"]} <= listed
        old.api.call("POST", f"/api/workflows/{journey.added['workflow']}/versions/ingest", _ingest())
        assert len(old.api.call("GET", f"/api/workflows/{journey.added['workflow']}/versions")) == 2


def _less(row: Any, apart: tuple[str, ...]) -> Any:
    return {key: value for key, value in row.items() if key not in apart} if apart else row


def _ingest() -> dict[str, Any]:
    return {"script": SCRIPT, "metadata": {}, "notes": "old", "created_by": "old", "entrypoint": "orcheo_workflow"}


def test_after_a_rollback_it_is_over(journey: Journey):
    for command in ("run", "cutover"):
        ran = journey.own.run("migrate", command, str(journey.directory))
        assert ran.code == 2 and "rolled back" in ran.message, (command, ran.stderr)
    assert (
        json.loads(query(journey.own, "SELECT to_json(phase)::text FROM orcheo_archive.migration")[0][0])
        == "rolled back"
    )
