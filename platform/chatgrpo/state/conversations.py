"""Conversations: created, continued, read, forked, rolled back, forgotten. Works as a library, without Ray.

    conversations = await open_conversations("state.db")       # or "redis://...", or "memory:"
    chat = await conversations.create(None, tenant="t", user_id="u", context={})            # -> Conversation
    done = await conversations.append(chat.id, [user("hi")], tenant="t", expected_version=0) # -> Appended(version=1)
    window = await conversations.read_recent(chat.id, tenant="t", max_tokens=2000)           # -> Window
    window.messages, window.version, [turn.version for turn in window.turns]

Every method is async and takes `tenant`: `create(conversation_id | None, *, tenant, user_id, context, ttl_s)`,
`get(id)`, `append(id, messages, *, expected_version=None, metadata=(), context=None, append_id=None)`,
`set_context(id, context)`, `read_recent(id, *, max_messages=None, max_tokens=None)`,
`read(id, *, after=0, limit=100, at_version=None)`, `list(*, user_id=None, cursor=None, limit=50)`, `delete(id)`,
`fork(id, *, at_version=None, new_id=None)`, `rollback(id, to_version, *, expected_version=None)`,
`feedback(id, version, *, score, label, corrected)`, `export(...)` (an async iterator of training lines),
`create_snapshot(*, user_id=None, name="")`, `list_snapshots()`, `restore_snapshot(id)`, `delete_snapshot(id)`.
Reads and writes of one conversation also take `level` (a Consistency, or None for the default), reads take `session`
(a SessionToken): `session.advance(result)` is the client's next token, for every Conversation, Appended and Window.
One message is one version. A stale `expected_version` raises Conflict with `current_version`; unknown, expired and
other tenants' conversations raise NotFound alike; TooLarge names its limit. `ConversationClient` in
`actors/conversation_store.py` has the same methods and routes them to shards.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

from ulid import ULID

from chatgrpo.audit import AuditSink
from chatgrpo.clock import Clock, SystemClock
from chatgrpo.errors import Conflict, InvalidRequest, NotFound
from chatgrpo.messages import Message, Role
from chatgrpo.state import history
from chatgrpo.state.consistency import Consistency, SessionToken
from chatgrpo.state.conversation import (
    Appended,
    Conversation,
    Page,
    Window,
    check_exists,
    check_nothing_lost,
    check_version,
    is_expired,
    missing,
    view,
)
from chatgrpo.state.export import Include, export_lines
from chatgrpo.state.feedback import Feedback, FeedbackLog
from chatgrpo.state.history import Summary, Turn
from chatgrpo.state.limits import Limits
from chatgrpo.state.snapshots import Restored, Snapshot, SnapshotLog, restore
from chatgrpo.state.store import Head, Key, Log, Write
from chatgrpo.state.tiered import FEW, TieredStore
from chatgrpo.state.visible import Bound, newest, state_at, summary_of, visible_after

SPACE: Final = "conversation"
_ID: Final = re.compile(r"[A-Za-z0-9._:@-]{1,128}")
_FRESH: Final = SessionToken()
DEFAULT_MESSAGES: Final = 50

Planner = Callable[[Head, Summary, str], Write]
"""What to write, given the newest head, its summary and the write's append id."""


