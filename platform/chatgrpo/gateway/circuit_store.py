"""Circuits that are not closed, where all replicas find them: one small log an upstream, absent once closed."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Final

from chatgrpo.resilience.circuit import Circuit
from chatgrpo.state.store import Head, Key, Store, Write

SPACE: Final = "circuit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A circuit as it was read, and what a change must be based on."""

    circuit: Circuit | None
    seq: int = 0
    version: int = -1


class CircuitStore:
    """`open_store` is awaited at each use; it opens once."""

    def __init__(self, open_store: Callable[[], Awaitable[Store]]) -> None:
        self._open_store = open_store

    async def load(self, upstream: str) -> Stored:
        """Raises Unavailable."""
        log = await (await self._open_store()).tail(_key(upstream), 0)
        if log is None:
            return Stored(circuit=None)
        return Stored(circuit=Circuit(**json.loads(log.head.data)), seq=log.head.seq, version=log.head.version)

    async def swap(self, upstream: str, stored: Stored, circuit: Circuit | None) -> None:
        """Raises Conflict when the circuit is not what was read any more, and Unavailable. Not synced to disk: after a
        power cut every circuit is closed, which is as good a guess as any."""
        store = await self._open_store()
        if circuit is None:
            await store.delete(_key(upstream))
            return
        head = Head(version=stored.version + 1, data=json.dumps(asdict(circuit)).encode())
        await store.append(_key(upstream), Write(head=head, records=(b"",), based_on=stored.seq), durable=False)


def _key(upstream: str) -> Key:
    return Key("", SPACE, upstream)
