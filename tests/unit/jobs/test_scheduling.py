from __future__ import annotations

import math
from typing import Any

from chatgrpo.jobs.amounts import Amount, Request
from chatgrpo.jobs.config import JobsConfig
from chatgrpo.jobs.scheduling.book import Book
from chatgrpo.jobs.scheduling.elastic import grow
from chatgrpo.jobs.scheduling.explain import waits
from chatgrpo.jobs.scheduling.plan import Grant, plan
from chatgrpo.jobs.scheduling.pools import Task, Usage
from chatgrpo.jobs.scheduling.preemption import Stop, reclaim


def book(*cpus: float, gpus: float = 0.0, **config: Any) -> Book:
    """One node for each number of CPUs."""
    return Book([Amount.of(cpus=c, gpus=gpus) for c in cpus], JobsConfig(**config))


def task(name: str, cpus: float = 1.0, *, workers: int = 1, gpus: float = 0.0, owner: str = "a", **more: Any) -> Task:
    request = Request(Amount.of(cpus=cpus, gpus=gpus), workers, more.pop("most", workers), more.pop("splits", 0))
    return Task(name, owner, request, **more)


def started(book: Book, *tasks: Task, now: float = 0.0) -> list[str]:
    for t in tasks:
        book.submit(t)
    return [grant.job_id for grant in plan(book, now).grants]


def test_priority_goes_first_and_age_makes_up_for_it() -> None:
    low_old = task("low_old", submitted_at=0.0, priority=1)
    high_new = task("high_new", submitted_at=599.0, priority=2)
    assert started(book(1, policy="priority"), low_old, high_new, now=600.0) == ["high_new"]

    higher_but_late = task("late", submitted_at=601.0, priority=2)
    assert started(book(1, policy="priority"), low_old, higher_but_late, now=700.0) == ["low_old"]


def test_a_gang_starts_whole_or_not_at_all() -> None:
    nodes = book(2, 2, 1)

    assert started(nodes, task("gang", cpus=1, workers=6)) == []
    assert started(book(2, 2, 2), task("gang", cpus=1, workers=6)) == ["gang"]
    assert started(book(3, 3), task("gang", cpus=2, workers=3)) == []


def test_a_gang_takes_the_tightest_node_that_holds_it_and_leaves_gpus_alone() -> None:
    b = Book([Amount.of(cpus=8, gpus=8), Amount.of(cpus=8), Amount.of(cpus=4)], JobsConfig())

    started(b, task("one", cpus=2, workers=2), task("two", cpus=2, workers=4))

    assert b.held["one"].placement == ((2, 2),)
    assert b.held["two"].placement == ((1, 4),)


def test_fair_share_serves_the_least_dominant_share() -> None:
    """The example of the DRF paper: 9 CPU and 18 GB; A wants <1 CPU, 4 GB>, B <3 CPU, 1 GB>: A gets 3 tasks, B 2."""
    b = Book([Amount.of(cpus=9, memory_gb=18)], JobsConfig())
    a = [Task(f"a{i}", "A", Request(Amount.of(cpus=1, memory_gb=4)), submitted_at=i) for i in range(9)]
    other = [Task(f"b{i}", "B", Request(Amount.of(cpus=3, memory_gb=1)), submitted_at=i) for i in range(9)]

    names = started(b, *a, *other)

    assert sorted(names) == ["a0", "a1", "a2", "b0", "b1"]


def test_fair_share_is_hierarchical_and_weighted() -> None:
    many = [task(f"x{i}", owner=f"big/u{i}") for i in range(8)]
    few = [task(f"y{i}", owner="small/v") for i in range(8)]

    even = started(book(6), *many, *few)
    tilted = started(book(6, quotas=[{"path": "big", "weight": 2.0}]), *many, *few)

    assert [sum(n[0] == c for n in even) for c in "xy"] == [3, 3]
    assert [sum(n[0] == c for n in tilted) for c in "xy"] == [4, 2]


