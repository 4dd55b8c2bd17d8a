"""Conversations over HTTP: read, continued, forked, rolled back, judged, exported, forgotten.

A version travels as an ETag: `If-Match: "7"` (or `expected_version` in the body) makes a write conditional, and a stale
one is answered 409 with the current version. What a client has seen travels in the header `X-Session-Token`: send back
the last one received to read your own writes at the levels session and causal.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Header, Path, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from chatgrpo.api.errors import RESPONSES
from chatgrpo.api.identity import Owner
from chatgrpo.api.replies import RepliesOf
from chatgrpo.api.services import Services, ServicesOf
from chatgrpo.errors import InvalidRequest, Unavailable
from chatgrpo.messages import Message
from chatgrpo.state.consistency import Consistency, Observed, SessionToken
from chatgrpo.state.export import Include

router = APIRouter(prefix="/api/v2/conversations", tags=["conversations"], responses=RESPONSES)

SESSION_HEADER = "X-Session-Token"

ConversationId = Annotated[str, Path(description="Id of a conversation.", min_length=1, max_length=128)]
Level = Annotated[Consistency | None, Query(alias="consistency", description="What the read must have seen.")]


async def _session(x_session_token: Annotated[str | None, Header(max_length=8192)] = None) -> SessionToken:
    return SessionToken.parse(x_session_token)


async def _if_match(if_match: Annotated[str | None, Header(description='A version, as in "7".')] = None) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip().removeprefix("W/").strip('"')
    if not text.isdigit():
        raise InvalidRequest(f'{if_match} is not a version; send the ETag received, as in "7"', "If-Match")
    return int(text)


Session = Annotated[SessionToken, Depends(_session)]
IfMatch = Annotated[int | None, Depends(_if_match)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewConversation(Body):
    conversation_id: str | None = Field(None, description="Absent: the platform makes one.")
    user_id: str | None = Field(None, min_length=1, max_length=256, description="Whose conversation it is.")
    context: dict[str, Any] = Field(default_factory=dict, description="Facts kept with the conversation.")
    ttl_s: float | None = Field(None, gt=0, description="Deleted when idle for so many seconds; absent: never.")


class NewMessages(Body):
    messages: list[dict[str, Any]] = Field(min_length=1, description="Messages in OpenAI's shape, kept all or none.")
    metadata: list[dict[str, Any]] = Field(default_factory=list, description="One object a message, or none.")
    context: dict[str, Any] = Field(default_factory=dict, description="Merged into the conversation's.")
    expected_version: int | None = Field(None, ge=0, description="The version that the writer has seen.")
    append_id: str | None = Field(
        None, min_length=1, max_length=64, description="A name for this write: a retry with the same name adds nothing."
    )


class NewContext(Body):
    context: dict[str, Any] = Field(description="Replaces the conversation's.")
    expected_version: int | None = Field(None, ge=0, description="The version that the writer has seen.")


class Fork(Body):
    at_version: int | None = Field(None, ge=0, description="What to begin with; absent: everything.")
    conversation_id: str | None = Field(None, description="Id of the new conversation; absent: the platform makes one.")


class Rollback(Body):
    to_version: int = Field(ge=0, description="Show again what this version showed.")
    expected_version: int | None = Field(None, ge=0, description="The version that the writer has seen.")


class Judgement(Body):
    version: int = Field(ge=1, description="Version of the assistant's turn that is judged.")
    score: float | None = Field(None, ge=-1, le=1, description="From -1 (bad) to 1 (good).")
    label: str | None = Field(None, max_length=64, description="A word for it, for example `wrong_tool`.")
    corrected: str | None = Field(None, description="What should have been said.")
    user_id: str | None = Field(None, max_length=256, description="Who judges.")


@router.post("", status_code=201)
async def create(
    body: NewConversation, services: ServicesOf, owner: Owner, session: Session, response: Response
) -> dict[str, Any]:
    made = await services.conversations.create(
        body.conversation_id, tenant=owner, user_id=body.user_id, context=body.context, ttl_s=body.ttl_s
    )
    _mark(response, session, made, made.version)
    return made.to_dict()


@router.get("")
async def list_conversations(
    services: ServicesOf,
    owner: Owner,
    background: BackgroundTasks,
    user_id: Annotated[str | None, Query(description="Only this user's.")] = None,
    cursor: Annotated[str | None, Query(description="From the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> dict[str, Any]:
    """By id, descending: ids made by the platform list newest first."""
    page = await services.conversations.list(tenant=owner, user_id=user_id, cursor=cursor, limit=limit)
    if user_id is not None and cursor is None:
        # Whoever looks at a user's newest conversations opens one of them next.
        background.add_task(_prefetch, services, owner, user_id)
    return {"conversations": [found.to_dict() for found in page.conversations], "cursor": page.cursor}


@router.get("/export", response_class=StreamingResponse)
async def export(
    services: ServicesOf,
    owner: Owner,
    user_id: Annotated[str | None, Query(description="Only this user's conversations.")] = None,
    include: Annotated[Include, Query(description="Turns with feedback, or all.")] = Include.FEEDBACK,
) -> StreamingResponse:
    """JSON lines that a training job's `dataset` environment reads as they are."""
    lines = services.conversations.export(tenant=owner, user_id=user_id, include=include)

    async def text() -> AsyncIterator[str]:
        async for line in lines:
            yield json.dumps(line, ensure_ascii=False) + "\n"

    return StreamingResponse(text(), media_type="application/x-ndjson")


@router.get("/{conversation_id}")
async def get(
    conversation_id: ConversationId,
    services: ServicesOf,
    owner: Owner,
    session: Session,
    response: Response,
    level: Level = None,
) -> dict[str, Any]:
    found = await services.conversations.get(conversation_id, tenant=owner, level=level, session=session)
    _mark(response, session, found, found.version)
    return found.to_dict()


