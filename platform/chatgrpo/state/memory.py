"""A store in this process's memory: for tests and throw-away use. Nothing survives the process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from chatgrpo.errors import Conflict
from chatgrpo.state.store import Change, Cut, Head, Key, Log, OnChange, Record, Write


@dataclass(slots=True)
class _Stored:
    head: Head
    records: list[bytes]


class MemoryStore:
    """Every method runs to its end without awaiting, so each is atomic on the event loop."""

    def __init__(self) -> None:
        self._logs: dict[Key, _Stored] = {}
        self._watches: list[_MemoryWatch] = []
        self.seq = 0

    async def append(self, key: Key, write: Write, *, durable: bool = True) -> int:
        stored = self._logs.get(key)
        if (stored.head.seq if stored else 0) != write.based_on:
            raise conflict(key, stored.head.version if stored else -1)
        if stored is None:
            stored = self._logs[key] = _Stored(write.head, [])
        stored.records.extend(write.records)
        stored.head = replace(write.head, seq=self._commit(key))
        return self.seq

    async def tail(self, key: Key, count: int, *, unless: int = 0) -> Log | None:
        stored = self._logs.get(key)
        if stored is None:
            return None
        start = max(0, len(stored.records) - count) if stored.head.seq != unless else len(stored.records)
        return Log(key, stored.head, _records(stored, start, len(stored.records)))

    async def read(self, key: Key, start: int, stop: int) -> tuple[Record, ...]:
        stored = self._logs.get(key)
        return _records(stored, max(0, start), max(0, stop)) if stored else ()

    async def delete(self, key: Key) -> bool:
        if self._logs.pop(key, None) is None:
            return False
        self._commit(key)
        return True

    async def list(
        self, tenant: str, space: str, *, owner: str | None = None, before: str | None = None, limit: int = 50
    ) -> Sequence[tuple[Key, Head]]:
        found = [
            (key, stored.head)
            for key, stored in self._in(tenant, space, owner)
            if before is None or key.id.encode() < before.encode()
        ]
        return sorted(found, key=lambda item: item[0].id.encode(), reverse=True)[:limit]

    async def expired(self, now: float, limit: int) -> Sequence[Key]:
        due = [(s.head.expires_at, k) for k, s in self._logs.items() if s.head.expires_at is not None]
        return [key for expires_at, key in sorted(due) if expires_at <= now][:limit]

    async def cut(self, tenant: str, space: str, *, owner: str | None = None) -> Cut:
        versions = {key.id: stored.head.version for key, stored in self._in(tenant, space, owner)}
        return Cut(seq=self.seq, versions=versions)

    async def watch(self, on_change: OnChange) -> _MemoryWatch:
        watch = _MemoryWatch(self, on_change)
        self._watches.append(watch)
        return watch

    async def ping(self) -> None:
        return None

    async def close(self) -> None:
        return None

    def _in(self, tenant: str, space: str, owner: str | None) -> Sequence[tuple[Key, _Stored]]:
        return [
            (key, stored)
            for key, stored in self._logs.items()
            if key.tenant == tenant and key.space == space and owner in {None, stored.head.owner}
        ]

    def _commit(self, key: Key) -> int:
        self.seq += 1
        for watch in self._watches:
            watch.on_change(Change(key, self.seq))
        return self.seq


class _MemoryWatch:
    is_exact = True

    def __init__(self, store: MemoryStore, on_change: OnChange) -> None:
        self.on_change = on_change
        self._store = store

    @property
    def applied(self) -> int:
        return self._store.seq

    def refresh(self) -> None:
        return None

    async def close(self) -> None:
        self._store._watches.remove(self)


def conflict(key: Key, current_version: int) -> Conflict:
    """What every store raises when a compare-and-set fails."""
    state = "does not exist" if current_version < 0 else f"is at version {current_version}"
    return Conflict(f"{key.space} {key.id} {state}; read it again and retry", current_version)


def _records(stored: _Stored, start: int, stop: int) -> tuple[Record, ...]:
    return tuple(Record(start + i, data) for i, data in enumerate(stored.records[start:stop]))
