"""From which address a request comes. `X-Forwarded-For` is written by proxies, and by anybody who likes to: only what
trusted proxies added counts, read from the right. The first address that is not a trusted proxy's is the client."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# A longer chain is an attempt to make us work.
MAX_HOPS = 32


def client_address(peer: str, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """`peer` is the other end of the connection, `forwarded` the header's addresses from left to right. What is not an
    address ends the reading: the last trusted hop is then the best that is known."""
    address = _normal(peer)
    for hop in reversed(forwarded[-MAX_HOPS:]):
        if not _is_trusted(address, trusted):
            break
        try:
            address = str(_parse(hop))
        except ValueError:
            break
    return address


class ClientAddress:
    """ASGI middleware: leaves the address in the request's state."""

    def __init__(self, app: ASGIApp, *, trusted: Sequence[Network]) -> None:
        self.app = app
        self.trusted = tuple(trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            peer = (scope.get("client") or ("",))[0]
            values = Headers(scope=scope).getlist("x-forwarded-for") if self.trusted else []
            hops = [hop.strip() for value in values for hop in value.split(",")]
            scope.setdefault("state", {})["address"] = client_address(peer, hops, self.trusted)
        await self.app(scope, receive, send)


@lru_cache(maxsize=4096)
def _normal(text: str) -> str:
    try:
        return str(_parse(text))
    except ValueError:
        return text


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """With or without port; an IPv4 address written as IPv6 is the same client."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in trusted)
