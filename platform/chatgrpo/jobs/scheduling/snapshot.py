"""The book of one moment on a real cluster, from stored jobs and the nodes as Ray measures them.

Ray does not say which of our jobs holds what on which node. Running jobs are therefore laid out on what is in use, in
the way that placement would have put them; what is left over in use belongs to others (chat replicas, say) and stays
out of reach. A starting job has not taken its resources yet, so they are set aside from what is free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from chatgrpo.jobs.amounts import Amount, Node, Request, total
from chatgrpo.jobs.config import JobsConfig, Quota
from chatgrpo.jobs.job import Job, JobState, used_until
from chatgrpo.jobs.scheduling.book import Book
from chatgrpo.jobs.scheduling.placement import Placement, Rooms
from chatgrpo.jobs.scheduling.pools import Held, Task, Usage

Hours = Mapping[str, tuple[float, float]]
"""CPU-seconds and GPU-seconds by owner, of the jobs that ended within the window of the quotas."""


def book_of(
    jobs: Iterable[Job],
    nodes: Sequence[Node],
    config: JobsConfig,
    now: float,
    *,
    usage: Usage | None = None,
    hours: Hours | None = None,
) -> Book:
    """`usage`: past use by owner as `Book.usage` gave it at the last look."""
    jobs = list(jobs)
    active = [job for job in jobs if job.state.is_active]
    placements, rooms = _lay_out(active, nodes)
    book = Book(rooms, config, whole=total(node.has for node in nodes))
    usage = usage or Usage(now)
    book.set_usage(usage)
    for job in active:
        # Held since the last look, so that the time in between is charged.
        book.hold(_held(job, placements[job.id], now), usage.at)
    for job in jobs:
        if job.state is JobState.QUEUED and job.not_before <= now:
            book.submit(task_of(job))
    for path in _spent(config.quotas, jobs, hours or {}, now):
        book.chain(path)[-1].hours_spent = True
    return book


def task_of(job: Job) -> Task:
    limit_h = job.config.get("max_runtime_hours")
    return Task(
        id=job.id,
        owner=job.owner,
        request=Request.of_config(job.config),
        priority=job.priority,
        submitted_at=job.submitted_at,
        expected_s=math.inf if limit_h is None else limit_h * 3600.0,
    )


def _held(job: Job, placement: Placement, now: float) -> Held:
    task = task_of(job)
    ends_at = job.state_since + task.expected_s
    if job.state is JobState.RUNNING and job.progress.eta_s is not None:
        ends_at = min(ends_at, now + job.progress.eta_s)
    return Held(
        task,
        job.workers,
        placement,
        started_at=job.state_since,
        ends_at=max(ends_at, now),
        stopping=job.state is JobState.CHECKPOINTING,
        can_stop=job.state is JobState.RUNNING,
    )


def _lay_out(active: Sequence[Job], nodes: Sequence[Node]) -> tuple[dict[str, Placement], list[Amount]]:
    """Where each active job is taken to be, and what our jobs may use of each node in all."""
    free = Rooms([node.free for node in nodes])
    in_use = Rooms([node.has.minus(node.free).floor() for node in nodes])
    ours = [Amount() for _ in nodes]
    placements: dict[str, Placement] = {}
    by_size = sorted(active, key=lambda job: Request.of_config(job.config).per_worker, reverse=True)
    for job in by_size:
        request = Request.of_config(job.config)
        rooms = free if job.state is JobState.STARTING else in_use
        placement = rooms.find(request, workers=job.workers) or ()
        rooms.take(placement, request.per_worker)
        placements[job.id] = placement
        for index, workers in placement:
            ours[index] = ours[index].plus(request.per_worker.times(workers))
    return placements, [room.plus(own) for room, own in zip(free.free, ours, strict=True)]


def _spent(quotas: Sequence[Quota], jobs: Sequence[Job], hours: Hours, now: float) -> list[str]:
    """Paths whose CPU-hours or GPU-hours of the window are used up, what runs now counted."""
    used = [(owner, cpu_s, gpu_s) for owner, (cpu_s, gpu_s) in hours.items()]
    used += [(job.owner, *used_until(job, now)) for job in jobs]
    spent = []
    for quota in quotas:
        below = [u for u in used if u[0] == quota.path or u[0].startswith(quota.path + "/")]
        cpu_h, gpu_h = sum(u[1] for u in below) / 3600.0, sum(u[2] for u in below) / 3600.0
        if (quota.cpu_hours is not None and cpu_h >= quota.cpu_hours) or (
            quota.gpu_hours is not None and gpu_h >= quota.gpu_hours
        ):
            spent.append(quota.path)
    return spent
