"""Keeps answers to GETs for as long as their row says: `cache_ttl` seconds as they are, for `cache_stale` seconds after
that still told while they are made anew.

An answer is kept for one tenant with one set of permissions and never crosses them. Requests for the same answer that
arrive while it is being made wait for it (coalescing), so a crowd asks a handler once. Only complete, small answers
with status 200 are kept; streams never.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatgrpo.gateway.kept_cache import KeptCache, Lifetime

MAX_BYTES: Final = 64 * 2**20
MAX_ANSWER_BYTES: Final = 2**20
"""One larger than this would push out many others."""
PREFIX: Final = "chatgrpo:answer:"
"""In Redis."""


@dataclass(slots=True)
class Answer:
    """A complete answer with status 200."""

    headers: list[tuple[bytes, bytes]]
    body: bytearray = field(default_factory=bytearray)

    def pack(self) -> bytes:
        """A line of JSON, then the body."""
        headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in self.headers]
        return json.dumps(headers).encode() + b"\n" + self.body

    @classmethod
    def unpack(cls, data: bytes) -> Answer:
        head, _, body = data.partition(b"\n")
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in json.loads(head)]
        return cls(headers, bytearray(body))

    async def tell(self, send: Send, result: str) -> None:
        headers = [*self.headers, (b"x-cache", result.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(self.body)})


class ResponseCache:
    """ASGI middleware, behind authentication and limits. `Cache-Control: no-cache` asks for a fresh answer.
    `looked(result)` counts: hit, stale or miss."""

    def __init__(self, app: ASGIApp, *, kept: KeptCache, looked: Callable[[str], None]) -> None:
        self.app = app
        self.kept = kept
        self.looked = looked
        self._making: dict[str, asyncio.Future[Answer | None]] = {}
        self._refreshing: dict[str, asyncio.Task[None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_kept = scope["type"] == "http" and scope["method"] == "GET" and scope["route"].cache_ttl > 0
        if not is_kept:
            await self.app(scope, receive, send)
            return
        life = Lifetime(ttl_s=scope["route"].cache_ttl, stale_s=scope["route"].cache_stale)
        name = _name_of(scope)
        if "no-cache" not in Headers(scope=scope).get("cache-control", ""):
            found = await self.kept.get(name, life)
            if found is not None:
                result = "hit" if found.is_fresh else "stale"
                self.looked(result)
                if not found.is_fresh:
                    self._begin_refresh(name, life, scope)
                await Answer.unpack(found.body).tell(send, result)
                return
            answer = await self._awaited(name)
            if answer is not None:
                self.looked("hit")
                await answer.tell(send, "hit")
                return
        self.looked("miss")
        await self._make(name, life, scope, receive, send)

    async def _awaited(self, name: str) -> Answer | None:
        making = self._making.get(name)
        return await asyncio.shield(making) if making is not None else None

    async def _make(self, name: str, life: Lifetime, scope: Scope, receive: Receive, send: Send) -> None:
        answer: Answer | None = None
        is_complete = False
        made: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._making.setdefault(name, made)

        async def kept(message: Message) -> None:
            nonlocal answer, is_complete
            if message["type"] == "http.response.start":
                answer = _keepable(message)
                message["headers"] = [*message.get("headers", ()), (b"x-cache", b"miss")]
            elif answer is not None:
                answer.body += message.get("body", b"")
                is_complete = not message.get("more_body", False)
                if len(answer.body) > MAX_ANSWER_BYTES:
                    answer = None
            await send(message)

        found: Answer | None = None
        try:
            await self.app(scope, receive, kept)
            found = answer if is_complete else None
            if found is not None:
                await self.kept.put(name, found.pack(), (), life)
        finally:
            if self._making.get(name) is made:
                del self._making[name]
            made.set_result(found)

    def _begin_refresh(self, name: str, life: Lifetime, scope: Scope) -> None:
        """Makes the answer anew behind its teller's back, once for all who are told the stale one."""
        if name in self._refreshing:
            return
        again = {**scope, "state": dict(scope["state"])}
        task = asyncio.create_task(self._make(name, life, again, _nothing_comes(), _nobody_reads))
        self._refreshing[name] = task
        task.add_done_callback(lambda _: self._refreshing.pop(name, None))


def _name_of(scope: Scope) -> str:
    identity, headers = scope["state"]["identity"], Headers(scope=scope)
    parts: list[Any] = [identity.tenant, sorted(identity.permissions), scope["path"]]
    parts += [scope["query_string"].decode("latin-1"), headers.get("accept", "")]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=32).hexdigest()


def _keepable(start: Message) -> Answer | None:
    headers = Headers(raw=start["headers"])
    is_stream = headers.get("content-type", "").startswith("text/event-stream")
    if start["status"] != 200 or is_stream or "set-cookie" in headers:
        return None
    return Answer(list(start["headers"]))


def _nothing_comes() -> Receive:
    """The end of an empty body, then silence: nobody can leave."""
    is_told = False

    async def receive() -> Message:
        nonlocal is_told
        if is_told:
            await asyncio.Event().wait()
        is_told = True
        return {"type": "http.request", "body": b"", "more_body": False}

    return receive


async def _nobody_reads(_: Message) -> None:
    return None
