"""Two tiers: copies of recent windows in this process (L1), decoded once, over one durable store.

A write goes to the store first and replaces the copy after that; only at `eventual`, and only a write without an
expected version, it is acknowledged from a bounded queue that is written behind.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Final
from weakref import WeakValueDictionary

from chatgrpo.clock import Clock, SystemClock
from chatgrpo.errors import Conflict, PlatformError, Unavailable
from chatgrpo.state.consistency import Consistency, SessionToken, may_serve
from chatgrpo.state.copies import WINDOW, Copies, copy_of, has
from chatgrpo.state.eviction import EvictionPolicy, open_eviction
from chatgrpo.state.history import MAX_RECENT_APPENDS
from chatgrpo.state.store import Change, Key, Log, Record, Store, Watch, Write
from chatgrpo.state.write_behind import Pending, Plan, after, joined

logger = logging.getLogger(__name__)

FEW: Final = 16
"""Records that are read along with a head: enough for the next turn of most chats, and cheap."""
MAX_ATTEMPTS: Final = 64
"""Compare-and-set attempts of one unconditional write before the caller hears of the contention."""
MAX_STALENESS_S: Final = 0.02
"""How old the news may be, on a store that must be asked for it, before an eventual or session read asks."""
FLUSH_RETRY_S: Final = 0.2
DRAIN_ATTEMPTS: Final = 25


class TieredStore:
    """`capacity` counts conversations in L1; `max_pending` writes at most wait to be written behind."""

    def __init__(
        self,
        store: Store,
        *,
        capacity: int = 4096,
        eviction: EvictionPolicy = EvictionPolicy.ADAPTIVE,
        cache_ttl_s: float = 300.0,
        max_pending: int = 1024,
        clock: Clock | None = None,
    ) -> None:
        self.store = store
        self._clock = clock or SystemClock()
        order = open_eviction(eviction, capacity, ttl_s=cache_ttl_s, now=self._clock.monotonic)
        self._copies = Copies(order)
        self._loads: dict[Key, asyncio.Task[Log | None]] = {}
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._watch: Watch | None = None
        self._is_exact = False
        self._refresh_at = 0.0
        self._pending: dict[Key, Pending] = {}
        self._max_pending = max_pending
        self._num_pending = 0
        self._wake = asyncio.Event()
        self._flusher: asyncio.Task[None] | None = None
        self._is_closing = False
        self.num_hits = self.num_misses = 0

    async def start(self) -> None:
        """Begins to listen for changes; nothing is cached before."""
        self._watch = await self.store.watch(self._on_change)
        self._is_exact = self._watch.is_exact
        self._flusher = asyncio.create_task(self._flush_forever())

    async def close(self) -> None:
        """Writes what is pending, then closes the store. Raises Unavailable saying how much could not be written."""
        if self._flusher is not None:
            self._is_closing = True
            self._wake.set()
            await self._flusher
        try:
            await self._drain()
        finally:
            if self._watch is not None:
                await self._watch.close()
            await self.store.close()

    def hot(self, key: tuple[str, str, str], level: Consistency, token: SessionToken) -> Log | None:
        """What `cached` would answer, for the two levels and the one moment in which it can be told at a glance: this
        is the path of nearly every read of a busy chat. `key` are the parts of a Key."""
        log = self._copies.peek(key)
        if log is None or self._pending:
            return None
        if level is Consistency.SESSION:
            if log.head.seq < token.seen.get(key[2], token.floor):
                return None
        elif level is not Consistency.EVENTUAL:
            return None
        if self._is_exact and self._clock.monotonic() >= self._refresh_at:
            return None
        if not self._copies.touch(log.key):
            return None
        self.num_hits += 1
        return log

    def cached(self, key: Key, level: Consistency, token: SessionToken) -> Log | None:
        """The copy in L1, if it may answer at this level."""
        watch = self._watch
        if watch is None:
            return None
        is_current = watch.is_exact and (level is Consistency.STRONG or self._clock.monotonic() >= self._refresh_at)
        if is_current:
            self._refresh(watch)
        log = self._copies.get(key)
        if log is None:
            return None
        if may_serve(log.head, key.id, level=level, token=token, applied=watch.applied, is_current=is_current):
            return log
        if not watch.is_exact or is_current:
            return None
        self._refresh(watch)
        return self._copies.get(key)

    async def load(self, key: Key, level: Consistency, token: SessionToken, *, want: int = FEW) -> Log | None:
        """The log's head and its last `want` records at least (WINDOW at most), as new as the level asks; None when
        absent. Callers that miss at the same time share one read, where the level lets them: a strong read must begin
        after it was asked for."""
        if self._pending and key in self._pending:
            if level is Consistency.EVENTUAL:
                return self._pending[key].log
            async with self._lock(key):
                await self._write_pending(key)
        log = self.cached(key, level, token)
        if log is not None and has(log, want):
            self.num_hits += 1
            return log
        self.num_misses += 1
        load = self._loads.get(key)
        if load is not None:
            await asyncio.wait([load])
            log = self.cached(key, level, token)
            if log is not None and has(log, want):
                return log
        load = self._loads[key] = asyncio.create_task(self._fetch(key, want))
        try:
            return await asyncio.shield(load)
        finally:
            if self._loads.get(key) is load:
                del self._loads[key]

    async def read(self, key: Key, start: int, stop: int) -> tuple[Record, ...]:
        return await self.store.read(key, start, stop)

    async def update(self, key: Key, plan: Plan, level: Consistency, *, may_wait: bool = False) -> Log | None:
        """Plans on the newest log and commits by compare-and-set, again on newer state when another writer was first.
        Returns the log after the write (before it, if the plan wrote nothing). With `may_wait`, an eventual write is
        acknowledged from the queue: the version returned stands only if nobody else writes first."""
        async with self._lock(key):
            if level is Consistency.EVENTUAL and may_wait and self._num_pending < self._max_pending:
                return await self._defer(key, plan)
            await self._write_pending(key)
            return await self._write_through(key, plan, durable=level.is_durable)

    async def delete(self, key: Key) -> bool:
        async with self._lock(key):
            pending = self._pending.pop(key, None)
            self._num_pending -= len(pending.plans) if pending else 0
            deleted = await self.store.delete(key)
            self._copies.drop(key)
            return deleted

    async def _write_through(self, key: Key, plan: Plan, *, durable: bool) -> Log | None:
        copy = self._copies.get(key)
        if copy is not None:
            # The copy may be old: a refusal counts only when it comes from the newest log.
            write = None
            with suppress(PlatformError):
                write = plan(copy)
            if write is not None:
                with suppress(Conflict):
                    return await self._commit(key, copy, write, durable=durable)
        log = None
        for _ in range(MAX_ATTEMPTS):
            log = await self._fetch(key)
            write = plan(log)
            if write is None:
                return log
            with suppress(Conflict):
                return await self._commit(key, log, write, durable=durable)
        version = log.head.version if log else None
        raise Conflict(f"{key.space} {key.id} has too many writers at once; retry", version)

    async def _commit(self, key: Key, log: Log | None, write: Write, *, durable: bool) -> Log:
        with self._copies.listening(key) as on_its_way:
            seq = await self.store.append(key, write, durable=durable)
            written = after(key, log, write, seq=seq)
            if self._watch is not None:
                self._copies.keep(written, on_its_way)
            return written

    async def _fetch(self, key: Key, want: int = FEW) -> Log | None:
        with self._copies.listening(key) as on_its_way:
            copy = self._copies.get(key)
            if copy is not None and not has(copy, want):
                copy = None
            # Powers of two, so that a window that grows by a turn is not read anew each time.
            count = min(WINDOW, 1 << (want - 1).bit_length())
            found = await self.store.tail(key, count, unless=copy.head.seq if copy else 0)
            if found is None:
                return None
            if copy is not None and found.head.seq == copy.head.seq:
                return copy
            log = copy_of(key, found.head, found.records)
            if self._watch is not None:
                self._copies.keep(log, on_its_way)
            return log

    async def _defer(self, key: Key, plan: Plan) -> Log | None:
        pending = self._pending.get(key)
        base = pending.log if pending else self._copies.get(key) or await self._fetch(key)
        write = plan(base)
        if write is None:
            return base
        log = after(key, base, write, seq=base.head.seq if base else 0)
        if pending is None:
            pending = self._pending[key] = Pending(log)
        pending.log = log
        pending.plans.append(plan)
        self._num_pending += 1
        self._wake.set()
        return log

    async def _write_pending(self, key: Key) -> None:
        """Writes what waits for the log; the caller holds its lock. What cannot be written goes on waiting."""
        pending = self._pending.get(key)
        if pending is None:
            return
        while pending.plans:
            # A head remembers so many append ids: a batch whose answer was lost is recognised when it is repeated.
            batch = pending.plans[:MAX_RECENT_APPENDS]
            await self._write_through(key, joined(key, batch), durable=False)
            del pending.plans[: len(batch)]
            self._num_pending -= len(batch)
        del self._pending[key]

    async def _flush_forever(self) -> None:
        while not self._is_closing:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.flush()
            except (Unavailable, Conflict) as error:
                logger.warning("write-behind waits pending=%d cause=%s", self._num_pending, error)
                await asyncio.sleep(FLUSH_RETRY_S)
                self._wake.set()

    async def flush(self) -> None:
        """Writes what is pending. Raises Unavailable when the store does not take it."""
        for key in list(self._pending):
            async with self._lock(key):
                await self._write_pending(key)

    async def _drain(self) -> None:
        for attempt in range(DRAIN_ATTEMPTS):
            try:
                await self.flush()
                return
            except (Unavailable, Conflict) as error:
                if attempt == DRAIN_ATTEMPTS - 1:
                    raise Unavailable(f"{self._num_pending} eventual writes could not be written: {error}") from error
                await asyncio.sleep(FLUSH_RETRY_S)

    def _on_change(self, change: Change | None) -> None:
        self._copies.on_change(change)

    def _refresh(self, watch: Watch) -> None:
        watch.refresh()
        self._refresh_at = self._clock.monotonic() + MAX_STALENESS_S

    def _lock(self, key: Key) -> asyncio.Lock:
        """Writers of one log in this process take turns, so that they lose no races against each other."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock
