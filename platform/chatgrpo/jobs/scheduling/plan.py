"""Decides which waiting jobs start now, in order of rank, without ever promising more than there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from chatgrpo.jobs.amounts import Amount, Node, Request, total


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job in the queue as the policies see it."""

    job_id: str
    request: Request
    priority: int
    submitted_at: float


@dataclass(frozen=True, slots=True)
class Grant:
    """Start this job with so many workers."""

    job_id: str
    workers: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job is pending and what would unblock it. `position` counts from 1."""

    position: int
    reason: str
    unblocked_by: str


@dataclass(frozen=True, slots=True)
class Plan:
    grants: list[Grant] = field(default_factory=list)
    waits: dict[str, Wait] = field(default_factory=dict)


def plan(queue: Sequence[Waiting], nodes: Sequence[Node]) -> Plan:
    """First in, first out by priority: the first that does not fit holds back all behind it."""
    result = Plan()
    free = [node.free for node in nodes]
    blocked: Waiting | None = None
    for job in sorted(queue, key=lambda w: (-w.priority, w.submitted_at, w.job_id)):
        placed = None if blocked else place(job.request, free)
        if placed is None:
            blocked = blocked or job
            result.waits[job.job_id] = _wait(len(result.waits) + 1, job, blocked, free)
        else:
            free, workers = placed
            result.grants.append(Grant(job.job_id, workers))
    return result


def place(request: Request, free: Sequence[Amount]) -> tuple[list[Amount], int] | None:
    """Puts a gang on nodes, as many workers as fit up to `most`; None when not even `least` do."""
    left, workers = list(free), 0
    for index, room in enumerate(left):
        here = min(request.most - workers, request.per_worker.multiples_in(room))
        left[index] = room.minus(request.per_worker.times(here))
        workers += here
    return (left, workers) if workers >= request.least else None


def _wait(position: int, job: Waiting, blocked: Waiting, free: Sequence[Amount]) -> Wait:
    if job is not blocked:
        return Wait(position, f"behind job {blocked.job_id}", f"{position - 1} jobs ahead start")
    return Wait(
        position,
        f"needs {job.request.smallest}; free now: {total(free)}",
        "a running job ends, or the cluster grows",
    )
