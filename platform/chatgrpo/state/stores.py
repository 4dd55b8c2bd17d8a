"""From an address to a store."""

from __future__ import annotations

from pathlib import Path

from chatgrpo.errors import InvalidRequest
from chatgrpo.state.memory import MemoryStore
from chatgrpo.state.redis import RedisStore
from chatgrpo.state.sqlite import SqliteStore
from chatgrpo.state.store import Store

STATE_DB = "state.db"
"""The embedded store's file in the platform's home."""


async def open_store(address: str | Path, *, num_replicas: int = 0) -> Store:
    """`memory:`, `redis://...`, or the path of a SQLite file."""
    text = str(address)
    if text == "memory:":
        return MemoryStore()
    if text.startswith(("redis://", "rediss://", "unix://")):
        return await RedisStore.open(text, num_replicas=num_replicas)
    if "://" in text:
        raise InvalidRequest(f"{text}: give redis://..., memory: or the path of a SQLite file", "redis_url")
    return SqliteStore(text)
