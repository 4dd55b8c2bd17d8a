"""Tells every pending job its place in the queue, why it waits and what would unblock it."""

from __future__ import annotations

from dataclasses import dataclass

from chatgrpo.jobs.scheduling.book import Book, kind_of
from chatgrpo.jobs.scheduling.plan import Plan


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job is pending and what would unblock it. `position` counts from 1."""

    position: int
    reason: str
    unblocked_by: str


def waits(book: Book, plan: Plan) -> dict[str, Wait]:
    """For everyone still waiting after `plan`. Those it looked at come in its order; the others are of a kind that was
    blocked, and stand behind the first of their kind."""
    blocks = {(b.task.owner, *kind_of(b.task)): (i, b) for i, b in enumerate(plan.blocks)}
    last = len(plan.blocks)

    def order(task_id: str) -> tuple[int, float, str]:
        task = book.waiting[task_id]
        at, _ = blocks.get((task.owner, *kind_of(task)), (last, None))
        return (at, book.rank(task), task_id)

    found: dict[str, Wait] = {}
    for position, task_id in enumerate(sorted(book.waiting, key=order), start=1):
        task = book.waiting[task_id]
        _, block = blocks.get((task.owner, *kind_of(task)), (last, None))
        if block is None:
            found[task_id] = Wait(position, "many different jobs are ahead of it", "some of them start")
        elif block.task.id == task_id:
            found[task_id] = Wait(position, block.reason, block.unblocked_by)
        else:
            found[task_id] = Wait(
                position, f"behind job {block.task.id}: {block.reason}", f"job {block.task.id} starts"
            )
    return found
