"""Gangs onto machines: all workers of a job or none, packed so that large rooms stay whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from chatgrpo.jobs.amounts import Amount, Request

Placement = tuple[tuple[int, int], ...]
"""(node index, workers on it) pairs."""


class Rooms:
    """What is free on every node. Nodes with equally much room share a bucket, so that a search costs the number of
    different rooms, not of nodes: a cluster of 10,000 machines has a few dozen."""

    __slots__ = ("_buckets", "_no_gang", "_sorted", "free")

    def __init__(self, free: Sequence[Amount]) -> None:
        self.free = list(free)
        self._buckets: dict[Amount, dict[int, None]] = {}
        self._sorted: list[Amount] | None = None
        self._no_gang: dict[Amount, int] = {}
        """The smallest gang of such workers that was found not to fit; forgotten when room is given back."""
        for index, room in enumerate(self.free):
            self._bucket(room)[index] = None

    def take(self, placement: Placement, per_worker: Amount) -> None:
        for index, workers in placement:
            self._move(index, self.free[index].minus(per_worker.times(workers)))

    def give(self, placement: Placement, per_worker: Amount) -> None:
        self._no_gang.clear()
        for index, workers in placement:
            self._move(index, self.free[index].plus(per_worker.times(workers)))

    def count(self, per_worker: Amount) -> int:
        """How many such workers fit in all."""
        return sum(per_worker.multiples_in(room) * len(nodes) for room, nodes in self._buckets.items())

    def find(self, request: Request, *, workers: int, kept: Mapping[int, Amount] | None = None) -> Placement | None:
        """Where so many workers fit, or None. The tightest node that holds them all; else the fewest nodes.

        `kept`: on these nodes only so much may be used (the rest waits for a job with a reservation)."""
        per_worker = request.per_worker
        if workers >= self._no_gang.get(per_worker, workers + 1):
            return None
        in_all = 0
        for room in self._in_order():
            fit = per_worker.multiples_in(room)
            if fit >= workers:
                best = self._first(room, kept)
                if best is not None:
                    return ((best, workers),)
            in_all += fit * len(self._buckets[room])
        if in_all < workers:
            self._no_gang[per_worker] = workers
            return None
        return self._spread(per_worker, workers, kept)

    def _spread(self, per_worker: Amount, workers: int, kept: Mapping[int, Amount] | None) -> Placement | None:
        placed: list[tuple[int, int]] = []
        for index, fit in self.largest_first(per_worker, kept):
            here = min(fit, workers)
            placed.append((index, here))
            workers -= here
            if not workers:
                return tuple(placed)
        return None

    def largest_first(self, per_worker: Amount, kept: Mapping[int, Amount] | None = None) -> Iterator[tuple[int, int]]:
        """(node, workers that fit on it), most first; nodes of which only a part may be used come last."""
        fits = sorted(((per_worker.multiples_in(room), room) for room in self._buckets), reverse=True)
        for fit, room in fits:
            if fit:
                yield from ((i, fit) for i in self._buckets[room] if not kept or i not in kept)
        for index, room in (kept or {}).items():
            fit = per_worker.multiples_in(room.least(self.free[index]))
            if fit > 0:
                yield index, fit

    def _first(self, room: Amount, kept: Mapping[int, Amount] | None) -> int | None:
        nodes = self._buckets[room]
        if not kept:
            return next(iter(nodes))
        return next((index for index in nodes if index not in kept), None)

    def _in_order(self) -> list[Amount]:
        """Rooms, tightest first; rooms with GPUs after those without."""
        if self._sorted is None:
            self._sorted = sorted(self._buckets, key=lambda room: (room.gpu, room.cpu, room.memory))
        return self._sorted

    def _move(self, index: int, room: Amount) -> None:
        old = self.free[index]
        nodes = self._buckets[old]
        del nodes[index]
        if not nodes:
            del self._buckets[old]
            self._sorted = None
        self.free[index] = room
        self._bucket(room)[index] = None

    def _bucket(self, room: Amount) -> dict[int, None]:
        bucket = self._buckets.get(room)
        if bucket is None:
            bucket = self._buckets[room] = {}
            self._sorted = None
        return bucket
