"""The facts that scheduling needs, indexed: who waits, who holds what, what every pool and node has left.

It is told what happens (`submit`, `start`, `finish` ...) and decides nothing. Everything is kept up in O(log n), so a
simulation can carry one book through a hundred thousand jobs, and a live scheduler can build one each tick.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from chatgrpo.jobs.amounts import Amount, Request, total
from chatgrpo.jobs.config import JobsConfig
from chatgrpo.jobs.scheduling.placement import Placement, Rooms
from chatgrpo.jobs.scheduling.pools import ROOT, Held, Pool, Task, Usage, counted_by, paths_of

if TYPE_CHECKING:
    from chatgrpo.jobs.scheduling.backfill import NodesKept

Kind = tuple[Request, float]
"""Tasks of an owner that ask for the same and run about as long: if one cannot start now, no other is tried."""


def kind_of(task: Task) -> Kind:
    """Run times are rounded up to the next power of the fourth root of 2, so that an owner has a few dozen kinds."""
    if math.isinf(task.expected_s) or task.expected_s <= 0:
        return task.request, task.expected_s
    return task.request, 2.0 ** (math.ceil(4.0 * math.log2(task.expected_s)) / 4.0)


class Book:
    def __init__(self, rooms: Sequence[Amount], config: JobsConfig, *, whole: Amount | None = None) -> None:
        """`rooms`: what our jobs may use on each node. `whole`: what shares are measured against, all rooms if None."""
        self.rooms = Rooms(rooms)
        self.size = list(rooms)
        self.whole = whole or total(rooms)
        self.config = config
        self.waiting: dict[str, Task] = {}
        self.held: dict[str, Held] = {}
        self.touched: set[str] = set()
        """Top-level owners whose situation changed since the last plan."""
        self.cluster_full = False
        """Whether the last plan left someone waiting for room on the nodes."""
        self.promise: NodesKept | None = None
        """What the last plan promised to the first of them."""
        self._quotas = {quota.path: quota for quota in config.quotas}
        self._counted = counted_by(config.quotas)
        self._pools: dict[str, Pool] = {}
        self._chains: dict[str, tuple[Pool, ...]] = {}
        self._kinds: dict[str, dict[str, dict[Kind, list[tuple[float, str]]]]] = {}
        self.root = self._pool(ROOT)

    def chain(self, owner: str) -> tuple[Pool, ...]:
        """The pools that a job of this owner counts in, the cluster first."""
        chain = self._chains.get(owner)
        if chain is None:
            chain = self._chains[owner] = tuple(self._pool(path) for path in paths_of(owner))
        return chain

    def _pool(self, path: str) -> Pool:
        pool = self._pools.get(path)
        if pool is None:
            parent = self._pools.get(path.rpartition("/")[0]) if path else None
            pool = self._pools[path] = Pool(path, parent, self._quotas.get(path), self._counted)
        return pool

    def pools(self) -> Iterator[Pool]:
        return iter(self._pools.values())

    def rank(self, task: Task) -> float:
        """Lower is sooner. Waiting `ageing_s` is worth one step of priority; since all age alike, the order of two
        tasks never changes and the queue needs no re-sorting."""
        return task.submitted_at / self.config.ageing_s - task.priority

    def is_entitled(self, task: Task) -> bool:
        """Whether a guarantee on its path covers the task beside what is held there."""
        smallest = task.request.smallest
        return any(pool.guarantees and pool.is_entitled(smallest) for pool in self.chain(task.owner))

    def submit(self, task: Task) -> None:
        self.waiting[task.id] = task
        self.chain(task.owner)
        top = task.owner.partition("/")[0]
        kinds = self._kinds.setdefault(top, {}).setdefault(task.owner, {})
        heapq.heappush(kinds.setdefault(kind_of(task), []), (self.rank(task), task.id))
        self.touched.add(top)

    def withdraw(self, task_id: str) -> None:
        """The task no longer waits. Its place in the heap is dropped when it surfaces."""
        self.waiting.pop(task_id, None)

    def first(self, owner: str, kind: Kind) -> Task | None:
        """The task of a kind that goes first."""
        kinds = self._kinds[owner.partition("/")[0]][owner]
        heap = kinds[kind]
        while heap and heap[0][1] not in self.waiting:
            heapq.heappop(heap)
        if not heap:
            del kinds[kind]
            return None
        return self.waiting[heap[0][1]]

    def tops(self) -> list[str]:
        return list(self._kinds)

    def firsts(self, top: str) -> Iterator[list[tuple[float, str, Kind]]]:
        """For every owner below `top`: the first task of each kind as (rank, id, kind)."""
        for kinds in self._kinds.get(top, {}).values():
            found = []
            for kind, heap in list(kinds.items()):
                while heap and heap[0][1] not in self.waiting:
                    heapq.heappop(heap)
                if heap:
                    found.append((*heap[0], kind))
                else:
                    del kinds[kind]
            yield found

    def start(self, task: Task, placement: Placement, now: float) -> Held:
        self.withdraw(task.id)
        workers = sum(count for _, count in placement)
        held = Held(task, workers, placement, now, now + task.expected_s)
        self.hold(held, now)
        return held

    def finish(self, task_id: str, now: float) -> Held:
        held = self.held[task_id]
        self.release(held, now)
        self.touched.add(held.task.owner.partition("/")[0])
        return held

    def hold(self, held: Held, now: float) -> None:
        self.rooms.take(held.placement, held.task.request.per_worker)
        self.held[held.task.id] = held
        for pool in self.chain(held.task.owner):
            pool.add(held, self.whole, now, self.config.usage_half_life_s)

    def release(self, held: Held, now: float) -> None:
        self.rooms.give(held.placement, held.task.request.per_worker)
        del self.held[held.task.id]
        for pool in self.chain(held.task.owner):
            pool.remove(held, self.whole, now, self.config.usage_half_life_s)

    def set_usage(self, usage: Usage) -> None:
        """Past use by owner, as `usage` gave it; parents have the sum of their children."""
        sums: dict[str, float] = {}
        for owner, average in usage.averages.items():
            for path in paths_of(owner):
                sums[path] = sums.get(path, 0.0) + average
            self.chain(owner)
        for path, average in sums.items():
            self._pools[path].set_usage(average, usage.at)

    def usage(self, now: float) -> Usage:
        """Past use of every owner that has any worth remembering."""
        half_life_s = self.config.usage_half_life_s
        averages = {owner: chain[-1].usage(self.whole, now, half_life_s) for owner, chain in self._chains.items()}
        return Usage(now, {owner: average for owner, average in averages.items() if average > 1e-9})
