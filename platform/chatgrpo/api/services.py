"""What the API needs from the rest of the platform, as protocols: actors' handles in service, fakes in tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from fastapi import Depends
from starlette.requests import HTTPConnection

from chatgrpo.clock import Clock
from chatgrpo.config import PlatformConfig
from chatgrpo.inference.deltas import ChatDelta
from chatgrpo.inference.engine import SamplingParams
from chatgrpo.jobs.job import JobService
from chatgrpo.messages import Message
from chatgrpo.state.consistency import Consistency
from chatgrpo.state.conversation import Appended, Conversation, Window


class ChatService(Protocol):
    """Whoever lets models speak."""

    def stream(
        self, model: str, messages: Sequence[Message], params: SamplingParams
    ) -> AsyncGenerator[ChatDelta, None]:
        """The reply to `messages`, piece by piece; the last piece carries the finish reason. Closing the iterator
        cancels the request. Raises NotFound for an unknown model, InvalidRequest for what the model cannot take,
        Unavailable when no replica can be reached."""
        ...

    async def status(self) -> dict[str, Any]:
        """`loaded_models` (names), `active_requests`, `tokens_generated`. Raises Unavailable when it cannot be told."""
        ...


class ConversationService(Protocol):
    """What the API asks of remembered conversations (see `Conversations`, which also states what is raised)."""

    async def create(
        self,
        conversation_id: str | None = None,
        *,
        tenant: str,
        user_id: str | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Conversation: ...

    async def get(self, conversation_id: str, *, tenant: str, level: Consistency | None = None) -> Conversation: ...

    async def read_recent(
        self,
        conversation_id: str,
        *,
        tenant: str,
        max_tokens: int | None = None,
        level: Consistency | None = None,
    ) -> Window: ...

    async def append(
        self,
        conversation_id: str,
        messages: Sequence[Message],
        *,
        tenant: str,
        expected_version: int | None = None,
        metadata: Sequence[Mapping[str, Any]] = (),
        context: Mapping[str, Any] | None = None,
    ) -> Appended: ...

    async def ping(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything a request handler may reach for."""

    config: PlatformConfig
    clock: Clock
    jobs: JobService
    chat: ChatService
    conversations: ConversationService


def services_of(connection: HTTPConnection) -> Services:
    services = connection.app.state.services
    assert isinstance(services, Services)
    return services


ServicesOf = Annotated[Services, Depends(services_of)]
