"""Who is next: walks the tree of pools from the top, at each level to the child with the best claim.

Entries are the first waiting tasks of each kind. While jobs start, shares only grow and entitlements only vanish, so a
key is refreshed where it surfaces; a start changes the keys on its own path and no others.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from chatgrpo.jobs.scheduling.book import Book, Kind
from chatgrpo.jobs.scheduling.pools import Pool, Task

Key = tuple[bool, float]
"""(no guarantee covers it, share): lower is better."""


@dataclass(slots=True)
class Branch:
    """A pool in one pass: tasks of its own and branches below it, the best on top of each heap."""

    pool: Pool
    queue: list[tuple[bool, float, str, Kind]] = field(default_factory=list)
    children: list[tuple[Key, str, Branch]] = field(default_factory=list)
    by_path: dict[str, Branch] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not self.queue and not self.children


class Order:
    """The waiting tasks of one pass. `add` all, then `pop` and `settle` in turns until `pop` gives None."""

    def __init__(self, book: Book, now: float) -> None:
        self._book = book
        self._now = now
        self._fair = book.config.policy == "fair_share"
        self._root = Branch(book.root)
        self._path: list[Branch] = []

    def add(self, task: Task, kind: Kind) -> None:
        branch = self._root
        for pool in self._book.chain(task.owner)[1:] if self._fair else ():
            below = branch.by_path.get(pool.path)
            if below is None:
                below = branch.by_path[pool.path] = Branch(pool)
            branch = below
        heapq.heappush(branch.queue, (self._is_unclaimed(task), self._book.rank(task), task.id, kind))

    def ready(self) -> None:
        """Call it after the last `add`."""
        self._ready(self._root)

    def pop(self) -> tuple[Task, Kind] | None:
        self._path = [branch] = [self._root]
        while not branch.is_empty:
            below = self._best_child(branch)
            own = self._best_own(branch)
            if below is None or (own is not None and (own, self._share(branch.pool)) <= below[0]):
                _, _, task_id, kind = heapq.heappop(branch.queue)
                return self._book.waiting[task_id], kind
            branch = below[2]
            self._path.append(branch)
        return None

    def settle(self, following: Task | None, kind: Kind) -> None:
        """What was popped has started (`following`: the next of its kind, if any) or is blocked (None)."""
        leaf = self._path[-1]
        if following:
            entry = (self._is_unclaimed(following), self._book.rank(following), following.id, kind)
            heapq.heappush(leaf.queue, entry)
        for parent, child in zip(self._path[-2::-1], self._path[::-1], strict=False):
            if child.is_empty:
                heapq.heappop(parent.children)
            else:
                heapq.heapreplace(parent.children, (self._key(child), child.pool.path, child))

    def _ready(self, branch: Branch) -> None:
        for child in branch.by_path.values():
            self._ready(child)
            branch.children.append((self._key(child), child.pool.path, child))
        heapq.heapify(branch.children)

    def _best_child(self, branch: Branch) -> tuple[Key, str, Branch] | None:
        while branch.children:
            key, path, child = branch.children[0]
            fresh = self._key(child)
            if fresh == key:
                return branch.children[0]
            heapq.heapreplace(branch.children, (fresh, path, child))
        return None

    def _best_own(self, branch: Branch) -> bool | None:
        """Whether the best of the pool's own tasks is unclaimed; None if it has none."""
        while branch.queue:
            unclaimed, rank, task_id, kind = branch.queue[0]
            if unclaimed or not self._is_unclaimed(self._book.waiting[task_id]):
                return unclaimed
            heapq.heapreplace(branch.queue, (True, rank, task_id, kind))
        return None

    def _key(self, branch: Branch) -> Key:
        own = self._best_own(branch)
        below = branch.children[0][0][0] if branch.children else True
        return (below if own is None else own and below, self._share(branch.pool))

    def _share(self, pool: Pool) -> float:
        return pool.share(self._book.whole, self._now, self._book.config.usage_half_life_s)

    def _is_unclaimed(self, task: Task) -> bool:
        return not self._book.is_entitled(task)
