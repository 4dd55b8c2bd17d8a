"""Headers that every answer carries: a request id, and what tells browsers to be careful with it."""

from __future__ import annotations

from secrets import token_hex

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
# Data is never a page: nothing in it may run.
_DATA_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_NO_STORE = (b"cache-control", b"no-store")
_HTTPS_ONLY = (b"strict-transport-security", b"max-age=31536000")


def careful_headers(request_id: str) -> dict[str, str]:
    """For the one answer that is made outside of all middleware: that to a mistake of ours."""
    found = [(b"x-request-id", request_id.encode()), *_ALWAYS, _NO_STORE, _DATA_POLICY]
    return {name.decode(): value.decode() for name, value in found}


class ResponseHeaders:
    """ASGI middleware. A handler's own Cache-Control and Content-Security-Policy stand."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request_id = token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id
        is_https = scope.get("scheme") in {"https", "wss"}

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"] = list(message.get("headers", ()))
                given = {name.lower(): value for name, value in headers}
                headers += [(b"x-request-id", request_id.encode()), *_ALWAYS]
                headers += [_NO_STORE] if b"cache-control" not in given else []
                is_page = given.get(b"content-type", b"").startswith(b"text/html")
                headers += [_DATA_POLICY] if not is_page and b"content-security-policy" not in given else []
                headers += [_HTTPS_ONLY] if is_https else []
            await send(message)

        await self.app(scope, receive, dressed)
