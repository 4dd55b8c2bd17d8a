"""OWASP API4, unrestricted resource consumption: size, depth, number and time of what is sent are bounded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from chatgrpo.gateway.config import RouteConfig

CHAT = RouteConfig(path="/api/v2/chat", methods=("POST",), timeout=0.3)


@pytest.fixture
async def port(app: FastAPI) -> AsyncIterator[int]:
    """Of a real server: what is tested here happens below the application."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical"))
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await running


async def raw(port: int, sent: bytes) -> bytes:
    """What the server answers to these bytes and silence."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.read(4096), 20)
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("[" * 15_000, 400),
        ('{"message": ' + "[" * 9_000 + "]" * 9_000 + "}", 400),
        ('{"message": "x", "context": ' + '{"a":' * 3_000 + "1" + "}" * 3_000 + "}", 400),
        (json.dumps({"message": "x" * 30_000}), 413),
        ('{"message": "x", "max_tokens": 1' + "0" * 5_000 + "}", 400),
        ('{"message": "x", "temperature": NaN}', 422),
        ("\ufeff{}", 422),
        ("", 422),
    ],
    ids=["open", "deep", "deep-context", "large", "long-number", "nan", "bom", "empty"],
)
async def test_a_hostile_body_is_a_plain_refusal(client: httpx.AsyncClient, text: str, status: int) -> None:
    headers = {"content-type": "application/json"}
    answer = await client.post("/api/v2/chat", content=text.encode(), headers=headers)
    assert answer.status_code == status, answer.text[:300]
    assert answer.json()["error"]["code"]
    assert len(answer.content) < 2000, "a refusal does not send back what it got"


async def test_a_body_that_hides_its_size_is_cut(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b" " * 1000

    answer = await client.post("/api/v2/chat", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


async def test_who_sends_slowly_is_not_waited_for(port: int, app: FastAPI) -> None:
    app.state.gateway.add_route(CHAT)
    head = b"POST /api/v2/chat HTTP/1.1\r\nhost: testserver\r\ncontent-type: application/json\r\n"
    answer = await raw(port, head + b'content-length: 100\r\n\r\n{"mess')
    assert answer.startswith(b"HTTP/1.1 504"), answer[:200]


async def test_headers_are_bounded(port: int) -> None:
    answer = await raw(port, b"GET /api/v2/health HTTP/1.1\r\nhost: testserver\r\nx: " + b"a" * 200_000 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431"), answer[:200]


async def test_a_malformed_request_is_refused_below_the_application(port: int) -> None:
    both = b"host: testserver\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    for sent in (
        b"GET / HTTP/9.9\r\n\r\n",
        b"NOT HTTP\r\n\r\n",
        b"POST /api/v2/chat HTTP/1.1\r\n" + both,
    ):
        assert b" 400 " in (await raw(port, sent))[:20], sent
