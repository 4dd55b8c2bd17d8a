"""Points of a search space, drawn at random."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from chatgrpo.jobs.sweeps.config import Choice, Dimension, LogUniform, RandInt, Uniform


def draw(space: Mapping[str, Dimension], *, num_samples: int, seed: int) -> list[dict[str, Any]]:
    """The same points for the same seed."""
    rng = random.Random(seed)
    return [{name: drawn(dimension, rng) for name, dimension in space.items()} for _ in range(num_samples)]


def drawn(dimension: Dimension, rng: random.Random) -> Any:
    """One value of a dimension."""
    match dimension:
        case LogUniform():
            value = math.exp(rng.uniform(math.log(dimension.low), math.log(dimension.high)))
            return min(max(value, dimension.low), dimension.high)  # logarithms round
        case Uniform():
            return rng.uniform(dimension.low, dimension.high)
        case RandInt():
            return rng.randint(dimension.low, dimension.high)
        case Choice():
            return rng.choice(dimension.values)
