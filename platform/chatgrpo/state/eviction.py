"""Which copy leaves L1 when another comes: LRU, LFU, TTL, or a policy that adapts to how it is used.

A policy orders keys, it holds no values: the cache asks it on every hit and on every new key.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable
from enum import StrEnum
from typing import Any, Final, Protocol

from cachetools import Cache, LFUCache, LRUCache, TTLCache


class EvictionPolicy(StrEnum):
    """Names of the policies, as the configuration says them."""

    ADAPTIVE = "adaptive"
    LRU = "lru"
    LFU = "lfu"
    TTL = "ttl"


class Eviction(Protocol):
    """Keys are admitted once, then touched; at most `capacity` of them are in."""

    def touch(self, key: Hashable) -> bool:
        """A hit on an admitted key; False when it has outlived its time and must go."""
        ...

    def admit(self, key: Hashable) -> Iterable[Hashable]:
        """A new key comes in; returns who goes for it: others, or the new key itself."""
        ...

    def forget(self, key: Hashable) -> None:
        """The key is gone for other reasons. Unknown keys are ignored."""
        ...


def open_eviction(policy: EvictionPolicy, capacity: int, *, ttl_s: float, now: Callable[[], float]) -> Eviction:
    """`now` and `ttl_s` matter to TTL only: seconds, monotonic."""
    match policy:
        case EvictionPolicy.LRU:
            return Fixed(LRUCache(capacity))
        case EvictionPolicy.LFU:
            return Fixed(LFUCache(capacity))
        case EvictionPolicy.TTL:
            return Expiring(TTLCache(capacity, ttl_s, timer=now))
        case EvictionPolicy.ADAPTIVE:
            return Adaptive(capacity)


class Fixed:
    """The order that a cachetools cache keeps."""

    def __init__(self, order: Cache[Hashable, None]) -> None:
        self._order: Any = order

    def touch(self, key: Hashable) -> bool:
        self._order[key]
        return True

    def admit(self, key: Hashable) -> Iterable[Hashable]:
        victims = []
        while len(self._order) >= self._order.maxsize:
            victims.append(self._order.popitem()[0])
        self._order[key] = None
        return victims

    def forget(self, key: Hashable) -> None:
        self._order.pop(key, None)


class Expiring(Fixed):
    """Least recently used among those whose time, counted from when they came in, is not over."""

    def touch(self, key: Hashable) -> bool:
        if key not in self._order:
            return False
        return super().touch(key)

    def admit(self, key: Hashable) -> Iterable[Hashable]:
        expired = [gone for gone, _ in self._order.expire()]
        return [*expired, *super().admit(key)]


MAX_BUFFERED: Final = 64
"""Hits noted before they are sorted in: a hit costs a list append."""
PROTECTED_SHARE: Final = 0.8
SAMPLE_FACTOR: Final = 10
"""Accesses, in multiples of the capacity, after which counts are halved: old fame fades."""
WINDOW_SHARES: Final = (0.01, 0.1, 0.4, 1.0)
"""Windows that are tried: 0.01 trusts frequency (scans, steady favourites), 1.0 is LRU (people who come and go)."""
SHADOW_CAPACITY: Final = 64
"""Keys in a shadow cache, at least; it sees the share of keys that makes it a scale model of the real one."""
EPOCH_FACTOR: Final = 8
"""Accesses of the shadows, in multiples of their capacity, between two looks at which window does best."""
MARGIN: Final = 1.02
"""How much better than the present window another must have done to replace it."""


class TinyLfu:
    """W-TinyLFU (Einziger, Friedman, Manes, arXiv:1512.00727). New keys pass an LRU window; whoever leaves it stays
    only if it was used more often lately than the one it would displace from the main segment (a segmented LRU).
    Instead of a sketch, exact counts are kept of the last SAMPLE_FACTOR x capacity accesses at most."""

    def __init__(self, capacity: int, window_share: float) -> None:
        self.capacity = capacity
        self._window_size = max(1, round(capacity * window_share))
        self._counts: Counter[Hashable] = Counter()
        self._num_counted = 0
        self._window: OrderedDict[Hashable, None] = OrderedDict()
        self._probation: OrderedDict[Hashable, None] = OrderedDict()
        self._protected: OrderedDict[Hashable, None] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._window or key in self._protected or key in self._probation

    def touch(self, key: Hashable, times: int = 1) -> bool:
        self._count(key, times)
        if key in self._window:
            self._window.move_to_end(key)
        elif key in self._protected:
            self._protected.move_to_end(key)
        elif key in self._probation:
            del self._probation[key]
            self._protected[key] = None
            self._demote()
        return True

    def admit(self, key: Hashable) -> list[Hashable]:
        self._count(key)
        self._window[key] = None
        return self._balance()

    def forget(self, key: Hashable) -> None:
        for segment in (self._window, self._probation, self._protected):
            segment.pop(key, None)

    def resize_window(self, share: float) -> None:
        """A smaller window hands its oldest over at the next `admit`; a larger one takes them from the main segment."""
        self._window_size = max(1, round(self.capacity * share))
        self._demote()
        while len(self._probation) + len(self._protected) > self.capacity - self._window_size:
            segment = self._probation or self._protected
            key, _ = segment.popitem(last=True)
            self._window[key] = None
            self._window.move_to_end(key, last=False)

    def _balance(self) -> list[Hashable]:
        """Moves what the window has too much into the main segment, by duel when that is full."""
        victims: list[Hashable] = []
        while len(self._window) > self._window_size:
            candidate, _ = self._window.popitem(last=False)
            if len(self._probation) + len(self._protected) < self.capacity - self._window_size:
                self._probation[candidate] = None
                continue
            main = self._probation or self._protected
            rival = next(iter(main), None)
            if rival is None or self._counts[candidate] <= self._counts[rival]:
                victims.append(candidate)
                continue
            del main[rival]
            self._probation[candidate] = None
            victims.append(rival)
        return victims

    def _demote(self) -> None:
        most = int((self.capacity - self._window_size) * PROTECTED_SHARE)
        while len(self._protected) > most:
            key, _ = self._protected.popitem(last=False)
            self._probation[key] = None

    def _count(self, key: Hashable, times: int = 1) -> None:
        self._counts[key] += times
        self._num_counted += times
        if self._num_counted >= SAMPLE_FACTOR * self.capacity:
            self._counts = Counter({k: n // 2 for k, n in self._counts.items() if n > 1})
            self._num_counted //= 2


class Adaptive:
    """W-TinyLFU whose window is chosen by experiment. Shadow caches, which hold keys only and see a fixed sample of
    them, play the same accesses with each window in WINDOW_SHARES; the one that hits most lends its window to the real
    cache. A hill climber on the real hit ratio (arXiv:1806.01151's other choice) was 17 points behind on a hot set that
    moves: it confuses a change of load with the effect of its own step."""

    def __init__(self, capacity: int) -> None:
        self._real = TinyLfu(capacity, WINDOW_SHARES[0])
        self._sampled_in = max(1, capacity // SHADOW_CAPACITY)
        size = capacity // self._sampled_in
        self._shadows = [TinyLfu(size, share) for share in WINDOW_SHARES]
        self._epoch = EPOCH_FACTOR * size
        self._scores = [0.0] * len(WINDOW_SHARES)
        self._num_played = 0
        self._chosen = 0
        self._buffer: list[Hashable] = []

    @property
    def window_share(self) -> float:
        return WINDOW_SHARES[self._chosen]

    def touch(self, key: Hashable) -> bool:
        self._buffer.append(key)
        if len(self._buffer) >= MAX_BUFFERED:
            self._drain()
        return True

    def admit(self, key: Hashable) -> list[Hashable]:
        self._drain()
        self._play(key)
        return self._real.admit(key)

    def forget(self, key: Hashable) -> None:
        self._drain()
        self._real.forget(key)

    def _drain(self) -> None:
        buffer, self._buffer = self._buffer, []
        # Keys in a buffer are counted first: a conversation that is read ten times in a row is sorted in once.
        for key, times in Counter(buffer).items():
            self._real.touch(key, times)
            self._play(key, times)

    def _play(self, key: Hashable, times: int = 1) -> None:
        # Integers hash to themselves: multiplied, so that neighbours do not fall into the sample together.
        if (hash(key) * 0x9E3779B1 >> 8) % self._sampled_in:
            return
        for index, shadow in enumerate(self._shadows):
            if key not in shadow:
                shadow.admit(key)
                self._scores[index] += times - 1
                continue
            self._scores[index] += times
            shadow.touch(key, times)
        self._num_played += times
        if self._num_played >= self._epoch:
            self._choose()

    def _choose(self) -> None:
        best = max(range(len(self._scores)), key=self._scores.__getitem__)
        if self._scores[best] > MARGIN * self._scores[self._chosen]:
            self._chosen = best
            self._real.resize_window(self.window_share)
        self._num_played = 0
        self._scores = [score / 2 for score in self._scores]
