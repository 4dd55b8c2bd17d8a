"""Limits: never more than the limit in any window, on every kind of counter, whoever is killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.clock import SystemClock
from chatgrpo.errors import Unavailable
from chatgrpo.gateway.config import GatewayConfig, LimitRule, RouteConfig
from chatgrpo.gateway.counters import Counters, MemoryCounters
from chatgrpo.gateway.counters_file import FileCounters
from chatgrpo.gateway.counters_redis import RedisCounters
from chatgrpo.gateway.identity import ANONYMOUS, LOCAL
from chatgrpo.gateway.limits import Meter, Reading, decide
from chatgrpo.gateway.rate_limit import headers_of, meters_of
from tests.fake_services import FakeChat
from tests.fakes import FakeClock
from tests.redis_server import RedisServer

MINUTE = Meter(key="a", name="a", limit=10, window_s=60.0)


@given(
    st.lists(st.tuples(st.floats(0, 20), st.integers(1, 4)), max_size=60),
    st.integers(1, 12),
    st.sampled_from([1.0, 7.0, 60.0]),
)
def test_in_no_window_are_more_than_the_limit(steps: list[tuple[float, int]], limit: int, window_s: float) -> None:
    async def run() -> None:
        clock = FakeClock()
        counters = MemoryCounters(clock)
        admitted: list[tuple[float, int]] = []
        for wait_s, cost in steps:
            clock.advance(wait_s)
            meter = Meter(key="k", name="k", limit=limit, window_s=window_s, cost=cost)
            verdict = await counters.take([meter], lease="")
            if verdict.is_admitted:
                admitted.append((clock.now(), cost))
            else:
                clock.advance(verdict.retry_after_s)
            for end, _ in admitted:
                assert sum(n for at, n in admitted if end - window_s <= at <= end) <= limit

    asyncio.run(run())


async def test_after_the_time_told_there_is_room() -> None:
    clock = FakeClock()
    counters = MemoryCounters(clock)
    for _ in range(10):
        assert (await counters.take([MINUTE], lease="")).is_admitted
        clock.advance(0.5)
    refused = await counters.take([MINUTE], lease="")
    assert not refused.is_admitted
    assert 54 < refused.retry_after_s <= 63
    clock.advance(refused.retry_after_s)
    assert (await counters.take([MINUTE], lease="")).is_admitted


def test_all_meters_decide_together() -> None:
    shadow = Meter(key="s", name="s", limit=1, window_s=60.0, is_shadow=True)
    full, free = Reading(used=10, oldest=0), Reading(used=3, oldest=0)
    assert decide([MINUTE, shadow], [free, full], now=0.0).is_admitted
    verdict = decide([MINUTE, shadow], [full, full], now=0.0)
    assert (verdict.is_admitted, [m.name for m in verdict.over]) == (False, ["a", "s"])
    assert verdict.retry_after_s == 21 * 3.0
    assert headers_of(decide([MINUTE, shadow], [free, full], now=0.0)) == {
        "ratelimit-policy": '"a";q=10;w=60',
        "ratelimit": '"a";r=6;t=60',
    }


def test_a_rule_has_a_counter_for_each_combination() -> None:
    row = RouteConfig(path="/x", rate_limit=7)
    rules = [
        LimitRule(name="ip", per=("address", "route"), requests=5, burst=2, parallel=1),
        LimitRule(name="elsewhere", requests=1, routes=("/y",)),
    ]
    assert [(m.key, m.limit, m.window_s) for m in meters_of(rules, row, ANONYMOUS, "1.2.3.4")] == [
        ("ip|1.2.3.4|/x|requests", 5, 60.0),
        ("ip|1.2.3.4|/x|burst", 2, 1.0),
        ("ip|1.2.3.4|/x|parallel", 1, 0.0),
        ("route|1.2.3.4|GET /x", 7, 60.0),
    ]
    assert meters_of(rules, row, LOCAL, "9.9.9.9")[0].key == "ip|9.9.9.9|/x|requests"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    started = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield started
    started.kill()


@pytest.fixture(params=["memory", "file", "redis"])
async def counters(request: pytest.FixtureRequest, tmp_path: Path, server: RedisServer) -> AsyncIterator[Counters]:
    made: Counters
    if request.param == "memory":
        made = MemoryCounters(SystemClock())
    elif request.param == "file":
        made = FileCounters(tmp_path / "limits", SystemClock())
    else:
        made = RedisCounters(server.url, prefix=f"{tmp_path.name}:")
    yield made
    await made.close()


async def test_every_kind_counts_the_same(counters: Counters) -> None:
    hour = Meter(key="h", name="h", limit=5, window_s=3600.0, cost=2)
    two = Meter(key="p", name="p", limit=2, window_s=0.0)
    first = await counters.take([hour, two], lease="1")
    assert (first.is_admitted, [r.used for r in first.readings]) == (True, [0, 0])
    second = await counters.take([hour, two], lease="2")
    assert (second.is_admitted, [r.used for r in second.readings]) == (True, [2, 1])
    third = await counters.take([hour, two], lease="3")
    assert (third.is_admitted, [r.used for r in third.readings], len(third.over)) == (False, [4, 2], 2)
    assert 3000 < third.retry_after_s <= 3780
    await counters.release([hour, two], lease="1")
    await counters.give_back(hour, 2, taken_at=first.at)
    fourth = await counters.take([hour, two], lease="4")
    assert (fourth.is_admitted, [r.used for r in fourth.readings]) == (True, [2, 1])


async def test_crowds_do_not_leak(counters: Counters) -> None:
    meter = Meter(key="c", name="c", limit=50, window_s=3600.0)

    async def client() -> bool:
        while True:
            # A connection that could not be opened in time has counted nothing, and the error asks to try again.
            with suppress(Unavailable):
                return (await counters.take([meter], lease="")).is_admitted

    assert sum(await asyncio.gather(*(client() for _ in range(200)))) == 50


async def test_replicas_share_one_file(tmp_path: Path) -> None:
    replicas = [FileCounters(tmp_path / "limits", SystemClock()) for _ in range(4)]
    meter = Meter(key="c", name="c", limit=33, window_s=3600.0)
    verdicts = await asyncio.gather(*(replicas[i % 4].take([meter], lease="") for i in range(100)))
    assert sum(verdict.is_admitted for verdict in verdicts) == 33
    for replica in replicas:
        await replica.close()


async def test_no_over_admission_while_redis_is_killed_and_restarted(tmp_path: Path) -> None:
    server = RedisServer(tmp_path).start()
    replicas = [RedisCounters(server.url) for _ in range(3)]
    meter = Meter(key="c", name="c", limit=60, window_s=3600.0)
    admitted = 0
    is_under_way = asyncio.Event()

    async def client(replica: RedisCounters) -> None:
        nonlocal admitted
        for _ in range(25):
            try:
                verdict = await replica.take([meter], lease="")
            except Unavailable:
                continue
            admitted += verdict.is_admitted
            if admitted == 20:
                is_under_way.set()

    async def killer() -> None:
        await is_under_way.wait()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)

    await asyncio.gather(killer(), *(client(replica) for replica in replicas for _ in range(2)))
    rest = [await replicas[0].take([meter], lease="") for _ in range(100)]
    admitted += sum(verdict.is_admitted for verdict in rest)
    assert 20 <= admitted <= 60
    for replica in replicas:
        await replica.close()
    server.kill()


def limited(services: Services, *rules: LimitRule) -> FastAPI:
    gateway = GatewayConfig(allowed_hosts=("platform",), limits=rules, counters="memory")
    config = services.config.model_copy(update={"gateway": gateway})
    return create_app(
        Services(
            config=config,
            clock=services.clock,
            jobs=services.jobs,
            chat=services.chat,
            conversations=services.conversations,
        )
    )


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://platform")


async def test_the_headers_tell_and_429_says_when(services: Services, clock: FakeClock) -> None:
    async with client_of(limited(services, LimitRule(name="ip", per=("address",), requests=2))) as client:
        first = await client.get("/api/v2/jobs")
        assert (first.headers["ratelimit-policy"], first.headers["ratelimit"]) == ('"ip";q=2;w=60', '"ip";r=1;t=60')
        await client.get("/api/v2/jobs")
        refused = await client.get("/api/v2/models", headers={"x-forwarded-for": "8.8.8.8"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
        clock.advance(float(refused.headers["retry-after"]))
        assert (await client.get("/api/v2/models")).status_code == 200


async def test_parallel_requests(services: Services, speaker: FakeChat) -> None:
    speaker.hold = True
    async with client_of(limited(services, LimitRule(name="chats", parallel=1, routes=("/api/v2/chat",)))) as client:
        body = {"message": "hi", "stream": True}
        held = asyncio.create_task(client.post("/api/v2/chat", json=body))
        await speaker.started.wait()
        assert (await client.post("/api/v2/chat", json=body)).status_code == 429
        assert (await client.get("/api/v2/jobs")).status_code == 200
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        speaker.hold = False
        assert (await client.post("/api/v2/chat", json=body)).status_code == 200


async def test_tokens_are_set_aside_and_given_back(services: Services, speaker: FakeChat) -> None:
    """FakeChat writes four tokens."""
    app = limited(services, LimitRule(name="daily", per=("tenant",), tokens=20, window_s=86400))
    async with client_of(app) as client:
        beyond = await client.post("/api/v2/chat", json={"message": "hi", "max_tokens": 30})
        assert beyond.status_code == 429
        assert "has 20 of 20 tokens" in beyond.json()["error"]["message"]
        for stream in (False, True, False):
            body = {"message": "hi", "max_tokens": 8, "stream": stream}
            assert (await client.post("/api/v2/chat", json=body)).status_code == 200
        assert "has 8 of 20" in (await client.post("/api/v2/chat", json={"message": "hi", "max_tokens": 9})).text
        speaker.error = Unavailable("no replica")
        for stream in (False, True):
            assert (await client.post("/api/v2/chat", json={**body, "stream": stream})).status_code == 503
        assert "has 8 of 20" in (await client.post("/api/v2/chat", json={"message": "hi", "max_tokens": 9})).text


@pytest.mark.parametrize(("when_down", "status"), [("open", 200), ("closed", 503)])
async def test_when_the_counters_are_down(
    services: Services, when_down: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_: object, **__: object) -> None:
        raise Unavailable("no answer")

    rule = LimitRule.model_validate({"name": "r", "requests": 1, "if_store_is_down": when_down})
    app = limited(services, rule)
    monkeypatch.setattr(app.state.gateway.counters, "take", down)
    async with client_of(app) as client:
        for _ in range(2):
            assert (await client.get("/api/v2/jobs")).status_code == status


async def test_a_shadow_refuses_nobody(services: Services, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with client_of(limited(services, LimitRule(name="new", requests=1, is_shadow=True))) as client:
        for _ in range(3):
            assert (await client.get("/api/v2/jobs")).status_code == 200
    assert sum("shadow limit new would refuse" in message for message in caplog.messages) == 2
