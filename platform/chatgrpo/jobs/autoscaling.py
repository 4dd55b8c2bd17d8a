"""What the queue would have the cluster grow to, and when to give it back. Pure.

Ray's `request_resources` takes the whole size that the cluster should have, so running jobs are part of the wish; a
later wish replaces the earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from chatgrpo.jobs.amounts import NOTHING, Amount, Request
from chatgrpo.jobs.config import Autoscaling
from chatgrpo.jobs.job import Job, JobState

Shapes = tuple[tuple[Amount, int], ...]
"""(one worker, how many of them), the largest workers first."""


@dataclass(frozen=True, slots=True)
class Wish:
    """`made_at`: when this size was last needed."""

    workers: Shapes = ()
    made_at: float = 0.0

    @property
    def size(self) -> Amount:
        size = NOTHING
        for per_worker, count in self.workers:
            size = size.plus(per_worker.times(count))
        return size

    def bundles(self) -> list[dict[str, float]]:
        """As Ray's autoscaler takes it."""
        return [bundle(per_worker) for per_worker, count in self.workers for _ in range(count)]


def decide(jobs: Iterable[Job], config: Autoscaling, *, last: Wish, now: float) -> Wish:
    """Grows with the queue at once, up to `config.max` in order of age; shrinks when less has been enough for
    `config.idle_s`."""
    wanted = Wish(_wanted(jobs, config.max.as_limit()), now)
    grows = not wanted.size.fits(last.size) or wanted.workers == last.workers
    return wanted if grows or now - last.made_at >= config.idle_s else last


def bundle(amount: Amount) -> dict[str, float]:
    parts = {"CPU": amount.cpu / 1000, "GPU": amount.gpu / 1000, "memory": float(amount.memory * 2**20)}
    return {name: part for name, part in parts.items() if part}


def _wanted(jobs: Iterable[Job], largest: Amount) -> Shapes:
    room, counts = largest, dict[Amount, int]()
    for job in sorted(jobs, key=lambda j: (not j.state.is_active, j.submitted_at, j.id)):
        if not (job.state.is_active or job.state is JobState.QUEUED):
            continue
        request = Request.of_config(job.config)
        workers = job.workers if job.state.is_active else request.least
        amount = request.per_worker.times(workers)
        if amount.fits(room):
            room = room.minus(amount)
            counts[request.per_worker] = counts.get(request.per_worker, 0) + workers
    return tuple(sorted(counts.items(), reverse=True))
