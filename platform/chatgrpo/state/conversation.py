"""The nouns of conversations that callers see, and the checks that every act on one begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chatgrpo.errors import Conflict, InvalidRequest, NotFound
from chatgrpo.messages import Message
from chatgrpo.state.consistency import Consistency, SessionToken
from chatgrpo.state.history import Summary, Turn
from chatgrpo.state.store import Head, Log
from chatgrpo.state.visible import summary_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A conversation's head. Times are seconds since the epoch; `num_messages` counts what is visible."""

    id: str
    tenant: str
    user_id: str | None
    version: int
    context: Mapping[str, Any]
    num_messages: int
    created_at: float
    updated_at: float
    expires_at: float | None
    forked_from: str | None
    seq: int

    @property
    def conversation_id(self) -> str:
        return self.id

    def to_dict(self) -> dict[str, Any]:
        return {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in {"tenant", "seq", "context"}
        } | {"context": dict(self.context)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """The version that a write made."""

    conversation_id: str
    version: int
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The newest visible turns, oldest first, of a conversation at `version`. `is_whole`: nothing older is left out."""

    conversation_id: str
    version: int
    seq: int
    turns: tuple[Turn, ...]
    context: Mapping[str, Any]
    is_whole: bool

    @property
    def messages(self) -> list[Message]:
        return [turn.message for turn in self.turns]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """`cursor` continues the list; None at its end."""

    conversations: tuple[Conversation, ...]
    cursor: str | None


def view(log: Log) -> Conversation:
    summary = summary_of(log)
    return Conversation(
        id=log.key.id,
        tenant=log.key.tenant,
        user_id=summary.user_id,
        version=summary.version,
        context=summary.context,
        num_messages=summary.num_messages,
        created_at=summary.created_at,
        updated_at=summary.updated_at,
        expires_at=log.head.expires_at,
        forked_from=summary.forked_from,
        seq=log.head.seq,
    )


def missing(conversation_id: str) -> NotFound:
    """The same for an unknown, an expired and another tenant's conversation."""
    return NotFound(f"there is no conversation {conversation_id}")


def is_expired(head: Head, now: float) -> bool:
    return head.expires_at is not None and head.expires_at <= now


def check_version(conversation_id: str, summary: Summary, expected_version: int | None) -> None:
    """Raises Conflict when a writer's idea of the newest version is not the newest version."""
    if expected_version is not None and expected_version != summary.version:
        raise Conflict(
            f"conversation {conversation_id} is at version {summary.version}, not {expected_version}; "
            "read what is new and retry",
            summary.version,
        )


def check_exists(log: Log, version: int | None) -> None:
    """Raises InvalidRequest for a version that the log does not have."""
    if version is not None and not 0 <= version <= log.head.version:
        raise InvalidRequest(f"version {version} is not between 0 and {log.head.version}", "version")


def check_nothing_lost(log: Log, level: Consistency, session: SessionToken) -> None:
    """Raises Conflict when the store is behind what the client has been shown: a failover lost acknowledged writes."""
    if level is not Consistency.EVENTUAL and log.head.seq < session.seen.get(log.key.id, 0):
        raise Conflict(
            f"conversation {log.key.id} has gone back to version {log.head.version}: its store lost writes that this "
            "session has seen; look at what is left and go on without the session token",
            log.head.version,
        )
