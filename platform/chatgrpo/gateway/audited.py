"""Writes every act that changes something into the audit trail, whether it succeeded or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatgrpo.audit import AuditNotes
from chatgrpo.errors import PlatformError, Unavailable
from chatgrpo.gateway.config import RouteConfig
from chatgrpo.gateway.identity import ANONYMOUS, Identity
from chatgrpo.gateway.refusal import refuse

# nginx's status for a client that left before it was answered.
CLIENT_GONE = 499


class Audited:
    """ASGI middleware around authentication, so refused calls are in the trail too. The answer's first byte leaves
    once the entry is durable, or, under a row that says so, once it is noted; when it cannot be written the answer is a
    503, because security fails closed."""

    def __init__(self, app: ASGIApp, *, open_trail: Callable[[], Awaitable[AuditNotes]]) -> None:
        self.app = app
        self.open_trail = open_trail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        row: RouteConfig | None = scope.get("route")
        if row is None or row.audit is None:
            await self.app(scope, receive, send)
            return
        status = 0
        replaced = False

        async def recorded(message: Message) -> None:
            nonlocal status, replaced
            if replaced:
                return
            if message["type"] == "http.response.start":
                status = message["status"]
                try:
                    await self._record(scope, row, status)
                except PlatformError as error:
                    replaced = True
                    said = f"the act may have happened (status {status}), but its audit entry could not be written: "
                    await refuse(Unavailable(said + error.message, 5.0), scope, receive, send)
                    return
            await send(message)

        try:
            await self.app(scope, receive, recorded)
        except asyncio.CancelledError:
            if not status:
                await asyncio.shield(self._record(scope, row, CLIENT_GONE))
            raise
        except Exception:  # it goes on to the error handler outside; the act is in the trail before
            if not status:
                await self._record(scope, row, 500)
            raise

    async def _record(self, scope: Scope, row: RouteConfig, status: int) -> None:
        assert row.audit is not None
        state = scope.get("state", {})
        identity: Identity = state.get("identity", ANONYMOUS)
        trail = await self.open_trail()
        write = trail.record if row.is_audit_strict else trail.note
        await write(
            who=identity.who,
            what=row.audit,
            tenant=identity.tenant,
            target=str(scope["path"])[:256],
            facts={"status": status, "request_id": state.get("request_id", ""), "address": state.get("address", "")},
        )
