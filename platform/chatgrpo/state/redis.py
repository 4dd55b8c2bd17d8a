"""The shared store: one Redis (or Valkey) behind `redis_url`, reached from many machines.

Each atomic operation is one Lua script. Timeouts are short and ours: a refused connection is told at once. A durable
write is acknowledged when the server has synced it: with `appendfsync always` by its reply, with `everysec` by WAITAOF
(up to a second), and a server without append-only file is refused. `num_replicas` makes durable writes wait for copies
as well; with 0, a failover to a replica may lose the newest acknowledged writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from chatgrpo.errors import InvalidRequest, Unavailable
from chatgrpo.state import lua
from chatgrpo.state.memory import conflict
from chatgrpo.state.redis_connection import open_redis, sync_mode, translated
from chatgrpo.state.redis_news import RedisWatch
from chatgrpo.state.store import CorruptState, Cut, Head, Key, Log, OnChange, Record, Write

__all__ = ["RedisStore", "open_redis"]

WAIT_TIMEOUT_MS: Final = 1500

Names = list[str]


class RedisStore:
    """`prefix` begins every key and the news channel. Open with `RedisStore.open`."""

    def __init__(self, redis: Redis, *, prefix: str, waits_for_sync: bool, num_replicas: int) -> None:
        self._redis: Any = redis  # redis-py types every answer as a union over protocols and clients
        self._prefix = prefix
        self._waits_for_sync = waits_for_sync
        self._num_replicas = num_replicas
        self._append = redis.register_script(lua.APPEND)
        self._tail = redis.register_script(lua.TAIL)
        self._delete = redis.register_script(lua.DELETE)
        self._cut = redis.register_script(lua.CUT)

    @classmethod
    async def open(
        cls, url: str, *, prefix: str = "chatgrpo:", num_replicas: int = 0, allow_volatile: bool = False
    ) -> RedisStore:
        """Raises Unavailable when the server does not answer, InvalidRequest when it keeps no append-only file (with
        `allow_volatile` that is taken: nothing then survives the server)."""
        redis = open_redis(url)
        try:
            with translated(url):
                mode = await sync_mode(redis)
        except Unavailable:
            await redis.aclose(close_connection_pool=True)
            raise
        if mode == "none" and not allow_volatile:
            await redis.aclose(close_connection_pool=True)
            raise InvalidRequest(
                "the Redis server keeps no append-only file, so an acknowledged turn would not survive it; set "
                "`appendonly yes` (and `appendfsync always` for the fastest durable writes)",
                "redis_url",
            )
        return cls(redis, prefix=prefix, waits_for_sync=mode == "everysec", num_replicas=num_replicas)

    async def append(self, key: Key, write: Write, *, durable: bool = True) -> int:
        head = write.head
        values = [write.based_on, head.version, head.data, head.owner, _number(head.expires_at), key.id, str(key)]
        args = [*values, self._owners(key.tenant, key.space), self._news, *write.records]
        seq, version = await self._run(self._append, self._keys(key), args, durable=durable)
        if not seq:
            raise conflict(key, version)
        return int(seq)

    async def tail(self, key: Key, count: int, *, unless: int = 0) -> Log | None:
        with translated(self._prefix):
            answer = await self._tail(keys=self._keys(key)[:2], args=[count, unless])
        if not answer:
            return None
        head = _head(answer[0])
        first = head.version - len(answer[1]) + 1
        if answer[1] and len(answer[1]) != min(count, head.version + 1):
            raise CorruptState(f"{key.space} {key.id}: records are missing; restore the server's append-only file")
        return Log(key, head, tuple(Record(first + i, data) for i, data in enumerate(answer[1])))

    async def read(self, key: Key, start: int, stop: int) -> tuple[Record, ...]:
        if stop <= start:
            return ()
        with translated(self._prefix):
            found = await self._redis.lrange(self._keys(key)[1], start, stop - 1)
        return tuple(Record(start + i, data) for i, data in enumerate(found))

    async def delete(self, key: Key) -> bool:
        args = [key.id, str(key), self._owners(key.tenant, key.space), self._news]
        return bool(await self._run(self._delete, self._keys(key), args, durable=True))

    async def list(
        self, tenant: str, space: str, *, owner: str | None = None, before: str | None = None, limit: int = 50
    ) -> Sequence[tuple[Key, Head]]:
        newest = "+" if before is None else f"({before}"
        with translated(self._prefix):
            ids = await self._redis.zrevrangebylex(self._index(tenant, space, owner), newest, "-", 0, limit)
            keys = [Key(tenant, space, id_.decode()) for id_ in ids]
            pipe = self._redis.pipeline(transaction=False)
            for key in keys:
                pipe.hmget(self._keys(key)[0], ["v", "d", "o", "e", "s"])
            heads = await pipe.execute()
        return [(key, _head(head)) for key, head in zip(keys, heads, strict=True) if head[0] is not None]

    async def expired(self, now: float, limit: int) -> Sequence[Key]:
        with translated(self._prefix):
            names = await self._redis.zrangebyscore(f"{self._prefix}expiry", "-inf", now, start=0, num=limit)
        return [Key(*name.decode().split("/", 2)) for name in names]

    async def cut(self, tenant: str, space: str, *, owner: str | None = None) -> Cut:
        keys = [self._index(tenant, space, owner), f"{self._prefix}seq"]
        with translated(self._prefix):
            seq, *rest = await self._cut(keys=keys, args=[f"{self._prefix}head:{tenant}/{space}/"])
        versions = {id_.decode(): int(version) for id_, version in zip(rest[::2], rest[1::2], strict=True)}
        return Cut(seq=int(seq), versions=versions)

    async def watch(self, on_change: OnChange) -> RedisWatch:
        watch = RedisWatch(self._redis, self._news, f"{self._prefix}seq", on_change)
        await watch.start()
        return watch

    async def ping(self) -> None:
        with translated(self._prefix):
            await self._redis.ping()

    async def close(self) -> None:
        await self._redis.aclose(close_connection_pool=True)

    @property
    def _news(self) -> str:
        return f"{self._prefix}news"

    def _keys(self, key: Key) -> Names:
        p = self._prefix
        return [f"{p}head:{key}", f"{p}records:{key}", f"{p}ids:{key.tenant}/{key.space}", f"{p}expiry", f"{p}seq"]

    def _owners(self, tenant: str, space: str) -> str:
        return f"{self._prefix}owned:{tenant}/{space}/"

    def _index(self, tenant: str, space: str, owner: str | None) -> str:
        return f"{self._prefix}ids:{tenant}/{space}" if owner is None else self._owners(tenant, space) + owner

    async def _run(self, script: AsyncScript, keys: Names, args: Sequence[Any], *, durable: bool) -> Any:
        """Runs a script that writes; a durable one is answered when it is on disk and on the replicas asked for."""
        with translated(self._prefix):
            if not durable or not (self._waits_for_sync or self._num_replicas):
                return await script(keys=keys, args=args)
            # The wait counts the writes of its own connection.
            async with self._redis.client() as one:
                answer = await script(keys=keys, args=args, client=one)
                synced = await one.waitaof(int(self._waits_for_sync), self._num_replicas, WAIT_TIMEOUT_MS)
        if synced[0] < int(self._waits_for_sync) or synced[1] < self._num_replicas:
            raise Unavailable(
                f"written, but only {synced[0]} local and {synced[1]} replica copies were confirmed in "
                f"{WAIT_TIMEOUT_MS} ms; retry with the same append id"
            )
        return answer


def _head(values: Sequence[bytes]) -> Head:
    version, data, owner, expires_at, seq = values
    return Head(
        version=int(version),
        data=data,
        owner=owner.decode(),
        expires_at=float(expires_at) if expires_at else None,
        seq=int(seq),
    )


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)
