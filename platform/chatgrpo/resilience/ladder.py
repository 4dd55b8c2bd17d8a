"""What is given up, and in which order, as replies pile up: training-side requests first, then the quality of answers,
then answers."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from chatgrpo.resilience.config import LadderConfig


class Rung(IntEnum):
    """Each includes those before it."""

    NORMAL = 0
    SHED_TRAINING = 1
    DEGRADE = 2
    REFUSE = 3


def rung_of(num_replies: int, config: LadderConfig) -> Rung:
    """The rung for one more request, with `num_replies` being written."""
    if num_replies >= config.max_replies:
        return Rung.REFUSE
    if num_replies >= config.degrade_at * config.max_replies:
        return Rung.DEGRADE
    if num_replies >= config.shed_training_at * config.max_replies:
        return Rung.SHED_TRAINING
    return Rung.NORMAL


class Ladder:
    """Where one process stands: `num_replies` are being written. `gave_up(kind)` counts what was refused or made
    worse."""

    def __init__(self, config: LadderConfig, *, gave_up: Callable[[str], None] = lambda _: None) -> None:
        self._config = config
        self.num_replies = 0
        self.gave_up = gave_up

    @property
    def rung(self) -> Rung:
        return rung_of(self.num_replies, self._config)
