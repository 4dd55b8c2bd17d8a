"""What is kept to be told again: bytes under a name, in this process or in Redis. A tag makes all that bear it go."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from chatgrpo.state.redis_connection import open_redis, translated

_MADE_AT: Final = struct.Struct(">d")
_OVERHEAD_BYTES: Final = 200
"""About what an entry takes beside its body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """`made_at` in seconds since the epoch. How long it may be told is the asker's business."""

    body: bytes
    made_at: float


class MemoryKept:
    """In this process, the least recently told out first. Nothing ends by itself."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[str, tuple[Kept, tuple[str, ...]]] = OrderedDict()
        self._names: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    async def get(self, name: str) -> Kept | None:
        found = self._kept.get(name)
        if found is None:
            return None
        self._kept.move_to_end(name)
        return found[0]

    async def put(self, name: str, kept: Kept, tags: Sequence[str], *, ttl_s: float) -> None:
        self._remove(name)
        self._kept[name] = (kept, tuple(tags))
        self._num_bytes += len(kept.body) + _OVERHEAD_BYTES
        for tag in tags:
            self._names.setdefault(tag, set()).add(name)
        while self._num_bytes > self._max_bytes:
            self._remove(next(iter(self._kept)))

    async def drop(self, tag: str) -> None:
        for name in list(self._names.get(tag, ())):
            self._remove(name)

    def _remove(self, name: str) -> None:
        kept, tags = self._kept.pop(name, (None, ()))
        self._num_bytes -= len(kept.body) + _OVERHEAD_BYTES if kept else 0
        for tag in tags:
            names = self._names[tag]
            names.discard(name)
            if not names:
                del self._names[tag]


class RedisKept:
    """For all replicas of a cluster. Connects at its first use; raises Unavailable when Redis cannot be reached."""

    def __init__(self, url: str, *, prefix: str) -> None:
        self._redis: Any = open_redis(url)
        self._prefix = prefix

    async def get(self, name: str) -> Kept | None:
        with translated(self._prefix):
            data: bytes | None = await self._redis.get(self._prefix + name)
        if data is None or len(data) < _MADE_AT.size:
            return None
        return Kept(body=data[_MADE_AT.size :], made_at=_MADE_AT.unpack_from(data)[0])

    async def put(self, name: str, kept: Kept, tags: Sequence[str], *, ttl_s: float) -> None:
        ttl_ms = max(1, round(ttl_s * 1000))
        with translated(self._prefix):
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(self._prefix + name, _MADE_AT.pack(kept.made_at) + kept.body, px=ttl_ms)
                for tag in tags:
                    pipe.sadd(self._tag(tag), name)
                    # Outlives everything that bears it: each new one prolongs it.
                    pipe.pexpire(self._tag(tag), ttl_ms)
                await pipe.execute()

    async def drop(self, tag: str) -> None:
        with translated(self._prefix):
            names = await self._redis.smembers(self._tag(tag))
            await self._redis.delete(self._tag(tag), *(self._prefix + name.decode() for name in names))

    async def close(self) -> None:
        await self._redis.aclose(close_connection_pool=True)

    def _tag(self, tag: str) -> str:
        return f"{self._prefix}tag:{tag}"
