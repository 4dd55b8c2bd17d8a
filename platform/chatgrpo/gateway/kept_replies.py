"""Replies that may be told again: what they are found by, and the places where they are kept.

A reply belongs to one tenant and to one version of one model; both are in what it is found by, so it can be told to
nobody else, whatever else goes wrong. Tags (a model, a conversation) say what makes it go earlier than its time.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Protocol

from chatgrpo.inference.deltas import ChatDelta
from chatgrpo.inference.engine import FinishReason, SamplingParams
from chatgrpo.messages import Message
from chatgrpo.state.redis_connection import open_redis, translated

PREFIX: Final = "chatgrpo:reply:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """For whom a reply is written, and by what. `version` changes with everything that is published under the name of
    the model. `conversation_id`: what takes the reply along when it is forgotten."""

    tenant: str
    version: str
    conversation_id: str | None = None


def name_of(asker: Asker, model: str, messages: Sequence[Message], params: SamplingParams) -> str:
    """What a greedy reply is found by. The seed is left out: it decides nothing at temperature 0."""
    asked = [
        asker.tenant,
        model,
        asker.version,
        [message.to_dict() for message in messages],
        asdict(replace(params, seed=None)),
    ]
    text = json.dumps(asked, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def tags_of(asker: Asker, model: str) -> tuple[str, ...]:
    """Within a tenant: nobody can make another's replies go."""
    tags = [tag(asker.tenant, "model", model)]
    if asker.conversation_id is not None:
        tags.append(tag(asker.tenant, "conversation", asker.conversation_id))
    return tuple(tags)


def tag(tenant: str, kind: str, name: str) -> str:
    return json.dumps([tenant, kind, name], ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptReply:
    """`made_at` in seconds since the epoch."""

    pieces: tuple[ChatDelta, ...]
    made_at: float

    @property
    def num_bytes(self) -> int:
        return sum(64 + 4 * len(piece.text) for piece in self.pieces)

    def to_json(self) -> bytes:
        return json.dumps({"made_at": self.made_at, "pieces": [asdict(piece) for piece in self.pieces]}).encode()

    @classmethod
    def from_json(cls, text: bytes) -> KeptReply:
        data = json.loads(text)
        return cls(pieces=tuple(map(_piece, data["pieces"])), made_at=data["made_at"])


def _piece(data: dict[str, Any]) -> ChatDelta:
    reason = data.pop("finish_reason")
    return ChatDelta(finish_reason=reason and FinishReason(reason), **data)


class ReplyStore(Protocol):
    """Raises Unavailable when it cannot be reached."""

    async def get(self, name: str) -> KeptReply | None: ...

    async def put(self, name: str, reply: KeptReply, tags: Sequence[str], *, ttl_s: float) -> None: ...

    async def drop(self, tag: str) -> None:
        """Everything that bears the tag."""
        ...

    async def close(self) -> None: ...


class MemoryReplies:
    """In this process, the least recently told out first. Who asks looks at `made_at`; nothing ends by itself."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[str, tuple[KeptReply, tuple[str, ...]]] = OrderedDict()
        self._names: dict[str, set[str]] = {}

    async def get(self, name: str) -> KeptReply | None:
        found = self._kept.get(name)
        if found is None:
            return None
        self._kept.move_to_end(name)
        return found[0]

    async def put(self, name: str, reply: KeptReply, tags: Sequence[str], *, ttl_s: float) -> None:
        self._remove(name)
        self._kept[name] = (reply, tuple(tags))
        self._num_bytes += reply.num_bytes
        for each in tags:
            self._names.setdefault(each, set()).add(name)
        while self._num_bytes > self._max_bytes:
            self._remove(next(iter(self._kept)))

    async def drop(self, tag: str) -> None:
        for name in list(self._names.get(tag, ())):
            self._remove(name)

    async def close(self) -> None:
        return None

    def _remove(self, name: str) -> None:
        reply, tags = self._kept.pop(name, (None, ()))
        self._num_bytes -= reply.num_bytes if reply else 0
        for each in tags:
            names = self._names[each]
            names.discard(name)
            if not names:
                del self._names[each]


class RedisReplies:
    """For all replicas of a cluster."""

    def __init__(self, url: str, *, prefix: str = PREFIX) -> None:
        self._redis: Any = open_redis(url)
        self._prefix = prefix

    async def get(self, name: str) -> KeptReply | None:
        with translated(self._prefix):
            text: bytes | None = await self._redis.get(self._prefix + name)
        try:
            return KeptReply.from_json(text) if text is not None else None
        except (ValueError, KeyError, TypeError):
            return None  # written by another version of the platform

    async def put(self, name: str, reply: KeptReply, tags: Sequence[str], *, ttl_s: float) -> None:
        ttl_ms = round(ttl_s * 1000)
        with translated(self._prefix):
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(self._prefix + name, reply.to_json(), px=ttl_ms)
                for each in tags:
                    pipe.sadd(self._tag(each), name)
                    # Outlives every reply that bears it: each new one prolongs it.
                    pipe.pexpire(self._tag(each), ttl_ms)
                await pipe.execute()

    async def drop(self, tag: str) -> None:
        with translated(self._prefix):
            names = await self._redis.smembers(self._tag(tag))
            keys = [self._prefix + name.decode() for name in names]
            await self._redis.delete(self._tag(tag), *keys)

    async def close(self) -> None:
        await self._redis.aclose(close_connection_pool=True)

    def _tag(self, tag: str) -> str:
        return f"{self._prefix}tag:{tag}"
