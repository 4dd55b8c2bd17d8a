"""When to end a run early: its held-out reward no longer rises, or it has diverged. Pure over the run's history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from chatgrpo.training.config import EarlyStopping


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One point of a run's history. `reward` is the held-out mean; the rest is the training step's, None if unknown."""

    step: int
    reward: float
    kl: float | None = None
    """Mean KL to the reference, nats a token."""
    entropy: float | None = None
    """Mean entropy of the policy, nats a token."""
    loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """Bounds beyond which a run has diverged; None is off. Entropy collapse counts only while the reward is not good:
    a policy that has learnt its task is rightly certain."""

    max_kl: float | None = None
    min_entropy: float | None = None
    entropy_reward: float = 0.9
    """Held-out reward from which low entropy is mastery, not collapse."""


@dataclass(frozen=True, slots=True)
class Decision:
    stop: bool
    reason: str = ""
    diverged: bool = False
    """The weights after this point are not worth keeping: publish the best checkpoint."""


GO_ON = Decision(False)


def decide(history: Sequence[Evaluation | float], config: EarlyStopping, *, guards: Guards | None = None) -> Decision:
    """Whether to stop after the last point of `history` (oldest first; bare numbers are held-out rewards).

    >>> decide([0.1, 0.5, 0.5, 0.4], EarlyStopping(patience=2)).reason
    'held-out reward has not risen by more than 0 for 2 evaluations (best 0.5)'
    """
    points = [p if isinstance(p, Evaluation) else Evaluation(step=i, reward=p) for i, p in enumerate(history)]
    if not points:
        return GO_ON
    diverged = _divergence(points[-1], guards or Guards())
    if diverged:
        return Decision(True, diverged, diverged=True)
    best = best_index([p.reward for p in points], config.min_delta)
    stale = len(points) - 1 - best
    if stale < config.patience:
        return GO_ON
    noun = "evaluation" if stale == 1 else "evaluations"
    return Decision(
        True,
        f"held-out reward has not risen by more than {config.min_delta:g} for {stale} {noun} "
        f"(best {points[best].reward:g})",
    )


def best_index(rewards: Sequence[float], min_delta: float = 0.0) -> int:
    """The last point that rose above all before it by more than `min_delta`: creeping by less is no progress."""
    best = 0
    for index, reward in enumerate(rewards):
        if reward > rewards[best] + min_delta or math.isnan(rewards[best]):
            best = index
    return best


def _divergence(point: Evaluation, guards: Guards) -> str:
    for name, value in (("held-out reward", point.reward), ("loss", point.loss), ("KL", point.kl)):
        if value is not None and not math.isfinite(value):
            return f"{name} is {value} at step {point.step}"
    if guards.max_kl is not None and point.kl is not None and point.kl > guards.max_kl:
        return f"KL {point.kl:g} exceeds {guards.max_kl:g} at step {point.step}"
    low = guards.min_entropy is not None and point.entropy is not None and point.entropy < guards.min_entropy
    if low and point.reward < guards.entropy_reward:
        return f"entropy {point.entropy:g} fell below {guards.min_entropy:g} at step {point.step}"
    return ""
