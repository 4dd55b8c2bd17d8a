"""The short way of the busiest route says exactly what the framework's way says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import FastAPI

from chatgrpo.api.direct import Direct
from tests.fake_services import FakeChat

PATH = "/v1/chat/completions"
GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}
BODIES: list[Any] = [
    GOOD,
    GOOD | {"n": 2, "logprobs": True},
    GOOD | {"max_tokens": "4"},
    GOOD | {"model": "nobody"},
    GOOD | {"stop": [""]},
    GOOD | {"temprature": 1},
    GOOD | {"messages": []},
    GOOD | {"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]},
    [],
    "{",
    "",
    '{"model": ' + "[" * 10_000,
    '{"temperature": NaN}',
    b'{"model": "\xff"}',
]


async def _answers(client: httpx.AsyncClient) -> list[Any]:
    found = []
    for body in BODIES:
        content = {"content": body, "headers": {"content-type": "application/json"}}
        answer = await client.post(PATH, **(content if isinstance(body, str | bytes) else {"json": body}))
        said = answer.json()
        found.append((answer.status_code, {k: v for k, v in said.items() if k not in {"id", "created"}}))
    for kind in ("text/plain", "application/json; charset=utf-8"):
        answer = await client.post(PATH, content=b"{}", headers={"content-type": kind})
        found.append((answer.status_code, answer.json()))
    return found


async def _pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 1000):
        yield b" " * 1000


async def test_both_ways_say_the_same(client: httpx.AsyncClient, app: FastAPI, speaker: FakeChat) -> None:
    assert any(layer.cls is Direct for layer in app.user_middleware)  # type: ignore[comparison-overlap]
    short = await _answers(client)
    assert {status for status, _ in short} == {200, 400, 404, 415, 422}
    app.user_middleware = [layer for layer in app.user_middleware if layer.cls is not Direct]  # type: ignore[comparison-overlap]
    app.middleware_stack = None
    assert await _answers(client) == short


async def test_a_body_that_grows_too_large_is_refused(client: httpx.AsyncClient) -> None:
    json = {"content-type": "application/json"}
    answer = await client.post(PATH, content=_pieces(100_000), headers=json)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
