"""Going on from an earlier version: beside the conversation, as a fork, or in it, as a rollback."""

from __future__ import annotations

from ulid import ULID

from chatgrpo.state import history
from chatgrpo.state.consistency import Consistency, SessionToken
from chatgrpo.state.conversation import Appended, Conversation, check_exists, check_version, missing
from chatgrpo.state.conversation_logs import FRESH, ConversationLogs
from chatgrpo.state.history import Summary
from chatgrpo.state.store import Head, Write
from chatgrpo.state.visible import state_at, summary_of, visible_after


class Branching(ConversationLogs):
    """History is never destroyed here: a fork copies, a rollback is a new version."""

    async def fork(
        self,
        conversation_id: str,
        *,
        tenant: str,
        at_version: int | None = None,
        new_id: str | None = None,
        append_id: str | None = None,
        session: SessionToken = FRESH,
        by: str | None = None,
    ) -> Conversation:
        """A new conversation that begins with what is visible at `at_version`; the copy lives on when the original is
        deleted."""
        log = await self._load(conversation_id, tenant, Consistency.STRONG, session)
        check_exists(log, at_version)
        version = log.head.version if at_version is None else at_version
        state = await state_at(self.tiers, log, version)
        turns = await visible_after(self.tiers, log, after=0, limit=state.num_messages, at_version=version)
        summary = summary_of(log)
        append_id = append_id or str(ULID())
        write = history.fork(
            summary,
            turns,
            context=state.context,
            origin=f"{conversation_id}@{version}",
            now=self._clock.now(),
            append_id=append_id,
        )
        made = await self._create(self._key(tenant, new_id or str(ULID())), write, append_id)
        await self._note("conversation.fork", tenant, made.id, by, origin=made.forked_from)
        return made

    async def rollback(
        self,
        conversation_id: str,
        to_version: int,
        *,
        tenant: str,
        expected_version: int | None = None,
        append_id: str | None = None,
        by: str | None = None,
    ) -> Appended:
        """Shows again what `to_version` showed, as a new version. What came between stays readable and may be rolled
        forward to."""
        log = await self._load(conversation_id, tenant, Consistency.STRONG, FRESH)
        check_exists(log, to_version)
        state = await state_at(self.tiers, log, to_version)
        began = summary_of(log).created_at

        def plan(head: Head, summary: Summary, append_id: str) -> Write:
            if summary.created_at != began:
                raise missing(conversation_id)  # deleted and created anew meanwhile
            check_version(conversation_id, summary, expected_version)
            return history.rollback(
                head,
                summary,
                ranges=state.ranges,
                context=state.context,
                num_messages=state.num_messages,
                now=self._clock.now(),
                append_id=append_id,
            )

        done = await self._write(conversation_id, tenant, plan, append_id, Consistency.STRONG)
        await self._note("conversation.rollback", tenant, conversation_id, by, to=to_version, version=done.version)
        return done
