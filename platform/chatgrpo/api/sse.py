"""Server-sent events: named events with JSON data, a comment now and then so that idle proxies keep the line open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from chatgrpo.api.errors import error_body
from chatgrpo.errors import PlatformError

# Proxies commonly close a line that is silent for 60 s.
KEEPALIVE_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """`id` comes back as Last-Event-ID when a browser reconnects. An event may go without a name; text is sent as it
    is, everything else as JSON."""

    event: str | None = None
    data: dict[str, Any] | str
    id: str | None = None


def event_stream(events: AsyncGenerator[Event, None]) -> StreamingResponse:
    """Sends events as they come. The generator is closed when the client leaves; a PlatformError in it becomes a last
    event named `error`, because the status has already been sent."""
    return EventSourceResponse(_encoded(events), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


async def _encoded(events: AsyncGenerator[Event, None]) -> AsyncIterator[bytes]:
    async with aclosing(events):
        following: asyncio.Future[Event] | None = None
        try:
            while True:
                following = following or asyncio.ensure_future(anext(events))
                done, _ = await asyncio.wait({following}, timeout=KEEPALIVE_S)
                if not done:
                    yield KEEPALIVE_COMMENT
                    continue
                yield _format(following.result())
                following = None
        except StopAsyncIteration:
            return
        except PlatformError as error:
            yield _format(Event(event="error", data=error_body(error)))
        finally:
            if following is not None and not following.done():
                following.cancel()
                await asyncio.wait({following})


def _format(event: Event) -> bytes:
    data = event.data if isinstance(event.data, str) else json.dumps(event.data, ensure_ascii=False)
    return format_sse_event(data_str=data, event=event.event, id=event.id)
