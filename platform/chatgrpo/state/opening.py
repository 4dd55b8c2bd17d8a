"""From an address to conversations ready for use."""

from __future__ import annotations

from pathlib import Path

from chatgrpo.clock import Clock
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import InvalidRequest
from chatgrpo.state.consistency import Consistency
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.limits import Limits
from chatgrpo.state.memory import MemoryStore
from chatgrpo.state.redis import RedisStore
from chatgrpo.state.sqlite import SqliteStore
from chatgrpo.state.store import Store
from chatgrpo.state.tiered import TieredStore


async def open_store(address: str | Path) -> Store:
    """`memory:`, `redis://...`, or the path of a SQLite file."""
    text = str(address)
    if text == "memory:":
        return MemoryStore()
    if text.startswith(("redis://", "rediss://", "unix://")):
        return await RedisStore.open(text)
    if "://" in text:
        raise InvalidRequest(f"{text}: give redis://..., memory: or the path of a SQLite file", "redis_url")
    return SqliteStore(text)


async def open_conversations(
    address: str | Path,
    *,
    clock: Clock | None = None,
    limits: Limits | None = None,
    level: Consistency = Consistency.SESSION,
) -> Conversations:
    """Opened for use; the caller closes it."""
    tiers = TieredStore(await open_store(address), clock=clock)
    await tiers.start()
    return Conversations(tiers, clock=clock, limits=limits, level=level)


async def open_platform_conversations(platform: PlatformConfig) -> Conversations:
    """What the platform's settings say: Redis when there is a `redis_url`, else SQLite under `home`."""
    return await open_conversations(platform.redis_url or platform.state_db)
