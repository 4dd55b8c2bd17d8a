"""The queue in virtual time: the same book, plan and preemption as the live scheduler, with jobs that merely take time.

Used by tests, by the benchmark, and by anyone who wants to know what a change of policy would do to a recorded load.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

from chatgrpo.jobs.scheduling.book import Book
from chatgrpo.jobs.scheduling.plan import plan
from chatgrpo.jobs.scheduling.pools import Task
from chatgrpo.jobs.scheduling.preemption import reclaim


@dataclass(frozen=True, slots=True)
class Load:
    """A job that arrives at `task.submitted_at` and runs for `runtime_s` with its fewest workers, less with more."""

    task: Task
    runtime_s: float


@dataclass(slots=True)
class Outcome:
    """When what happened, by job. `starts` has every start of a job, `ends` its completion."""

    starts: dict[str, list[float]] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)
    preemptions: int = 0
    decisions: int = 0
    """Looks at the queue."""

    @property
    def makespan_s(self) -> float:
        return max(self.ends.values(), default=0.0) - min((s[0] for s in self.starts.values()), default=0.0)


@dataclass(slots=True)
class _Running:
    left: float
    workers: int
    since: float
    run: int


ARRIVE, END, STOP = 0, 1, 2


def simulate(
    book: Book,
    loads: Iterable[Load],
    *,
    checkpoint_s: float = 0.0,
    look_every_s: float = 0.0,
    look: Callable[[Book, float], None] | None = None,
) -> Outcome:
    """Runs all loads through `book`. A job that is asked to stop does so `checkpoint_s` later and loses nothing.

    The queue is looked at whenever something happens, but not more often than every `look_every_s`. `look` is called
    after every decision."""
    outcome, serial = Outcome(), count()
    by_id = {load.task.id: load for load in loads}
    left = {i: load.runtime_s * load.task.request.least for i, load in by_id.items()}
    running: dict[str, _Running] = {}
    events = [(load.task.submitted_at, ARRIVE, next(serial), i) for i, load in by_id.items()]
    heapq.heapify(events)

    def begin(task_id: str, workers: int, now: float) -> None:
        run = next(serial)
        running[task_id] = _Running(left[task_id], workers, now, run)
        outcome.starts.setdefault(task_id, []).append(now)
        heapq.heappush(events, (now + left[task_id] / workers, END, run, task_id))

    def stop(task_id: str, now: float) -> None:
        run = running.pop(task_id)
        left[task_id] = max(0.0, run.left - (now - run.since) * run.workers)
        held = book.finish(task_id, now)
        outcome.preemptions += 1
        book.submit(held.task)

    same_time, last = 0, -math.inf
    while events:
        now = events[0][0]
        if look_every_s:
            now = math.ceil(now / look_every_s) * look_every_s
        same_time, last = (same_time + 1 if now == last else 0), now
        assert same_time <= len(by_id) + 10, f"jobs stop each other in turns at {now}"
        while events and events[0][0] <= now:
            at, kind, run, task_id = heapq.heappop(events)
            if kind == ARRIVE:
                book.submit(by_id[task_id].task)
            elif task_id in running and running[task_id].run == run:
                if kind == END:
                    del running[task_id]
                    book.finish(task_id, now)
                    outcome.ends[task_id] = at
                else:
                    stop(task_id, now)
        planned = plan(book, now)
        outcome.decisions += 1
        for grant in planned.grants:
            begin(grant.job_id, grant.workers, now)
        if book.config.preemption and planned.blocks:
            for wanted in reclaim(book, planned.blocks, now):
                heapq.heappush(events, (now + checkpoint_s, STOP, running[wanted.job_id].run, wanted.job_id))
        if look:
            look(book, now)
    return outcome
