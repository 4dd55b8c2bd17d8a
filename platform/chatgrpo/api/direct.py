"""The busiest routes, answered without the framework's matching of routes and solving of dependencies, which cost more
than everything the gateway does. Only plain requests go this way: what is not JSON, or does not validate, goes on to
the framework with its body, and is answered as it is on any route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from chatgrpo.api.errors import platform_error
from chatgrpo.errors import PlatformError
from chatgrpo.gateway.request_body import body_again
from chatgrpo.gateway.request_headers import header


@dataclass(frozen=True, slots=True)
class DirectRoute:
    """A POST whose handler takes nothing but the request and its body."""

    body: type[BaseModel]
    handler: Callable[[Request, Any], Awaitable[Response]]


class Direct:
    """ASGI middleware, innermost. `routes` are literal paths, which the framework knows as well: they are described,
    and answered when this is left out."""

    def __init__(self, app: ASGIApp, *, routes: Mapping[str, DirectRoute]) -> None:
        self.app = app
        self.routes = {path: (route.body.__pydantic_validator__, route.handler) for path, route in routes.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self.routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None or header(scope, b"content-type") != "application/json":
            await self.app(scope, receive, send)
            return
        validator, handler = route
        body = await _read(receive)
        if body is None:
            return  # the client left while it was sending
        try:
            value = validator.validate_json(body)
        except ValidationError:
            await self.app(scope, body_again(body, receive), send)
            return
        request = Request(scope, receive)
        try:
            response = await handler(request, value)
        except PlatformError as error:
            response = await platform_error(request, error)
        await response(scope, receive, send)


async def _read(receive: Receive) -> bytes | None:
    """The whole body, None when the client left."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        return bytes(message.get("body", b""))
    body = bytearray()
    while message["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)
        message = await receive()
    return None
