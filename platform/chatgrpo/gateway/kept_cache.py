"""Two tiers of what is kept: this process's memory first, then Redis where there is one. A tier that fails is one that
knows nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from chatgrpo.clock import Clock
from chatgrpo.errors import PlatformError
from chatgrpo.gateway.kept import Kept, MemoryKept, RedisKept

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """Fresh for `ttl_s`; for `stale_s` after that it is still told, while it is made anew."""

    ttl_s: float
    stale_s: float = 0.0

    @property
    def whole_s(self) -> float:
        return self.ttl_s + self.stale_s


@dataclass(frozen=True, slots=True)
class Found:
    body: bytes
    is_fresh: bool


class KeptCache:
    """`shared` is what all replicas have, if there is such a thing."""

    def __init__(self, *, clock: Clock, max_bytes: int, shared: RedisKept | None = None) -> None:
        self.memory = MemoryKept(max_bytes)
        self.shared = shared
        self._clock = clock

    @classmethod
    def of(cls, redis_url: str | None, *, prefix: str, clock: Clock, max_bytes: int) -> KeptCache:
        shared = RedisKept(redis_url, prefix=prefix) if redis_url else None
        return cls(clock=clock, max_bytes=max_bytes, shared=shared)

    async def get(self, name: str, life: Lifetime) -> Found | None:
        kept = await self.memory.get(name)
        if kept is None or not self._is_within(kept, life.ttl_s):
            kept = await self._from_shared(name) or kept
        if kept is None or not self._is_within(kept, life.whole_s):
            return None
        return Found(kept.body, self._is_within(kept, life.ttl_s))

    async def put(self, name: str, body: bytes, tags: Sequence[str], life: Lifetime) -> None:
        kept = Kept(body=body, made_at=self._clock.now())
        await self.memory.put(name, kept, tags, ttl_s=life.whole_s)
        if self.shared is not None:
            try:
                await self.shared.put(name, kept, tags, ttl_s=life.whole_s)
            except PlatformError as error:
                logger.warning("kept in this process alone: %s", error.message)

    async def drop(self, tag: str) -> None:
        """Here and for all; the memory of other processes lets go in its time."""
        await self.memory.drop(tag)
        if self.shared is not None:
            try:
                await self.shared.drop(tag)
            except PlatformError as error:
                logger.warning("what Redis keeps stays until its time is over: %s", error.message)

    async def close(self) -> None:
        if self.shared is not None:
            await self.shared.close()

    async def _from_shared(self, name: str) -> Kept | None:
        if self.shared is None:
            return None
        try:
            return await self.shared.get(name)
        except PlatformError as error:
            logger.warning("what other replicas keep is not told: %s", error.message)
            return None

    def _is_within(self, kept: Kept, seconds: float) -> bool:
        return self._clock.now() < kept.made_at + seconds
