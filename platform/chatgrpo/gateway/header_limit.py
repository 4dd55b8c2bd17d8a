"""Refuses requests whose headers are larger than any honest client's. The server in front may take less."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from chatgrpo.errors import PlatformError
from chatgrpo.gateway.refusal import refuse

MAX_HEADERS: Final = 100
MAX_BYTES: Final = 32 * 1024


class HeadersTooLarge(PlatformError):
    status = 431
    code = "headers_too_large"


class HeaderLimit:
    """ASGI middleware: number of headers, and bytes of all of them with the address."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_small(scope):
            await self.app(scope, receive, send)
            return
        error = HeadersTooLarge(f"send at most {MAX_HEADERS} headers of {MAX_BYTES} bytes together with the address")
        await refuse(error, scope, receive, send)


def is_small(scope: Scope) -> bool:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    if len(headers) > MAX_HEADERS:
        return False
    num_bytes = len(scope["path"]) + len(scope["query_string"])
    for name, value in headers:
        num_bytes += len(name) + len(value)
    return num_bytes <= MAX_BYTES
