"""Where a request of the platform may go: names are resolved once, checked, and the address is what is connected to,
so that a name cannot change its mind between check and use."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from chatgrpo.errors import InvalidRequest, Unavailable


@dataclass(frozen=True, slots=True)
class Target:
    """`url` holds the address; `host` is the Host header, `name` what its certificate must be for."""

    url: str
    host: str
    name: str


async def pinned(url: str, *, allow_private: bool) -> Target:
    """Raises InvalidRequest when the name leads to this machine or a private network and may not, Unavailable when it
    leads nowhere."""
    parts = urlsplit(url)
    name = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unavailable(f"{name} cannot be resolved: {error.strerror}") from error
    addresses = [ipaddress.ip_address(str(info[4][0])) for info in found]
    # One private address among several is enough: which of them is used is not ours to choose.
    inside = [address for address in addresses if not _is_public(address)]
    if inside and not allow_private:
        raise InvalidRequest(f"{name} leads to {inside[0]}, which is not a public address; see allow_private", "url")
    address = addresses[0]
    literal = f"[{address}]" if address.version == 6 else str(address)
    return Target(
        urlunsplit((parts.scheme, f"{literal}:{port}", parts.path or "/", parts.query, "")), parts.netloc, name
    )


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    if mapped is not None:
        return _is_public(mapped)
    return address.is_global and not address.is_multicast
