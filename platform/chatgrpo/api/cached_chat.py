"""Greedy replies that were written before are told again; equal requests that come while one is being written wait for
it. Everything else goes straight to the model."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from chatgrpo.api.guarded_chat import GuardedChat
from chatgrpo.errors import PlatformError
from chatgrpo.gateway.reply_cache import Asker, Pieces, ReplyCache, name_of
from chatgrpo.inference.deltas import ChatDelta
from chatgrpo.inference.engine import SamplingParams
from chatgrpo.messages import Message

logger = logging.getLogger(__name__)

MAX_WARM_MODELS: Final = 1000
"""Models whose newest questions one process remembers."""


class CachedChat:
    """Without an asker nothing is kept or told again."""

    def __init__(self, chat: GuardedChat, cache: ReplyCache) -> None:
        self.cache = cache
        self._chat = chat
        self._writing: dict[str, asyncio.Future[Pieces | None]] = {}
        self._refreshing: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[tuple[str, str], OrderedDict[str, tuple[Sequence[Message], SamplingParams]]] = {}

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
        name = name_of(asker, model, messages, params)
        self._remember(model, messages, params, asker)
        if await self.cache.published(asker, model) and may_refresh:
            self._warm_up(replace(asker, conversation_id=None), model)
        while True:
            found = await self.cache.get(name)
            if found is not None:
                self.cache.looked("hit" if found.is_fresh else "stale")
                if not found.is_fresh and may_refresh and name not in self._refreshing:
                    self._begin_refresh(name, model, messages, params, asker)
                return found.pieces
            writing = self._writing.get(name)
            if writing is None:
                self.cache.looked("miss")
                return None
            pieces = await asyncio.shield(writing)
            if pieces is not None:
                self.cache.looked("shared")
                return pieces
            # Whoever wrote it left or failed: one of those who waited writes it now.

    def stream(
        self, model: str, messages: Sequence[Message], params: SamplingParams, asker: Asker | None = None
    ) -> AsyncGenerator[ChatDelta, None]:
        """As `GuardedChat.stream`; what may be told again is kept."""
        if asker is None or not self._is_for(params):
            return self._chat.stream(model, messages, params)
        return self._written(name_of(asker, model, messages, params), model, messages, params, asker)

    def _remember(self, model: str, messages: Sequence[Message], params: SamplingParams, asker: Asker) -> None:
        """What was asked in a conversation is not remembered beside it: it may be forgotten any time."""
        if not self.cache.config.warm_up or asker.conversation_id is not None:
            return
        asked = self._asked.setdefault((asker.tenant, model), OrderedDict())
        # Whatever the version, the question is the same.
        question = name_of(replace(asker, version=""), model, messages, params)
        asked[question] = (messages, params)
        asked.move_to_end(question)
        if len(asked) > self.cache.config.warm_up:
            asked.popitem(last=False)
        if len(self._asked) > MAX_WARM_MODELS:
            del self._asked[next(iter(self._asked))]

    def _warm_up(self, asker: Asker, model: str) -> None:
        """Asks the newest questions anew, one after the other, so that people find them answered."""
        asked = list(self._asked.get((asker.tenant, model), {}).values())

        async def ask_all() -> None:
            for messages, params in reversed(asked):
                name = name_of(asker, model, messages, params)
                if await self.cache.get(name) is None and name not in self._writing:
                    await self._refresh(name, model, messages, params, asker)

        if asked:
            self._keep_running(f"warm-up {asker.tenant} {model}", ask_all())

    def _is_for(self, params: SamplingParams) -> bool:
        """Whoever asks with tools acts on the answer, and may act each time."""
        return self.cache.is_on and params.temperature == 0 and not params.tools

    def _begin_refresh(
        self, name: str, model: str, messages: Sequence[Message], params: SamplingParams, asker: Asker
    ) -> None:
        self._keep_running(name, self._refresh(name, model, messages, params, asker))

    def _keep_running(self, name: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
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
