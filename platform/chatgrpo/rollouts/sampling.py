"""Dynamic sampling: train on groups that teach something (DAPO, arXiv:2503.14476, section 3.2).

A group of equal rewards has zero advantage everywhere. It is set aside and replaced by another task's group, for a
bounded number of rounds; after those the step goes on with what there is rather than resampling for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chatgrpo.rollouts.episode import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`keep`: at most the wanted groups, oldest first. `resample`: how many new tasks to play; 0 ends the step."""

    keep: tuple[Group, ...]
    resample: int

    @property
    def done(self) -> bool:
        return self.resample == 0


def decide(groups: Sequence[Group], *, wanted: int, round: int, max_rounds: int) -> Decision:
    """`groups`: all of the step so far. `round`: extra rounds already played, 0 after the first collection.

    wanted=4, two of four informative, round=0, max_rounds=3   ->  keep those two, resample 2
    """
    keep = tuple(group for group in groups if not group.is_zero_variance)[:wanted]
    missing = wanted - len(keep)
    return Decision(keep=keep, resample=missing if round < max_rounds else 0)
