"""Beginning a conversation and adding to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ulid import ULID

from chatgrpo.errors import InvalidRequest
from chatgrpo.messages import Message
from chatgrpo.state import history
from chatgrpo.state.consistency import Consistency
from chatgrpo.state.conversation import Appended, Conversation, check_version
from chatgrpo.state.conversation_logs import ConversationLogs
from chatgrpo.state.history import Summary
from chatgrpo.state.store import Head, Write


class Writing(ConversationLogs):
    """Every act here makes a version."""

    async def create(
        self,
        conversation_id: str | None = None,
        *,
        tenant: str,
        user_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        ttl_s: float | None = None,
        append_id: str | None = None,
        by: str | None = None,
    ) -> Conversation:
        """With `ttl_s`, a conversation that is idle for so many seconds is deleted. Raises Conflict for a known id."""
        key = self._key(tenant, conversation_id or str(ULID()))
        self._limits.check_context(context or {})
        append_id = append_id or str(ULID())
        now = self._clock.now()
        ttl_s = self._idle_ttl_s if ttl_s is None else ttl_s
        write = history.create(user_id=user_id, context=dict(context or {}), ttl_s=ttl_s, now=now, append_id=append_id)
        made = await self._create(key, write, append_id)
        await self._note("conversation.create", tenant, key.id, by or user_id, version=made.version)
        return made

    async def append(
        self,
        conversation_id: str,
        messages: Sequence[Message],
        *,
        tenant: str,
        expected_version: int | None = None,
        metadata: Sequence[Mapping[str, Any]] = (),
        num_tokens: Sequence[int] = (),
        context: Mapping[str, Any] | None = None,
        append_id: str | None = None,
        level: Consistency | None = None,
    ) -> Appended:
        """Adds messages at the end, all or none; `context` is merged into the conversation's with them, in one commit.
        `metadata` and `num_tokens` are one a message, when given. A retry with the same `append_id` adds nothing twice
        and answers the version that the first made. Raises Conflict when `expected_version` is not the current one."""
        self._limits.check_messages(messages)
        if not messages and not context:
            raise InvalidRequest("give at least one message", "messages")
        turns = self._turns(messages, metadata, num_tokens)

        def plan(head: Head, summary: Summary, append_id: str) -> Write:
            check_version(conversation_id, summary, expected_version)
            merged = {**summary.context, **(context or {})}
            changed = merged if merged != summary.context else None
            if changed is not None:
                self._limits.check_context(changed)
            now = self._clock.now()
            return history.append(head, summary, turns, now=now, append_id=append_id, context=changed)

        return await self._write(conversation_id, tenant, plan, append_id, level, may_wait=expected_version is None)

    async def set_context(
        self,
        conversation_id: str,
        context: Mapping[str, Any],
        *,
        tenant: str,
        expected_version: int | None = None,
        append_id: str | None = None,
        level: Consistency | None = None,
        by: str | None = None,
    ) -> Appended:
        """Replaces the context, as a new version."""
        self._limits.check_context(context)

        def plan(head: Head, summary: Summary, append_id: str) -> Write:
            check_version(conversation_id, summary, expected_version)
            now = self._clock.now()
            return history.append(head, summary, (), now=now, append_id=append_id, context=dict(context))

        done = await self._write(conversation_id, tenant, plan, append_id, level)
        await self._note("conversation.context", tenant, conversation_id, by, version=done.version)
        return done

    def _turns(
        self, messages: Sequence[Message], metadata: Sequence[Mapping[str, Any]], num_tokens: Sequence[int]
    ) -> Sequence[tuple[Message, int, Mapping[str, Any]]]:
        for name, values in (("metadata", metadata), ("num_tokens", num_tokens)):
            if values and len(values) != len(messages):
                raise InvalidRequest(f"{len(values)} values for {len(messages)} messages; give one each or none", name)
        counts = num_tokens or [self._count_tokens(message.content) for message in messages]
        return list(zip(messages, counts, metadata or [{}] * len(messages), strict=True))
