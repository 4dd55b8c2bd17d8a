"""Compresses answers for clients that ask for it; event streams are left alone."""

from __future__ import annotations

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Receive, Scope, Send

from chatgrpo.gateway.request_headers import header


class Gzip(GZipMiddleware):
    """Starlette's, which costs something also for those that do not ask."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "gzip" in (header(scope, b"accept-encoding") or ""):
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)
