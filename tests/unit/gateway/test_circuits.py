"""Circuits over a shared store: what one replica concludes holds for all, and one of them probes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ulid import ULID

from chatgrpo.errors import Unavailable
from chatgrpo.gateway.circuit_store import CircuitStore
from chatgrpo.gateway.circuits import LOOK_S, Circuits
from chatgrpo.resilience.circuit import State
from chatgrpo.resilience.config import BreakerConfig
from chatgrpo.state.memory import MemoryStore
from chatgrpo.state.redis import RedisStore
from chatgrpo.state.sqlite import SqliteStore
from chatgrpo.state.store import Store
from tests.fakes import FakeClock

CONFIG = BreakerConfig(window_s=30, min_calls=4, error_rate=0.5, open_s=5, num_probes=2)
UP = "model tiny"


def circuits_over(store: Store, clock: FakeClock) -> Circuits:
    async def opened() -> Store:
        return store

    return Circuits(CircuitStore(opened), config=CONFIG, clock=clock)


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def replicas(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> AsyncIterator[list[Circuits]]:
    """Three, as processes of their own would open the store."""
    shared, prefix = MemoryStore(), f"{ULID()}:"
    stores: list[Store] = []
    for _ in range(3):
        if request.param == "memory":
            stores.append(shared)
        elif request.param == "sqlite":
            stores.append(SqliteStore(tmp_path / "state.db"))
        else:
            stores.append(await RedisStore.open(request.getfixturevalue("redis_url"), prefix=prefix))
    yield [circuits_over(store, clock) for store in stores]
    for store in stores:
        await store.close()


async def fail(circuits: Circuits, times: int = 4) -> None:
    for _ in range(times):
        await circuits.failed(await circuits.admit(UP))


async def admitted(replicas: list[Circuits]) -> int:
    answers = await asyncio.gather(*(circuits.admit(UP) for circuits in replicas), return_exceptions=True)
    assert all(isinstance(answer, Unavailable) for answer in answers if isinstance(answer, BaseException))
    return sum(not isinstance(answer, BaseException) for answer in answers)


async def test_one_opens_it_for_all(replicas: list[Circuits], clock: FakeClock) -> None:
    assert await admitted(replicas) == 3
    await fail(replicas[0])
    with pytest.raises(Unavailable, match="model tiny failed too often") as refused:
        await replicas[0].admit(UP)
    assert refused.value.retry_after_s == 5
    clock.advance(LOOK_S)
    assert await admitted(replicas) == 0
    assert await replicas[1].state("model other") is State.CLOSED


async def test_one_probes_and_its_success_closes_it_for_all(replicas: list[Circuits], clock: FakeClock) -> None:
    await fail(replicas[0])
    for probes in range(2):
        clock.advance(5)
        tries = await asyncio.gather(*(c.admit(UP) for c in replicas), return_exceptions=True)
        (won,) = [i for i, answer in enumerate(tries) if not isinstance(answer, BaseException)]
        assert await replicas[won].state(UP) is State.HALF_OPEN, probes
        await replicas[won].succeeded(tries[won])  # type: ignore[arg-type]
    clock.advance(LOOK_S)
    assert await admitted(replicas) == 3
    await fail(replicas[0], times=3)
    assert await replicas[0].state(UP) is State.CLOSED, "failures of before the opening are forgotten"


async def test_a_failed_probe_waits_twice_as_long(replicas: list[Circuits], clock: FakeClock) -> None:
    await fail(replicas[0])
    clock.advance(5)
    await replicas[1].failed(await replicas[1].admit(UP))
    clock.advance(9)
    assert await admitted(replicas) == 0
    clock.advance(1)
    assert await admitted(replicas) == 1


async def test_an_abandoned_probe_leaves_its_place(replicas: list[Circuits], clock: FakeClock) -> None:
    await fail(replicas[0])
    clock.advance(5)
    await replicas[1].abandoned(await replicas[1].admit(UP))
    clock.advance(LOOK_S)
    assert await admitted(replicas) == 1


async def test_only_the_first_word_counts(replicas: list[Circuits]) -> None:
    for _ in range(10):
        admission = await replicas[0].admit(UP)
        await replicas[0].succeeded(admission)
        await replicas[0].failed(admission)
        await replicas[0].abandoned(admission)
    assert await replicas[0].state(UP) is State.CLOSED


async def test_without_its_store_each_replica_judges_alone(clock: FakeClock) -> None:
    async def gone() -> Store:
        raise Unavailable("no store")

    alone = Circuits(CircuitStore(gone), config=CONFIG, clock=clock)
    await fail(alone)
    assert await admitted([alone]) == 0
    for _ in range(2):
        clock.advance(5)
        await alone.succeeded(await alone.admit(UP))
    assert await admitted([alone]) == 1