def test_past_use_counts_less_and_less() -> None:
    def winner(now: float) -> list[str]:
        b = book(1, usage_half_life_s=100.0)
        b.set_usage(Usage(0.0, {"greedy": 0.8, "modest": 0.01}))
        modest = task("modest", owner="modest", submitted_at=now - 1)
        return started(b, task("greedy", owner="greedy", submitted_at=now - 2), modest, now=now)

    assert winner(0.0) == ["modest"]
    b = book(2, usage_half_life_s=100.0)
    b.submit(task("a1", owner="a"))
    plan(b, 0.0)
    assert math.isclose(b.usage(100.0).averages["a"], 0.25)
    b.finish("a1", 100.0)
    assert math.isclose(b.usage(200.0).averages["a"], 0.125)


def test_a_small_job_passes_a_blocked_one_only_if_it_does_not_delay_it() -> None:
    def passed(backfill: bool = True, **small: Any) -> bool:
        b = book(4, policy="priority", backfill=backfill)
        started(b, task("long", cpus=2, expected_s=100.0))
        names = started(b, task("big", cpus=4, submitted_at=1.0), task("small", submitted_at=2.0, **small), now=10.0)
        return names == ["small"]

    assert passed(expected_s=90.0)
    assert not passed(expected_s=91.0)
    assert not passed()
    assert not passed(expected_s=90.0, backfill=False)


def test_room_that_the_blocked_job_will_not_need_may_be_used_for_ever() -> None:
    b = book(4, policy="priority")
    started(b, task("long", cpus=2, expected_s=100.0))

    assert started(b, task("big", cpus=3, submitted_at=1.0), task("endless", submitted_at=2.0)) == ["endless"]
    assert started(b, task("endless2", submitted_at=3.0)) == []


def test_nodes_are_drained_for_a_gang_though_no_end_is_known() -> None:
    b = book(2, 2, policy="priority")
    started(b, task("s1"), task("s2"), task("s3"))

    assert started(b, task("whole", cpus=2, submitted_at=1.0), task("s4", submitted_at=2.0)) == ["s4"]
    kept = b.promise
    assert kept is not None
    assert kept.shadow == math.inf
    (node,) = kept.spare
    for name in [i for i, held in b.held.items() if held.placement[0][0] == node and i != "s4"]:
        b.finish(name, 5.0)
    assert "whole" in started(b, now=5.0)


def test_a_quota_holds_back_its_own_tenant_only() -> None:
    b = book(8, quotas=[{"path": "a", "limit": {"cpus": 2}}, {"path": "b", "max_jobs": 1}])
    jobs = [task("a1", 2, owner="a/x"), task("a2", 1, owner="a/y"), task("b1", owner="b"), task("b2", owner="b")]

    assert sorted(started(b, *jobs, task("c1", 4, owner="c"))) == ["a1", "b1", "c1"]
    assert b.chain("a")[-1].used.fits(Amount.of(cpus=2))


def test_a_job_blocked_by_a_gpu_quota_does_not_hold_back_jobs_without_gpus() -> None:
    b = book(8, gpus=4, quotas=[{"path": "a", "limit": {"gpus": 2}}])
    first = task("g1", gpus=2, owner="a", submitted_at=0)

    names = started(b, first, task("g2", gpus=1, owner="a", submitted_at=1), task("c", owner="a", submitted_at=2))

    assert names == ["g1", "c"]


def test_used_up_hours_block_their_path() -> None:
    b = book(4)
    b.chain("a")[-1].hours_spent = True

    assert started(b, task("a1", owner="a/x"), task("b1", owner="b")) == ["b1"]


def test_an_elastic_job_takes_what_nobody_waits_for_in_counts_that_split_its_tasks() -> None:
    b = book(7)
    b.submit(task("e", workers=1, most=8, splits=8))
    assert plan(b, 0.0).grants == [Grant("e", 4)]

    b = book(7)
    b.submit(task("e", workers=1, most=8, splits=8))
    b.submit(task("other", cpus=5, owner="b", submitted_at=1.0))
    assert sorted((g.job_id, g.workers) for g in plan(b, 0.0).grants) == [("e", 2), ("other", 1)]


