"""The shared store: one Redis (or Valkey) behind `redis_url`, reached from many machines.

Each atomic operation is one Lua script. Timeouts are short and ours: a refused connection is told at once. A durable
write is acknowledged when the server has synced it: with `appendfsync always` by its reply, with `everysec` by WAITAOF
(up to a second), and a server without append-only file is refused. `num_replicas` makes durable writes wait for copies
as well; with 0, a failover to a replica may lose the newest acknowledged writes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from chatgrpo.errors import InvalidRequest, Unavailable
from chatgrpo.state import lua
from chatgrpo.state.memory import conflict
from chatgrpo.state.store import Change, CorruptState, Cut, Head, Key, Log, OnChange, Record, Write

CONNECT_TIMEOUT_S: Final = 0.5
ANSWER_TIMEOUT_S: Final = 2.0
MAX_CONNECTIONS: Final = 64
RECONNECT_S: Final = 0.2
"""Pause between attempts to hear the news again; until then cached copies serve only what may be old."""
WAIT_TIMEOUT_MS: Final = 1500

Names = list[str]
logger = logging.getLogger(__name__)


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
        redis = Redis(connection_pool=_pool(url))
        try:
            with translated(url):
                mode = await _sync_mode(redis)
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


class RedisWatch:
    """News by publish/subscribe. Commits are numbered without gaps, so a lost message is noticed by the next one; after
    a lost connection everything cached goes. Until it is back, `applied` stands still: only what may be old is served.
    """

    is_exact = False

    def __init__(self, redis: Redis, channel: str, counter: str, on_change: OnChange) -> None:
        self.applied = 0
        self._redis = redis
        self._channel = channel
        self._counter = counter
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        pubsub = await self._subscribe()
        self._task = asyncio.create_task(self._listen(pubsub))

    def refresh(self) -> None:
        return None

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _subscribe(self) -> PubSub:
        pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
        try:
            with translated(self._channel):
                await pubsub.subscribe(self._channel)
                # Subscribed first, counted second: nothing falls between.
                self._on_change(None)
                self.applied = int(await self._redis.get(self._counter) or 0)
        except BaseException:
            await pubsub.aclose()  # type: ignore[no-untyped-call]
            raise
        return pubsub

    async def _listen(self, pubsub: PubSub | None) -> None:
        while True:
            try:
                if pubsub is None:
                    pubsub = await self._subscribe()
                    logger.info("state news are back seq=%d", self.applied)
                message = await pubsub.get_message(timeout=1.0)
                if message is not None:
                    self._hear(message["data"])
            except (RedisError, Unavailable) as error:
                logger.warning("state news lost cause=%s retry_in_s=%.1f", type(error).__name__, RECONNECT_S)
                if pubsub is not None:
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
                pubsub = None
                await asyncio.sleep(RECONNECT_S)
            except asyncio.CancelledError:
                if pubsub is not None:
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
                raise

    def _hear(self, data: bytes) -> None:
        number, _, name = data.decode().partition(" ")
        seq = int(number)
        if seq == self.applied + 1:
            self._on_change(Change(Key(*name.split("/", 2)), seq))
        elif seq > self.applied:
            self._on_change(None)
        else:
            return
        self.applied = seq


def _pool(url: str) -> BlockingConnectionPool:
    return BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=ANSWER_TIMEOUT_S,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=ANSWER_TIMEOUT_S,
        health_check_interval=5,
        # Once, at once, and only for a connection that was dropped while it lay idle; time-outs are never repeated.
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )


async def _sync_mode(redis: Redis) -> str:
    """`always`, `everysec` (also when the server does not say), or `none` without an append-only file."""
    try:
        settings = await redis.config_get("appendonly", "appendfsync")
    except ResponseError:
        info = await redis.info("persistence")
        return "everysec" if info.get("aof_enabled") else "none"
    if settings.get("appendonly") != "yes":
        return "none"
    return "always" if settings.get("appendfsync") == "always" else "everysec"


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


@contextmanager
def translated(what: str) -> Iterator[None]:
    """redis-py's errors as the platform's."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise Unavailable(f"Redis ({what}) does not answer: {error}; try again in a moment") from error
    except ResponseError as error:
        text = str(error)
        if text.startswith(("OOM", "MISCONF", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS")):
            raise Unavailable(f"Redis ({what}) takes no writes: {text}", 5.0) from error
        raise CorruptState(f"Redis ({what}) refused an operation: {text}") from error
