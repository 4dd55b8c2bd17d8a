"""Which names the platform answers to. A web page that makes its own name point at this machine (DNS rebinding) sends
that name as Host, and is turned away."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from chatgrpo.errors import PlatformError
from chatgrpo.gateway.exposure import is_loopback
from chatgrpo.gateway.refusal import refuse


class Misdirected(PlatformError):
    status = 421
    code = "misdirected"


def hosts_of(allowed: Sequence[str], listens_on: str) -> frozenset[str]:
    """`*` stands for any name. Without a list, loopback answers to its own names only; elsewhere keys protect."""
    if allowed:
        return frozenset(name.lower() for name in allowed)
    return frozenset({"localhost", listens_on.lower()}) if is_loopback(listens_on) else frozenset({"*"})


def is_allowed(host: str, allowed: frozenset[str]) -> bool:
    """`host` as in the header, with or without port. Addresses of loopback are as good as localhost."""
    name = _without_port(host).lower()
    if "*" in allowed or name in allowed:
        return True
    try:
        return "localhost" in allowed and ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class AllowedHosts:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, allowed: frozenset[str]) -> None:
        self.app = app
        self.allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_allowed(Headers(scope=scope).get("host", ""), self.allowed):
            await self.app(scope, receive, send)
            return
        message = "the platform is not known by this Host; add it to gateway.allowed_hosts"
        await refuse(Misdirected(message), scope, receive, send)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
