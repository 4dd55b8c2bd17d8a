"""Answers kept under the key that a client chose for its request, so that a request sent twice is carried out once.

One small log a key: first a claim, which ends by itself when its holder dies, then the answer.
"""

from __future__ import annotations

import hashlib
import json
import re
from asyncio import Lock
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final

from chatgrpo.clock import Clock
from chatgrpo.errors import Conflict
from chatgrpo.state.conversation_logs import KEPT_ANSWERS
from chatgrpo.state.store import Head, Key, Store, Write

LEASE_S: Final = 30.0
"""How long a claim lasts that is not renewed."""

_IN_PATH: Final = re.compile(r"/conversations/([A-Za-z0-9._:@-]{1,128})")
_IN_BODY: Final = re.compile(rb'"(?:conversation_)?id": ?"([A-Za-z0-9._:@-]{1,128})"')

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """`status` 0: being worked on. `body` None: the answer was too large to keep."""

    fingerprint: str
    ends_at: float
    status: int = 0
    headers: Headers
    body: bytes | None = b""


class Step(Enum):
    RUN = auto()
    REPEAT = auto()
    WAIT = auto()
    """Another request with the key and the body is being carried out."""
    REFUSE = auto()
    """The key was used for something else."""


def decide(kept: Kept | None, fingerprint: str, now: float) -> Step:
    if kept is None or kept.ends_at <= now:
        return Step.RUN
    if kept.fingerprint != fingerprint:
        return Step.REFUSE
    return Step.REPEAT if kept.status else Step.WAIT


@dataclass(slots=True, kw_only=True)
class Claim:
    """The right to carry a request out. `seq` and `version` are those of its newest write; `lock` is held by writes."""

    key: Key
    fingerprint: str
    seq: int
    version: int
    lock: Lock = field(default_factory=Lock)


class KeptAnswers:
    """`open_store` opens once. All methods raise Unavailable when the store cannot be reached."""

    def __init__(self, open_store: Callable[[], Awaitable[Store]], *, clock: Clock, ttl_s: float) -> None:
        self._open_store = open_store
        self._clock = clock
        self._ttl_s = ttl_s

    async def claim(self, tenant: str, name: str, fingerprint: str) -> tuple[Step, Claim | Kept | None]:
        """RUN with the claim, REPEAT with the answer, or the step alone."""
        store = await self._open_store()
        # Hashed, because clients choose names freely and ids of logs are plain.
        key = Key(tenant, KEPT_ANSWERS, hashlib.blake2b(name.encode(), digest_size=32).hexdigest())
        log = await store.tail(key, 1)
        kept = _decoded(log.head, log.records[-1].data) if log else None
        step = decide(kept, fingerprint, self._clock.now())
        if step is not Step.RUN:
            return step, kept
        claim = Claim(
            key=key,
            fingerprint=fingerprint,
            seq=log.head.seq if log else 0,
            version=log.head.version if log else -1,
        )
        try:
            await self._write(claim, {"status": 0}, b"", LEASE_S)
        except Conflict:
            return Step.WAIT, None  # another request was first by a moment
        return Step.RUN, claim

    async def renew(self, claim: Claim) -> None:
        await self._write(claim, {"status": 0}, b"", LEASE_S)

    async def keep(self, claim: Claim, *, path: str, status: int, headers: Headers, body: bytes | None) -> None:
        """Forgotten with the conversation that it speaks of. Raises Conflict when the claim ended and another request
        has taken it."""
        shown = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers]
        facts = {"status": status, "headers": shown, "is_whole": body is not None}
        await self._write(claim, facts, body or b"", self._ttl_s, owner=_conversation_of(path, body or b""))

    async def release(self, claim: Claim) -> None:
        """Nothing was done that must not be done again."""
        store = await self._open_store()
        async with claim.lock:
            log = await store.tail(claim.key, 0)
            if log is not None and log.head.seq == claim.seq:
                await store.delete(claim.key)

    async def _write(self, claim: Claim, facts: dict[str, Any], body: bytes, ttl_s: float, *, owner: str = "") -> None:
        data = json.dumps({"fingerprint": claim.fingerprint, **facts}).encode()
        store = await self._open_store()
        async with claim.lock:
            ends_at = self._clock.now() + ttl_s
            head = Head(version=claim.version + 1, data=data, owner=owner, expires_at=ends_at)
            claim.seq = await store.append(claim.key, Write(head=head, records=(body,), based_on=claim.seq))
            claim.version += 1


def _conversation_of(path: str, body: bytes) -> str:
    """The id in the path, else the first one in the answer; empty when it speaks of none."""
    if in_path := _IN_PATH.search(path):
        return in_path[1]
    in_body = _IN_BODY.search(body)
    return in_body[1].decode() if in_body else ""


def _decoded(head: Head, body: bytes) -> Kept:
    facts = json.loads(head.data)
    return Kept(
        fingerprint=facts["fingerprint"],
        ends_at=head.expires_at or 0.0,
        status=facts["status"],
        headers=[(n.encode("latin-1"), v.encode("latin-1")) for n, v in facts.get("headers", ())],
        body=body if facts.get("is_whole", True) else None,
    )
