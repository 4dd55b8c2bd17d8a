"""Conversations as training data: one JSON object for each turn of the assistant that is worth learning from.

    {"messages": [...up to the user's turn], "answer": "what should be said", "response": "what was said",
     "score": 0.5, "label": "wrong", "conversation_id": "...", "version": 4}

`answer` is the corrected answer; without one, the reply itself when its score is positive; else null. The training data
loader reads `messages` and `answer`, and keeps the other fields as the task's metadata.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

from chatgrpo.errors import NotFound
from chatgrpo.messages import Role
from chatgrpo.state.conversation import Page
from chatgrpo.state.feedback import Feedback
from chatgrpo.state.history import Turn

PAGE = 100


class Include(StrEnum):
    """Which turns of the assistant: those with feedback, or all."""

    FEEDBACK = "feedback"
    ALL = "all"


class Source(Protocol):
    """The part of `Conversations` that an export reads."""

    async def list(self, *, tenant: str, user_id: str | None, cursor: str | None, limit: int) -> Page: ...

    async def read(self, conversation_id: str, *, tenant: str, limit: int) -> tuple[Turn, ...]: ...

    async def opinions(self, conversation_id: str, *, tenant: str) -> dict[int, Feedback]: ...


def training_lines(
    conversation_id: str, turns: Sequence[Turn], judged: Mapping[int, Feedback], include: Include
) -> Iterator[dict[str, Any]]:
    for position, turn in enumerate(turns):
        opinion = judged.get(turn.version)
        if turn.message.role is not Role.ASSISTANT:
            continue
        if not any(earlier.message.role is Role.USER for earlier in turns[:position]):
            continue  # a greeting answers nothing
        if opinion is None and include is Include.FEEDBACK:
            continue
        yield {
            "messages": [earlier.message.to_dict() for earlier in turns[:position]],
            "answer": _answer(turn, opinion),
            "response": turn.message.content,
            "score": opinion.score if opinion else None,
            "label": opinion.label if opinion else None,
            "conversation_id": conversation_id,
            "version": turn.version,
        }


def _answer(turn: Turn, opinion: Feedback | None) -> str | None:
    if opinion is None:
        return None
    if opinion.corrected is not None:
        return opinion.corrected
    return turn.message.content if opinion.score is not None and opinion.score > 0 else None


async def export_lines(
    source: Source, *, tenant: str, user_id: str | None, include: Include
) -> AsyncIterator[dict[str, Any]]:
    """Lines of all of a tenant's (a user's) conversations. One that is deleted while the export runs is left out."""
    cursor = None
    while True:
        page = await source.list(tenant=tenant, user_id=user_id, cursor=cursor, limit=PAGE)
        for found in page.conversations:
            judged = await source.opinions(found.id, tenant=tenant)
            if not judged and include is Include.FEEDBACK:
                continue
            try:
                turns = await source.read(found.id, tenant=tenant, limit=max(1, found.num_messages))
            except NotFound:
                continue
            for line in training_lines(found.id, turns, judged, include):
                yield line
        if page.cursor is None:
            return
        cursor = page.cursor
