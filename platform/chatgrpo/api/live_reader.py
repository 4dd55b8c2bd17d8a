"""One open socket as a reader of events: what waits is bounded, and who does not read is told and dropped."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable
from contextlib import suppress

from starlette.websockets import WebSocket, WebSocketDisconnect

from chatgrpo.api.begin import begin
from chatgrpo.monitoring.catalog import LIVE_READERS, LIVE_READERS_DROPPED
from chatgrpo.monitoring.meters import PROCESS
from chatgrpo.monitoring.outbox import Outbox

logger = logging.getLogger(__name__)

# How long one who was told that he is too slow has to read that.
GRACE_S = 5.0
TOO_SLOW = "you do not read as fast as things happen; reconnect and subscribe with your last event id"


class SocketReader:
    """Everything for the client goes through `offer`, so that answers and events keep their order. What can be written
    at once is; a task writes while something waits and ends then. So ten thousand readers are ten thousand sockets and
    no more, and an event leaves behind no garbage by the ten thousand, which would be collected among millions of
    objects of open sockets, for a second or two."""

    def __init__(
        self, socket: WebSocket, owner: str, *, outbox: Outbox | None = None, grace_s: float = GRACE_S
    ) -> None:
        self.owner = owner
        self.topics: dict[str, None] = {}
        self._socket, self._grace_s = socket, grace_s
        self._outbox = Outbox() if outbox is None else outbox
        self._handler = asyncio.current_task()
        self._writing: asyncio.Task[None] | None = None
        self.was_dropped = False

    def __enter__(self) -> SocketReader:
        PROCESS.of(LIVE_READERS).inc()
        return self

    def __exit__(self, *_: object) -> None:
        PROCESS.of(LIVE_READERS).inc(-1)
        if self._writing is not None and not self.was_dropped:
            self._writing.cancel()

    def offer(self, text: str) -> None:
        if self._writing is None and not self.was_dropped:
            begun = begin(self._send(text))
            self._writing = None if begun is None else asyncio.create_task(self._write(begun))
        elif not self._outbox.put(text) and not self.was_dropped:
            self.was_dropped = True
            PROCESS.of(LIVE_READERS_DROPPED).inc()
            self._writing = asyncio.create_task(self._drop(self._writing))

    async def finished(self) -> None:
        """Waits until nothing waits to be written."""
        if self._writing is not None:
            await self._writing

    async def _send(self, text: str) -> None:
        try:
            await self._socket.send_text(text)
        except (WebSocketDisconnect, RuntimeError):
            return  # it left; whoever receives from it is told so too
        except Exception:
            # Whatever a server raises: the other readers of this event must get it.
            logger.exception("a live reader could not be written to")

    async def _write(self, begun: Awaitable[None]) -> None:
        try:
            await begun
            while (text := self._outbox.take()) is not None:
                await self._send(text)
        finally:
            if asyncio.current_task() is self._writing:
                self._writing = None

    async def _drop(self, stuck: asyncio.Task[None] | None) -> None:
        """Says why, and ends the conversation even when that is not read either."""
        with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(self._grace_s):
                if stuck is not None:
                    await stuck  # the one text that is being written
                await self._socket.send_text(json.dumps({"type": "dropped", "data": {"message": TOO_SLOW}}))
                await self._socket.close(code=1013, reason="too slow; reconnect with your last event id")
        if self._handler is not None and not self._handler.done():
            self._handler.cancel()
