"""How many replicas an operator's `scale by this factor` means, and how long his word stands. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor
from typing import Any

# Products such as 3 * 1.1 miss the whole number that is meant by less than this.
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """So many replicas were asked for at `at`; after `until` the order is over (None: it stands). Times are in seconds
    since the epoch."""

    replicas: int
    at: float
    until: float | None = None

    def stands(self, now: float) -> bool:
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """What was made of an order for one deployment: `before` were wanted, now `replicas` are, between `least` and
    `most`. `is_bounded`: the factor alone would have gone beyond these."""

    deployment: str
    before: int
    replicas: int
    least: int
    most: int
    is_bounded: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "deployment": self.deployment,
            "replicas_before": self.before,
            "replicas": self.replicas,
            "min_replicas": self.least,
            "max_replicas": self.most,
            "bounded": self.is_bounded,
        }


def scale(deployment: str, *, before: int, factor: float, least: int, most: int) -> Scaled:
    """More is rounded up and fewer is rounded down, so that a factor other than 1 does something where it can.

    scale("ChatModel", before=3, factor=0.5, least=1, most=8).replicas == 1
    """
    exact = before * factor
    asked = ceil(exact - _EPSILON) if factor >= 1 else floor(exact + _EPSILON)
    replicas = min(most, max(least, asked))
    return Scaled(
        deployment=deployment, before=before, replicas=replicas, least=least, most=most, is_bounded=replicas != asked
    )
