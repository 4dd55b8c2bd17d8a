"""Answers a request that goes no further, in the one shape that all errors of the API have."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.types import Receive, Scope, Send

from chatgrpo.errors import PlatformError, RateLimited, Unauthenticated, Unavailable


async def refuse(
    error: PlatformError, scope: Scope, receive: Receive, send: Send, *, headers: Mapping[str, str] | None = None
) -> None:
    """A socket that is not accepted yet is refused with the HTTP status too, where the server can do that."""
    headers = dict(headers or {})
    if isinstance(error, RateLimited | Unavailable):
        headers.setdefault("retry-after", str(max(1, round(error.retry_after_s))))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    if scope["type"] == "http":
        await answer(send, error.status, error_bytes(error), headers)
    elif "websocket.http.response" in scope.get("extensions", {}):
        await answer(send, error.status, error_bytes(error), headers, kind="websocket.http.response")
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": error.message[:120]})


async def answer(
    send: Send, status: int, body: bytes, headers: Mapping[str, str], *, kind: str = "http.response"
) -> None:
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": f"{kind}.start", "status": status, "headers": raw})
    await send({"type": f"{kind}.body", "body": body})


def error_bytes(error: PlatformError) -> bytes:
    return json.dumps({"error": {"code": error.code, "message": error.message}}, ensure_ascii=False).encode()
