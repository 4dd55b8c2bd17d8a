"""Conversation shards on a real local cluster: kill -9, more shards, fewer shards, and nothing lost."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from chatgrpo.config import PlatformConfig
from chatgrpo.errors import Conflict, NotFound, TooLarge, Unavailable
from chatgrpo.messages import assistant, user

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

TENANT = "t"


async def test_shards_are_killed_added_and_removed_without_loss(ray_cluster: str, tmp_path: Path) -> None:
    import ray

    from actors.conversation_store import ConversationClient, shard_names, start_conversation_shards

    platform = PlatformConfig(home=tmp_path)
    shards = await asyncio.to_thread(start_conversation_shards, platform, 1)
    client = ConversationClient()

    made = await client.create(None, tenant=TENANT, user_id="u", context={"n": 1})
    assert made.version == 0
    with pytest.raises(Conflict) as stale:
        await client.append(made.id, [user("x")], tenant=TENANT, expected_version=7)
    assert stale.value.current_version == 0
    with pytest.raises(NotFound):
        await client.get(made.id, tenant="other")
    with pytest.raises(TooLarge):
        await client.append(made.id, [user("x" * 300_000)], tenant=TENANT)

    acknowledged: list[str] = []
    killed = asyncio.Event()

    async def write(start: int, stop: int) -> None:
        for number in range(start, stop):
            text = f"m{number}"
            while True:
                try:
                    await client.append(made.id, [user(text)], tenant=TENANT, append_id=text)
                    break
                except Unavailable:
                    continue
            acknowledged.append(text)
            if len(acknowledged) == 20:
                killed.set()

    async def kill() -> None:
        pid = await shards[0].pid.remote()
        await killed.wait()
        os.kill(pid, signal.SIGKILL)

    await asyncio.gather(write(0, 60), write(100, 160), kill())
    window = await client.read_recent(made.id, tenant=TENANT, max_messages=1000)
    assert sorted(m.content for m in window.messages) == sorted(acknowledged)

    await asyncio.to_thread(start_conversation_shards, platform, 3)
    assert len(shard_names()) == 3
    wide = ConversationClient()
    for _ in range(3):
        other = await wide.create(None, tenant=TENANT, user_id="u")
        await wide.append(other.id, [user("q"), assistant("a")], tenant=TENANT)
        await wide.feedback(other.id, 2, tenant=TENANT, score=1.0)
    await asyncio.gather(*(c.append(made.id, [user(f"{i}")], tenant=TENANT) for i in range(20) for c in (client, wide)))
    await asyncio.to_thread(start_conversation_shards, platform, 1)
    assert len(shard_names()) == 1
    narrow = ConversationClient()
    assert (await narrow.get(made.id, tenant=TENANT)).num_messages == len(acknowledged) + 40
    assert len((await narrow.list(tenant=TENANT, user_id="u")).conversations) == 4
    lines = [line async for line in narrow.export(tenant=TENANT)]
    assert [line["answer"] for line in lines] == ["a"] * 3
    fork = await narrow.fork(made.id, tenant=TENANT, at_version=5)
    assert fork.num_messages == 5
    await narrow.rollback(made.id, 5, tenant=TENANT)
    await narrow.delete(made.id, tenant=TENANT)
    with pytest.raises(NotFound):
        await client.get(made.id, tenant=TENANT)
    for name in shard_names():
        ray.kill(ray.get_actor(name, namespace="chatgrpo"))
