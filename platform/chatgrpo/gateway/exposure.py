"""Where the platform may listen."""

from __future__ import annotations

import ipaddress

from chatgrpo.errors import InvalidRequest


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach `host`. Names other than localhost count as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refuse_open_door(host: str | None) -> None:
    """Raises InvalidRequest when the platform, which asks for no keys, would be reachable from other machines."""
    if host is not None and not is_loopback(host):
        raise InvalidRequest(
            f"{host} can be reached from other machines, and no API keys are configured; listen on 127.0.0.1 and put a "
            "proxy that authenticates in front",
            "host",
        )
