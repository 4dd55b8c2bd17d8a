"""The live topics as server-sent events, for who has no WebSocket: `/ws/v2/events?topics=metrics,alerts,job:ID`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import StreamingResponse

from chatgrpo.api.identity import Owner
from chatgrpo.api.live_hub import LiveHub
from chatgrpo.api.live_messages import MAX_TOPICS_A_READER
from chatgrpo.api.live_reader import TOO_SLOW
from chatgrpo.api.live_sources import admit
from chatgrpo.api.services import ServicesOf
from chatgrpo.api.sse import Event, event_stream
from chatgrpo.errors import InvalidRequest, Unavailable
from chatgrpo.monitoring.outbox import Outbox

router = APIRouter()


class _StreamReader:
    """What waits until the response asks for it."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._outbox = Outbox()
        self._news = asyncio.Event()

    def offer(self, text: str) -> None:
        self._outbox.put(text)
        self._news.set()

    async def next(self) -> str:
        """Raises Unavailable when it was not asked for long enough that something had to go."""
        while (text := self._outbox.take()) is None:
            if self._outbox.has_overflowed:
                raise Unavailable(TOO_SLOW, retry_after_s=1.0)
            self._news.clear()
            await self._news.wait()
        return text


@router.get("/v2/events")
async def events(
    request: Request,
    services: ServicesOf,
    owner: Owner,
    topics: Annotated[str, Query(min_length=1, max_length=8192, description="metrics, alerts, job:ID; with commas.")],
) -> StreamingResponse:
    """An event is named like its topic; `resumed` says first whether what came after Last-Event-ID follows."""
    wanted = list(dict.fromkeys(topic.strip() for topic in topics.split(",")))
    if len(wanted) > MAX_TOPICS_A_READER:
        raise InvalidRequest(f"at most {MAX_TOPICS_A_READER} topics", "topics")
    for topic in wanted:
        await admit(topic, services, owner=owner)
    last_event_id = request.headers.get("last-event-id") or None
    return event_stream(_follow(request.app.state.hub, _StreamReader(owner), wanted, last_event_id))


async def _follow(
    hub: LiveHub, reader: _StreamReader, topics: list[str], last_event_id: str | None
) -> AsyncGenerator[Event, None]:
    try:
        begun = await hub.subscribe(reader, topics, last_event_id)
        # Without an id: who is cut off right here must get the same again.
        yield Event(event="resumed", data={"resumed": begun.resumed, "topics": topics})
        for text in begun.events:
            yield _event(text)
        while True:
            yield _event(await reader.next())
    finally:
        hub.unsubscribe(reader, topics)


def _event(text: str) -> Event:
    message = json.loads(text)
    return Event(event=message["topic"], data=message["data"], id=message["id"])
