"""What each layer of the gateway costs: python -m benchmarks.gateway_stages

The application is called directly in this process, without a server; figures are microseconds of this thread's time a
request, the best of several rounds, so that what else the machine does hardly matters.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks.gateway import BODY, PATH
from benchmarks.gateway_servers import Mock, bare_app, make_key, platform_of
from chatgrpo.api.app import create_app, gateway_of
from chatgrpo.api.services import Services
from chatgrpo.clock import SystemClock
from chatgrpo.config import PlatformConfig
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.memory import MemoryStore
from chatgrpo.state.tiered import TieredStore
from tests.fake_services import FakeJobs

SENT = json.dumps(BODY).encode()
ROUNDS = 6
REQUESTS = 300


async def answer_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": SENT})


async def ask(app: ASGIApp, key: str) -> None:
    headers = {"host": "127.0.0.1:8000", "content-type": "application/json", "content-length": str(len(SENT))}
    raw = [(name.encode(), value.encode()) for name, value in (headers | {"authorization": f"Bearer {key}"}).items()]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": raw,
        "client": ("127.0.0.1", 4000),
        "server": ("127.0.0.1", 8000),
    }
    is_told = False

    async def receive() -> Message:
        nonlocal is_told
        if is_told:
            await asyncio.Event().wait()
        is_told = True
        return {"type": "http.request", "body": SENT, "more_body": False}

    async def send(message: Message) -> None:
        assert message.get("status", 200) == 200, message

    await app(scope, receive, send)


async def cost_us(app: ASGIApp, key: str, *, at_once: int = 1) -> float:
    best = float("inf")
    for _ in range(ROUNDS + 1):  # the first warms up
        began = time.thread_time()
        for _ in range(REQUESTS // at_once):
            if at_once == 1:
                await ask(app, key)
            else:
                await asyncio.gather(*(ask(app, key) for _ in range(at_once)))
        best = min(best, (time.thread_time() - began) / (REQUESTS // at_once * at_once))
    return 1e6 * best


def services_of(platform: PlatformConfig) -> Services:
    conversations = Conversations(TieredStore(MemoryStore()))
    return Services(config=platform, clock=SystemClock(), jobs=FakeJobs(), chat=Mock(), conversations=conversations)


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        platform = platform_of(Path(name), 8000)
        key = await make_key(platform)
        services = services_of(platform)
        gateway = gateway_of(services)
        layers = gateway.middleware()
        print(f"{'a bare FastAPI handler':<28}{await cost_us(bare_app(), key):7.0f}")
        before = await cost_us(answer_at_once, key)
        for number in range(1, len(layers) + 1):
            app: ASGIApp = answer_at_once
            for layer, args, kwargs in reversed(layers[:number]):
                app = layer(app, *args, **kwargs)
            now = await cost_us(app, key)
            print(f"{layers[number - 1].cls.__name__:<28}{now - before:+7.1f}{now:7.0f}")  # type: ignore[attr-defined]
            before = now
        await gateway.close()
        for counters in ("memory", "file"):
            settings = platform.gateway.model_copy(update={"counters": counters})
            whole = create_app(services_of(platform.model_copy(update={"gateway": settings})))
            one, many = await cost_us(whole, key), await cost_us(whole, key, at_once=32)
            print(f"{'all, limits in ' + counters:<28}{one:7.0f}{many:7.0f} with 32 at once")
            await whole.state.gateway.close()


if __name__ == "__main__":
    uvloop.run(main())
