"""What stands in front of Ray Serve's own handling of a request in a replica, where HAProxy sends them there directly.

Serve watches each client with a task and answers it in another, unless a header of the client says not to. The platform
watches clients and keeps deadlines itself, so that header is set here, which saves both tasks; and what clients write
into it, or into the one that changes Serve's timeout, is nobody's business.
"""

from __future__ import annotations

from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

_UNWATCHED: Final = (b"x-request-disconnect-disabled", b"?1")
_OURS: Final = frozenset({_UNWATCHED[0], b"x-request-timeout-seconds"})


class UnwatchedByServe:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope["headers"] = [field for field in scope["headers"] if field[0] not in _OURS] + [_UNWATCHED]
        await self.app(scope, receive, send)


def middleware() -> list[Middleware]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""
    return [Middleware(UnwatchedByServe)]
