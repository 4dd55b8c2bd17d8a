"""Greedy replies told again: this process's memory first, then Redis where there is one. A cache that fails is a cache
that knows nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from chatgrpo.clock import Clock
from chatgrpo.errors import PlatformError
from chatgrpo.gateway.config import ReplyCacheConfig
from chatgrpo.gateway.kept_replies import Asker, KeptReply, MemoryReplies, RedisReplies, ReplyStore, tag, tags_of
from chatgrpo.inference.deltas import ChatDelta

logger = logging.getLogger(__name__)

MAX_VERSIONS: Final = 10_000
"""Models whose published version one process remembers."""


@dataclass(frozen=True, slots=True)
class Found:
    """`is_fresh`: told as it is. A stale reply is told too, and written anew behind the teller's back."""

    reply: KeptReply
    is_fresh: bool


class ReplyCache:
    """`looked(result)` counts: hit, stale, shared (waited for another's) or miss."""

    def __init__(
        self,
        config: ReplyCacheConfig,
        *,
        clock: Clock,
        looked: Callable[[str], None],
        redis_url: str | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._memory = MemoryReplies(config.max_bytes)
        self._shared: ReplyStore | None = RedisReplies(redis_url) if redis_url and config.ttl_s else None
        self._versions: dict[tuple[str, str], str] = {}
        self.looked = looked

    @property
    def is_on(self) -> bool:
        return self._config.ttl_s > 0

    async def get(self, name: str) -> Found | None:
        reply = await self._memory.get(name)
        if reply is None or not self._is_fresh(reply):
            reply = await self._from_shared(name) or reply
        if reply is None or self._clock.now() >= reply.made_at + self._config.ttl_s + self._config.stale_s:
            return None
        return Found(reply, self._is_fresh(reply))

    async def put(self, name: str, pieces: Sequence[ChatDelta], asker: Asker, model: str) -> None:
        reply = KeptReply(pieces=tuple(pieces), made_at=self._clock.now())
        tags, ttl_s = tags_of(asker, model), self._config.ttl_s + self._config.stale_s
        await self._memory.put(name, reply, tags, ttl_s=ttl_s)
        if self._shared is not None:
            try:
                await self._shared.put(name, reply, tags, ttl_s=ttl_s)
            except PlatformError as error:
                logger.warning("a reply is kept in this process alone: %s", error.message)

    async def published(self, asker: Asker, model: str) -> None:
        """What an older version of the model said goes. It would not be told anyhow; this gives its room back."""
        key = (asker.tenant, model)
        known = self._versions.get(key)
        if known == asker.version:
            return
        if known is not None:
            await self.drop(tag(asker.tenant, "model", model))
        self._versions.pop(key, None)
        self._versions[key] = asker.version
        if len(self._versions) > MAX_VERSIONS:
            del self._versions[next(iter(self._versions))]

    async def forget_conversation(self, tenant: str, conversation_id: str) -> None:
        if self.is_on:
            await self.drop(tag(tenant, "conversation", conversation_id))

    async def drop(self, tag: str) -> None:
        """Here and in Redis; the memory of other processes forgets it in its time."""
        await self._memory.drop(tag)
        if self._shared is not None:
            try:
                await self._shared.drop(tag)
            except PlatformError as error:
                logger.warning("replies stay in Redis until their time is over: %s", error.message)

    async def close(self) -> None:
        if self._shared is not None:
            await self._shared.close()

    async def _from_shared(self, name: str) -> KeptReply | None:
        if self._shared is None:
            return None
        try:
            return await self._shared.get(name)
        except PlatformError as error:
            logger.warning("replies of other replicas are not told: %s", error.message)
            return None

    def _is_fresh(self, reply: KeptReply) -> bool:
        return self._clock.now() < reply.made_at + self._config.ttl_s
