"""Where the platform may listen."""

from __future__ import annotations

import asyncio
import ipaddress

from chatgrpo.clock import SystemClock
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import InvalidRequest
from chatgrpo.gateway.api_keys import Keyring
from chatgrpo.state.store import Store
from chatgrpo.state.stores import open_store


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach `host`. Names other than localhost count as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refuse_open_door(host: str | None, *, platform: PlatformConfig) -> None:
    """Raises InvalidRequest when the platform would be reachable from other machines before a key was made."""
    if host is not None and not is_loopback(host) and not asyncio.run(has_keys(platform)):
        raise InvalidRequest(
            f"{host} can be reached from other machines, and there are no API keys yet; make one with `chatgrpo keys "
            "create NAME --role admin`, or listen on 127.0.0.1",
            "host",
        )


async def has_keys(platform: PlatformConfig) -> bool:
    """Whether a key was ever made for the platform of these settings."""
    store = await open_store(platform.redis_url or platform.state_db)

    async def opened() -> Store:
        return store

    try:
        return await Keyring(opened, pepper=b"", clock=SystemClock()).has_keys()
    finally:
        await store.close()
