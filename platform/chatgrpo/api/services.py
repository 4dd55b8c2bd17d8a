"""What the API needs from the rest of the platform, as protocols: actors' handles in service, fakes in tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from fastapi import Depends
from starlette.requests import HTTPConnection

from chatgrpo.clock import Clock, SystemClock
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import Conflict
from chatgrpo.inference.deltas import ChatDelta
from chatgrpo.inference.engine import SamplingParams
from chatgrpo.jobs.job import JobService
from chatgrpo.messages import Message
from chatgrpo.monitoring.alert_config import load_alerts
from chatgrpo.monitoring.monitor import Monitor, MonitorService
from chatgrpo.monitoring.scale_orders import Scaled
from chatgrpo.state.consistency import Consistency, SessionToken
from chatgrpo.state.conversation import Appended, Conversation, Page, Window
from chatgrpo.state.export import Include
from chatgrpo.state.feedback import Feedback
from chatgrpo.state.history import Turn
from chatgrpo.state.snapshots import Restored, Snapshot


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
        ttl_s: float | None = None,
    ) -> Conversation: ...

    async def get(
        self, conversation_id: str, *, tenant: str, level: Consistency | None = None, session: SessionToken = ...
    ) -> Conversation: ...

    async def read_recent(
        self,
        conversation_id: str,
        *,
        tenant: str,
        max_messages: int | None = None,
        max_tokens: int | None = None,
        level: Consistency | None = None,
        session: SessionToken = ...,
    ) -> Window: ...

    async def read(
        self,
        conversation_id: str,
        *,
        tenant: str,
        after: int = 0,
        limit: int = 100,
        at_version: int | None = None,
        level: Consistency | None = None,
        session: SessionToken = ...,
    ) -> tuple[Turn, ...]: ...

    async def append(
        self,
        conversation_id: str,
        messages: Sequence[Message],
        *,
        tenant: str,
        expected_version: int | None = None,
        metadata: Sequence[Mapping[str, Any]] = (),
        context: Mapping[str, Any] | None = None,
        append_id: str | None = None,
        level: Consistency | None = None,
    ) -> Appended: ...

    async def set_context(
        self,
        conversation_id: str,
        context: Mapping[str, Any],
        *,
        tenant: str,
        expected_version: int | None = None,
    ) -> Appended: ...

    async def list(
        self, *, tenant: str, user_id: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> Page: ...

    async def delete(self, conversation_id: str, *, tenant: str) -> None: ...

    async def fork(
        self, conversation_id: str, *, tenant: str, at_version: int | None = None, new_id: str | None = None
    ) -> Conversation: ...

    async def rollback(
        self, conversation_id: str, to_version: int, *, tenant: str, expected_version: int | None = None
    ) -> Appended: ...

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
    ) -> Feedback: ...

    def export(
        self, *, tenant: str, user_id: str | None = None, include: Include = ...
    ) -> AsyncIterator[dict[str, Any]]: ...

    async def prefetch(self, *, tenant: str, user_id: str, limit: int = 4) -> int: ...

    async def create_snapshot(self, *, tenant: str, user_id: str | None = None, name: str = "") -> Snapshot: ...

    async def list_snapshots(self, *, tenant: str) -> Sequence[Snapshot]: ...

    async def restore_snapshot(self, snapshot_id: str, *, tenant: str) -> Restored: ...

    async def delete_snapshot(self, snapshot_id: str, *, tenant: str) -> None: ...

    async def ping(self) -> None: ...


class ScalingService(Protocol):
    """Whoever starts and stops replicas."""

    async def scale(self, factor: float, *, everything: bool, until: float | None) -> Sequence[Scaled]:
        """Wants `factor` times the chat replicas, with `everything` those of the API too. The order stands until then
        (seconds since the epoch; None: for good). Raises Conflict where the number is fixed, Unavailable."""
        ...


class NotScalable:
    """ScalingService of an API that runs in one process."""

    async def scale(self, factor: float, *, everything: bool, until: float | None) -> Sequence[Scaled]:
        raise Conflict("this API does not run on Ray Serve, so there are no replicas to scale; use `chatgrpo serve`")


def _own_monitor() -> MonitorService:
    """Alerts of an API that runs without a hub."""
    return Monitor(load_alerts(), clock=SystemClock())


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything a request handler may reach for."""

    config: PlatformConfig
    clock: Clock
    jobs: JobService
    chat: ChatService
    conversations: ConversationService
    monitor: MonitorService = field(default_factory=_own_monitor)
    scaling: ScalingService = field(default_factory=NotScalable)


async def services_of(connection: HTTPConnection) -> Services:
    """A coroutine, as all dependencies here are: FastAPI runs any other in a thread, which costs ten times as much."""
    services = connection.app.state.services
    assert isinstance(services, Services)
    return services


ServicesOf = Annotated[Services, Depends(services_of)]
