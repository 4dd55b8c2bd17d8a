"""Greedy replies that were written before are told again; equal requests that come while one is being written wait for
it. Everything else goes straight to the model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from chatgrpo.api.guarded_chat import GuardedChat
from chatgrpo.errors import PlatformError
from chatgrpo.gateway.kept_replies import Asker, name_of
from chatgrpo.gateway.reply_cache import ReplyCache
from chatgrpo.inference.deltas import ChatDelta
from chatgrpo.inference.engine import SamplingParams
from chatgrpo.messages import Message

logger = logging.getLogger(__name__)

Pieces = tuple[ChatDelta, ...]


class CachedChat:
    """Without an asker nothing is kept or told again."""

    def __init__(self, chat: GuardedChat, cache: ReplyCache) -> None:
        self.cache = cache
        self._chat = chat
        self._writing: dict[str, asyncio.Future[Pieces | None]] = {}
        self._refreshing: dict[str, asyncio.Task[None]] = {}

    async def kept(
        self,
        model: str,
        messages: Sequence[Message],
        params: SamplingParams,
        asker: Asker | None,
        *,
        may_refresh: bool = True,
    ) -> Pieces | None:
        """The reply, if it is there or being written. A stale one is told at once, and written anew behind the teller's
        back if it may."""
        if asker is None or not self._is_for(params):
            return None
        await self.cache.published(asker, model)
        name = name_of(asker, model, messages, params)
        while True:
            found = await self.cache.get(name)
            if found is not None:
                self.cache.looked("hit" if found.is_fresh else "stale")
                if not found.is_fresh and may_refresh and name not in self._refreshing:
                    self._begin_refresh(name, model, messages, params, asker)
                return found.reply.pieces
            writing = self._writing.get(name)
            if writing is None:
                self.cache.looked("miss")
                return None
            pieces = await asyncio.shield(writing)
            if pieces is not None:
                self.cache.looked("shared")
                return pieces
            # Whoever wrote it left or failed: one of those who waited writes it now.

    async def stream(
        self, model: str, messages: Sequence[Message], params: SamplingParams, asker: Asker | None = None
    ) -> AsyncGenerator[ChatDelta, None]:
        """As `GuardedChat.stream`; what may be told again is kept."""
        if asker is None or not self._is_for(params):
            deltas = self._chat.stream(model, messages, params)
        else:
            name = name_of(asker, model, messages, params)
            deltas = self._written(name, model, messages, params, asker)
        async with aclosing(deltas):
            async for delta in deltas:
                yield delta

    def _is_for(self, params: SamplingParams) -> bool:
        return self.cache.is_on and params.temperature == 0

    def _begin_refresh(
        self, name: str, model: str, messages: Sequence[Message], params: SamplingParams, asker: Asker
    ) -> None:
        task = asyncio.create_task(self._refresh(name, model, messages, params, asker))
        self._refreshing[name] = task
        task.add_done_callback(lambda _: self._refreshing.pop(name, None))

    async def _written(
        self, name: str, model: str, messages: Sequence[Message], params: SamplingParams, asker: Asker
    ) -> AsyncGenerator[ChatDelta, None]:
        writing: asyncio.Future[Pieces | None] = asyncio.get_running_loop().create_future()
        self._writing.setdefault(name, writing)
        pieces: list[ChatDelta] = []
        try:
            async with aclosing(self._chat.stream(model, messages, params)) as deltas:
                async for delta in deltas:
                    pieces.append(delta)
                    if delta.finish_reason is not None:
                        # Before the last piece is told: whoever reads it may be gone after it.
                        await self.cache.put(name, pieces, asker, model)
                        writing.set_result(tuple(pieces))
                    yield delta
        finally:
            if self._writing.get(name) is writing:
                del self._writing[name]
            if not writing.done():
                writing.set_result(None)

    async def _refresh(
        self, name: str, model: str, messages: Sequence[Message], params: SamplingParams, asker: Asker
    ) -> None:
        try:
            async with aclosing(self._written(name, model, messages, params, asker)) as deltas:
                async for _ in deltas:
                    pass
        except PlatformError as error:
            logger.info("a stale reply stays as it is: %s", error.message)
