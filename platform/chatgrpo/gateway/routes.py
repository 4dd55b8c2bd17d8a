"""The route table, and the door that lets in only what has a row in it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatgrpo.errors import NotFound, PlatformError
from chatgrpo.gateway.config import RouteConfig
from chatgrpo.gateway.refusal import refuse


class MethodNotAllowed(PlatformError):
    status = 405
    code = "method_not_allowed"


# When the paths without a version were given up: 2026-01-01.
DEPRECATED_AT: Final = b"@1767225600"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """`row` is None when the path is unknown, or is known with other methods: `allowed`."""

    row: RouteConfig | None
    allowed: tuple[str, ...]


class RouteTable:
    """Rows by path and method; a later row replaces an earlier one of the same path and method."""

    def __init__(self, rows: Iterable[RouteConfig] = ()) -> None:
        self._literal: dict[str, dict[str, RouteConfig]] = {}
        self._patterns: dict[str, tuple[re.Pattern[str], dict[str, RouteConfig]]] = {}
        for row in rows:
            self.add(row)

    def add(self, row: RouteConfig) -> None:
        if "{" not in row.path:
            by_method = self._literal.setdefault(row.path, {})
        else:
            pattern, _, _ = compile_path(row.path)
            _, by_method = self._patterns.setdefault(row.path, (pattern, {}))
        by_method.update(dict.fromkeys(row.methods, row))

    def rows(self) -> list[RouteConfig]:
        tables = [*self._literal.values(), *(by_method for _, by_method in self._patterns.values())]
        return list({id(row): row for by_method in tables for row in by_method.values()}.values())

    def match(self, method: str, path: str) -> Match:
        """The row for a request. A literal path wins over a template, as it does in the router behind."""
        literal = self._literal.get(path, {})
        if method in literal:
            return Match(row=literal[method], allowed=())
        found = [literal, *(by_method for pattern, by_method in self._patterns.values() if pattern.match(path))]
        row = next((by_method[method] for by_method in found if method in by_method), None)
        allowed = sorted({m for by_method in found for m in by_method if m != "WEBSOCKET"})
        return Match(row=row, allowed=tuple(allowed))


class RequireRow:
    """ASGI middleware: puts the request's row into `scope["route"]`. What has no row is answered here, so a handler
    that was forgotten in the table is closed, not open."""

    def __init__(self, app: ASGIApp, *, table: RouteTable) -> None:
        self.app = app
        self.table = table

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        method = scope["method"] if scope["type"] == "http" else "WEBSOCKET"
        match = self.table.match(method, scope["path"])
        if match.row is not None and match.row.successor is not None:
            path = _successor(match.row, scope["path"])
            send = _deprecating(path, send)
            if match.row.is_forwarded:
                await self(dict(scope) | {"path": path, "raw_path": quote(path).encode()}, receive, send)
                return
        if match.row is not None:
            scope["route"] = match.row
            await self.app(scope, receive, send)
            return
        if match.allowed and scope["type"] == "http":
            error = MethodNotAllowed(f"{method} is not possible on {scope['path']}; the Allow header says what is")
            await refuse(error, scope, receive, send, headers={"allow": ", ".join(match.allowed)})
            return
        await refuse(NotFound(f"no route {scope['path']}; GET /docs lists them"), scope, receive, send)


def _successor(row: RouteConfig, path: str) -> str:
    """The path that follows `path`, with what it says of ids filled in."""
    assert row.successor is not None
    pattern, _, _ = compile_path(row.path)
    found = pattern.match(path)
    return row.successor.format(**(found.groupdict() if found else {}))


def _deprecating(successor: str, send: Send) -> Send:
    """Says in the headers that `successor` is to be asked instead (RFC 9745)."""
    headers = [(b"deprecation", DEPRECATED_AT), (b"link", f'<{quote(successor)}>; rel="successor-version"'.encode())]

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        await send(message)

    return told
