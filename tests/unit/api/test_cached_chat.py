"""Greedy replies told again over HTTP, with everything around them as if they were new."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest
from fastapi import FastAPI

from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.gateway.config import GatewayConfig, ReplyCacheConfig
from chatgrpo.gateway.gateway import Gateway
from chatgrpo.gateway.identity import LOCAL
from chatgrpo.gateway.roles import Role
from chatgrpo.resilience.config import LadderConfig, ResilienceConfig
from tests.fake_services import FakeChat, FakeJobs

CHAT, COMPLETE = "/api/v2/chat", "/v1/chat/completions"
SAY = {"message": "hi", "temperature": 0.0}


@pytest.fixture
def app(services: Services) -> FastAPI:
    gateway = GatewayConfig(
        allowed_hosts=("platform",),
        reply_cache=ReplyCacheConfig(ttl_s=60),
        resilience=ResilienceConfig(ladder=LadderConfig(max_replies=1)),
    )
    return create_app(replace(services, config=services.config.model_copy(update={"gateway": gateway})))


async def test_told_again_and_kept_in_each_conversation(
    client: httpx.AsyncClient, speaker: FakeChat, app: FastAPI
) -> None:
    first, again = [(await client.post(CHAT, json=SAY)).json() for _ in range(2)]
    assert (first["response"], len(speaker.calls)) == (again["response"], 1)
    assert first["conversation_id"] != again["conversation_id"]
    turns = (await client.get(f"/api/v2/conversations/{again['conversation_id']}/messages")).json()["messages"]
    assert [turn["content"] for turn in turns] == ["hi", "Hello"]
    streamed = await client.post(CHAT, json=SAY | {"stream": True})
    assert "event: done" in streamed.text
    assert len(speaker.calls) == 1
    await client.post(CHAT, json=SAY | {"conversation_id": again["conversation_id"]})
    assert len(speaker.calls) == 2, "with a history it is another question"
    await client.post(CHAT, json=SAY | {"temperature": 0.5})
    assert len(speaker.calls) == 3
    value = app.state.metrics.registry.get_sample_value
    counted = {
        result: value("chatgrpo_cache_lookups_total", {"tier": "reply", "result": result}) for result in ("hit", "miss")
    }
    assert counted == {"hit": 2, "miss": 2}


async def test_the_openai_route_shares_nothing_it_must_not(client: httpx.AsyncClient, speaker: FakeChat) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    answers = [(await client.post(COMPLETE, json=body | {"n": 3})).json() for _ in range(2)]
    assert [choice["message"]["content"] for choice in answers[1]["choices"]] == ["Hello"] * 3
    assert answers[0]["usage"] == answers[1]["usage"]
    assert len(speaker.calls) == 1


async def test_another_tenant_asks_anew(client: httpx.AsyncClient, speaker: FakeChat, app: FastAPI) -> None:
    gateway: Gateway = app.state.gateway
    keys = [(await gateway.keyring.create(LOCAL, name="k", role=Role.USER, tenant=t)).key for t in ("a", "b", "a")]
    for key in keys:
        answer = await client.post(CHAT, json=SAY, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200
    assert len(speaker.calls) == 2


async def test_what_is_published_under_the_name_asks_anew(
    client: httpx.AsyncClient, speaker: FakeChat, jobs: FakeJobs
) -> None:
    jobs.put("job", status="succeeded")
    for step in (10, 10, 20):
        jobs.views["job"]["published_step"] = step
        assert (await client.post(CHAT, json=SAY | {"model": "job"})).status_code == 200
    assert len(speaker.calls) == 2


async def test_a_full_house_still_tells_what_it_knows(
    client: httpx.AsyncClient, speaker: FakeChat, app: FastAPI
) -> None:
    await client.post(CHAT, json=SAY)
    app.state.gateway.ladder.num_replies = 1
    assert (await client.post(CHAT, json=SAY)).status_code == 200
    assert (await client.post(CHAT, json=SAY | {"message": "new"})).status_code == 503


async def test_a_deleted_conversation_takes_its_reply_along(client: httpx.AsyncClient, speaker: FakeChat) -> None:
    made = (await client.post(CHAT, json=SAY)).json()
    await client.delete(f"/api/v2/conversations/{made['conversation_id']}")
    await client.post(CHAT, json=SAY)
    assert len(speaker.calls) == 2
