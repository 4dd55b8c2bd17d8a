"""The platform's own deadlines. The one of the server in front can be switched off by a header of the client."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatgrpo.errors import DeadlineExceeded
from chatgrpo.gateway.refusal import refuse
from chatgrpo.resilience.alarm import Alarm


class Deadline:
    """ASGI middleware: an answer must have begun within the row's `timeout`. A stream, once begun, may go on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        timeout_s: float = scope["route"].timeout
        alarm = Alarm(timeout_s)

        async def watched(message: Message) -> None:
            alarm.stop()
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            if not alarm.rang():
                raise
            late = DeadlineExceeded(f"no answer within {timeout_s:g} s; try again, or ask for less")
            await refuse(late, scope, receive, send)
        finally:
            alarm.stop()
