"""What people think of replies, and what training reads of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from chatgrpo.errors import InvalidRequest
from chatgrpo.messages import Role
from chatgrpo.state.consistency import Consistency
from chatgrpo.state.conversation import missing
from chatgrpo.state.export import Include, export_lines
from chatgrpo.state.feedback import Feedback
from chatgrpo.state.reading import Reading


class Judging(Reading):
    """A judgement names the version of the turn that it judges; the newest one counts."""

    async def feedback(
        self,
        conversation_id: str,
        version: int,
        *,
        tenant: str,
        score: float | None = None,
        label: str | None = None,
        corrected: str | None = None,
        user_id: str | None = None,
    ) -> Feedback:
        """Judges the assistant's turn at `version`. Raises InvalidRequest when there is no such turn."""
        given = Feedback(
            version=version,
            score=score,
            label=label,
            corrected=corrected,
            user_id=user_id,
            created_at=self._clock.now(),
        )
        given.check()
        turns = await self.read(conversation_id, tenant=tenant, after=version - 1, limit=1, level=Consistency.STRONG)
        if not turns or turns[0].version != version or turns[0].message.role is not Role.ASSISTANT:
            raise InvalidRequest(f"version {version} is not a visible turn of the assistant", "version")
        await self._feedback.add(tenant, conversation_id, given)
        if await self.tiers.store.tail(self._key(tenant, conversation_id), 0) is None:
            await self._feedback.forget(tenant, conversation_id)
            raise missing(conversation_id)
        await self._note("conversation.feedback", tenant, conversation_id, user_id, version=version)
        return given

    async def opinions(self, conversation_id: str, *, tenant: str) -> dict[int, Feedback]:
        """The opinion that counts for each judged turn, by the turn's version."""
        return await self._feedback.newest(tenant, conversation_id)

    def export(
        self, *, tenant: str, user_id: str | None = None, include: Include = Include.FEEDBACK
    ) -> AsyncIterator[dict[str, Any]]:
        """Training lines (see `training_lines`), one a judged turn of the assistant (with `all`, one a turn)."""
        return export_lines(self, tenant=tenant, user_id=user_id, include=include)
