"""OpenAI's conversations, `/v1/conversations`: those of /api/v2/conversations, in the shapes that OpenAI's clients
know. An item is a message; items are added, never changed. Their `metadata` is kept in the context."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from chatgrpo.api.errors import RESPONSES
from chatgrpo.api.identity import Owner
from chatgrpo.api.replies import RepliesOf
from chatgrpo.api.services import ServicesOf
from chatgrpo.errors import InvalidRequest, NotFound
from chatgrpo.messages import Message, Role
from chatgrpo.state.conversation import Conversation
from chatgrpo.state.history import Turn

router = APIRouter(prefix="/v1/conversations", tags=["openai"], responses=RESPONSES)

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_PREFIX = "msg_"

ConversationId = Annotated[str, Path(min_length=1, max_length=128, description="Id of a conversation.")]
ItemId = Annotated[str, Path(max_length=64, description="Id of an item.")]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class Part(BaseModel):
    model_config = _STRICT

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = Field(None, max_length=0, description="None: there are no annotations.")


class Item(BaseModel):
    """A message. Calls of tools, files and images are refused by their type."""

    model_config = _STRICT

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role=Role.SYSTEM if self.role == "developer" else Role(self.role), content=text)


Items = Annotated[list[Item], Field(max_length=20, description="At most 20 at once.")]


class NewConversation(BaseModel):
    model_config = _STRICT

    items: Items | None = None
    metadata: Metadata | None = None


class Update(BaseModel):
    model_config = _STRICT

    metadata: Metadata = Field(description="Replaces the former.")


class NewItems(BaseModel):
    model_config = _STRICT

    items: Annotated[Items, Field(min_length=1)]


@router.post("")
async def create(services: ServicesOf, owner: Owner, body: NewConversation | None = None) -> dict[str, Any]:
    """Begins a conversation."""
    body = body or NewConversation()
    made = await services.conversations.create(tenant=owner, context={"metadata": body.metadata or {}})
    if body.items:
        await services.conversations.append(made.id, [item.message() for item in body.items], tenant=owner)
    return _conversation(made)


@router.get("/{conversation_id}")
async def get(conversation_id: ConversationId, services: ServicesOf, owner: Owner) -> dict[str, Any]:
    return _conversation(await services.conversations.get(conversation_id, tenant=owner))


@router.post("/{conversation_id}")
async def update(conversation_id: ConversationId, body: Update, services: ServicesOf, owner: Owner) -> dict[str, Any]:
    """Sets the metadata."""
    found = await services.conversations.get(conversation_id, tenant=owner)
    context = {**found.context, "metadata": body.metadata}
    await services.conversations.set_context(conversation_id, context, tenant=owner, expected_version=found.version)
    return _conversation(found) | {"metadata": body.metadata}


@router.delete("/{conversation_id}")
async def delete(
    conversation_id: ConversationId, services: ServicesOf, replies: RepliesOf, owner: Owner
) -> dict[str, Any]:
    """For good."""
    await services.conversations.delete(conversation_id, tenant=owner)
    await replies.forget_conversation(owner, conversation_id)
    return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}


@router.post("/{conversation_id}/items")
async def add_items(
    conversation_id: ConversationId, body: NewItems, services: ServicesOf, owner: Owner
) -> dict[str, Any]:
    """Adds messages, all or none."""
    added = await services.conversations.append(conversation_id, [item.message() for item in body.items], tenant=owner)
    first = added.version - len(body.items)
    turns = await services.conversations.read(conversation_id, tenant=owner, after=first, limit=len(body.items))
    return _page(turns, has_more=False)


@router.get("/{conversation_id}/items")
async def list_items(
    conversation_id: ConversationId,
    services: ServicesOf,
    owner: Owner,
    after: Annotated[str | None, Query(max_length=64, description="The last item of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="By time.")] = "desc",
) -> dict[str, Any]:
    """Messages, page by page."""
    version = None if after is None else _version(after)
    if order == "asc":
        turns = await services.conversations.read(conversation_id, tenant=owner, after=version or 0, limit=limit + 1)
    else:
        at_most = limit + 1 if version is None else 10_000
        window = await services.conversations.read_recent(conversation_id, tenant=owner, max_messages=at_most)
        turns = tuple(turn for turn in reversed(window.turns) if version is None or turn.version < version)
    return _page(turns[:limit], has_more=len(turns) > limit)


@router.get("/{conversation_id}/items/{item_id}")
async def get_item(
    conversation_id: ConversationId, item_id: ItemId, services: ServicesOf, owner: Owner
) -> dict[str, Any]:
    """One message."""
    version = _version(item_id)
    turns = await services.conversations.read(conversation_id, tenant=owner, after=max(0, version - 1), limit=1)
    if not turns or turns[0].version != version:
        raise NotFound(f"there is no item {item_id}")
    return _item(turns[0])


def _conversation(found: Conversation) -> dict[str, Any]:
    metadata = found.context.get("metadata")
    # Whoever writes the context over /api/v2 may keep something else under that name.
    shown = metadata if isinstance(metadata, dict) else {}
    return {"id": found.id, "object": "conversation", "created_at": int(found.created_at), "metadata": shown}


def _page(turns: tuple[Turn, ...], *, has_more: bool) -> dict[str, Any]:
    data = [_item(turn) for turn in turns]
    ids = [item["id"] for item in data] or [""]
    return {"object": "list", "data": data, "first_id": ids[0], "last_id": ids[-1], "has_more": has_more}


def _item(turn: Turn) -> dict[str, Any]:
    is_reply = turn.message.role is Role.ASSISTANT
    part: dict[str, Any] = {"type": "output_text" if is_reply else "input_text", "text": turn.message.content}
    return {
        "id": f"{_PREFIX}{turn.version}",
        "type": "message",
        "status": "completed",
        "role": str(turn.message.role),
        "content": [part | {"annotations": []} if is_reply else part],
    }


def _version(item_id: str) -> int:
    number = item_id.removeprefix(_PREFIX)
    if not item_id.startswith(_PREFIX) or not number.isascii() or not number.isdigit() or len(number) > 15:
        raise InvalidRequest(f"{item_id!r} is not the id of an item; they look like {_PREFIX}1", "item_id")
    return int(number)
