"""Which tasks come next: a reshuffled pass after pass over all of them, shared out over ranks."""

from __future__ import annotations

import random
from dataclasses import KW_ONLY, dataclass, field
from typing import Any


@dataclass(slots=True)
class DataCursor:
    """All ranks read one endless stream, one shuffled epoch after the other; rank r takes places r, r + world_size, ...

    So every task is drawn once an epoch over all ranks, and ranks never collide even when one draws more than another
    (rounds of dynamic sampling). At equal draws the tasks of a step are the same for every number of ranks:

        stream 2 0 3 1 | 0 3 1 2, two ranks, two draws a step:  rank 0: [2, 3], [0, 1]   rank 1: [0, 1], [3, 2]
    """

    num_tasks: int
    _: KW_ONLY
    seed: int
    rank: int = 0
    world_size: int = 1
    drawn: int = 0
    _order: tuple[int, list[int]] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.num_tasks < 1:
            raise ValueError("num_tasks: 0 tasks cannot be drawn from; the task source is empty")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank: {self.rank} is not in 0..{self.world_size - 1}")

    @property
    def epoch(self) -> int:
        """The epoch of the next task."""
        return self._place(self.drawn) // self.num_tasks

    @property
    def place(self) -> int:
        """Of the next task in the stream; no two draws of any ranks have the same."""
        return self._place(self.drawn)

    def next(self, n: int) -> list[int]:
        """The next `n` task indices of this rank."""
        places = [self._place(self.drawn + i) for i in range(n)]
        self.drawn += n
        return [self._shuffled(place // self.num_tasks)[place % self.num_tasks] for place in places]

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready; `load_state_dict` continues exactly there."""
        return {"num_tasks": self.num_tasks, "seed": self.seed, "world_size": self.world_size, "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError when the tasks or the seed are others: the position would mean something else.

        With another number of ranks the stream goes on behind what all ranks together had drawn."""
        for name in ("num_tasks", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(f"{name}: the saved position is for {state[name]}, this run has {getattr(self, name)}")
        total = int(state["drawn"]) * int(state["world_size"])
        self.drawn = -(-total // self.world_size)

    def _place(self, draw: int) -> int:
        return draw * self.world_size + self.rank

    def _shuffled(self, epoch: int) -> list[int]:
        if self._order is None or self._order[0] != epoch:
            order = list(range(self.num_tasks))
            # Seeding by text goes through SHA-512: the same order in every process and on every platform.
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1]
