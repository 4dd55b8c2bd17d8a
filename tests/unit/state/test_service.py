"""The library without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatgrpo.compat import managed_state_context
from chatgrpo.messages import user


@pytest.mark.parametrize("named", [True, False])
async def test_managed_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    monkeypatch.setenv("CHATGRPO_HOME", str(tmp_path))
    address = tmp_path / "other.db" if named else None
    async with managed_state_context(address) as state_service:
        manager = state_service.conversation_manager
        await manager.create_conversation("c1", "ada", {"lang": "en"})
        await manager.add_messages("c1", [user("hi")], expected_version=0)
        snapshot_id = await state_service.state_manager.create_snapshot()
        await manager.add_messages("c1", [user("oops")])
        await manager.update_context("c1", {"lang": "de"})
        await state_service.state_manager.restore_snapshot(snapshot_id)
    async with managed_state_context(address) as state_service:
        manager = state_service.conversation_manager
        assert (await manager.get_conversation("c1")).context == {"lang": "en"}
        assert (await manager.get_recent("c1")).messages == [user("hi")]
        assert len(await state_service.state_manager.list_snapshots()) == 2
        await manager.delete_conversation("c1")
    assert (tmp_path / ("other.db" if named else "state.db")).exists()
