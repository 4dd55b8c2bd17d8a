"""Refuses what can wait while replies pile up."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from chatgrpo.errors import Overloaded
from chatgrpo.gateway.refusal import refuse
from chatgrpo.resilience.ladder import Ladder, Rung

RETRY_AFTER_S: Final = 5.0


class ShedFirst:
    """ASGI middleware, behind authentication. Pausing and cancelling are never shed: they make room."""

    def __init__(self, app: ASGIApp, *, ladder: Ladder) -> None:
        self.app = app
        self.ladder = ladder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["route"].is_shed_first and self.ladder.rung >= Rung.SHED_TRAINING:
            self.ladder.gave_up("training_request")
            busy = "chat needs all there is at the moment, so what concerns training waits; come back later"
            await refuse(Overloaded(busy, RETRY_AFTER_S), scope, receive, send)
            return
        await self.app(scope, receive, send)
