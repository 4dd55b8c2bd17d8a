"""Refuses request bodies beyond a size. FastAPI's own limit does the same, but answers in plain text, and every error
of this API has one JSON shape."""

from __future__ import annotations

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatgrpo.api.errors import error_body
from chatgrpo.errors import TooLarge
from chatgrpo.gateway.config import RouteConfig
from chatgrpo.gateway.request_headers import header


class _BodyTooLarge(HTTPException):
    """An HTTPException passes through the framework's reading of the body; others become "bad request"."""


class BodyLimit:
    """ASGI middleware. A body that announces its size is refused before it is read, any other while it is read. A row
    of the route table may set another limit than the general one."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        row: RouteConfig | None = scope.get("route")
        max_bytes = (row and row.max_body_bytes) or self.max_bytes
        announced = header(scope, b"content-length") or "0"
        if announced.isdecimal() and int(announced) > max_bytes:
            response = JSONResponse(error_body(TooLarge(_message(max_bytes))), TooLarge.status)
            await response(scope, receive, send)
            return
        num_read = 0

        async def counted() -> Message:
            nonlocal num_read
            message = await receive()
            num_read += len(message.get("body", b""))
            if num_read > max_bytes:
                raise _BodyTooLarge(TooLarge.status, _message(max_bytes))
            return message

        try:
            await self.app(scope, counted, send)
        except _BodyTooLarge as error:
            # Who reads a body outside of the framework does so before the answer begins.
            response = JSONResponse(error_body(TooLarge(error.detail)), TooLarge.status)
            await response(scope, receive, send)


def _message(max_bytes: int) -> str:
    return f"the request body is larger than {max_bytes} bytes; send less or raise max_body_bytes"
