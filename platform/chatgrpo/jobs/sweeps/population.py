"""Population based training as a policy: who takes over from whom, and with which values (arXiv:1711.09846).

Truncation selection as in Ray Tune's own PBT, which cannot be used: it hands on checkpoints of Tune, and these runs
keep their own. Pure; randomness is passed in.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatgrpo.jobs.sweeps.config import Choice, Dimension, Pbt, RandInt
from chatgrpo.jobs.sweeps.draw import drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A trial that is training. `score`: its last value of the metric, more is better."""

    trial_id: str
    score: float


def is_due(step: int, *, last_step: int, since_step: int, interval_steps: int) -> bool:
    """Whether a trial that has come from `last_step` to `step` is to be compared: it has passed a multiple of the
    interval since then, and since its last takeover at `since_step`."""
    return step // interval_steps > max(last_step, since_step) // interval_steps


def decide(trial_id: str, members: Sequence[Member], pbt: Pbt, rng: random.Random) -> str | None:
    """The id of the trial that `trial_id` takes over from; None if it goes on as it is. `members` has `trial_id` too.

    >>> decide("b", [Member(trial_id="a", score=1.0), Member(trial_id="b", score=0.1)], Pbt(), random.Random(0))
    'a'
    """
    ranked = sorted(members, key=lambda member: (member.score, member.trial_id))
    size = min(math.ceil(len(ranked) * pbt.quantile), len(ranked) // 2)
    worst = {member.trial_id: member.score for member in ranked[:size]}
    if trial_id not in worst:
        return None
    donor = rng.choice(ranked[-size:])
    return donor.trial_id if donor.score > worst[trial_id] else None


def explore(params: Mapping[str, Any], space: Mapping[str, Dimension], pbt: Pbt, rng: random.Random) -> dict[str, Any]:
    """`params` with every value drawn anew, or moved a little, within its dimension."""
    return {name: _explored(params[name], dimension, pbt, rng) for name, dimension in space.items()}


def _explored(value: Any, dimension: Dimension, pbt: Pbt, rng: random.Random) -> Any:
    if rng.random() < pbt.resample_probability:
        return drawn(dimension, rng)
    if isinstance(dimension, Choice):
        place = dimension.values.index(value) + rng.choice((-1, 1))
        return dimension.values[min(max(place, 0), len(dimension.values) - 1)]
    factor = rng.choice(pbt.factors)
    scaled = value * factor
    if isinstance(dimension, RandInt):
        # A small number would be rounded back to itself for ever.
        scaled = math.floor(scaled) if factor < 1 else math.ceil(scaled)
    return min(max(scaled, dimension.low), dimension.high)
