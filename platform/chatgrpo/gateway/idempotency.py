"""Carries a POST out once, however often it is sent with the same `Idempotency-Key`
(draft-ietf-httpapi-idempotency-key-header): the answer is kept and told again.

The same key with another body is 422, while the first request is under way 409. Keys belong to a tenant.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from contextlib import suppress
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatgrpo.errors import Conflict, InvalidRequest, PlatformError, TooLarge, Unavailable
from chatgrpo.gateway.kept_answers import LEASE_S, Claim, Kept, KeptAnswers, Step
from chatgrpo.gateway.refusal import refuse
from chatgrpo.gateway.request_body import body_again
from chatgrpo.gateway.request_headers import header

logger = logging.getLogger(__name__)

HEADER: Final = b"idempotency-key"
MAX_KEY: Final = 255
MAX_BODY_BYTES: Final = 2**20
"""A larger answer is not kept; that its request was carried out, is."""
# These may be different the next time, so they end the claim. Server errors do as well.
_PASSING: Final = frozenset({401, 403, 408, 409, 423, 425, 429, 499})


class KeyReused(InvalidRequest):
    code = "idempotency_key_reused"


class Idempotency:
    """ASGI middleware, innermost: what it keeps has passed every check, and each repeat passes them again."""

    def __init__(self, app: ASGIApp, *, answers: KeptAnswers, max_body_bytes: int) -> None:
        self.app = app
        self.answers = answers
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        name = header(scope, HEADER)
        if name is None:
            await self.app(scope, receive, send)
            return
        try:
            _check(name, scope)
            body = await _read(receive, scope["route"].max_body_bytes or self.max_body_bytes)
            if body is None:
                return  # the client left while it was sending
            fingerprint = _fingerprint(scope, body)
            tenant = scope["state"]["identity"].tenant
            step, found = await self.answers.claim(tenant, name, fingerprint)
        except PlatformError as error:
            await refuse(error, scope, receive, send)
            return
        if step is Step.RUN:
            assert isinstance(found, Claim)
            await self._run(found, scope, body_again(body, receive), send)
        elif step is Step.REPEAT:
            assert isinstance(found, Kept)
            await _repeat(found, scope, receive, send)
        elif step is Step.WAIT:
            busy = Conflict("a request with this Idempotency-Key is being carried out; ask again in a moment")
            await refuse(busy, scope, receive, send, headers={"retry-after": "1"})
        else:
            said = "this Idempotency-Key was used for another request; choose a new one for each request"
            await refuse(KeyReused(said, "Idempotency-Key"), scope, receive, send)

    async def _run(self, claim: Claim, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer()
        is_over = False

        async def kept(message: Message) -> None:
            nonlocal is_over
            answer.take(message)
            if answer.is_complete:
                # Before its last byte leaves: a client that has the answer can rely on it, or try again at once.
                is_over = True
                await self._settle(claim, answer, scope["path"])
            await send(message)

        renewing = asyncio.create_task(self._renew(claim))
        try:
            await self.app(scope, receive, kept)
        finally:
            if not is_over:
                await asyncio.shield(self._release(claim))
            renewing.cancel()

    async def _settle(self, claim: Claim, answer: _Answer, path: str) -> None:
        if answer.status >= 500 or answer.status in _PASSING:
            await self._release(claim)
            return
        try:
            body = bytes(answer.body) if answer.is_small else None
            await self.answers.keep(claim, path=path, status=answer.status, headers=answer.headers, body=body)
        except (Conflict, Unavailable) as error:
            logger.warning("an answer was not kept: %s", error.message)

    async def _release(self, claim: Claim) -> None:
        try:
            await self.answers.release(claim)
        except Unavailable as error:
            logger.warning("a claim stays until it ends by itself: %s", error.message)

    async def _renew(self, claim: Claim) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 3)
            # Neither ends the request: it is carried out, and said to be so, by whoever has the claim in the end.
            with suppress(Unavailable, Conflict):
                await self.answers.renew(claim)


class _Answer:
    """An answer while it is sent."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self.is_small = True
        self.is_complete = False

    def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
            return
        self.is_complete = not message.get("more_body", False)
        part = message.get("body", b"")
        self.is_small = self.is_small and len(self.body) + len(part) <= MAX_BODY_BYTES
        if self.is_small:
            self.body += part


def _check(name: str, scope: Scope) -> None:
    if not 1 <= len(name) <= MAX_KEY or not (name.isascii() and name.isprintable()):
        raise InvalidRequest(f"an Idempotency-Key is 1 to {MAX_KEY} printable ASCII characters", "Idempotency-Key")
    if not scope["route"].keeps_answers:
        raise InvalidRequest(
            "the answer of this route holds a secret and is not kept; send the request without Idempotency-Key",
            "Idempotency-Key",
        )


async def _read(receive: Receive, max_bytes: int) -> bytes | None:
    """The whole body, None when the client left. Raises TooLarge."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise TooLarge(f"the request body is larger than {max_bytes} bytes; send less or raise max_body_bytes")
        if not message.get("more_body", False):
            return bytes(body)


def _fingerprint(scope: Scope, body: bytes) -> str:
    """Of everything that decides what a request does."""
    parts = (scope["path"].encode(), scope["query_string"], (header(scope, b"if-match") or "").encode(), body)
    digest = hashlib.blake2b(digest_size=32)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


async def _repeat(kept: Kept, scope: Scope, receive: Receive, send: Send) -> None:
    if kept.body is None:
        error = Conflict(f"this request was carried out with status {kept.status}; its answer was too large to keep")
        await refuse(error, scope, receive, send)
        return
    headers = [*kept.headers, (b"idempotent-replayed", b"true")]
    await send({"type": "http.response.start", "status": kept.status, "headers": headers})
    await send({"type": "http.response.body", "body": kept.body})
