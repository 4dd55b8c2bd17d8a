"""Forgetting conversations: when somebody says so, and when they were idle for too long."""

from __future__ import annotations

from chatgrpo.state.consistency import Consistency
from chatgrpo.state.conversation_logs import FRESH, SPACE, ConversationLogs


class Forgetting(ConversationLogs):
    """What remains of a forgotten conversation is its entry in the audit trail."""

    async def delete(self, conversation_id: str, *, tenant: str, by: str | None = None) -> None:
        """Forgets the conversation for good: every version, its feedback, its place in snapshots, its cached copies.
        What remains is the entry in the audit trail that it was deleted, by whom and when."""
        await self._load(conversation_id, tenant, Consistency.STRONG, FRESH)
        await self._forget(tenant, [conversation_id])
        await self._note("conversation.delete", tenant, conversation_id, by)

    async def sweep(self, *, limit: int = 1000) -> int:
        """Deletes conversations whose idle time is over, and what else of the store has expired. Returns how many; call
        again while it returns `limit`."""
        due: dict[str, list[str]] = {}
        expired = await self.tiers.store.expired(self._clock.now(), limit)
        for key in expired:
            if key.space == SPACE:
                due.setdefault(key.tenant, []).append(key.id)
            else:
                await self.tiers.store.delete(key)
        for tenant, ids in due.items():
            for id_ in await self._forget(tenant, ids):
                await self._note("conversation.expire", tenant, id_, None)
        return len(expired)
