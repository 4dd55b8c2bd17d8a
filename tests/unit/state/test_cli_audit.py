"""`chatgrpo audit` on the platform's own store."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from chatgrpo.audit import AuditTrail
from chatgrpo.cli import app
from chatgrpo.state.sqlite import SqliteStore


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", *arguments])


@pytest.fixture
async def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHATGRPO_HOME", str(tmp_path))
    store = SqliteStore(tmp_path / "state.db")
    trail = AuditTrail(store)
    for who, what in (("key:a", "job.submit"), ("key:b", "job.cancel"), ("key:a", "chat.send")):
        await trail.record(who=who, what=what, tenant="t", target="x", facts={})
    await store.close()
    return tmp_path / "state.db"


def test_an_intact_trail_then_a_tampered_one(db: Path) -> None:
    intact = run("verify")
    assert (intact.exit_code, "3 entries are intact" in intact.stdout) == (0, True)
    anchor = intact.stdout.split("anchor ")[1].strip()
    assert run("verify", "--anchor", anchor).exit_code == 0
    assert run("verify", "--anchor", "3:" + "0" * 64).exit_code == 1
    with closing(sqlite3.connect(db)) as connection, connection:
        changed = connection.execute(
            "UPDATE records SET data = CAST(replace(CAST(data AS TEXT), 'job.cancel', 'job.delete') AS BLOB) "
            "WHERE CAST(data AS TEXT) LIKE '%job.cancel%'"
        )
        assert changed.rowcount == 1
    tampered = run("verify")
    assert (tampered.exit_code, "tampered with: " in tampered.stderr) == (1, True)


def test_searched_by_who_what_and_when(db: Path) -> None:
    def acts(*arguments: str) -> list[str]:
        found = run("search", *arguments)
        assert found.exit_code == 0, found.output
        return [json.loads(line)["what"] for line in found.stdout.splitlines()]

    assert acts() == ["job.submit", "job.cancel", "chat.send"]
    assert acts("--who", "key:a") == ["job.submit", "chat.send"]
    assert acts("--what", "job.") == ["job.submit", "job.cancel"]
    assert acts("--days", "0") == []
    assert acts("--limit", "1") == ["job.submit"]


def test_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATGRPO_HOME", str(tmp_path))
    assert "there is no store" in run("verify").stderr
    assert not (tmp_path / "state.db").exists()
    assert "is not COUNT:HASH" in run("verify", "--anchor", "7").stderr
