"""Consistency levels, the token a client carries, and the one decision they lead to: may this cached copy answer?

| level    | a read sees at least                                            | a write is acknowledged when       |
|----------|-----------------------------------------------------------------|------------------------------------|
| eventual | some earlier state; all replicas agree once writes stop         | queued in this process (bounded)   |
| session  | what this client wrote and read of the conversation             | durable                            |
| causal   | everything that what this client has seen could depend on       | durable                            |
| strong   | every write acknowledged before the read began (linearizable)   | durable                            |
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from chatgrpo.errors import InvalidRequest
from chatgrpo.state.store import Head

MAX_SEEN = 32
"""Conversations a token names; older ones are covered by `floor`. Keeps the header below 4 KiB."""


class Consistency(StrEnum):
    EVENTUAL = "eventual"
    SESSION = "session"
    CAUSAL = "causal"
    STRONG = "strong"

    @property
    def is_durable(self) -> bool:
        return self is not Consistency.EVENTUAL


class Observed(Protocol):
    """A result that shows a conversation at a version."""

    @property
    def conversation_id(self) -> str: ...

    @property
    def seq(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionToken:
    """What a client has seen: `seen` maps conversation ids to the commit that it saw, `seq` is the newest commit seen
    of all, `floor` the newest commit dropped from `seen`. Hand it back with each request; `text` is its wire form."""

    seq: int = 0
    floor: int = 0
    seen: dict[str, int] = field(default_factory=dict)

    def advance(self, observed: Observed) -> SessionToken:
        seen = {k: v for k, v in self.seen.items() if k != observed.conversation_id}
        seen[observed.conversation_id] = max(observed.seq, self.seen.get(observed.conversation_id, 0))
        floor = self.floor
        while len(seen) > MAX_SEEN:
            floor = max(floor, seen.pop(next(iter(seen))))
        return SessionToken(seq=max(self.seq, observed.seq), floor=floor, seen=seen)

    def needs(self, conversation_id: str) -> int:
        """The oldest commit of this conversation that may still be shown to the client."""
        return self.seen.get(conversation_id, self.floor)

    @property
    def text(self) -> str:
        return base64.urlsafe_b64encode(json.dumps([self.seq, self.floor, self.seen]).encode()).decode()

    @classmethod
    def parse(cls, text: str | None) -> SessionToken:
        """Raises InvalidRequest for anything that is not a token; the empty token for None or ''."""
        if not text:
            return cls()
        try:
            seq, floor, seen = json.loads(base64.urlsafe_b64decode(text.encode()))
            return cls(seq=int(seq), floor=int(floor), seen={str(k): int(v) for k, v in dict(seen).items()})
        except (ValueError, TypeError, binascii.Error) as error:
            raise InvalidRequest(
                "not a session token; send the last one received, or none to start afresh", "session"
            ) from error


def may_serve(
    cached: Head, conversation_id: str, *, level: Consistency, token: SessionToken, applied: int, is_current: bool
) -> bool:
    """Whether a cached copy answers a read at `level`. All changes by commits up to `applied` have reached the cache,
    so a copy that is still there was the newest as of `applied`. `is_current`: `applied` is the store's present."""
    if is_current or level is Consistency.EVENTUAL:
        return True
    if level is Consistency.SESSION:
        return max(cached.seq, applied) >= token.needs(conversation_id)
    if level is Consistency.CAUSAL:
        return applied >= token.seq
    return False
