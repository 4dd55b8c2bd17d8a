"""Chat when the model fails, falls silent, or too much is asked for: over HTTP, and by what the model was asked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

import httpx
import pytest
from fastapi import FastAPI

from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.errors import InvalidRequest, Overloaded, Unavailable
from chatgrpo.gateway.config import GatewayConfig
from chatgrpo.inference.deltas import ChatDelta
from chatgrpo.inference.engine import SamplingParams
from chatgrpo.messages import Message
from chatgrpo.resilience.circuit import State
from chatgrpo.resilience.config import BreakerConfig, LadderConfig, ResilienceConfig, RetryConfig
from tests.fake_services import FakeChat, FakeJobs
from tests.fakes import FakeClock

CHAT, COMPLETE = "/api/v2/chat", "/v1/chat/completions"
SAY = {"message": "hi"}
DOWN = Unavailable("no replica answers", 0.0)

QUICK = ResilienceConfig(
    breaker=BreakerConfig(min_calls=4, open_s=5, num_probes=1),
    retry=RetryConfig(max_attempts=3, base_s=0, reserve=100),
    ladder=LadderConfig(max_replies=2, shed_training_at=0.5, degrade_at=1),
    piece_timeout_s=0.05,
    smaller_models={"big": "tiny"},
)


class ShakyChat(FakeChat):
    """Fails with each of `errors` once, before it says anything; `broken` models always do."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception] = []
        self.broken: set[str] = set()

    async def stream(
        self, model: str, messages: Sequence[Message], params: SamplingParams
    ) -> AsyncGenerator[ChatDelta, None]:
        error = self.errors.pop(0) if self.errors else DOWN if model in self.broken else None
        if error is not None:
            self.calls.append((model, [], params))
            raise error
        async with aclosing(super().stream(model, messages, params)) as deltas:
            async for delta in deltas:
                yield delta

    @property
    def asked(self) -> list[str]:
        return [model for model, _, _ in self.calls]


@pytest.fixture
def speaker() -> ShakyChat:
    return ShakyChat()


@pytest.fixture
def app(services: Services) -> FastAPI:
    gateway = GatewayConfig(allowed_hosts=("platform",), resilience=QUICK)
    config = services.config.model_copy(update={"gateway": gateway, "default_model": "big"})
    return create_app(replace(services, config=config))


async def test_what_failed_before_it_began_is_made_again(client: httpx.AsyncClient, speaker: ShakyChat) -> None:
    speaker.errors = [DOWN, DOWN]
    answer = await client.post(CHAT, json=SAY)
    assert (answer.status_code, answer.json()["response"]) == (200, "Hello")
    assert speaker.asked == ["big"] * 3


@pytest.mark.parametrize(
    ("error", "status"),
    [(InvalidRequest("too long", "message"), 422), (Overloaded("queues are full"), 503), (RuntimeError("a bug"), 500)],
)
async def test_what_cannot_be_helped_is_tried_once(
    client: httpx.AsyncClient, speaker: ShakyChat, error: Exception, status: int
) -> None:
    speaker.errors = [error]
    answer = await client.post(CHAT, json=SAY | {"model": "smollm2-135m-instruct"})
    assert answer.status_code == status
    assert len(speaker.asked) == 1


async def test_the_openai_route_is_guarded_too(client: httpx.AsyncClient, speaker: ShakyChat) -> None:
    speaker.errors = [DOWN]
    body = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}
    answer = await client.post(COMPLETE, json=body)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello"
    assert speaker.asked == ["big"] * 2


async def test_nothing_is_made_again_once_a_piece_was_sent(client: httpx.AsyncClient, speaker: ShakyChat) -> None:
    speaker.error, speaker.error_at = DOWN, 1
    answer = await client.post(CHAT, json=SAY | {"stream": True})
    assert [line for line in answer.text.splitlines() if line.startswith("event")] == [
        "event: start",
        "event: delta",
        "event: error",
    ]
    assert speaker.asked == ["big"]


