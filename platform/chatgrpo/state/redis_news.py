"""News of commits by other processes, from the server that they share."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Final

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from chatgrpo.errors import Unavailable
from chatgrpo.state.redis_connection import translated
from chatgrpo.state.store import Change, Key, OnChange

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
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        pubsub = await self._subscribe()
        self._task = asyncio.create_task(self._listen(pubsub))

    def refresh(self) -> None:
        return None

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _subscribe(self) -> PubSub:
        pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
        try:
            with translated(self._channel):
                await pubsub.subscribe(self._channel)
                # Subscribed first, counted second: nothing falls between.
                self._on_change(None)
                self.applied = int(await self._redis.get(self._counter) or 0)
        except BaseException:
            await pubsub.aclose()  # type: ignore[no-untyped-call]
            raise
        return pubsub

    async def _listen(self, pubsub: PubSub | None) -> None:
        while True:
            try:
                if pubsub is None:
                    pubsub = await self._subscribe()
                    logger.info("state news are back seq=%d", self.applied)
                message = await pubsub.get_message(timeout=1.0)
                if message is not None:
                    self._hear(message["data"])
            except (RedisError, Unavailable) as error:
                logger.warning("state news lost cause=%s retry_in_s=%.1f", type(error).__name__, RECONNECT_S)
                if pubsub is not None:
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
                pubsub = None
                await asyncio.sleep(RECONNECT_S)
            except asyncio.CancelledError:
                if pubsub is not None:
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
                raise

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
