"""Snapshots are consistent cuts, and the way back from a restore is itself a snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from chatgrpo.audit import AuditTrail
from chatgrpo.errors import NotFound
from chatgrpo.messages import user
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.store import Store
from chatgrpo.state.tiered import TieredStore
from tests.fakes import FakeClock

TENANT = "t"


@pytest.fixture
async def conversations(store: Store) -> AsyncIterator[Conversations]:
    tiers = TieredStore(store)
    await tiers.start()
    clock = FakeClock()
    yield Conversations(tiers, clock=clock, audit=AuditTrail(store, clock=clock), snapshot_retention=3)
    await tiers.close()


async def said(conversations: Conversations, id_: str) -> list[str]:
    window = await conversations.read_recent(id_, tenant=TENANT, max_messages=1000)
    return [message.content for message in window.messages]


async def test_restore_brings_every_conversation_back_and_can_be_undone(conversations: Conversations) -> None:
    for name in "ab":
        await conversations.create(name, tenant=TENANT, user_id="u", context={"n": 1})
        await conversations.append(name, [user("1")], tenant=TENANT)
    snapshot = await conversations.create_snapshot(tenant=TENANT, name="before the test")
    await conversations.append("a", [user("2")], tenant=TENANT, context={"n": 2})
    await conversations.create("c", tenant=TENANT)
    await conversations.append("c", [user("new")], tenant=TENANT)
    restored = await conversations.restore_snapshot(snapshot.id, tenant=TENANT)
    assert (restored.num_changed, restored.num_emptied, restored.gone) == (2, 1, ())
    assert await said(conversations, "a") == ["1"]
    assert (await conversations.get("a", tenant=TENANT)).context == {"n": 1}
    assert await said(conversations, "b") == ["1"]
    assert await said(conversations, "c") == []
    await conversations.restore_snapshot(restored.undo, tenant=TENANT)
    assert await said(conversations, "a") == ["1", "2"]
    assert await said(conversations, "c") == ["new"]


async def test_deleted_conversations_leave_snapshots_and_do_not_come_back(conversations: Conversations) -> None:
    for name in "ab":
        await conversations.create(name, tenant=TENANT)
    snapshot = await conversations.create_snapshot(tenant=TENANT)
    await conversations.delete("a", tenant=TENANT, by="ada")
    (kept,) = await conversations.list_snapshots(tenant=TENANT)
    assert dict(kept.versions) == {"b": 0}
    restored = await conversations.restore_snapshot(snapshot.id, tenant=TENANT)
    assert restored.num_changed == 0
    with pytest.raises(NotFound):
        await conversations.get("a", tenant=TENANT)
    trail = AuditTrail(conversations.tiers.store)
    (tombstone,) = await trail.query(target="a", what="conversation.delete")
    assert (tombstone.who, tombstone.tenant, dict(tombstone.facts)) == ("ada", TENANT, {})


async def test_scope_of_a_user_leaves_others_alone(conversations: Conversations) -> None:
    for name in "uv":
        await conversations.create(name, tenant=TENANT, user_id=name)
    snapshot = await conversations.create_snapshot(tenant=TENANT, user_id="u")
    for name in "uv":
        await conversations.append(name, [user("1")], tenant=TENANT)
    await conversations.restore_snapshot(snapshot.id, tenant=TENANT)
    assert await said(conversations, "u") == []
    assert await said(conversations, "v") == ["1"]


async def test_retention_and_tenants(conversations: Conversations) -> None:
    taken = [await conversations.create_snapshot(tenant=TENANT) for _ in range(5)]
    kept = await conversations.list_snapshots(tenant=TENANT)
    assert [s.id for s in kept] == sorted((s.id for s in taken), reverse=True)[:3]
    with pytest.raises(NotFound):
        await conversations.restore_snapshot(kept[0].id, tenant="other")
    await conversations.delete_snapshot(kept[0].id, tenant=TENANT)
    with pytest.raises(NotFound):
        await conversations.delete_snapshot(kept[0].id, tenant=TENANT)


async def test_a_snapshot_cuts_consistently_while_writers_go_on(conversations: Conversations) -> None:
    """One writer always writes n to `a` and only then n to `b`: a cut may never show b ahead of a."""
    for name in "ab":
        await conversations.create(name, tenant=TENANT)

    async def write() -> None:
        for number in range(60):
            for name in "ab":
                await conversations.append(name, [user(str(number))], tenant=TENANT)

    async def snap(writer: asyncio.Task[None]) -> list[tuple[int, int]]:
        cuts = []
        while not writer.done():
            snapshot = await conversations.create_snapshot(tenant=TENANT)
            cuts.append((snapshot.versions["a"], snapshot.versions["b"]))
            await asyncio.sleep(0)  # a store in memory lets nobody else run
        return cuts

    writer = asyncio.create_task(write())
    cuts = await snap(writer)
    await writer
    assert all(b <= a <= b + 1 for a, b in cuts)
    assert cuts == sorted(cuts)