async def test_a_model_that_keeps_failing_is_left_alone_then_probed(
    client: httpx.AsyncClient, speaker: ShakyChat, clock: FakeClock
) -> None:
    model = {"model": "smollm2-135m-instruct"}
    speaker.broken = {model["model"]}
    for _ in range(4):
        assert (await client.post(CHAT, json=SAY | model)).status_code == 503
    num_calls = len(speaker.asked)
    refused = await client.post(CHAT, json=SAY | model)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert "failed too often" in refused.json()["error"]["message"]
    assert len(speaker.asked) == num_calls, "an open circuit asks nobody"
    assert (await client.post(CHAT, json=SAY)).status_code == 200, "another model is not concerned"
    speaker.broken = set()
    clock.advance(5)
    assert (await client.post(CHAT, json=SAY | model)).status_code == 200
    assert (await client.post(CHAT, json=SAY | model)).status_code == 200


async def test_a_smaller_model_answers_for_one_that_fails(
    client: httpx.AsyncClient, speaker: ShakyChat, app: FastAPI
) -> None:
    speaker.broken = {"big"}
    answer = (await client.post(CHAT, json=SAY)).json()
    assert (answer["response"], answer["metadata"]["model_version"]) == ("Hello", "tiny@0")
    assert speaker.asked == ["big", "big", "big", "tiny"]
    registry = app.state.metrics.registry
    assert registry.get_sample_value("chatgrpo_given_up_total", {"kind": "quality"}) == 1


async def test_a_model_that_falls_silent_is_given_up(client: httpx.AsyncClient, speaker: ShakyChat) -> None:
    speaker.hold = True
    answer = await client.post(CHAT, json=SAY, headers={"x-request-timeout-seconds": "0"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert speaker.cancelled.is_set()


async def test_the_ladder_is_climbed_in_order(
    client: httpx.AsyncClient, speaker: ShakyChat, jobs: FakeJobs, app: FastAPI
) -> None:
    jobs.put("a")
    ladder = app.state.gateway.ladder
    training = ("POST", "/api/v2/train"), ("POST", "/api/v2/jobs/a/retry"), ("GET", "/api/v2/jobs/a/trajectories")

    async def statuses() -> list[int]:
        return [(await client.request(method, path)).status_code for method, path in training]

    assert 503 not in await statuses()
    ladder.num_replies = 1
    assert await statuses() == [503] * 3
    assert (await client.post("/api/v2/jobs/a/pause")).status_code == 200
    assert (await client.post(CHAT, json=SAY)).json()["metadata"]["model_version"] == "big@0"
    ladder.num_replies = 2
    refused = await client.post(CHAT, json=SAY)
    assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (
        503,
        "overloaded",
        "2",
    )
    ladder.num_replies = 0
    assert 503 not in await statuses()


async def test_under_load_the_smaller_model_speaks_at_once(
    services: Services, speaker: ShakyChat, clock: FakeClock
) -> None:
    ladder = LadderConfig(max_replies=10, shed_training_at=0.1, degrade_at=0.2)
    gateway = GatewayConfig(
        allowed_hosts=("platform",), resilience=ResilienceConfig(ladder=ladder, smaller_models={"big": "tiny"})
    )
    config = services.config.model_copy(update={"gateway": gateway, "default_model": "big"})
    app = create_app(replace(services, config=config))
    app.state.gateway.ladder.num_replies = 2
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://platform") as client:
        assert (await client.post(CHAT, json=SAY)).json()["metadata"]["model_version"] == "tiny@0"
    assert (speaker.asked, app.state.gateway.ladder.num_replies) == (["tiny"], 2)


async def test_a_client_that_leaves_makes_room_and_blames_nobody(speaker: ShakyChat, app: FastAPI) -> None:
    speaker.hold = True
    pieces = app.state.replies.stream("big", [], SamplingParams())
    await anext(pieces)
    assert app.state.gateway.ladder.num_replies == 1
    await pieces.aclose()
    assert (app.state.gateway.ladder.num_replies, speaker.cancelled.is_set()) == (0, True)
    for _ in range(2 * QUICK.breaker.min_calls):
        left = app.state.replies.stream("big", [], SamplingParams())
        await left.aclose()
    assert await app.state.gateway.circuits.state("model big") is State.CLOSED
