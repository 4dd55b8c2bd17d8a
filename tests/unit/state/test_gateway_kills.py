"""`kill -9` of the HTTP gateway under clients that go on: what it has acknowledged is there, and what clients saw keeps
the promise of its level."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from chatgrpo.audit import verify
from chatgrpo.gateway.identity import LOCAL_TENANT
from chatgrpo.state.consistency import Consistency
from chatgrpo.state.opening import open_conversations
from tests.gateway_process import GatewayProcess, HttpConversations, Nursery
from tests.histories import causal_order, linearizable, nothing_lost, session_order, settled
from tests.redis_server import free_port
from tests.state_clients import NAMES, History, final_state, run_client

NUM_CLIENTS = 4
NUM_OPS = 60


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    opened = Nursery()
    yield opened
    opened.end()


@pytest.mark.parametrize(
    ("kind", "level"),
    [("sqlite", Consistency.STRONG), ("sqlite", Consistency.CAUSAL), ("redis", Consistency.STRONG)],
)
async def test_killed_gateways(
    request: pytest.FixtureRequest, tmp_path: Path, nursery: Nursery, kind: str, level: Consistency
) -> None:
    server = request.getfixturevalue("redis_server") if kind == "redis" else None
    address = server.url if server else str(tmp_path / "state.db")
    url = server.url if server else None
    first, second = (GatewayProcess(nursery, tmp_path, free_port(), url) for _ in range(2))
    await asyncio.gather(first.start(), second.start())
    history = History()

    async def until_answered(more: int) -> None:
        """Time passes by what the clients get done."""
        wanted = min(history.num_answered + more, NUM_CLIENTS * NUM_OPS - 1)
        while history.num_answered < wanted:  # noqa: ASYNC110 (clients of this loop make the progress)
            await asyncio.sleep(0.001)

    async def kill_and_replace() -> None:
        await until_answered(20)
        first.kill()
        await until_answered(20)  # the other one serves alone
        await first.start()
        await until_answered(20)
        first.kill()
        second.kill()
        if server is not None:
            server.kill()
            await asyncio.to_thread(server.start)
        await asyncio.gather(first.start(), second.start())
        await until_answered(20)
        second.kill()
        await second.start()

    async with httpx.AsyncClient(timeout=10) as client:
        replicas = [HttpConversations(client, gateway.url) for gateway in (first, second)]
        for name in NAMES:
            await replicas[0].create(name)
        async with asyncio.TaskGroup() as group:
            group.create_task(kill_and_replace())
            for i in range(NUM_CLIENTS):
                group.create_task(
                    run_client(f"c{i}", replicas, level=level, num_ops=NUM_OPS, seed=i, note=history.note)
                )
    for gateway in (first, second):
        gateway.kill()

    conversations = await open_conversations(address, is_audited=False)
    final = await final_state(conversations, tenant=LOCAL_TENANT)
    await conversations.close()
    ops = history.ops
    assert nothing_lost(ops, final) is None
    assert session_order(ops) is None
    assert causal_order(ops) is None
    if level is Consistency.STRONG:
        assert linearizable(settled(ops, final)) is None
    assert sum(op.is_answered for op in ops) == NUM_CLIENTS * NUM_OPS
    assert (await verify(address)).is_intact
