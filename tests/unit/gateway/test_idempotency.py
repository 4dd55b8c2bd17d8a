"""A POST sent twice with one Idempotency-Key is carried out once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from ulid import ULID

from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.gateway.config import RouteConfig
from chatgrpo.gateway.gateway import Gateway
from chatgrpo.gateway.identity import LOCAL
from chatgrpo.gateway.kept_answers import LEASE_S, Claim, Kept, KeptAnswers, Step, decide
from chatgrpo.gateway.roles import Role
from chatgrpo.state.conversation_logs import KEPT_ANSWERS
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.memory import MemoryStore
from chatgrpo.state.redis import RedisStore
from chatgrpo.state.sqlite import SqliteStore
from chatgrpo.state.store import Store
from chatgrpo.state.tiered import TieredStore
from tests.fake_services import FakeChat
from tests.fakes import FakeClock

TALKS = "/api/v2/conversations"
ONCE = {"idempotency-key": "once"}


@pytest.mark.parametrize(
    ("kept", "step"),
    [
        (None, Step.RUN),
        (Kept(fingerprint="a", ends_at=10, headers=[]), Step.WAIT),
        (Kept(fingerprint="a", ends_at=5, headers=[]), Step.RUN),
        (Kept(fingerprint="a", ends_at=10, status=201, headers=[]), Step.REPEAT),
        (Kept(fingerprint="b", ends_at=10, status=201, headers=[]), Step.REFUSE),
        (Kept(fingerprint="b", ends_at=10, headers=[]), Step.REFUSE),
        (Kept(fingerprint="b", ends_at=5, status=201, headers=[]), Step.RUN),
    ],
)
def test_what_to_do(kept: Kept | None, step: Step) -> None:
    assert decide(kept, "a", 5) is step


async def test_carried_out_once(client: httpx.AsyncClient, gateway: Gateway, clock: FakeClock) -> None:
    first = await client.post(TALKS, json={}, headers=ONCE)
    again = await client.post(TALKS, json={}, headers=ONCE)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert again.headers["etag"] == first.headers["etag"]
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    assert len((await client.get(TALKS)).json()["conversations"]) == 1
    assert (await client.post(TALKS, json={}, headers={"idempotency-key": "other"})).json() != first.json()
    clock.advance(gateway.config.idempotency_ttl_s)
    assert (await client.post(TALKS, json={}, headers=ONCE)).json() != first.json()


async def test_another_request_under_the_key_is_refused(client: httpx.AsyncClient) -> None:
    await client.post(TALKS, json={}, headers=ONCE)
    other_body = await client.post(TALKS, json={"user_id": "u"}, headers=ONCE)
    other_path = await client.post("/api/v2/snapshots", json={}, headers=ONCE)
    for refused in (other_body, other_path):
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_reused")


async def test_while_the_first_is_under_way(client: httpx.AsyncClient, speaker: FakeChat) -> None:
    speaker.hold = True
    first = asyncio.create_task(client.post("/api/v2/chat", json={"message": "hi"}, headers=ONCE))
    await speaker.started.wait()
    second = await client.post("/api/v2/chat", json={"message": "hi"}, headers=ONCE)
    assert (second.status_code, second.headers["retry-after"]) == (409, "1")
    first.cancel()
    await asyncio.wait({first})
    speaker.hold = False
    answer = await client.post("/api/v2/chat", json={"message": "hi"}, headers=ONCE)
    assert answer.status_code == 200, "a request that was not carried out leaves its key free"
    assert len(speaker.calls) == 2


async def test_a_stream_is_told_again_whole(client: httpx.AsyncClient, speaker: FakeChat) -> None:
    body = {"message": "hi", "stream": True}
    first = await client.post("/api/v2/chat", json=body, headers=ONCE)
    again = await client.post("/api/v2/chat", json=body, headers=ONCE)
    assert "event: done" in first.text
    assert (again.text, again.headers["content-type"]) == (first.text, first.headers["content-type"])
    assert len(speaker.calls) == 1


async def test_refusals_are_kept_and_failures_are_not(
    app: FastAPI, client: httpx.AsyncClient, gateway: Gateway
) -> None:
    statuses = iter([503, 429, 422, 201])

    @app.post("/shaky")
    async def shaky() -> JSONResponse:
        return JSONResponse({}, next(statuses))

    gateway.add_route(RouteConfig(path="/shaky", methods=("POST",)))
    seen = [(await client.post("/shaky", headers=ONCE)).status_code for _ in range(5)]
    assert seen == [503, 429, 422, 422, 422]


async def test_what_breaks_leaves_its_key_free(app: FastAPI, client: httpx.AsyncClient, gateway: Gateway) -> None:
    @app.post("/broken")
    async def broken(request: Request) -> None:
        assert await request.body() == b"abc"
        raise RuntimeError("a bug")

    gateway.add_route(RouteConfig(path="/broken", methods=("POST",)))
    assert [(await client.post("/broken", content=b"abc", headers=ONCE)).status_code for _ in range(2)] == [500, 500]


async def test_an_answer_too_large_to_keep_is_still_carried_out_once(
    app: FastAPI, client: httpx.AsyncClient, gateway: Gateway
) -> None:
    calls = 0

    @app.post("/large")
    async def large() -> StreamingResponse:
        nonlocal calls
        calls += 1
        return StreamingResponse(iter([b"x" * 2**20, b"x"]))

    gateway.add_route(RouteConfig(path="/large", methods=("POST",)))
    assert len((await client.post("/large", headers=ONCE)).content) == 2**20 + 1
    again = await client.post("/large", headers=ONCE)
    assert (again.status_code, calls) == (409, 1)
    assert "carried out with status 200" in again.json()["error"]["message"]


async def test_a_key_belongs_to_its_tenant(client: httpx.AsyncClient, gateway: Gateway) -> None:
    made: list[dict[str, Any]] = []
    for tenant in ("a", "b"):
        key = (await gateway.keyring.create(LOCAL, name="k", role=Role.USER, tenant=tenant)).key
        made.append((await client.post(TALKS, json={}, headers=ONCE | {"authorization": f"Bearer {key}"})).json())
    assert made[0]["id"] != made[1]["id"]


async def test_a_forgotten_conversation_takes_its_kept_answers_along(
    client: httpx.AsyncClient, gateway: Gateway, services: Services
) -> None:
    conversations = Conversations(TieredStore(await gateway.store()), clock=services.clock)
    routes = httpx.ASGITransport(create_app(replace(services, conversations=conversations)))
    async with httpx.AsyncClient(transport=routes, base_url="http://platform") as client:
        for stream in (False, True):
            await client.post(
                "/api/v2/chat", json={"message": "hi", "stream": stream}, headers={"idempotency-key": f"{stream}"}
            )
        found = (await client.get(TALKS)).json()["conversations"]
        assert len(found) == 2
        judgement = {"version": 2, "score": 1.0, "corrected": "what should have been said"}
        judged = await client.post(f"{TALKS}/{found[0]['id']}/feedback", json=judgement, headers=ONCE)
        assert judged.status_code == 201
        assert len(await (await gateway.store()).list("local", KEPT_ANSWERS)) == 3
        for conversation in found:
            await client.delete(f"{TALKS}/{conversation['id']}")
    assert await (await gateway.store()).list("local", KEPT_ANSWERS) == []


async def test_secrets_are_not_kept(client: httpx.AsyncClient) -> None:
    refused = await client.post("/api/v2/keys", json={"name": "k", "role": "viewer"}, headers=ONCE)
    assert (refused.status_code, "secret" in refused.json()["error"]["message"]) == (422, True)


@pytest.mark.parametrize("name", ["", "x" * 256, "caf\xe9"])
async def test_odd_keys(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.post(TALKS, json={}, headers=[("idempotency-key", name.encode("latin-1"))])
    assert (answer.status_code, "printable ASCII" in answer.text) == (422, True)


async def test_a_body_beyond_the_limit(client: httpx.AsyncClient, gateway: Gateway) -> None:
    gateway.add_route(RouteConfig(path=TALKS, methods=("POST",), max_body_bytes=20))
    chunks = (chunk async for chunk in _chunks(b'{"user_id": "', b"u" * 50, b'"}'))
    answer = await client.post(TALKS, content=chunks, headers=ONCE | {"content-type": "application/json"})
    assert (answer.status_code, "20 bytes" in answer.text) == (413, True)


async def _chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def shared(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    store: Store
    if request.param == "memory":
        store = MemoryStore()
    elif request.param == "sqlite":
        store = SqliteStore(tmp_path / "state.db")
    else:
        store = await RedisStore.open(request.getfixturevalue("redis_url"), prefix=f"{ULID()}:")
    yield store
    await store.close()


async def test_of_many_replicas_one_carries_it_out(shared: Store, clock: FakeClock) -> None:
    async def opened() -> Store:
        return shared

    replicas = [KeptAnswers(opened, clock=clock, ttl_s=60) for _ in range(8)]
    tries = await asyncio.gather(*(answers.claim("t", "k", "f") for answers in replicas))
    assert [step for step, _ in tries].count(Step.RUN) == 1
    assert {step for step, _ in tries} == {Step.RUN, Step.WAIT}
    (claim,) = (found for _, found in tries if isinstance(found, Claim))
    await replicas[0].renew(claim)
    await replicas[0].keep(claim, path="/", status=200, headers=[(b"x", b"\xff")], body=b"\x00\xff")
    step, kept = await replicas[1].claim("t", "k", "f")
    assert (step, kept) == (
        Step.REPEAT,
        Kept(fingerprint="f", ends_at=clock.now() + 60, status=200, headers=[(b"x", b"\xff")], body=b"\x00\xff"),
    )


async def test_a_claim_whose_holder_died_ends(shared: Store, clock: FakeClock) -> None:
    async def opened() -> Store:
        return shared

    answers = KeptAnswers(opened, clock=clock, ttl_s=60)
    _, dead = await answers.claim("t", "k", "f")
    assert isinstance(dead, Claim)
    clock.advance(LEASE_S)
    step, taken = await answers.claim("t", "k", "f")
    assert step is Step.RUN
    await answers.release(dead)  # comes too late: the claim is another's
    assert (await answers.claim("t", "k", "f"))[0] is Step.WAIT
    assert isinstance(taken, Claim)
    await answers.release(taken)
    assert (await answers.claim("t", "k", "f"))[0] is Step.RUN
