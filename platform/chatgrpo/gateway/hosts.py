"""Which names the platform answers to. A web page that makes its own name point at this machine (DNS rebinding) sends
that name as Host, and is turned away."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from chatgrpo.errors import PlatformError
from chatgrpo.gateway.exposure import is_loopback
from chatgrpo.gateway.refusal import refuse
from chatgrpo.gateway.request_headers import header


class Misdirected(PlatformError):
    status = 421
    code = "misdirected"


def hosts_of(allowed: Sequence[str], listens_on: str) -> frozenset[str]:
    """`*` stands for any name. Without a list, loopback answers to its own names only; elsewhere keys protect."""
    if allowed:
        return frozenset(name.lower() for name in allowed)
    return frozenset({"localhost", listens_on.lower()}) if is_loopback(listens_on) else frozenset({"*"})


@lru_cache(maxsize=1024)
def is_allowed(host: str, allowed: frozenset[str]) -> bool:
    """`host` as in the header, with or without port. Addresses of loopback are as good as localhost."""
    name = _without_port(host).lower()
    if "*" in allowed or name in allowed:
        return True
    try:
        return "localhost" in allowed and ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_foreign(origin: str | None, host: str, named: frozenset[str]) -> bool:
    """Whether a browser sends this for a page of somebody else. Programs send no Origin. `named` are the names that the
    settings allow: behind a proxy that rewrites Host, the pages come under one of them."""
    if origin is None:
        return False
    netloc = urlsplit(origin).netloc.lower()
    return netloc != host.lower() and _without_port(netloc) not in named


class ForeignPage(PlatformError):
    status = 403
    code = "foreign_page"


class AllowedHosts:
    """ASGI middleware. Any page may make a browser send a form to this machine: what is not a GET must come from a page
    of the platform's own, or from a program."""

    def __init__(self, app: ASGIApp, *, allowed: frozenset[str], named: frozenset[str] = frozenset()) -> None:
        self.app = app
        self.allowed = allowed
        self.named = named

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        host, origin = header(scope, b"host") or "", header(scope, b"origin")
        if not is_allowed(host, self.allowed):
            message = "the platform is not known by this Host; add it to gateway.allowed_hosts"
            await refuse(Misdirected(message), scope, receive, send)
        elif scope.get("method", "GET") not in {"GET", "HEAD"} and is_foreign(origin, host, self.named):
            message = "a page of another origin must not change anything here; add its host to gateway.allowed_hosts"
            await refuse(ForeignPage(message), scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
