"""Greedy replies told again. A reply belongs to one tenant and to one version of one model; both are in what it is
found by, so it can be told to nobody else, whatever else goes wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from chatgrpo.gateway.config import ReplyCacheConfig
from chatgrpo.gateway.kept_cache import KeptCache, Lifetime
from chatgrpo.inference.deltas import ChatDelta, TokenLogprob
from chatgrpo.inference.engine import FinishReason, SamplingParams
from chatgrpo.messages import Message

MAX_VERSIONS: Final = 10_000
"""Models whose published version one process remembers."""
PREFIX: Final = "chatgrpo:reply:"
"""In Redis."""

Pieces = tuple[ChatDelta, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """For whom a reply is written, and by what. `version` changes with everything that is published under the name of
    the model. `conversation_id`: what takes the reply along when it is forgotten."""

    tenant: str
    version: str
    conversation_id: str | None = None


@dataclass(frozen=True, slots=True)
class FoundReply:
    pieces: Pieces
    is_fresh: bool


class ReplyCache:
    """`looked(result)` counts: hit, stale, shared (waited for another's) or miss."""

    def __init__(self, config: ReplyCacheConfig, kept: KeptCache, *, looked: Callable[[str], None]) -> None:
        self.config = config
        self.kept = kept
        self.looked = looked
        self._life = Lifetime(ttl_s=config.ttl_s, stale_s=config.stale_s)
        self._versions: dict[tuple[str, str], str] = {}

    @property
    def is_on(self) -> bool:
        return self.config.ttl_s > 0

    async def get(self, name: str) -> FoundReply | None:
        found = await self.kept.get(name, self._life)
        pieces = _decoded(found.body) if found else None
        return FoundReply(pieces, found.is_fresh) if found and pieces else None

    async def put(self, name: str, pieces: Sequence[ChatDelta], asker: Asker, model: str) -> None:
        body = json.dumps([asdict(piece) for piece in pieces], ensure_ascii=False).encode()
        await self.kept.put(name, body, _tags_of(asker, model), self._life)

    async def published(self, asker: Asker, model: str) -> bool:
        """True when something else than before is published under the name. What the older version said goes: it would
        not be told anyhow, and gives its room back."""
        key = (asker.tenant, model)
        known = self._versions.get(key)
        if known == asker.version:
            return False
        self._versions.pop(key, None)
        self._versions[key] = asker.version
        if len(self._versions) > MAX_VERSIONS:
            del self._versions[next(iter(self._versions))]
        if known is not None:
            await self.kept.drop(_tag(asker.tenant, "model", model))
        return known is not None

    async def forget_conversation(self, tenant: str, conversation_id: str) -> None:
        if self.is_on:
            await self.kept.drop(_tag(tenant, "conversation", conversation_id))


def name_of(asker: Asker, model: str, messages: Sequence[Message], params: SamplingParams) -> str:
    """What a greedy reply is found by. The seed is left out: it decides nothing at temperature 0."""
    said = [message.to_dict() for message in messages]
    asked = [asker.tenant, model, asker.version, said, asdict(replace(params, seed=None))]
    text = json.dumps(asked, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def _tags_of(asker: Asker, model: str) -> tuple[str, ...]:
    """Within a tenant: nobody can make another's replies go."""
    tags = [_tag(asker.tenant, "model", model)]
    if asker.conversation_id is not None:
        tags.append(_tag(asker.tenant, "conversation", asker.conversation_id))
    return tuple(tags)


def _tag(tenant: str, kind: str, name: str) -> str:
    return json.dumps([tenant, kind, name], ensure_ascii=False)


def _decoded(body: bytes) -> Pieces | None:
    try:
        return tuple(map(_piece, json.loads(body)))
    except (ValueError, KeyError, TypeError):
        return None  # written to Redis by another version of the platform


def _piece(data: dict[str, Any]) -> ChatDelta:
    reason = data.pop("finish_reason")
    logprobs = tuple(TokenLogprob(**token) for token in data.pop("logprobs"))
    return ChatDelta(finish_reason=reason and FinishReason(reason), logprobs=logprobs, **data)
