"""Two tiers: windows of recent records in this process (L1), decoded once, over one durable store.

What makes the cache safe:
* A copy enters L1 with the commit it was read at, and only if no newer change of that log was told while the read or
  write was on its way.
* A change that is told evicts an older copy; a gap in the news evicts everything.
* A write goes to the store first and replaces the copy after that.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final
from weakref import WeakValueDictionary

from chatgrpo.clock import Clock, SystemClock
from chatgrpo.errors import Conflict, PlatformError
from chatgrpo.state.consistency import Consistency, SessionToken, may_serve
from chatgrpo.state.store import Change, Key, Log, Record, Store, Watch, Write

WINDOW: Final = 256
"""Records of a log that L1 keeps: a chat prompt rarely needs more, and a longer read goes to the store."""
MAX_ATTEMPTS: Final = 64
"""Compare-and-set attempts of one unconditional write before the caller hears of the contention."""
MAX_STALENESS_S: Final = 0.02
"""How old the news may be, on a store that must be asked for it, before an eventual or session read asks."""
_NEVER: Final = 1 << 62

Plan = Callable[[Log | None], Write | None]
"""Given the newest log (None: absent), what to write; None: nothing. May raise; it is called again on newer state."""


@dataclass(slots=True, eq=False)
class _OnItsWay:
    """A read or write of a key in progress: `told` is the newest commit of the key told meanwhile."""

    told: int = 0


class TieredStore:
    def __init__(self, store: Store, *, capacity: int = 10_000, clock: Clock | None = None) -> None:
        self.store = store
        self._clock = clock or SystemClock()
        self._refresh_at = 0.0
        self._capacity = capacity
        self._cache: OrderedDict[Key, Log] = OrderedDict()
        self._on_their_way: dict[Key, list[_OnItsWay]] = {}
        self._loads: dict[Key, asyncio.Task[Log | None]] = {}
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._watch: Watch | None = None

    async def start(self) -> None:
        """Begins to listen for changes; nothing is cached before."""
        self._watch = await self.store.watch(self._on_change)

    async def close(self) -> None:
        if self._watch is not None:
            await self._watch.close()
        await self.store.close()

    def cached(self, key: Key, level: Consistency, token: SessionToken) -> Log | None:
        """The copy in L1, if it may answer at this level."""
        watch = self._watch
        if watch is None:
            return None
        is_current = watch.is_exact and (level is Consistency.STRONG or self._clock.monotonic() >= self._refresh_at)
        if is_current:
            self._refresh(watch)
        log = self._cache.get(key)
        if log is None:
            return None
        applied = watch.applied
        if not may_serve(log.head, key.id, level=level, token=token, applied=applied, is_current=is_current):
            if not watch.is_exact or is_current:
                return None
            self._refresh(watch)
            log = self._cache.get(key)
        if log is not None:
            self._cache.move_to_end(key)
        return log

    async def load(self, key: Key, level: Consistency, token: SessionToken) -> Log | None:
        """The log's head and last WINDOW records, as new as the level asks; None when absent. Callers that miss at
        the same time share one read, where the level lets them: a strong read must begin after it was asked for."""
        log = self.cached(key, level, token)
        if log is not None:
            return log
        load = self._loads.get(key)
        if load is not None:
            await asyncio.wait([load])
            log = self.cached(key, level, token)
            if log is not None:
                return log
        load = self._loads[key] = asyncio.create_task(self._fetch(key))
        try:
            return await asyncio.shield(load)
        finally:
            if self._loads.get(key) is load:
                del self._loads[key]

    async def read(self, key: Key, start: int, stop: int) -> tuple[Record, ...]:
        return await self.store.read(key, start, stop)

    async def update(self, key: Key, plan: Plan, level: Consistency) -> Log | None:
        """Plans on the newest log and commits by compare-and-set, again on newer state when another writer was first.
        Returns the log after the write (before it, if the plan wrote nothing)."""
        async with self._lock(key):
            copy = self._cache.get(key)
            if copy is not None:
                # The copy may be old: a refusal counts only when it comes from the newest log.
                write = None
                with suppress(PlatformError):
                    write = plan(copy)
                if write is not None:
                    with suppress(Conflict):
                        return await self._commit(key, copy, write, level)
            log = None
            for _ in range(MAX_ATTEMPTS):
                log = await self._fetch(key)
                write = plan(log)
                if write is None:
                    return log
                with suppress(Conflict):
                    return await self._commit(key, log, write, level)
            version = log.head.version if log else None
            raise Conflict(f"{key.space} {key.id} has too many writers at once; retry", version)

    async def delete(self, key: Key) -> bool:
        async with self._lock(key):
            deleted = await self.store.delete(key)
            self._cache.pop(key, None)
            return deleted

    async def _commit(self, key: Key, log: Log | None, write: Write, level: Consistency) -> Log:
        with self._listening(key) as on_its_way:
            seq = await self.store.append(key, write, durable=level.is_durable)
            start = write.head.version - len(write.records) + 1
            added = tuple(Record(start + i, data) for i, data in enumerate(write.records))
            records = ((log.records if log else ()) + added)[-WINDOW:]
            written = Log(key, replace(write.head, seq=seq), records)
            self._keep(written, on_its_way)
            return written

    async def _fetch(self, key: Key) -> Log | None:
        with self._listening(key) as on_its_way:
            copy = self._cache.get(key)
            log = await self.store.tail(key, WINDOW, unless=copy.head.seq if copy else 0)
            if log is not None and copy is not None and log.head.seq == copy.head.seq:
                return copy
            if log is not None:
                self._keep(log, on_its_way)
            return log

    def _keep(self, log: Log, on_its_way: _OnItsWay) -> None:
        known = self._cache.get(log.key)
        if (
            self._watch is None
            or on_its_way.told > log.head.seq
            or (known is not None and known.head.seq > log.head.seq)
        ):
            return
        self._cache[log.key] = log
        self._cache.move_to_end(log.key)
        while len(self._cache) > self._capacity:
            self._cache.popitem(last=False)

    def _on_change(self, change: Change | None) -> None:
        if change is None:
            self._cache.clear()
            for waiting in self._on_their_way.values():
                for on_its_way in waiting:
                    on_its_way.told = _NEVER
            return
        copy = self._cache.get(change.key)
        if copy is not None and copy.head.seq < change.seq:
            del self._cache[change.key]
        for on_its_way in self._on_their_way.get(change.key, ()):
            on_its_way.told = max(on_its_way.told, change.seq)

    def _refresh(self, watch: Watch) -> None:
        watch.refresh()
        self._refresh_at = self._clock.monotonic() + MAX_STALENESS_S

    @contextmanager
    def _listening(self, key: Key) -> Iterator[_OnItsWay]:
        on_its_way = _OnItsWay()
        waiting = self._on_their_way.setdefault(key, [])
        waiting.append(on_its_way)
        try:
            yield on_its_way
        finally:
            waiting.remove(on_its_way)
            if not waiting:
                self._on_their_way.pop(key, None)

    def _lock(self, key: Key) -> asyncio.Lock:
        """Writers of one log in this process take turns, so that they lose no races against each other."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock
