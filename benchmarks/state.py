"""Conversations: hot reads and appends against plain Redis, flatness in length, eviction against Belady's optimum.

Both sides of each comparison run in this process, interleaved, against the same Redis (append-only file, synced at
every write) or beside the same SQLite file. Ratios are what counts: the machine may be busy.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import redis
import redis.asyncio

from benchmarks.cache_traces import CAPACITY, TRACES, belady, hit_ratio
from benchmarks.report import figure, write_report
from chatgrpo.messages import Message, assistant, user
from chatgrpo.state.consistency import Consistency, SessionToken
from chatgrpo.state.conversation import Window
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.eviction import EvictionPolicy
from chatgrpo.state.opening import open_conversations
from chatgrpo.state.tiered import TieredStore
from tests.redis_server import RedisServer

TENANT = "bench"
TEXT = "The quick brown fox jumps over the lazy dog, again and again, as benchmarks want it. " * 3
CHAT = 50
LONG, SHORT = 10_000, 10
ROUNDS = 15
SAMPLES = 600


def exchange(number: int) -> list[Message]:
    return [user(f"{number} {TEXT}"), assistant(f"{number} {TEXT}")]


async def seconds(act: Callable[[], Awaitable[Any]], times: int) -> float:
    """Mean time of one call."""
    began = time.perf_counter()
    for _ in range(times):
        await act()
    return (time.perf_counter() - began) / times


async def hot_reads(address: str) -> dict[str, Any]:
    conversations = await open_conversations(address, is_audited=False)
    rival = redis.asyncio.Redis.from_url(address)
    rival_sync = redis.Redis.from_url(address)
    await conversations.create("hot", tenant=TENANT)
    token = SessionToken()
    for number in range(CHAT // 2):
        token = token.advance(await conversations.append("hot", exchange(number), tenant=TENANT))
    window = await conversations.read_recent("hot", tenant=TENANT)
    transcript = json.dumps([message.to_dict() for message in window.messages])
    await rival.set("rival", transcript)

    def ours() -> Awaitable[Window]:
        return conversations.read_recent("hot", tenant=TENANT, max_messages=CHAT, session=token)

    async def theirs() -> None:
        assert len(json.loads(await rival.get("rival"))) == CHAT

    async def theirs_sync() -> None:
        assert len(json.loads(rival_sync.get("rival"))) == CHAT  # type: ignore[arg-type]

    assert len((await ours()).turns) == CHAT
    rounds = [
        (await seconds(ours, 2000), await seconds(theirs, 200), await seconds(theirs_sync, 200)) for _ in range(ROUNDS)
    ]
    await conversations.close()
    await rival.aclose()
    rival_sync.close()
    mine, async_get, sync_get = (statistics.median(column) * 1e6 for column in zip(*rounds, strict=True))
    details = {"ours_us": round(mine, 2), "transcript_bytes": len(transcript), "messages": CHAT}
    return {
        "hot_read_vs_redis": figure(
            async_get / mine, "x", at_least=100, redis_get_and_decode_us=round(async_get, 1), **details
        ),
        "hot_read_vs_redis_blocking_client": figure(
            sync_get / mine, "x", redis_get_and_decode_us=round(sync_get, 1), **details
        ),
    }


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[18]


async def fill(conversations: Conversations, name: str, length: int) -> None:
    await conversations.create(name, tenant=TENANT)
    while length > 0:
        batch = [message for number in range(min(length, 200) // 2) for message in exchange(number)]
        await conversations.append(name, batch, tenant=TENANT)
        length -= len(batch)


async def flatness(address: str, suffix: str) -> dict[str, Any]:
    """Short and long take turns; every short append goes to a conversation that has SHORT messages."""
    writer = await open_conversations(address, is_audited=False)
    await fill(writer, "long", LONG)
    for number in range(SAMPLES):
        await fill(writer, f"short{number}", SHORT)
    # Without a watch nothing is cached: every read goes to the store.
    reader = Conversations(TieredStore(writer.tiers.store))
    times: dict[str, list[float]] = {name: [] for name in ("append long", "append short", "read long", "read short")}

    async def timed(name: str, act: Awaitable[Any]) -> None:
        began = time.perf_counter()
        await act
        times[name].append(time.perf_counter() - began)

    for number in range(SAMPLES):
        for length, name in (("long", "long"), ("short", f"short{number}")):
            await timed(
                f"append {length}",
                writer.append(name, exchange(number), tenant=TENANT, level=Consistency.STRONG),
            )
            await timed(f"read {length}", reader.read_recent(name, tenant=TENANT, max_messages=SHORT))
    await writer.close()
    found = {}
    for what, key in (("append", "append_p95_10k_vs_10"), ("read", "read_recent_p95_10k_vs_10")):
        long, short = p95(times[f"{what} long"]), p95(times[f"{what} short"])
        found[key + suffix] = figure(
            long / short, "x", at_most=1.2, p95_10k_us=round(long * 1e6), p95_10_us=round(short * 1e6)
        )
    return found


async def append_against_rewrite(server: RedisServer, length: int, key: str) -> dict[str, Any]:
    """Each side adds one exchange to a chat of `length` messages. The rival keeps the transcript in memory and only
    encodes and sets it: no read, no check for other writers."""
    conversations = await open_conversations(server.url, is_audited=False)
    rival = redis.asyncio.Redis.from_url(server.url)
    name = f"log{length}"
    await fill(conversations, name, length)
    transcript = [message.to_dict() for number in range(length // 2) for message in exchange(number)]

    async def ours() -> None:
        await conversations.append(name, exchange(0), tenant=TENANT, level=Consistency.STRONG)

    async def theirs() -> None:
        transcript.extend(message.to_dict() for message in exchange(0))
        await rival.set(f"rival{length}", json.dumps(transcript))

    rounds = [(await seconds(ours, 20), await seconds(theirs, 20)) for _ in range(ROUNDS // 3)]
    await conversations.close()
    await rival.aclose()
    mine, others = (1 / statistics.median(column) for column in zip(*rounds, strict=True))
    return {key: figure(mine / others, "x", appends_per_s=round(mine), rewrites_per_s=round(others), messages=length)}


def eviction() -> dict[str, Any]:
    found = {}
    for name, make in TRACES.items():
        trace = make()
        ratios = {policy.value: hit_ratio(policy, trace, CAPACITY) for policy in EvictionPolicy}
        best = max(ratio for policy, ratio in ratios.items() if policy != EvictionPolicy.ADAPTIVE)
        for policy, ratio in ratios.items():
            goal = {"at_least": round(best - 0.01, 4)} if policy == EvictionPolicy.ADAPTIVE else {}
            found[f"hit_ratio_{name}_{policy}"] = figure(ratio, "hits/access", **goal)
        found[f"hit_ratio_{name}_belady"] = figure(belady(trace, CAPACITY), "hits/access")
    return found


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder)).start()
        try:
            figures = await hot_reads(server.url)
            figures |= await flatness(str(Path(folder) / "state.db"), "")
            figures |= await flatness(server.url, "_redis")
            figures |= await append_against_rewrite(server, 1_000, "append_vs_rewrite")
            figures |= await append_against_rewrite(server, LONG, "append_vs_rewrite_10k")
        finally:
            server.kill()
    write_report("state", figures | eviction())


if __name__ == "__main__":
    asyncio.run(main())
