"""Who calls, and whether they may: key, role, permission. Runs inside the application, so no proxy can be passed by."""

from __future__ import annotations

import asyncio
import json
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatgrpo.errors import Forbidden, PlatformError, Unauthenticated
from chatgrpo.gateway.api_keys import UNKNOWN, Keyring
from chatgrpo.gateway.config import RouteConfig
from chatgrpo.gateway.identity import ANONYMOUS, LOCAL, Identity
from chatgrpo.gateway.refusal import error_bytes, refuse
from chatgrpo.gateway.request_headers import header
from chatgrpo.gateway.sessions import Session, Sessions

KEY_PROTOCOL: Final = "chatgrpo.key."


def presented_key(scope: Scope) -> str | None:
    """The key in `Authorization: Bearer ...` or `X-API-Key: ...`; keys in addresses would end in logs. Browsers cannot
    set headers of a WebSocket: there it may be the subprotocol `chatgrpo.key.<key>`."""
    scheme, _, credentials = (header(scope, b"authorization") or "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    if key := header(scope, b"x-api-key"):
        return key
    offered = [name.strip() for name in (header(scope, b"sec-websocket-protocol") or "").split(",")]
    return next((name.removeprefix(KEY_PROTOCOL) for name in offered if name.startswith(KEY_PROTOCOL)), None)


def refuse_unless_allowed(identity: Identity, row: RouteConfig) -> None:
    """Raises Forbidden with what is missing."""
    if row.permission is not None and row.permission not in identity.permissions:
        raise Forbidden(f"this needs the permission {row.permission}, which your key (role {identity.role}) lacks")
    if row.allowed_roles is not None and identity.role not in row.allowed_roles:
        raise Forbidden(f"this is for roles {', '.join(row.allowed_roles)}; your key has role {identity.role}")


class Authenticate:
    """ASGI middleware: leaves the identity and its tenant in the request's state. `always` asks for a key even before
    the first one was made."""

    def __init__(self, app: ASGIApp, *, keyring: Keyring, always: bool) -> None:
        self.app = app
        self.keyring = keyring
        self.sessions = Sessions(keyring)
        self.always = always

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        key, row = presented_key(scope), scope["route"]
        try:
            identity = await self._identify(key, row)
            state = scope.setdefault("state", {})
            state["identity"], state["owner"] = identity, identity.tenant
            if row.requires_auth:
                refuse_unless_allowed(identity, row)
        except PlatformError as error:
            await refuse(error, scope, receive, send)
            return
        if identity.key_id is None or key is None:
            await self.app(scope, receive, send)
        else:
            await self._until_revoked(self.sessions.enter(key), scope, receive, send)

    async def _identify(self, key: str | None, row: RouteConfig) -> Identity:
        if not row.requires_auth:
            return ANONYMOUS
        # While no keys are in use, whatever a client sends as one (OpenAI's must send something) is not looked at.
        if not self.always and not await self.keyring.has_keys():
            return LOCAL
        if key is None:
            raise Unauthenticated("send a key as `Authorization: Bearer <key>`; `chatgrpo keys create` makes one")
        return await self.keyring.identify(key)

    async def _until_revoked(self, session: Session, scope: Scope, receive: Receive, send: Send) -> None:
        begun: Message | None = None

        async def watched(message: Message) -> None:
            nonlocal begun
            if begun is None and message["type"] in {"http.response.start", "websocket.accept"}:
                begun = message
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            if not session.revoked:
                raise
            session.task.uncancel()
            await _end(scope, receive, send, begun)
        finally:
            self.sessions.leave(session)


async def _end(scope: Scope, receive: Receive, send: Send, begun: Message | None) -> None:
    """An answer that is under way is cut: events get a last one that says why, a socket a close frame, anything else
    ends without its last chunk, so that no client takes it for whole."""
    error = Unauthenticated(UNKNOWN)
    if begun is None:
        await refuse(error, scope, receive, send)
    elif scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": "the key no longer works"})
    elif Headers(raw=begun["headers"]).get("content-type", "").startswith("text/event-stream"):
        data = json.dumps(json.loads(error_bytes(error)))
        await send({"type": "http.response.body", "body": f"event: error\ndata: {data}\n\n".encode()})
