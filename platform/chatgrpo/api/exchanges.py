"""One exchange of a conversation: what was said before, the message, the reply; the last two are kept together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ulid import ULID

from chatgrpo.api.services import Services
from chatgrpo.errors import NotFound
from chatgrpo.inference.deltas import ChatDelta
from chatgrpo.messages import Message, assistant, user
from chatgrpo.state.consistency import Consistency


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """`version` is that of the conversation when it was opened; None: it is new and is created with the reply, so that
    a reply that fails leaves no empty conversation behind."""

    conversation_id: str
    owner: str
    user_id: str | None
    version: int | None
    num_turns: int
    history: tuple[Message, ...]
    message: Message
    context: Mapping[str, Any]

    @property
    def prompt(self) -> tuple[Message, ...]:
        return (*self.history, self.message)


@dataclass(slots=True)
class Reply:
    """A reply while it grows."""

    text: str = ""
    num_tokens: int = 0
    finish_reason: str = ""
    model_version: str = ""

    def add(self, delta: ChatDelta) -> None:
        self.text += delta.text
        self.num_tokens += delta.num_tokens
        self.model_version = delta.model_version
        if delta.finish_reason is not None:
            self.finish_reason = str(delta.finish_reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the conversation is after the exchange."""

    version: int
    turn_count: int
    context: Mapping[str, Any] = field(default_factory=dict)


async def open_exchange(
    services: Services,
    text: str,
    *,
    owner: str,
    conversation_id: str | None,
    user_id: str | None,
    context: Mapping[str, Any],
) -> Exchange:
    """Reads the newest part of the conversation, or begins one. Raises NotFound for an unknown id, and for the
    conversation of another user."""
    if conversation_id is None:
        return Exchange(
            conversation_id=str(ULID()),
            owner=owner,
            user_id=user_id,
            version=None,
            num_turns=0,
            history=(),
            message=user(text),
            context=context,
        )
    # Strong: a stale read would make the append below fail with a conflict that nobody caused.
    found = await services.conversations.get(conversation_id, tenant=owner, level=Consistency.STRONG)
    if user_id is not None and found.user_id not in {None, user_id}:
        raise NotFound(f"there is no conversation {conversation_id}")
    window = await services.conversations.read_recent(
        conversation_id, tenant=owner, max_tokens=services.config.max_history_tokens, level=Consistency.STRONG
    )
    return Exchange(
        conversation_id=conversation_id,
        owner=owner,
        user_id=found.user_id,
        version=found.version,
        num_turns=found.num_messages // 2,
        history=tuple(window.messages),
        message=user(text),
        context={**found.context, **context},
    )


async def keep_exchange(services: Services, exchange: Exchange, reply: Reply, **facts: Any) -> Kept:
    """Appends message and reply, all or none; `facts` go into the reply's metadata. Raises Conflict when somebody else
    wrote to the conversation while the reply was being written."""
    version = exchange.version
    if version is None:
        created = await services.conversations.create(
            exchange.conversation_id, tenant=exchange.owner, user_id=exchange.user_id, context=exchange.context
        )
        version = created.version
    metadata = {"model_version": reply.model_version, "finish_reason": reply.finish_reason, **facts}
    appended = await services.conversations.append(
        exchange.conversation_id,
        [exchange.message, assistant(reply.text)],
        tenant=exchange.owner,
        expected_version=version,
        metadata=[{}, metadata],
        context=exchange.context,
    )
    return Kept(version=appended.version, turn_count=exchange.num_turns + 1, context=exchange.context)
