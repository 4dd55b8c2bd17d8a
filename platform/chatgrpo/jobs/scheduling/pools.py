"""The tree of who shares what: cluster -> tenant -> project -> user, each with its use, quota and fair share."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from chatgrpo.jobs.amounts import NOTHING, UNLIMITED, Amount, Request
from chatgrpo.jobs.config import Quota
from chatgrpo.jobs.scheduling.placement import Placement

ROOT = ""

Counted = tuple[bool, bool, bool]


@dataclass(frozen=True, slots=True)
class Task:
    """A job as the policies see it. `expected_s`: how long it runs at most, infinite if nobody said."""

    id: str
    owner: str
    request: Request
    priority: int = 1
    submitted_at: float = 0.0
    expected_s: float = math.inf


@dataclass(slots=True, eq=False)
class Held:
    """A job that holds resources. `placement` is empty when its nodes are not known."""

    task: Task
    workers: int
    placement: Placement
    started_at: float
    ends_at: float
    stopping: bool = False
    """Already asked to stop: its resources are on their way back."""
    can_stop: bool = True

    @property
    def amount(self) -> Amount:
        return self.task.request.per_worker.times(self.workers)


@dataclass(frozen=True, slots=True)
class Usage:
    """Past use by owner at one moment: the dominant share held on average, older use counting less."""

    at: float
    averages: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Reservation:
    """What a blocked job is promised in a pool: to start at `shadow` (maybe infinite). Others may pass it if they end
    before, or fit into `spare`, what the pool will have left beside it then."""

    task_id: str
    shadow: float
    spare: Amount


class Pool:
    """One node of the tree. `used` counts what everything below it holds."""

    __slots__ = (
        "_as_of",
        "_average",
        "_share",
        "_share_at",
        "counted",
        "ends",
        "guarantee",
        "guarantees",
        "held",
        "hours_spent",
        "limit",
        "max_jobs",
        "parent",
        "path",
        "reservation",
        "used",
        "weight",
    )

    def __init__(self, path: str, parent: Pool | None, quota: Quota | None, counted: Counted) -> None:
        self.path = path
        self.parent = parent
        self.weight = quota.weight if quota else 1.0
        self.limit = quota.limit.as_limit() if quota else UNLIMITED
        self.guarantee = quota.guarantee.as_guarantee() if quota else NOTHING
        self.counted = counted
        self.guarantees = any(self.guarantee)
        self.max_jobs = quota.max_jobs if quota and quota.max_jobs is not None else 10**12
        self.hours_spent = False
        self.used = NOTHING
        self.held: dict[str, Held] = {}
        self.ends: list[tuple[float, str]] = []
        self.reservation: Reservation | None = None
        self._average = 0.0
        self._as_of = 0.0
        self._share = 0.0
        self._share_at = math.nan

    def add(self, held: Held, whole: Amount, now: float, half_life_s: float) -> None:
        self._charge(whole, now, half_life_s)
        self.used = self.used.plus(held.amount)
        self.held[held.task.id] = held
        insort(self.ends, (held.ends_at, held.task.id))

    def remove(self, held: Held, whole: Amount, now: float, half_life_s: float) -> None:
        self._charge(whole, now, half_life_s)
        self.used = self.used.minus(held.amount)
        del self.held[held.task.id]
        del self.ends[bisect_left(self.ends, (held.ends_at, held.task.id))]

    def set_usage(self, average: float, now: float) -> None:
        self._average, self._as_of, self._share_at = average, now, math.nan

    def usage(self, whole: Amount, now: float, half_life_s: float) -> float:
        """The dominant share that this pool has held on average, the past counting half after each half-life."""
        kept: float = 0.5 ** ((now - self._as_of) / half_life_s)
        return self._average * kept + self.used.share_of(whole) * (1.0 - kept)

    def share(self, whole: Amount, now: float, half_life_s: float) -> float:
        """What fair sharing compares: what is held now plus what was held lately, by weight. Lowest goes first."""
        if now != self._share_at:
            self._share_at = now
            self._share = (self.used.share_of(whole) + self.usage(whole, now, half_life_s)) / self.weight
        return self._share

    def is_entitled(self, amount: Amount) -> bool:
        """Whether `amount` more stays within what this pool is guaranteed, of every resource that counts."""
        wanted = False
        for counts, used, more, guarantee in zip(self.counted, self.used, amount, self.guarantee, strict=True):
            if counts and more:
                if used + more > guarantee:
                    return False
                wanted = True
        return wanted

    def borrows(self, resource: int) -> bool:
        """Whether this pool holds more of a resource than it is guaranteed."""
        if self.counted[resource]:
            return self.used[resource] > self.guarantee[resource]
        return not self.guarantees

    def _charge(self, whole: Amount, now: float, half_life_s: float) -> None:
        self._average, self._as_of = self.usage(whole, now, half_life_s), now
        self._share_at = math.nan


def paths_of(owner: str) -> list[str]:
    """The cluster, then every prefix of an owner: `a/b` -> ["", "a", "a/b"]."""
    parts = owner.split("/")
    return [ROOT, *("/".join(parts[: i + 1]) for i in range(len(parts)))]


def counted_by(quotas: Iterable[Quota]) -> Counted:
    """Which of CPUs, GPUs and memory anyone is guaranteed. Of these, who has no guarantee has none to claim; the others
    nobody can claim, and a claim does not fail for them."""
    totals = [sum(parts) for parts in zip(*(q.guarantee.as_guarantee() for q in quotas), strict=True)] or [0, 0, 0]
    return (totals[0] > 0, totals[1] > 0, totals[2] > 0)