def test_a_running_elastic_job_grows_when_there_is_room_and_nobody_waits() -> None:
    b = book(4, elastic_cooldown_s=600.0)
    started(b, task("other", cpus=3))
    started(b, task("e", workers=1, most=4, splits=8))
    b.finish("other", 700.0)

    assert grow(b, 599.0) is None
    assert grow(b, 700.0) == "e"
    b.submit(task("waits", cpus=8))
    assert grow(b, 700.0) is None


QUOTAS = [
    {"path": "a", "guarantee": {"cpus": 4}},
    {"path": "b", "guarantee": {"cpus": 4}},
]


def claims(b: Book, now: float = 10.0) -> list[Stop]:
    return reclaim(b, plan(b, now).blocks, now)


def test_a_guarantee_is_reclaimed_from_the_youngest_borrowers_and_no_more_than_needed() -> None:
    b = book(8, quotas=QUOTAS)
    for i in range(4):
        started(b, task(f"a{i}", 2, owner="a", submitted_at=i), now=float(i))
    b.submit(task("b0", 4, owner="b", submitted_at=5.0))

    assert claims(b) == [Stop("a3", "b0"), Stop("a2", "b0")]
    assert claims(b) == [], "what was asked to stop is not asked again, nor is anyone else"


def test_nobody_is_stopped_below_its_guarantee_or_for_one_who_borrows() -> None:
    b = book(8, quotas=QUOTAS)
    started(b, task("a0", 4, owner="a"), task("b0", 4, owner="b"))
    b.submit(task("b1", 1, owner="b"))

    assert claims(b) == []


def test_two_claims_do_not_count_on_the_same_room() -> None:
    b = book(
        8, quotas=[{"path": "a"}, {"path": "b", "guarantee": {"cpus": 2}}, {"path": "c", "guarantee": {"cpus": 2}}]
    )
    for i in range(4):
        started(b, task(f"a{i}", 2, owner="a", submitted_at=i), now=float(i))
    b.submit(task("b0", 2, owner="b"))
    b.submit(task("c0", 2, owner="c"))

    assert {stop.job_id for stop in claims(b)} == {"a2", "a3"}


def test_the_two_tenants_never_stop_each_other_in_turns() -> None:
    b = book(8, quotas=QUOTAS)
    started(b, task("a0", 8, owner="a"))
    b.submit(task("b0", 4, owner="b", submitted_at=1.0))
    assert claims(b) == [Stop("a0", "b0")]

    stopped = b.finish("a0", 20.0)
    b.submit(stopped.task)

    assert [g.job_id for g in plan(b, 20.0).grants] == ["b0"]
    assert claims(b, 21.0) == []


def test_within_one_owner_a_higher_priority_may_stop_a_lower_one_if_configured() -> None:
    def stops(**config: Any) -> list[Stop]:
        b = book(2, **config)
        started(b, task("low", 2, priority=1))
        b.submit(task("high", 2, priority=5, submitted_at=1.0))
        return claims(b)

    assert stops() == []
    assert stops(preempt_lower_priority=True) == [Stop("low", "high")]


def test_everyone_pending_is_told_why() -> None:
    b = book(4, policy="priority", quotas=[{"path": "q", "max_jobs": 0}])
    started(b, task("runs", 2))
    for i, t in enumerate([task("big", 4), task("big2", 4), task("more", 3), task("never", 9), task("q", owner="q")]):
        b.submit(Task(t.id, t.owner, t.request, submitted_at=float(i)))

    told = waits(b, plan(b, 5.0))

    assert told["big"].position == 1
    assert told["big"].reason == "needs 1 x (4 CPU) at once; 0 such workers fit now"
    assert told["big"].unblocked_by == "a running job ends, or the cluster grows"
    assert told["big2"].unblocked_by == "job big starts"
    assert told["q"].reason == "quota of 'q': 0 jobs, needs 1 CPU"
    assert sorted(w.position for w in told.values()) == [1, 2, 3, 4, 5]


def test_a_gang_that_the_cluster_cannot_hold_promises_nothing_away() -> None:
    assert started(book(4), task("never", 9), task("fits", 4, owner="b", submitted_at=1.0)) == ["fits"]