@router.delete("/{conversation_id}", status_code=204)
async def delete(conversation_id: ConversationId, services: ServicesOf, replies: RepliesOf, owner: Owner) -> None:
    """For good: every version, its feedback, its place in snapshots. A note in the audit trail is all that stays."""
    await services.conversations.delete(conversation_id, tenant=owner)
    await replies.forget_conversation(owner, conversation_id)


@router.get("/{conversation_id}/messages")
async def read_recent(
    conversation_id: ConversationId,
    services: ServicesOf,
    owner: Owner,
    session: Session,
    response: Response,
    level: Level = None,
    max_messages: Annotated[int | None, Query(ge=1, le=10_000, description="Newest messages; 50 by default.")] = None,
    max_tokens: Annotated[int | None, Query(ge=1, description="Newest messages within so many tokens.")] = None,
) -> dict[str, Any]:
    """The newest turns, oldest first."""
    window = await services.conversations.read_recent(
        conversation_id, tenant=owner, max_messages=max_messages, max_tokens=max_tokens, level=level, session=session
    )
    _mark(response, session, window, window.version)
    return {
        "conversation_id": conversation_id,
        "version": window.version,
        "messages": [turn.to_dict() for turn in window.turns],
        "is_whole": window.is_whole,
    }


@router.get("/{conversation_id}/history")
async def read(
    conversation_id: ConversationId,
    services: ServicesOf,
    owner: Owner,
    session: Session,
    level: Level = None,
    after: Annotated[int, Query(ge=0, description="Only turns of later versions.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    at_version: Annotated[int | None, Query(ge=0, description="As it stood then; absent: now.")] = None,
) -> dict[str, Any]:
    """Page by page from the beginning, as the conversation stands or stood."""
    turns = await services.conversations.read(
        conversation_id, tenant=owner, after=after, limit=limit, at_version=at_version, level=level, session=session
    )
    return {"conversation_id": conversation_id, "messages": [turn.to_dict() for turn in turns]}


@router.post("/{conversation_id}/messages", status_code=201)
async def append(
    conversation_id: ConversationId,
    body: NewMessages,
    services: ServicesOf,
    owner: Owner,
    session: Session,
    if_match: IfMatch,
    response: Response,
    level: Level = None,
) -> dict[str, Any]:
    done = await services.conversations.append(
        conversation_id,
        [_message(index, message) for index, message in enumerate(body.messages)],
        tenant=owner,
        expected_version=_expected(if_match, body.expected_version),
        metadata=body.metadata,
        context=body.context,
        append_id=body.append_id,
        level=level,
    )
    _mark(response, session, done, done.version)
    return {"conversation_id": conversation_id, "version": done.version}


@router.put("/{conversation_id}/context")
async def set_context(
    conversation_id: ConversationId,
    body: NewContext,
    services: ServicesOf,
    owner: Owner,
    session: Session,
    if_match: IfMatch,
    response: Response,
) -> dict[str, Any]:
    done = await services.conversations.set_context(
        conversation_id, body.context, tenant=owner, expected_version=_expected(if_match, body.expected_version)
    )
    _mark(response, session, done, done.version)
    return {"conversation_id": conversation_id, "version": done.version}


@router.post("/{conversation_id}/fork", status_code=201)
async def fork(
    conversation_id: ConversationId,
    body: Fork,
    services: ServicesOf,
    owner: Owner,
    session: Session,
    response: Response,
) -> dict[str, Any]:
    """A new conversation that begins with what was visible at a version."""
    made = await services.conversations.fork(
        conversation_id, tenant=owner, at_version=body.at_version, new_id=body.conversation_id
    )
    _mark(response, session, made, made.version)
    return made.to_dict()


@router.post("/{conversation_id}/rollback")
async def rollback(
    conversation_id: ConversationId,
    body: Rollback,
    services: ServicesOf,
    owner: Owner,
    session: Session,
    if_match: IfMatch,
    response: Response,
) -> dict[str, Any]:
    """A new version that shows what an older one showed; nothing in between is destroyed."""
    done = await services.conversations.rollback(
        conversation_id, body.to_version, tenant=owner, expected_version=_expected(if_match, body.expected_version)
    )
    _mark(response, session, done, done.version)
    return {"conversation_id": conversation_id, "version": done.version}


@router.post("/{conversation_id}/feedback", status_code=201)
async def feedback(
    conversation_id: ConversationId, body: Judgement, services: ServicesOf, owner: Owner
) -> dict[str, Any]:
    """An opinion on one turn of the assistant; the newest one counts. It becomes training data by export."""
    given = await services.conversations.feedback(
        conversation_id,
        body.version,
        tenant=owner,
        score=body.score,
        label=body.label,
        corrected=body.corrected,
        user_id=body.user_id,
    )
    return given.to_dict()


async def _prefetch(services: Services, owner: str, user_id: str) -> None:
    with suppress(Unavailable):  # nobody waits for it
        await services.conversations.prefetch(tenant=owner, user_id=user_id)


def _mark(response: Response, session: SessionToken, seen: Observed, version: int) -> None:
    response.headers["ETag"] = f'"{version}"'
    response.headers[SESSION_HEADER] = session.advance(seen).text


def _expected(if_match: int | None, in_body: int | None) -> int | None:
    if if_match is not None and in_body is not None and if_match != in_body:
        raise InvalidRequest(f"If-Match says {if_match}, expected_version {in_body}; send one", "expected_version")
    return if_match if in_body is None else in_body


def _message(index: int, data: Mapping[str, Any]) -> Message:
    try:
        return Message.from_dict(data)
    except ValueError as error:
        raise InvalidRequest(str(error), f"messages.{index}") from error
