"""Access traces on which eviction policies are compared, and Belady's optimum."""

from __future__ import annotations

import heapq
import random
from collections.abc import Hashable, Sequence

from chatgrpo.state.eviction import EvictionPolicy, open_eviction

LENGTH = 200_000
CAPACITY = 500


def zipf(num_keys: int = 10_000, exponent: float = 0.9, *, length: int = LENGTH, seed: int = 1) -> list[int]:
    """Few conversations get most of the turns, and always the same ones."""
    rng = random.Random(seed)
    weights = [1 / (rank + 1) ** exponent for rank in range(num_keys)]
    return rng.choices(range(num_keys), weights, k=length)


def scan_heavy(*, length: int = LENGTH, seed: int = 2) -> list[int]:
    """The zipf load, with exports and sweeps that read thousands of cold conversations once."""
    rng = random.Random(seed)
    base = iter(zipf(3_000, 1.0, length=length, seed=seed))
    trace: list[int] = []
    cold = 1_000_000
    while len(trace) < length:
        trace.extend(next(base) for _ in range(2_000))
        scan = rng.randrange(1_000, 3_000)
        trace.extend(range(cold, cold + scan))
        cold += scan
    return trace[:length]


def shifting(*, length: int = LENGTH, seed: int = 3) -> list[int]:
    """A hot set of users that moves on slowly, as people come and go over a day."""
    rng = random.Random(seed)
    return [position // 20 + int(rng.expovariate(1 / 150)) for position in range(length)]


def loops(*, length: int = LENGTH, seed: int = 4) -> list[int]:
    """Bursts of one user's turns over a background of frequent conversations."""
    rng = random.Random(seed)
    background = iter(zipf(5_000, 0.8, length=length, seed=seed))
    trace: list[int] = []
    fresh = 2_000_000
    while len(trace) < length:
        trace.extend(next(background) for _ in range(rng.randrange(20, 60)))
        fresh += 1
        trace.extend([fresh] * rng.randrange(2, 8))
    return trace[:length]


TRACES = {"zipf": zipf, "scan": scan_heavy, "shift": shifting, "bursts": loops}


def belady(trace: Sequence[int], capacity: int) -> float:
    """Hit ratio of the optimum: evict whatever is used again latest."""
    following = [0] * len(trace)
    last: dict[int, int] = {}
    for position in range(len(trace) - 1, -1, -1):
        following[position] = last.get(trace[position], len(trace) + position)
        last[trace[position]] = position
    cached: dict[int, int] = {}
    furthest: list[tuple[int, int]] = []
    hits = 0
    for position, key in enumerate(trace):
        if key in cached:
            hits += 1
        elif len(cached) >= capacity:
            while True:
                negative, victim = heapq.heappop(furthest)
                if cached.get(victim) == -negative:
                    del cached[victim]
                    break
        cached[key] = following[position]
        heapq.heappush(furthest, (-following[position], key))
    return hits / len(trace)


def hit_ratio(policy: EvictionPolicy, trace: Sequence[int], capacity: int) -> float:
    """Of a policy on a trace, with one access a second for TTL, whose entries live for eight capacities."""
    now = 0.0
    order = open_eviction(policy, capacity, ttl_s=8.0 * capacity, now=lambda: now)
    inside: set[Hashable] = set()
    hits = 0
    for key in trace:
        now += 1.0
        if key in inside:
            if order.touch(key):
                hits += 1
                continue
            inside.discard(key)
            order.forget(key)
        inside.add(key)
        inside.difference_update(order.admit(key))
    return hits / len(trace)
