"""Stops working for a client that has left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from fastapi import Request

from chatgrpo.errors import PlatformError

T = TypeVar("T")

WATCH_AFTER_S: Final = 0.02
"""Work that takes less is not worth watching for: most answers need no second task."""


class ClientGone(PlatformError):
    """Nobody reads this answer; the status is nginx's for the access log."""

    status = 499
    code = "client_gone"


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client disconnects first (then ClientGone is raised).
    The request's body must have been read."""
    watch = _Watch(request)
    try:
        try:
            return await work
        finally:
            await watch.end()
    except asyncio.CancelledError:
        # Who else cancelled this task (a deadline, a revoked key) is told so.
        if not watch.is_gone:
            raise
        watch.task.uncancel()
        raise ClientGone("the client left before the answer was ready") from None


class _Watch:
    """Cancels the task that made it once the client is gone."""

    def __init__(self, request: Request) -> None:
        task = asyncio.current_task()
        assert task is not None, "requests are answered in tasks"
        self.task = task
        self.is_gone = False
        self._request = request
        self._watching: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin)

    async def end(self) -> None:
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        if self.is_gone:
            await asyncio.sleep(0)  # a cancellation that came in the last moment arrives here, and nowhere later

    def _begin(self) -> None:
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True
        self.task.cancel()
