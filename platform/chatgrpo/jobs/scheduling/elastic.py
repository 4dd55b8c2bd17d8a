"""Running jobs that would go faster with more workers, when nobody else wants the room."""

from __future__ import annotations

from chatgrpo.jobs.scheduling.book import Book
from chatgrpo.jobs.scheduling.pools import Held


def grow(book: Book, now: float) -> str | None:
    """The job to restart from a checkpoint with more workers, if any: one at a time, the one that has waited longest
    since its last start. None while anyone waits."""
    if book.waiting or not book.config.elastic:
        return None
    ripe = [
        held
        for held in book.held.values()
        if held.can_stop
        and not held.stopping
        and held.workers < held.task.request.most
        and now - held.started_at >= book.config.elastic_cooldown_s
    ]
    for held in sorted(ripe, key=lambda h: (h.started_at, h.task.id)):
        if _could_have(book, held, now) > held.workers:
            return held.task.id
    return None


def _could_have(book: Book, held: Held, now: float) -> int:
    """The most workers this job could have if it started over now."""
    request = held.task.request
    book.release(held, now)
    try:
        pools = book.chain(held.task.owner)[1:]
        for workers in request.counts():
            amount = request.per_worker.times(workers)
            within = all(pool.used.plus(amount).fits(pool.limit) for pool in pools)
            if within and book.rooms.find(request, workers=workers):
                return workers
        return held.workers
    finally:
        book.hold(held, now)
