"""Eviction policies as values, and against Belady's optimum."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.cache_traces import TRACES, belady, hit_ratio
from chatgrpo.state.eviction import Adaptive, EvictionPolicy, open_eviction
from tests.fakes import FakeClock

POLICIES = list(EvictionPolicy)


def play(policy: EvictionPolicy, keys: str, capacity: int) -> str:
    """The keys still in, after the accesses."""
    order = open_eviction(policy, capacity, ttl_s=10, now=FakeClock().monotonic)
    inside: set[str] = set()
    for key in keys:
        if key in inside:
            order.touch(key)
            continue
        inside.add(key)
        inside.difference_update(map(str, order.admit(key)))
    return "".join(sorted(inside))


def test_lru_drops_the_least_recently_used() -> None:
    assert play(EvictionPolicy.LRU, "abcad", 3) == "acd"


def test_lfu_drops_the_least_often_used() -> None:
    assert play(EvictionPolicy.LFU, "aabbcd", 3) == "abd"


def test_adaptive_keeps_favourites_through_a_scan() -> None:
    favourites = "ab" * 20
    assert play(EvictionPolicy.ADAPTIVE, favourites + "cdefghij", 3)[:2] == "ab"


def test_ttl_lets_go_of_what_is_too_old() -> None:
    clock = FakeClock()
    order = open_eviction(EvictionPolicy.TTL, 3, ttl_s=10, now=clock.monotonic)
    assert list(order.admit("a")) == []
    clock.advance(9)
    assert order.touch("a") is True
    assert list(order.admit("b")) == []
    clock.advance(2)
    assert order.touch("a") is False
    assert list(order.admit("c")) == ["a"]


@pytest.mark.parametrize("policy", POLICIES)
def test_never_more_than_the_capacity_and_forgetting_makes_room(policy: EvictionPolicy) -> None:
    order = open_eviction(policy, 5, ttl_s=1e9, now=FakeClock().monotonic)
    inside: set[int] = set()
    for step in range(3000):
        key = step * 7919 % 31
        if step % 13 == 0:
            order.forget(key)
            inside.discard(key)
        elif key in inside:
            assert order.touch(key)
        else:
            inside.add(key)
            victims = set(order.admit(key))
            assert victims <= inside
            inside -= victims
        assert len(inside) <= 5


@pytest.mark.parametrize("name", list(TRACES))
def test_adaptive_is_within_a_point_of_the_best_fixed_policy(name: str) -> None:
    trace = TRACES[name](length=60_000)
    ratios = {policy: hit_ratio(policy, trace, 300) for policy in POLICIES}
    best = max(ratio for policy, ratio in ratios.items() if policy is not EvictionPolicy.ADAPTIVE)
    assert ratios[EvictionPolicy.ADAPTIVE] >= best - 0.01
    assert max(ratios.values()) <= belady(trace, 300)


def test_the_window_follows_the_load() -> None:
    order = Adaptive(200)

    def feed(trace: Sequence[int]) -> float:
        inside: set[object] = getattr(feed, "inside", set())
        for key in trace:
            if key in inside:
                order.touch(key)
            else:
                inside.add(key)
                inside.difference_update(order.admit(key))
        feed.inside = inside  # type: ignore[attr-defined]
        return order.window_share

    assert feed(TRACES["zipf"](length=30_000)) <= 0.1
    assert feed(TRACES["shift"](length=60_000)) == 1.0
    assert feed(TRACES["zipf"](length=60_000)) <= 0.1


def test_belady_by_hand() -> None:
    assert belady([1, 2, 3, 1, 2, 3], 2) == pytest.approx(2 / 6)
    assert belady([1, 1, 1, 2], 1) == pytest.approx(2 / 4)
