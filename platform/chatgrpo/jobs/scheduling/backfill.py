"""What a blocked job is promised: when it can start as things stand, and what others may use until then."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from itertools import islice

from chatgrpo.jobs.amounts import Amount
from chatgrpo.jobs.scheduling.book import Book
from chatgrpo.jobs.scheduling.placement import Placement
from chatgrpo.jobs.scheduling.pools import Pool, Reservation, Task

MAX_ENDS = 2000
"""Running jobs whose ends are looked through for a promise; beyond, the job is promised its nodes, but no time."""


RENEW_AFTER_PASSES = 50
"""Choosing nodes looks at every node of the cluster; staying with a choice costs nothing."""


@dataclass(slots=True)
class NodesKept:
    """Nodes promised to a blocked gang from `shadow` on. `spare`: what of them is left beside it, by node."""

    task_id: str
    shadow: float
    spare: dict[int, Amount]
    passes: int = 0

    def holds_for(self, task: Task, now: float) -> bool:
        """Whether to stay with this promise. It is made anew when its time has come and gone, and now and then, because
        what passed it and ended again is not given back to `spare`."""
        self.passes += 1
        return self.task_id == task.id and now < self.shadow and self.passes < RENEW_AFTER_PASSES

    def use(self, placement: Placement, per_worker: Amount) -> None:
        """A job that outlasts the promise was put here."""
        for index, workers in placement:
            if index in self.spare:
                self.spare[index] = self.spare[index].minus(per_worker.times(workers))


def blocked_in_pool(pool: Pool, task: Task) -> Reservation:
    """The promise to a task that its pool's quota blocks: the first end after which it fits."""
    need, used, running = task.request.smallest, pool.used, len(pool.held)
    for ends_at, task_id in pool.ends[:MAX_ENDS]:
        used = used.minus(pool.held[task_id].amount)
        running -= 1
        after = used.plus(need)
        if running < pool.max_jobs and after.fits(pool.limit):
            spare = pool.limit.minus(after)
            # A pool that counts jobs has no job to spare beside the one promised.
            return Reservation(task.id, ends_at, spare if running + 1 < pool.max_jobs else Amount(-1, -1, -1))
    return Reservation(task.id, math.inf, Amount(-1, -1, -1))


def keep_nodes(book: Book, task: Task) -> NodesKept | None:
    """The promise to a gang that does not fit: the nodes on which it fits first when running jobs end in order.

    If no time can be told, nodes that can hold it once they are empty. None if the cluster cannot hold it at all."""
    request, free = task.request, book.rooms.free
    fits = book.rooms.count(request.per_worker)
    room: dict[int, Amount] = {}
    for ends_at, held_id in book.root.ends[:MAX_ENDS]:
        if math.isinf(ends_at):
            break
        held = book.held[held_id]
        for index, workers in held.placement:
            before = room.get(index, free[index])
            room[index] = before.plus(held.task.request.per_worker.times(workers))
            fits += request.per_worker.multiples_in(room[index]) - request.per_worker.multiples_in(before)
        if fits >= request.least:
            for index, _ in islice(book.rooms.largest_first(request.per_worker), request.least):
                room.setdefault(index, free[index])
            return _choose(task, ends_at, room, free)
    return _choose(task, math.inf, dict(enumerate(book.size)), free)


def _choose(task: Task, shadow: float, room: dict[int, Amount], free: list[Amount]) -> NodesKept | None:
    """As few nodes as hold the gang, those with the most room now among equals. `room`: what they have at `shadow`."""
    per_worker, missing = task.request.per_worker, task.request.least

    def worth(index: int) -> tuple[int, int, int]:
        return (-per_worker.multiples_in(room[index]), -per_worker.multiples_in(free[index]), index)

    spare: dict[int, Amount] = {}
    for index in heapq.nsmallest(task.request.least, room, key=worth):
        workers = min(missing, per_worker.multiples_in(room[index]))
        spare[index] = room[index].minus(per_worker.times(workers))
        missing -= workers
        if missing <= 0:
            return NodesKept(task.id, shadow, spare)
    return None
