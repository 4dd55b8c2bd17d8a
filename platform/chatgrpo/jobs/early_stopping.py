"""When to end a run early because its held-out reward no longer rises. Pure over the run's evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from chatgrpo.training.config import EarlyStopping


@dataclass(frozen=True, slots=True)
class Decision:
    """`reason` is "" as long as the run should go on."""

    reason: str = ""

    @property
    def stop(self) -> bool:
        return bool(self.reason)


GO_ON = Decision()


def decide(rewards: Sequence[float], config: EarlyStopping) -> Decision:
    """Whether to stop after the last of `rewards` (held-out means, oldest first).

    >>> decide([0.1, 0.5, 0.5, 0.4], EarlyStopping(patience=2)).reason
    'held-out reward has not risen by more than 0 for 2 evaluations (best 0.5)'
    """
    if not rewards:
        return GO_ON
    best = best_index(rewards, config.min_delta)
    stale = len(rewards) - 1 - best
    if stale < config.patience:
        return GO_ON
    noun = "evaluation" if stale == 1 else "evaluations"
    return Decision(
        f"held-out reward has not risen by more than {config.min_delta:g} for {stale} {noun} (best {rewards[best]:g})",
    )


def best_index(rewards: Sequence[float], min_delta: float = 0.0) -> int:
    """The last point that rose above all before it by more than `min_delta`: creeping by less is no progress."""
    best = 0
    for index, reward in enumerate(rewards):
        if reward > rewards[best] + min_delta or math.isnan(rewards[best]):
            best = index
    return best
