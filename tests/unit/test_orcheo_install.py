"""The orcheo image's installer (compose/images/orcheo/install.py): the lock or a fresh resolution."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "compose" / "images" / "orcheo" / "install.py"
spec = importlib.util.spec_from_file_location("orcheo_install", SCRIPT)
assert spec and spec.loader
installer = importlib.util.module_from_spec(spec)
sys.modules["orcheo_install"] = installer  # dataclasses look their module up
spec.loader.exec_module(installer)

LOCK_TEXT = "# orcheo==1.0 orcheo-backend==2.0 python==3.13\n# Made by …\norcheo==1.0\n"


def test_lock_is_used_for_its_own_pair() -> None:
    chosen = installer.plan("1.0", "2.0", "", LOCK_TEXT, Path("/x/requirements.lock"))
    assert chosen.arguments == ("--require-hashes", "--requirement", "/x/requirements.lock")


@pytest.mark.parametrize("text", ["", "orcheo==1.0\n", LOCK_TEXT.replace("2.0", "2.1")])
def test_other_pairs_are_resolved_freshly(text: str) -> None:
    chosen = installer.plan("1.0", "2.0", "", text)
    assert chosen.arguments == ("orcheo==1.0", "orcheo-backend==2.0")
    assert "resolved freshly" in chosen.note


def test_extra_requirements_and_options() -> None:
    chosen = installer.plan("1.0", "2.0", "'mcp<2' --exclude-newer=2026-05-14 orcheo-sdk==0.28.0", LOCK_TEXT)
    pair = ("orcheo==1.0", "orcheo-backend==2.0")
    assert chosen.arguments == ("--exclude-newer=2026-05-14", *pair, "mcp<2", "orcheo-sdk==0.28.0")


def test_known_needs_of_an_old_pair() -> None:
    chosen = installer.plan("0.15.0", "0.15.0", "", LOCK_TEXT)
    *options, orcheo, backend, agentensor = chosen.arguments
    assert options == ["--exclude-newer=2025-12-24", "--exclude-newer-package=agentensor=2026-05-14"]
    assert (orcheo, backend, agentensor) == ("orcheo==0.15.0", "orcheo-backend==0.15.0", "agentensor==0.1.2")
    assert (
        installer.plan("0.15.0", "0.15.0", "mcp<2", LOCK_TEXT).arguments[-1] == "mcp<2"
    )  # what is given replaces them


def test_committed_lock_has_hashes_and_no_address() -> None:
    text = installer.LOCK.read_text(encoding="utf-8")
    pair = installer.locked_pair(text)
    assert pair
    assert f"\norcheo=={pair[0]} " in text
    assert f"\norcheo-backend=={pair[1]} " in text
    assert "://" not in text
    pinned = re.findall(r"^[a-z0-9].*$", text, re.MULTILINE)
    assert all("==" in line and line.endswith("\\") for line in pinned)


def test_ca_bundle_only_where_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    assert "SSL_CERT_FILE" not in installer.environment(tmp_path / "absent")
    (tmp_path / "ca").write_text("pem")
    assert installer.environment(tmp_path / "ca")["SSL_CERT_FILE"] == str(tmp_path / "ca")
