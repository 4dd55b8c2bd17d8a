"""What people said about a turn: a log beside the conversation, so that judging never gets in a writer's way."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from chatgrpo.errors import InvalidRequest
from chatgrpo.state import history
from chatgrpo.state.consistency import Consistency
from chatgrpo.state.store import Head, Key, Log, Write
from chatgrpo.state.tiered import TieredStore

SPACE: Final = "feedback"
MAX_LABEL = 64
MAX_CORRECTED_BYTES = 262_144


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """An opinion on the turn at `version`. `score` lies in [-1, 1]; `corrected` is what should have been said.
    The newest opinion on a turn counts."""

    version: int
    score: float | None = None
    label: str | None = None
    corrected: str | None = None
    user_id: str | None = None
    created_at: float = 0.0

    def check(self) -> None:
        """Raises InvalidRequest naming the field."""
        if self.score is None and self.label is None and self.corrected is None:
            raise InvalidRequest("give a score, a label or a corrected answer", "score")
        if self.score is not None and not -1.0 <= self.score <= 1.0:
            raise InvalidRequest(f"{self.score} is not between -1 and 1", "score")
        if self.label is not None and not 0 < len(self.label) <= MAX_LABEL:
            raise InvalidRequest(f"1 to {MAX_LABEL} characters, got {len(self.label)}", "label")
        if self.corrected is not None and len(self.corrected.encode()) > MAX_CORRECTED_BYTES:
            raise InvalidRequest(f"at most {MAX_CORRECTED_BYTES} bytes", "corrected")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class FeedbackLog:
    def __init__(self, tiers: TieredStore) -> None:
        self._tiers = tiers

    async def add(self, tenant: str, conversation_id: str, feedback: Feedback) -> None:
        record = history.pack(feedback.to_dict())

        def plan(log: Log | None) -> Write:
            version = log.head.version + 1 if log else 0
            head = Head(version=version, data=history.pack({}), owner=feedback.user_id or "")
            return Write(head=head, records=(record,), based_on=log.head.seq if log else 0)

        await self._tiers.update(Key(tenant, SPACE, conversation_id), plan, Consistency.STRONG)

    async def newest(self, tenant: str, conversation_id: str) -> dict[int, Feedback]:
        """The opinion that counts for each turn, by the turn's version."""
        key = Key(tenant, SPACE, conversation_id)
        log = await self._tiers.store.tail(key, 0)
        if log is None:
            return {}
        records = await self._tiers.read(key, 0, log.head.version + 1)
        found = (Feedback(**history.decode_body(key, record)) for record in records)
        return {feedback.version: feedback for feedback in found}

    async def forget(self, tenant: str, conversation_id: str) -> None:
        await self._tiers.delete(Key(tenant, SPACE, conversation_id))
