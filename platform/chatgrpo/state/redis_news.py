"""News of commits by other processes, from the server that they share."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from chatgrpo.errors import Unavailable
from chatgrpo.state.redis_connection import translated
from chatgrpo.state.store import Change, Key, OnChange

LISTEN_S: Final = 1.0
RECONNECT_S: Final = 0.2
"""Pause between attempts to hear the news again; until then cached copies serve only what may be old."""

logger = logging.getLogger(__name__)


class RedisWatch:
    """News by publish/subscribe. Commits are numbered without gaps, so a lost message is noticed by the next one; after
    a lost connection everything cached goes. Until it is back, `applied` stands still: only what may be old is served.
    """

    is_exact = False

    def __init__(self, redis: Redis, channel: str, counter: str, on_change: OnChange) -> None:
        self.applied = 0
        self._redis = redis
        self._channel = channel
        self._counter = counter
        self._on_change = on_change
        self._is_closed = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        pubsub = await self._subscribe()
        self._task = asyncio.create_task(self._listen(pubsub))

    def refresh(self) -> None:
        return None

    async def close(self) -> None:
        # redis-py may swallow a cancellation while it connects: asked once, the task might listen for ever.
        self._is_closed = True
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=LISTEN_S)

    async def _subscribe(self) -> PubSub:
        pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
        try:
            with translated(self._channel):
                await pubsub.subscribe(self._channel)
                newest = int(await self._redis.get(self._counter) or 0)
        except BaseException:
            await pubsub.aclose()  # type: ignore[no-untyped-call]
            raise
        # Subscribed, then counted, then all dropped: whatever is kept from here on was read after `newest`, and what
        # is committed after it will be told.
        self.applied = newest
        self._on_change(None)
        return pubsub

    async def _listen(self, pubsub: PubSub | None) -> None:
        try:
            while not self._is_closed:
                try:
                    if pubsub is None:
                        pubsub = await self._subscribe()
                        logger.info("state news are back seq=%d", self.applied)
                    message = await pubsub.get_message(timeout=LISTEN_S)
                    if message is not None:
                        self._hear(message["data"])
                except (RedisError, OSError, Unavailable) as error:
                    logger.warning("state news lost cause=%s retry_in_s=%.1f", type(error).__name__, RECONNECT_S)
                    lost, pubsub = pubsub, None
                    await _close(lost)
                    await asyncio.sleep(RECONNECT_S)
        finally:
            await _close(pubsub)

    def _hear(self, data: bytes) -> None:
        number, _, name = data.decode().partition(" ")
        seq = int(number)
        if seq == self.applied + 1:
            self._on_change(Change(Key(*name.split("/", 2)), seq))
        elif seq > self.applied:
            self._on_change(None)
        else:
            return
        self.applied = seq


async def _close(pubsub: PubSub | None) -> None:
    if pubsub is not None:
        await pubsub.aclose()  # type: ignore[no-untyped-call]
