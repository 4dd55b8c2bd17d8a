"""What every act on a conversation begins and ends with: its log is found at the level that was asked for, and what a
plan makes of the newest state is committed, once. The acts themselves are in the modules that build on this."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from ulid import ULID

from chatgrpo.audit import AuditSink
from chatgrpo.clock import Clock, SystemClock
from chatgrpo.errors import Conflict, InvalidRequest
from chatgrpo.state.consistency import Consistency, SessionToken
from chatgrpo.state.conversation import Appended, Conversation, check_nothing_lost, is_expired, missing, view
from chatgrpo.state.feedback import FeedbackLog
from chatgrpo.state.history import Summary
from chatgrpo.state.limits import Limits
from chatgrpo.state.snapshots import SnapshotLog
from chatgrpo.state.store import Head, Key, Log, Write
from chatgrpo.state.tiered import FEW, TieredStore
from chatgrpo.state.visible import summary_of

SPACE: Final = "conversation"
KEPT_ANSWERS: Final = "kept_answer"
"""Space of answers kept for clients that repeat a request; the owner of one is the conversation that it speaks of."""
FRESH: Final = SessionToken()
"""Of a client that has seen nothing yet."""
MAX_KEPT: Final = 100_000
_ID: Final = re.compile(r"[A-Za-z0-9._:@-]{1,128}")

Planner = Callable[[Head, Summary, str], Write]
"""What to write, given the newest head, its summary and the write's append id."""


def estimate_tokens(text: str) -> int:
    """Four bytes of UTF-8 a token, rounded up: for windows only, where no tokenizer is at hand."""
    return -(-len(text.encode()) // 4)


class ConversationLogs:
    """`count_tokens` measures messages for token windows when the caller does not say."""

    def __init__(
        self,
        tiers: TieredStore,
        *,
        clock: Clock | None = None,
        limits: Limits | None = None,
        level: Consistency = Consistency.SESSION,
        count_tokens: Callable[[str], int] = estimate_tokens,
        audit: AuditSink | None = None,
        idle_ttl_s: float | None = None,
        snapshot_retention: int = 20,
    ) -> None:
        self.tiers = tiers
        self.default_level = level
        self._clock = clock or SystemClock()
        self._limits = limits or Limits()
        self._count_tokens = count_tokens
        self._feedback = FeedbackLog(tiers)
        self._audit = audit
        self._idle_ttl_s = idle_ttl_s
        self._snapshots = SnapshotLog(tiers.store, clock=self._clock, retention=snapshot_retention)

    async def _load(
        self, id_: str, tenant: str, level: Consistency | None, session: SessionToken, *, want: int = FEW
    ) -> Log:
        key = self._key(tenant, id_)
        log = await self.tiers.load(key, level or self.default_level, session, want=want)
        if log is None or is_expired(log.head, self._clock.now()):
            raise missing(id_)
        check_nothing_lost(log, level or self.default_level, session)
        return log

    async def _write(
        self,
        id_: str,
        tenant: str,
        plan: Planner,
        append_id: str | None,
        level: Consistency | None,
        *,
        may_wait: bool = False,
    ) -> Appended:
        """Commits what `plan` makes of the newest state, unless a write with this `append_id` is there already."""
        append_id = append_id or str(ULID())

        def plan_log(log: Log | None) -> Write | None:
            if log is None or is_expired(log.head, self._clock.now()):
                raise missing(id_)
            summary = summary_of(log)
            return None if append_id in dict(summary.recent) else plan(log.head, summary, append_id)

        log = await self.tiers.update(self._key(tenant, id_), plan_log, level or self.default_level, may_wait=may_wait)
        assert log is not None
        version = dict(summary_of(log).recent)[append_id]
        return Appended(conversation_id=id_, version=version, seq=log.head.seq)

    async def _create(self, key: Key, write: Write, append_id: str) -> Conversation:
        def plan(log: Log | None) -> Write | None:
            if log is None:
                return write
            if append_id in dict(summary_of(log).recent):
                return None
            raise Conflict(f"conversation {key.id} exists already; choose another id or none", log.head.version)

        existing = await self.tiers.store.tail(key, 0)
        if existing is not None and is_expired(existing.head, self._clock.now()):
            await self._forget(key.tenant, [key.id])
        log = await self.tiers.update(key, plan, Consistency.STRONG)
        assert log is not None
        return view(log)

    async def _forget(self, tenant: str, ids: Sequence[str]) -> Sequence[str]:
        """The ids that were there. The log goes last: after a crash the conversation is there to be deleted again."""
        await self._snapshots.forget(tenant, ids)
        deleted = []
        for id_ in ids:
            await self._feedback.forget(tenant, id_)
            for kept, _ in await self.tiers.store.list(tenant, KEPT_ANSWERS, owner=id_, limit=MAX_KEPT):
                await self.tiers.store.delete(kept)
            if await self.tiers.delete(Key(tenant, SPACE, id_)):
                deleted.append(id_)
            # A judgement that came in between.
            await self._feedback.forget(tenant, id_)
        return deleted

    async def _note(self, what: str, tenant: str, target: str, by: str | None, **facts: Any) -> None:
        if self._audit is not None:
            await self._audit.record(who=by or f"tenant:{tenant}", what=what, tenant=tenant, target=target, facts=facts)

    def _key(self, tenant: str, id_: str) -> Key:
        if not _ID.fullmatch(id_):
            raise InvalidRequest("an id is 1 to 128 of A-Z a-z 0-9 . _ : @ -", "conversation_id")
        return Key(tenant, SPACE, id_)
