"""State as a library, without Ray: conversations and snapshots of one tenant behind two small objects.

async with managed_state_context() as state_service:
    await state_service.conversation_manager.create_conversation("c1", "ada", {"lang": "en"})
    snapshot_id = await state_service.state_manager.create_snapshot()
    await state_service.state_manager.restore_snapshot(snapshot_id)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatgrpo.config import load_platform_config
from chatgrpo.messages import Message
from chatgrpo.state.conversation import Appended, Conversation, Window
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.opening import open_conversations, open_platform_conversations
from chatgrpo.state.snapshots import Restored, Snapshot


@dataclass(frozen=True, slots=True)
class ConversationManager:
    """`all` has every method; these are the ones a chat needs."""

    all: Conversations
    tenant: str

    async def create_conversation(
        self, conversation_id: str | None, user_id: str | None = None, context: Mapping[str, Any] | None = None
    ) -> Conversation:
        return await self.all.create(conversation_id, tenant=self.tenant, user_id=user_id, context=context)

    async def get_conversation(self, conversation_id: str) -> Conversation:
        return await self.all.get(conversation_id, tenant=self.tenant)

    async def add_messages(
        self, conversation_id: str, messages: Sequence[Message], *, expected_version: int | None = None
    ) -> Appended:
        return await self.all.append(conversation_id, messages, tenant=self.tenant, expected_version=expected_version)

    async def get_recent(self, conversation_id: str, *, max_messages: int | None = None) -> Window:
        return await self.all.read_recent(conversation_id, tenant=self.tenant, max_messages=max_messages)

    async def update_context(self, conversation_id: str, context: Mapping[str, Any]) -> Appended:
        return await self.all.set_context(conversation_id, context, tenant=self.tenant)

    async def delete_conversation(self, conversation_id: str) -> None:
        await self.all.delete(conversation_id, tenant=self.tenant)


@dataclass(frozen=True, slots=True)
class StateManager:
    conversations: Conversations
    tenant: str

    async def create_snapshot(self, name: str = "", *, user_id: str | None = None) -> str:
        """The id of a consistent cut through all conversations (of one user)."""
        return (await self.conversations.create_snapshot(tenant=self.tenant, user_id=user_id, name=name)).id

    async def restore_snapshot(self, snapshot_id: str) -> Restored:
        return await self.conversations.restore_snapshot(snapshot_id, tenant=self.tenant)

    async def list_snapshots(self) -> Sequence[Snapshot]:
        return await self.conversations.list_snapshots(tenant=self.tenant)


@dataclass(frozen=True, slots=True)
class StateService:
    conversation_manager: ConversationManager
    state_manager: StateManager


@asynccontextmanager
async def managed_state_context(
    address: str | Path | None = None, *, tenant: str = "local"
) -> AsyncIterator[StateService]:
    """Opens the state at `address` (a SQLite file, redis://..., memory:), by default where the platform keeps it, and
    closes it with everything written out."""
    if address is None:
        conversations = await open_platform_conversations(load_platform_config())
    else:
        conversations = await open_conversations(address)
    try:
        yield StateService(ConversationManager(conversations, tenant), StateManager(conversations, tenant))
    finally:
        await conversations.close()