def estimate_tokens(text: str) -> int:
    """Four bytes of UTF-8 a token, rounded up: for windows only, where no tokenizer is at hand."""
    return -(-len(text.encode()) // 4)


class Conversations:
    """See the top of this file. `count_tokens` measures messages for token windows when the caller does not say."""

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

    async def get(
        self,
        conversation_id: str,
        *,
        tenant: str,
        level: Consistency | None = None,
        session: SessionToken = _FRESH,
    ) -> Conversation:
        return view(await self._load(conversation_id, tenant, level, session))

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

    async def read_recent(
        self,
        conversation_id: str,
        *,
        tenant: str,
        max_messages: int | None = None,
        max_tokens: int | None = None,
        level: Consistency | None = None,
        session: SessionToken = _FRESH,
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
        session: SessionToken = _FRESH,
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

    async def delete(self, conversation_id: str, *, tenant: str, by: str | None = None) -> None:
        """Forgets the conversation for good: every version, its feedback, its place in snapshots, its cached copies.
        What remains is the entry in the audit trail that it was deleted, by whom and when."""
        await self._load(conversation_id, tenant, Consistency.STRONG, _FRESH)
        await self._forget(tenant, [conversation_id])
        await self._note("conversation.delete", tenant, conversation_id, by)

    async def fork(
        self,
        conversation_id: str,
        *,
        tenant: str,
        at_version: int | None = None,
        new_id: str | None = None,
        append_id: str | None = None,
        session: SessionToken = _FRESH,
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
        log = await self._load(conversation_id, tenant, Consistency.STRONG, _FRESH)
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

    async def prefetch(self, *, tenant: str, user_id: str, limit: int = 4) -> int:
        """Warms L1 with the conversations that a user is about to touch: the newest ones. Returns how many."""
        found = await self.tiers.store.list(tenant, SPACE, owner=user_id, limit=limit)
        await asyncio.gather(*(self.tiers.load(key, Consistency.EVENTUAL, _FRESH) for key, _ in found))
        return len(found)

    async def sweep(self, *, limit: int = 1000) -> int:
        """Deletes conversations whose idle time is over. Returns how many; call again while it returns `limit`."""
        due: dict[str, list[str]] = {}
        for key in await self.tiers.store.expired(self._clock.now(), limit):
            due.setdefault(key.tenant, []).append(key.id)
        for tenant, ids in due.items():
            for id_ in await self._forget(tenant, ids):
                await self._note("conversation.expire", tenant, id_, None)
        return sum(map(len, due.values()))

    async def create_snapshot(self, *, tenant: str, user_id: str | None = None, name: str = "") -> Snapshot:
        """The versions of all of a tenant's (a user's) conversations at one instant, while writers go on."""
        await self.tiers.flush()
        return await self._snapshots.take(tenant, user_id=user_id, name=name)

    async def list_snapshots(self, *, tenant: str) -> Sequence[Snapshot]:
        """Newest first."""
        return await self._snapshots.list(tenant)

    async def restore_snapshot(self, snapshot_id: str, *, tenant: str, by: str | None = None) -> Restored:
        """Shows again what every conversation in the snapshot's scope showed then. Raises NotFound."""
        snapshot = await self._snapshots.get(tenant, snapshot_id)
        before = await self.create_snapshot(tenant=tenant, user_id=snapshot.user_id, name=f"before {snapshot_id}")
        restored = await restore(self, snapshot, before)
        await self._note("snapshot.restore", tenant, snapshot_id, by, changed=restored.num_changed, undo=before.id)
        return restored

    async def delete_snapshot(self, snapshot_id: str, *, tenant: str) -> None:
        """Raises NotFound."""
        if not await self._snapshots.delete(tenant, snapshot_id):
            raise NotFound(f"there is no snapshot {snapshot_id}")

    async def ping(self) -> None:
        """Raises Unavailable when the store does not answer."""
        await self.tiers.store.ping()

    async def close(self) -> None:
        await self.tiers.close()

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
            if await self.tiers.delete(Key(tenant, SPACE, id_)):
                deleted.append(id_)
            # A judgement that came in between.
            await self._feedback.forget(tenant, id_)
        return deleted

    async def _note(self, what: str, tenant: str, target: str, by: str | None, **facts: Any) -> None:
        if self._audit is not None:
            await self._audit.record(who=by or f"tenant:{tenant}", what=what, tenant=tenant, target=target, facts=facts)

    def _turns(
        self, messages: Sequence[Message], metadata: Sequence[Mapping[str, Any]], num_tokens: Sequence[int]
    ) -> Sequence[tuple[Message, int, Mapping[str, Any]]]:
        for name, values in (("metadata", metadata), ("num_tokens", num_tokens)):
            if values and len(values) != len(messages):
                raise InvalidRequest(f"{len(values)} values for {len(messages)} messages; give one each or none", name)
        counts = num_tokens or [self._count_tokens(message.content) for message in messages]
        return list(zip(messages, counts, metadata or [{}] * len(messages), strict=True))

    def _key(self, tenant: str, id_: str) -> Key:
        if not _ID.fullmatch(id_):
            raise InvalidRequest("an id is 1 to 128 of A-Z a-z 0-9 . _ : @ -", "conversation_id")
        return Key(tenant, SPACE, id_)
