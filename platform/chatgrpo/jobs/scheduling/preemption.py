"""Takes back what is guaranteed: which running jobs stop at their next checkpoint so that an entitled one can start.

A job is entitled at a level of the tree when it keeps its pool there within the guarantee. Only jobs of sibling pools
that hold more than *their* guarantee are stopped, so nobody falls below it and two tenants never stop each other in
turns: the one that was stopped is above its guarantee and not entitled. Least important and youngest go first; a stop
that turns out not to be needed is taken back. With `preempt_lower_priority` a job may also stop less important ones of
its own owner that are behind it in the queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from chatgrpo.jobs.scheduling.book import Book
from chatgrpo.jobs.scheduling.plan import Block
from chatgrpo.jobs.scheduling.pools import Held, Task

MAX_CLAIMS = 16
"""Entitled jobs that one pass looks at; the next ones come with the next pass."""


@dataclass(frozen=True, slots=True)
class Stop:
    """This job gives way to `for_job` at its next checkpoint."""

    job_id: str
    for_job: str


def reclaim(book: Book, blocks: Sequence[Block], now: float) -> list[Stop]:
    """Marks the jobs that have to stop in `book` and says which they are.

    What was already asked to stop counts as free, but only once: claims are served in order, each with the room that
    the ones before it leave."""
    stops: list[Stop] = []
    claims = [block.task for block in blocks if _may_claim(book, block)][:MAX_CLAIMS]
    if not claims:
        return stops
    released = [held for held in book.held.values() if held.stopping]
    for held in released:
        book.release(held, now)
    phantoms: list[Held] = []
    for task in claims:
        victims = [] if _fits(book, task) else _victims(book, task, now)
        stops += [Stop(victim.task.id, task.id) for victim in victims]
        released += victims
        phantom = _pretend(book, task, now)
        if phantom:
            phantoms.append(phantom)
    for held in phantoms:
        book.release(held, now)
    for held in released:
        held.stopping = True
        book.hold(held, now)
    return stops


def _may_claim(book: Book, block: Block) -> bool:
    """One that only its priority speaks for claims when it is first: others would not let it have the room."""
    return book.is_entitled(block.task) or (book.config.preempt_lower_priority and block.has_promise)


def _victims(book: Book, task: Task, now: float) -> list[Held]:
    """The fewest jobs that make room, already released in `book`; none if even all of them would not."""
    taken: list[Held] = []
    for held in sorted(_candidates(book, task), key=lambda h: (h.task.priority, -h.started_at, h.task.id)):
        if not _still_borrows(book, held, task):
            continue
        book.release(held, now)
        taken.append(held)
        if _fits(book, task):
            break
    if not _fits(book, task):
        return _give_back(book, taken, now)
    for held in reversed(taken[:-1]):
        book.hold(held, now)
        if _fits(book, task):
            taken.remove(held)
        else:
            book.release(held, now)
    if any(_would_go_first(book, held.task, task) for held in taken):
        return _give_back(book, taken, now)
    return taken


def _give_back(book: Book, taken: list[Held], now: float) -> list[Held]:
    for held in taken:
        book.hold(held, now)
    return []


def _candidates(book: Book, task: Task) -> Iterable[Held]:
    chain = book.chain(task.owner)
    found: dict[str, Held] = {}
    for parent, own in pairwise(chain):
        if own.is_entitled(task.request.smallest):
            found |= {i: h for i, h in parent.held.items() if i not in own.held and h.can_stop}
    if book.config.preempt_lower_priority:
        own = chain[-1]
        found |= {i: h for i, h in own.held.items() if h.can_stop and _is_less(book, h.task, task)}
    return found.values()


def _is_less(book: Book, other: Task, task: Task) -> bool:
    return other.priority < task.priority and book.rank(other) > book.rank(task)


def _would_go_first(book: Book, victim: Task, task: Task) -> bool:
    """Whether a stopped job of the same owner would take its room back at once: then stopping it helps nobody."""
    return victim.owner == task.owner and book.is_entitled(victim) and not book.is_entitled(task)


def _still_borrows(book: Book, held: Held, task: Task) -> bool:
    """Whether every pool of the job below the one it shares with the claimant holds more than its guarantee of
    something that the claimant needs. Within one owner, priority alone decides."""
    if held.task.owner == task.owner:
        return True
    shared = set(book.chain(task.owner))
    need, amount = task.request.per_worker, held.amount
    useful = [r for r in range(3) if need[r] and amount[r]]
    below = [pool for pool in book.chain(held.task.owner) if pool not in shared]
    return any(all(pool.borrows(r) for pool in below) for r in useful)


def _fits(book: Book, task: Task) -> bool:
    need, chain = task.request.smallest, book.chain(task.owner)[1:]
    within = all(len(p.held) < p.max_jobs and p.used.plus(need).fits(p.limit) for p in chain)
    return within and book.rooms.find(task.request, workers=task.request.least) is not None


def _pretend(book: Book, task: Task, now: float) -> Held | None:
    """The claimant as if it ran, so that the next claim does not count on the same room."""
    if not _fits(book, task):
        return None
    placement = book.rooms.find(task.request, workers=task.request.least)
    assert placement is not None
    held = Held(task, task.request.least, placement, now, now + task.expected_s, can_stop=False)
    book.hold(held, now)
    return held
