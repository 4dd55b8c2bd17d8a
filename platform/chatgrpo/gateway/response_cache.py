"""Keeps answers to GETs for as long as their row's `cache_ttl` says, in this process.

An answer is kept for one tenant with one set of permissions and never crosses them. Requests for the same answer that
arrive while it is being made wait for it (coalescing), so a crowd asks a handler once. Only complete, small answers
with status 200 are kept; streams never.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatgrpo.clock import Clock
from chatgrpo.monitoring.catalog import CACHE_LOOKUPS
from chatgrpo.monitoring.meters import Meter

MAX_BYTES = 64 * 2**20
# One larger than this would push out many others.
MAX_ANSWER_BYTES = 2**20


@dataclass(slots=True)
class Answer:
    """A complete answer and until when it may be told (monotonic seconds)."""

    headers: list[tuple[bytes, bytes]]
    body: bytearray = field(default_factory=bytearray)
    until: float = 0.0

    async def tell(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [*self.headers, (b"x-cache", b"hit")]})
        await send({"type": "http.response.body", "body": bytes(self.body)})


class CacheStore:
    """Answers by key, the least recently told out first. Counts hits and misses."""

    def __init__(self, clock: Clock, *, registry: CollectorRegistry | None = None, max_bytes: int = MAX_BYTES) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._answers: OrderedDict[Hashable, Answer] = OrderedDict()
        self._lookups = Meter(CACHE_LOOKUPS, registry, None)

    def looked(self, result: str, *, tier: str = "response") -> None:
        """`hit`, `miss`, and what else a tier tells apart."""
        self._lookups.inc(tier=tier, result=result)

    def get(self, key: Hashable) -> Answer | None:
        answer = self._answers.get(key)
        if answer is not None and answer.until <= self._clock.monotonic():
            self._drop(key)
            return None
        if answer is not None:
            self._answers.move_to_end(key)
        return answer

    def put(self, key: Hashable, answer: Answer, ttl_s: float) -> None:
        self._drop(key)
        answer.until = self._clock.monotonic() + ttl_s
        self._answers[key] = answer
        self._num_bytes += len(answer.body)
        while self._num_bytes > self._max_bytes:
            self._drop(next(iter(self._answers)))

    def _drop(self, key: Hashable) -> None:
        dropped = self._answers.pop(key, None)
        self._num_bytes -= len(dropped.body) if dropped else 0


class ResponseCache:
    """ASGI middleware, behind authentication and limits. `Cache-Control: no-cache` asks for a fresh answer."""

    def __init__(self, app: ASGIApp, *, store: CacheStore) -> None:
        self.app = app
        self.store = store
        self._making: dict[Hashable, asyncio.Future[Answer | None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ttl_s: float = scope["route"].cache_ttl if scope["type"] == "http" and scope["method"] == "GET" else 0.0
        if ttl_s <= 0:
            await self.app(scope, receive, send)
            return
        headers, identity = Headers(scope=scope), scope["state"]["identity"]
        key = (identity.tenant, identity.permissions, scope["path"], scope["query_string"], headers.get("accept"))
        if "no-cache" not in headers.get("cache-control", ""):
            answer = self.store.get(key) or await self._awaited(key)
            if answer is not None:
                self.store.looked("hit")
                await answer.tell(send)
                return
        self.store.looked("miss")
        await self._make(key, ttl_s, scope, receive, send)

    async def _awaited(self, key: Hashable) -> Answer | None:
        making = self._making.get(key)
        return await asyncio.shield(making) if making is not None else None

    async def _make(self, key: Hashable, ttl_s: float, scope: Scope, receive: Receive, send: Send) -> None:
        answer: Answer | None = None
        is_complete = False
        made: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._making.setdefault(key, made)

        async def kept(message: Message) -> None:
            nonlocal answer, is_complete
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-cache", b"miss")]
                answer = _keepable(message)
            elif answer is not None:
                answer.body += message.get("body", b"")
                is_complete = not message.get("more_body", False)
                if len(answer.body) > MAX_ANSWER_BYTES:
                    answer = None
            await send(message)

        try:
            await self.app(scope, receive, kept)
        finally:
            found = answer if is_complete else None
            if found is not None:
                self.store.put(key, found, ttl_s)
            if self._making.get(key) is made:
                del self._making[key]
            made.set_result(found)


def _keepable(start: Message) -> Answer | None:
    headers = Headers(raw=start["headers"])
    is_stream = headers.get("content-type", "").startswith("text/event-stream")
    if start["status"] != 200 or is_stream or "set-cookie" in headers:
        return None
    return Answer([(name, value) for name, value in start["headers"] if name != b"x-cache"])
