"""Reading conversations: one's head, its newest turns, all of its turns page by page, the list of a user's."""

from __future__ import annotations

import asyncio
from typing import Final

from chatgrpo.state.consistency import Consistency, SessionToken
from chatgrpo.state.conversation import Conversation, Page, Window, check_exists, is_expired, view
from chatgrpo.state.conversation_logs import FRESH, SPACE, ConversationLogs
from chatgrpo.state.history import Turn
from chatgrpo.state.store import Log
from chatgrpo.state.visible import Bound, newest, summary_of, visible_after

DEFAULT_MESSAGES: Final = 50


class Reading(ConversationLogs):
    """No act here changes anything."""

    async def get(
        self,
        conversation_id: str,
        *,
        tenant: str,
        level: Consistency | None = None,
        session: SessionToken = FRESH,
    ) -> Conversation:
        return view(await self._load(conversation_id, tenant, level, session))

    async def read_recent(
        self,
        conversation_id: str,
        *,
        tenant: str,
        max_messages: int | None = None,
        max_tokens: int | None = None,
        level: Consistency | None = None,
        session: SessionToken = FRESH,
    ) -> Window:
        """The newest turns within both limits; the newest 50 when none is given. Flat in the conversation's length."""
        wanted = (max_messages, max_tokens)
        hot = self.tiers.hot((tenant, SPACE, conversation_id), level or self.default_level, session)
        if hot is not None and hot.head.expires_at is None and (known := hot.memo.get(wanted)) is not None:
            return known  # type: ignore[no-any-return]
        want = max_messages or DEFAULT_MESSAGES
        log = await self._load(conversation_id, tenant, level, session, want=want)
        window: Window | None = log.memo.get(wanted)
        if window is None:
            if wanted == (None, None):
                max_messages = DEFAULT_MESSAGES
            turns, is_whole = await newest(self.tiers, log, Bound(max_messages, max_tokens))
            window = log.memo[wanted] = Window(
                conversation_id=conversation_id,
                version=log.head.version,
                seq=log.head.seq,
                turns=turns,
                context=summary_of(log).context,
                is_whole=is_whole,
            )
        return window

    async def read(
        self,
        conversation_id: str,
        *,
        tenant: str,
        after: int = 0,
        limit: int = 100,
        at_version: int | None = None,
        level: Consistency | None = None,
        session: SessionToken = FRESH,
    ) -> tuple[Turn, ...]:
        """Turns with versions above `after`, oldest first, as the conversation stood at `at_version` (default: now)."""
        log = await self._load(conversation_id, tenant, level, session)
        check_exists(log, at_version)
        return await visible_after(self.tiers, log, after=after, limit=limit, at_version=at_version)

    async def list(
        self, *, tenant: str, user_id: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> Page:
        """A user's conversations (a tenant's, without `user_id`) by id, descending: ULIDs list newest first."""
        found = await self.tiers.store.list(tenant, SPACE, owner=user_id, before=cursor, limit=limit)
        now = self._clock.now()
        views = tuple(view(Log(key, head, ())) for key, head in found if not is_expired(head, now))
        return Page(conversations=views, cursor=found[-1][0].id if len(found) == limit else None)

    async def prefetch(self, *, tenant: str, user_id: str, limit: int = 4) -> int:
        """Warms L1 with the conversations that a user is about to touch: the newest ones. Returns how many."""
        found = await self.tiers.store.list(tenant, SPACE, owner=user_id, limit=limit)
        await asyncio.gather(*(self.tiers.load(key, Consistency.EVENTUAL, FRESH) for key, _ in found))
        return len(found)
