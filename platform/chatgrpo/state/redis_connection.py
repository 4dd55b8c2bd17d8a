"""Connections to Redis: short time-outs of our own, one repeat at most, errors in the platform's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from chatgrpo.errors import Unavailable
from chatgrpo.state.store import CorruptState

# To connect, to be answered, and to be given a connection. A burst opens all connections of a pool at once, in an event
# loop that may stand still for a moment (a collection of garbage, a neighbour of a virtual machine).
ANSWER_TIMEOUT_S: Final = 2.0
MAX_CONNECTIONS: Final = 64


def open_redis(url: str) -> Redis:
    """A client with a pool of its own; connects at its first command. The caller closes both."""
    return Redis(connection_pool=open_pool(url))


def open_pool(url: str) -> BlockingConnectionPool:
    return BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=ANSWER_TIMEOUT_S,
        socket_connect_timeout=ANSWER_TIMEOUT_S,
        socket_timeout=ANSWER_TIMEOUT_S,
        health_check_interval=5,
        # Once, at once, and only for a connection that was dropped while it lay idle; time-outs are never repeated.
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )


async def sync_mode(redis: Redis) -> str:
    """`always`, `everysec` (also when the server does not say), or `none` without an append-only file."""
    try:
        settings = await redis.config_get("appendonly", "appendfsync")
    except ResponseError:
        info = await redis.info("persistence")
        return "everysec" if info.get("aof_enabled") else "none"
    if settings.get("appendonly") != "yes":
        return "none"
    return "always" if settings.get("appendfsync") == "always" else "everysec"


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
