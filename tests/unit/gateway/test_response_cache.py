"""An answer is told again to those it was made for, for as long as its row says."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from ulid import ULID

from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.gateway.config import RouteConfig
from chatgrpo.gateway.gateway import Gateway
from chatgrpo.gateway.identity import LOCAL
from chatgrpo.gateway.roles import Permission, Role
from tests.fake_services import FakeJobs
from tests.fakes import FakeClock


@pytest.fixture
def cached(gateway: Gateway) -> Gateway:
    for path in ("/api/v2/jobs", "/api/v2/jobs/{job_id}", "/api/v2/jobs/{job_id}/logs"):
        gateway.add_route(RouteConfig(path=path, cache_ttl=10, permission=Permission.JOBS_READ))
    return gateway


async def test_kept_for_its_time_and_no_longer(
    client: httpx.AsyncClient, cached: Gateway, jobs: FakeJobs, clock: FakeClock
) -> None:
    jobs.put("a")
    first = await client.get("/api/v2/jobs")
    jobs.put("b")
    again = await client.get("/api/v2/jobs")
    assert (first.headers["x-cache"], again.headers["x-cache"]) == ("miss", "hit")
    assert again.json() == first.json()
    assert again.headers["content-type"] == "application/json"
    assert len((await client.get("/api/v2/jobs?limit=5")).json()["jobs"]) == 2
    assert len((await client.get("/api/v2/jobs", headers={"cache-control": "no-cache"})).json()["jobs"]) == 2
    jobs.put("c")
    clock.advance(10)
    assert len((await client.get("/api/v2/jobs")).json()["jobs"]) == 3
    assert cached.metrics is not None
    counted = [
        cached.metrics.registry.get_sample_value("chatgrpo_cache_lookups_total", {"tier": "response", "result": result})
        for result in ("hit", "miss")
    ]
    assert counted == [1.0, 4.0]


async def test_never_crosses_a_tenant(client: httpx.AsyncClient, cached: Gateway, jobs: FakeJobs) -> None:
    jobs.put("theirs", owner="other")
    keys = [(await cached.keyring.create(LOCAL, name="k", role=Role.USER, tenant=t)).key for t in ("other", "acme")]
    theirs, mine = ({"authorization": f"Bearer {key}"} for key in keys)
    assert (await client.get("/api/v2/jobs/theirs", headers=theirs)).status_code == 200
    assert (await client.get("/api/v2/jobs/theirs", headers=theirs)).headers["x-cache"] == "hit"
    assert (await client.get("/api/v2/jobs/theirs", headers=mine)).status_code == 404
    assert (await client.get("/api/v2/jobs/theirs")).status_code == 401
    assert (await client.get("/api/v2/jobs", headers=mine)).json() == {"jobs": []}


async def test_errors_and_streams_are_not_kept(client: httpx.AsyncClient, cached: Gateway, jobs: FakeJobs) -> None:
    assert (await client.get("/api/v2/jobs/late")).status_code == 404
    jobs.put("late")
    assert (await client.get("/api/v2/jobs/late")).status_code == 200
    for _ in range(2):
        assert (await client.get("/api/v2/jobs/late/logs?follow=true")).headers["x-cache"] == "miss"


async def test_a_crowd_asks_once(app: FastAPI, client: httpx.AsyncClient, gateway: Gateway) -> None:
    gateway.add_route(RouteConfig(path="/slow", cache_ttl=10))
    calls = 0
    asked, ready = asyncio.Event(), asyncio.Event()

    @app.get("/slow")
    async def slow() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        asked.set()
        await ready.wait()
        return {"call": calls}

    crowd = [asyncio.create_task(client.get("/slow")) for _ in range(20)]
    await asked.wait()
    for _ in range(50):  # the others reach the cache meanwhile
        await asyncio.sleep(0)
    ready.set()
    answers = await asyncio.gather(*crowd)
    assert {answer.json()["call"] for answer in answers} == {1}
    assert calls == 1


async def test_a_stale_answer_is_told_while_it_is_made_anew(
    client: httpx.AsyncClient, gateway: Gateway, jobs: FakeJobs, clock: FakeClock
) -> None:
    gateway.add_route(RouteConfig(path="/api/v2/jobs", cache_ttl=10, cache_stale=60, permission=Permission.JOBS_READ))
    seen = []
    for name in "abcd":
        jobs.put(name)
        answer = await client.get("/api/v2/jobs")
        seen.append((answer.headers["x-cache"], len(answer.json()["jobs"])))
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_coro().__name__ == "_make"))
        clock.advance({"a": 10, "b": 5, "c": 70, "d": 0}[name])
    assert seen == [("miss", 1), ("stale", 1), ("hit", 2), ("miss", 4)]


async def test_replicas_share_answers_by_redis(services: Services, redis_url: str, jobs: FakeJobs) -> None:
    config = services.config.model_copy(update={"redis_url": redis_url})
    apps = [create_app(replace(services, config=config)) for _ in range(2)]
    jobs.put("a", owner=str(ULID()))
    seen = []
    for app in apps:
        gateway: Gateway = app.state.gateway
        gateway.add_route(RouteConfig(path="/api/v2/jobs", cache_ttl=10, permission=Permission.JOBS_READ))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://platform") as client:
            answer = await client.get("/api/v2/jobs?limit=7&state=running")
            seen.append((answer.headers["x-cache"], answer.json()))
        await gateway.close()
    assert [result for result, _ in seen] == ["miss", "hit"]
    assert seen[0][1] == seen[1][1]
