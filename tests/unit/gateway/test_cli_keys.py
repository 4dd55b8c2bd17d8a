"""`chatgrpo keys` on the platform's own store."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from chatgrpo.cli import app
from chatgrpo.config import PlatformConfig
from chatgrpo.gateway.exposure import refuse_open_door


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["keys", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_life_of_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATGRPO_HOME", str(tmp_path))
    key = run("create", "ci", "--role", "trainer", "--tenant", "acme", "--days", "30").strip()
    assert key.startswith("cgk_")
    key_id = key.split("_")[1]
    listed = run("list")
    assert all(word in listed for word in (key_id, "ci", "acme", "trainer", "until"))
    assert run("rotate", key_id).strip() != key
    assert "is revoked" in run("revoke", key_id)
    assert "revoked" in run("list")
    refuse_open_door("0.0.0.0", platform=PlatformConfig(home=tmp_path))
