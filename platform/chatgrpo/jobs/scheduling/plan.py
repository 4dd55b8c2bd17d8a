"""Decides which waiting jobs start now. Whoever is blocked gets a reservation; nobody who passes it may delay it.

Order: first those whose quota guarantees them what they ask for, then by fair share from the top of the tree down (the
tenant with the least dominant share, in it the project, in it the user; Ghodsi et al., DRF, NSDI 2011), then by
priority and age. With policy `priority` there is one queue for all. Passing is EASY backfill (Feitelson and Weil,
1998), here per pool: a job blocked by its tenant's quota holds back only that tenant.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from chatgrpo.jobs.amounts import UNLIMITED, Amount
from chatgrpo.jobs.scheduling.backfill import NodesKept, blocked_in_pool, keep_nodes
from chatgrpo.jobs.scheduling.book import Book
from chatgrpo.jobs.scheduling.order import Order
from chatgrpo.jobs.scheduling.pools import Pool, Task

MAX_KINDS = 64
"""Different requests of one owner that a plan looks at: a bound on the work per look, not on who may start."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Start this job with so many workers."""

    job_id: str
    workers: int


@dataclass(frozen=True, slots=True)
class Block:
    """What keeps a task from starting: a pool's quota, or (no pool) room on the nodes."""

    task: Task
    pool: Pool | None
    reason: str
    unblocked_by: str
    has_promise: bool = False
    """It is the one that the others behind it may not delay."""


@dataclass(slots=True)
class Plan:
    grants: list[Grant] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    """Those who were next and could not start, the first of each kind, in order."""


def plan(book: Book, now: float) -> Plan:
    """Starts in `book` whatever may start at `now`, and says what that is."""
    result = Plan()
    planner = _Planner(book, now)
    order = _order(book, now)
    while first := order.pop():
        task, kind = first
        block = planner.try_start(task, result)
        if block:
            result.blocks.append(block)
        order.settle(None if block else book.first(task.owner, kind), kind)
    planner.close(result)
    return result


def _order(book: Book, now: float) -> Order:
    """Those whose situation may have changed since the last pass: everyone, if it left someone waiting for room."""
    order = Order(book, now)
    for top in book.tops() if book.cluster_full else sorted(book.touched):
        for firsts in book.firsts(top):
            chosen = firsts if len(firsts) <= MAX_KINDS else heapq.nsmallest(MAX_KINDS, firsts, key=lambda f: f[:2])
            for _, task_id, kind in chosen:
                order.add(book.waiting[task_id], kind)
    order.ready()
    book.touched.clear()
    book.cluster_full = False
    return order


class _Planner:
    """What one pass has promised so far."""

    def __init__(self, book: Book, now: float) -> None:
        self.book = book
        self.now = now
        self._reserved: list[Pool] = []
        self._nodes_kept: NodesKept | None = None
        self._too_big: dict[tuple[Amount, bool], int] = {}
        self._elastic: list[Task] = []

    def try_start(self, task: Task, result: Plan) -> Block | None:
        return self._quota_block(task) or self._place(task, result)

    def _quota_block(self, task: Task) -> Block | None:
        need = task.request.smallest
        for pool in self.book.chain(task.owner)[1:]:
            if pool.hours_spent:
                return Block(task, pool, f"the hours of {pool.path!r} are used up", "the window moves on")
            if pool.reservation and not self._may_pass(pool, task):
                return Block(
                    task, pool, f"job {pool.reservation.task_id} goes first in {pool.path!r}", "that job starts"
                )
            over_jobs = len(pool.held) >= pool.max_jobs
            if over_jobs or not pool.used.plus(need).fits(pool.limit):
                is_first = pool.reservation is None
                if is_first:
                    pool.reservation = blocked_in_pool(pool, task)
                    self._reserved.append(pool)
                what = f"{len(pool.held)} jobs" if over_jobs else f"{pool.used} in use"
                reason = f"quota of {pool.path!r}: {what}, needs {need}"
                return Block(task, pool, reason, f"a job of {pool.path!r} ends, or its quota is raised", is_first)
        return None

    def _may_pass(self, pool: Pool, task: Task) -> bool:
        promise = pool.reservation
        assert promise is not None
        if not self.book.config.backfill:
            return False
        ends_before = self.now + task.expected_s <= promise.shadow and task.expected_s < float("inf")
        return ends_before or task.request.smallest.fits(promise.spare)

    def _place(self, task: Task, result: Plan) -> Block | None:
        request, kept = task.request, self._nodes_kept
        if kept and not self.book.config.backfill:
            return self._no_room(task)
        passes = kept is None or (self.now + task.expected_s <= kept.shadow and task.expected_s < float("inf"))
        too_big = self._too_big.get((request.per_worker, passes))
        if too_big is not None and request.least >= too_big:
            return self._no_room(task)
        placement = self.book.rooms.find(
            request, workers=request.least, kept=None if passes or kept is None else kept.spare
        )
        if placement is None:
            self._too_big[request.per_worker, passes] = request.least
            return self._no_room(task)
        if kept and not passes:
            kept.use(placement, request.per_worker)
        for pool in self.book.chain(task.owner)[1:]:
            if pool.reservation and self.now + task.expected_s > pool.reservation.shadow:
                pool.reservation.spare = pool.reservation.spare.minus(request.smallest)
        self.book.start(task, placement, self.now)
        result.grants.append(Grant(task.id, request.least))
        if request.most > request.least:
            self._elastic.append(task)
        return None

    def _no_room(self, task: Task) -> Block:
        self.book.cluster_full = True
        if self._nodes_kept is None:
            self._nodes_kept = self._promise(task)
            per_worker, least = task.request.per_worker, task.request.least
            reason = f"needs {least} x ({per_worker}) at once; {self.book.rooms.count(per_worker)} such workers fit now"
            remedy = "a running job ends, or the cluster grows" if self._nodes_kept else "the cluster grows"
            return Block(task, None, reason, remedy, self._nodes_kept is not None)
        first = self._nodes_kept.task_id
        return Block(task, None, f"no room that job {first}, which goes first, can spare", f"job {first} starts")

    def _promise(self, task: Task) -> NodesKept | None:
        """The promise of the last pass as long as it can be kept, so that nodes being drained for a gang stay the same;
        None for a gang that this cluster cannot hold."""
        kept = self.book.promise
        if kept is None or not kept.holds_for(task, self.now):
            kept = self.book.promise = keep_nodes(self.book, task)
        self._too_big.clear()
        return kept

    def close(self, result: Plan) -> None:
        """Gives what nobody waits for to elastic jobs, and forgets the reservations of this pass."""
        if not result.blocks:
            for task in self._elastic:
                self._widen(task, result)
        for pool in self._reserved:
            pool.reservation = None

    def _widen(self, task: Task, result: Plan) -> None:
        book, request = self.book, task.request
        held = book.held[task.id]
        book.release(held, self.now)
        room = UNLIMITED
        for pool in book.chain(task.owner)[1:]:
            room = room.least(pool.limit.minus(pool.used))
        for workers in request.counts():
            if request.per_worker.times(workers).fits(room):
                placement = book.rooms.find(request, workers=workers)
                if placement:
                    break
        else:
            raise AssertionError("the workers that were just released fit again")
        book.start(task, placement, self.now)
        at = next(i for i, grant in enumerate(result.grants) if grant.job_id == task.id)
        result.grants[at] = Grant(task.id, workers)
