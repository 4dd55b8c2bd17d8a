"""How the API lets models speak: on the rung of the ladder where it stands, by a smaller model where one is named."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from chatgrpo.api.cached_chat import CachedChat
from chatgrpo.errors import Overloaded, Unavailable
from chatgrpo.gateway.reply_cache import Asker
from chatgrpo.inference.deltas import ChatDelta
from chatgrpo.inference.engine import SamplingParams
from chatgrpo.messages import Message
from chatgrpo.resilience.config import ResilienceConfig
from chatgrpo.resilience.ladder import Ladder, Rung

logger = logging.getLogger(__name__)


class Replies:
    """All replies of one process. `ladder` counts them."""

    def __init__(self, chat: CachedChat, ladder: Ladder, *, config: ResilienceConfig) -> None:
        self._chat = chat
        self._ladder = ladder
        self._smaller = config.smaller_models

    async def stream(
        self, model: str, messages: Sequence[Message], params: SamplingParams, asker: Asker | None = None
    ) -> AsyncGenerator[ChatDelta, None]:
        """As `ChatService.stream`; `model_version` of the pieces says which model spoke. With an `asker` a greedy reply
        may be one that was written before. Raises Overloaded when more replies are being written than may be."""
        rung = self._ladder.rung
        kept = await self._chat.kept(model, messages, params, asker, may_refresh=rung < Rung.DEGRADE)
        if kept is not None:
            for piece in kept:
                yield piece
            return
        if rung is Rung.REFUSE:
            self._ladder.gave_up("reply")
            raise Overloaded("as many replies are being written as can be; come back in a moment", 2.0)
        self._ladder.num_replies += 1
        try:
            async with aclosing(self._on_rung(rung, model, messages, params, asker)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self._ladder.num_replies -= 1

    async def forget_conversation(self, tenant: str, conversation_id: str) -> None:
        """Replies of a deleted conversation are told to nobody any more."""
        await self._chat.cache.forget_conversation(tenant, conversation_id)

    def _on_rung(
        self, rung: Rung, model: str, messages: Sequence[Message], params: SamplingParams, asker: Asker | None
    ) -> AsyncGenerator[ChatDelta, None]:
        smaller = self._smaller.get(model)
        if smaller is None:
            return self._chat.stream(model, messages, params, asker)
        return self._or_smaller(smaller, rung, model, messages, params, asker)

    async def _or_smaller(
        self,
        smaller: str,
        rung: Rung,
        model: str,
        messages: Sequence[Message],
        params: SamplingParams,
        asker: Asker | None,
    ) -> AsyncGenerator[ChatDelta, None]:
        has_begun = False
        if rung < Rung.DEGRADE:
            try:
                async with aclosing(self._chat.stream(model, messages, params, asker)) as deltas:
                    async for delta in deltas:
                        has_begun = True
                        yield delta
                return
            except Unavailable as error:
                if has_begun:
                    raise
                logger.warning("a smaller model speaks model=%s smaller=%s cause=%s", model, smaller, error)
        self._ladder.gave_up("quality")
        async with aclosing(self._chat.stream(smaller, messages, params)) as deltas:
            async for delta in deltas:
                yield delta


async def replies_of(connection: HTTPConnection) -> Replies:
    replies = connection.app.state.replies
    assert isinstance(replies, Replies)
    return replies


RepliesOf = Annotated[Replies, Depends(replies_of)]
