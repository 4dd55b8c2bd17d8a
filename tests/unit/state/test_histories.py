"""Concurrent clients on several replicas of every store: their histories hold what the level promises, and a bug sown
into the store or the cache makes the checker fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from ulid import ULID

from chatgrpo.state.consistency import Consistency
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.memory import MemoryStore
from chatgrpo.state.redis import RedisStore
from chatgrpo.state.sqlite import SqliteStore
from chatgrpo.state.store import Change, Key, Store, Write
from chatgrpo.state.tiered import TieredStore
from tests.histories import Op, causal_order, linearizable, nothing_lost, session_order
from tests.state_clients import NAMES, TENANT, History, final_state, run_client

NUM_REPLICAS = 3
NUM_CLIENTS = 4


@pytest.fixture(params=["sqlite", "redis"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[list[Store]]:
    """Several openings of one store, as several processes would have."""
    opened: list[Store]
    if request.param == "sqlite":
        opened = [SqliteStore(tmp_path / "state.db") for _ in range(NUM_REPLICAS)]
    else:
        url, prefix = request.getfixturevalue("redis_url"), f"{ULID()}:"
        opened = [await RedisStore.open(url, prefix=prefix) for _ in range(NUM_REPLICAS)]
    yield opened
    for store in opened:
        await store.close()


async def play(
    tiers: Sequence[TieredStore], level: Consistency, *, num_ops: int = 40
) -> tuple[list[Op], dict[str, list[str]]]:
    replicas = []
    for tier in tiers:
        await tier.start()
        replicas.append(Conversations(tier))
    for name in NAMES:
        await replicas[0].create(name, tenant=TENANT)
    history = History()
    await asyncio.gather(
        *(
            run_client(f"c{i}", replicas, level=level, num_ops=num_ops, seed=i, note=history.note)
            for i in range(NUM_CLIENTS)
        )
    )
    for tier in tiers:
        await tier.flush()
    final = await final_state(replicas[0])
    for tier in tiers:
        await tier.close()
    return history.ops, final


async def test_strong_is_linearizable(stores: list[Store]) -> None:
    ops, final = await play([TieredStore(store) for store in stores], Consistency.STRONG)
    assert linearizable(ops) is None
    assert session_order(ops) is None
    assert causal_order(ops) is None
    assert nothing_lost(ops, final) is None


async def test_causal_keeps_causes_before_effects(stores: list[Store]) -> None:
    ops, final = await play([TieredStore(store) for store in stores], Consistency.CAUSAL)
    assert causal_order(ops) is None
    assert session_order(ops) is None
    assert nothing_lost(ops, final) is None


async def test_session_reads_its_writes_and_never_goes_back(stores: list[Store]) -> None:
    ops, final = await play([TieredStore(store) for store in stores], Consistency.SESSION)
    assert session_order(ops) is None
    assert nothing_lost(ops, final) is None


async def test_eventual_converges(stores: list[Store]) -> None:
    tiers = [TieredStore(store, max_pending=8) for store in stores]
    ops, final = await play(tiers, Consistency.EVENTUAL)
    assert nothing_lost(ops, final) is None


async def test_eventual_replicas_agree_once_writes_stop(stores: list[Store]) -> None:
    replicas = []
    for store in stores:
        tier = TieredStore(store)
        await tier.start()
        replicas.append(Conversations(tier))
    await replicas[0].create("x", tenant=TENANT)
    history = History()
    await asyncio.gather(
        *(
            run_client(
                f"c{i}", replicas, level=Consistency.EVENTUAL, num_ops=30, seed=i, note=history.note, names=["x"]
            )
            for i in range(3)
        )
    )
    for replica in replicas:
        await replica.tiers.flush()
    expected = (await final_state(replicas[0], ["x"]))["x"]

    async def agree() -> None:
        for replica in replicas:
            while True:
                window = await replica.read_recent("x", tenant=TENANT, max_messages=1000, level=Consistency.EVENTUAL)
                if [message.content for message in window.messages] == expected:
                    break
                await asyncio.sleep(0.005)

    await asyncio.wait_for(agree(), 10)
    for replica in replicas:
        await replica.close()


class SlowMemory(MemoryStore):
    """Lets others run before each act, as a store on a disk or network does."""

    async def append(self, key: Key, write: Write, *, durable: bool = True) -> int:
        await asyncio.sleep(0)
        return await super().append(key, write, durable=durable)


class WithoutCas(SlowMemory):
    """The seeded bug: whoever writes last wins."""

    async def append(self, key: Key, write: Write, *, durable: bool = True) -> int:
        await asyncio.sleep(0)
        stored = self._logs.get(key)
        if stored is not None:
            del stored.records[write.head.version - len(write.records) + 1 :]
        return await MemoryStore.append(
            self, key, replace(write, based_on=stored.head.seq if stored else 0), durable=durable
        )


class Deaf(TieredStore):
    """The seeded bug: news of changes is counted, copies stay."""

    def _on_change(self, change: Change | None) -> None:
        return None


async def test_checkers_pass_the_store_that_the_bugs_are_sown_into() -> None:
    store = SlowMemory()
    ops, final = await play([TieredStore(store) for _ in range(3)], Consistency.STRONG)
    assert [linearizable(ops), causal_order(ops), session_order(ops), nothing_lost(ops, final)] == [None] * 4


async def test_without_compare_and_set_writes_are_lost_and_the_checkers_say_so() -> None:
    store = WithoutCas()
    ops, final = await play([TieredStore(store) for _ in range(3)], Consistency.STRONG)
    assert "there 0 times" in str(nothing_lost(ops, final))
    assert "no order explains" in str(linearizable(ops))


async def test_without_invalidation_reads_are_old_and_the_checkers_say_so(
    stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The token would notice a copy that is behind it; here the checkers are on trial.
    monkeypatch.setattr("chatgrpo.state.conversation_logs.check_nothing_lost", lambda *_: None)
    ops, _ = await play([Deaf(store) for store in stores], Consistency.CAUSAL, num_ops=80)
    assert "does not see" in str(causal_order(ops))
    assert "went back" in str(session_order(ops))


async def test_without_invalidation_strong_reads_from_the_cache_are_not_linearizable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatgrpo.state.conversation_logs.check_nothing_lost", lambda *_: None)
    tiers = [Deaf(SqliteStore(tmp_path / "state.db")) for _ in range(3)]
    ops, _ = await play(tiers, Consistency.STRONG)
    assert "no order explains" in str(linearizable(ops))


def op(kind: str, client: str, invoked: float, returned: float, version: int, *values: str) -> Op:
    value = values[0] if kind == "append" else ""
    seen = values if kind == "read" else ()
    return Op(
        client=client,
        kind=kind,
        conversation="x",
        invoked=invoked,
        returned=returned,
        value=value,
        version=version,
        values=seen,
    )


def test_linearizability_by_hand() -> None:
    concurrent = [op("append", "a", 0, 10, 2, "1"), op("append", "b", 1, 9, 1, "2"), op("read", "c", 2, 3, 1, "2")]
    assert linearizable(concurrent) is None
    stale = [op("append", "a", 0, 1, 1, "1"), op("read", "b", 2, 3, 0)]
    assert linearizable(stale) is not None
    unknown = Op(client="a", kind="append", conversation="x", invoked=0, value="1")
    assert linearizable([unknown, op("read", "b", 5, 6, 0), op("read", "b", 7, 8, 1, "1")]) is None
    assert linearizable([unknown, op("read", "b", 5, 6, 1, "1"), op("read", "b", 7, 8, 0)]) is not None
