"""Whether a run has diverged: figures that are not finite, a policy far from its reference, or one that says a single
thing without being right. Pure over one step's figures and the number of bad steps before it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from chatgrpo.errors import PlatformError
from chatgrpo.training.config import Divergence

# What must be finite wherever a step reports it.
_FINITE = ("loss", "kl", "entropy", "eval_reward")


class Diverged(PlatformError):
    """The run broke and there is no evaluated checkpoint to publish. Another try would do the same again."""

    code = "diverged"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`strikes`: bad steps in a row, this one included. `reason`: why the run must end; "" lets it go on."""

    strikes: int = 0
    reason: str = ""


def judge(metrics: Mapping[str, float], config: Divergence, *, step: int, strikes: int) -> Verdict:
    """`strikes`: bad steps in a row before this one. One bad step may be bad luck; `patience` of them are not.

    >>> judge({"kl": 0.9}, Divergence(max_kl=0.5, patience=3), step=12, strikes=2).reason
    'diverged: KL 0.9 exceeds 0.5, the last of 3 such steps in a row at step 12'
    """
    trouble = _trouble(metrics, config)
    if not trouble:
        return Verdict()
    strikes += 1
    if strikes < config.patience:
        return Verdict(strikes)
    row = f", the last of {strikes} such steps in a row" if strikes > 1 else ""
    return Verdict(strikes, f"diverged: {trouble}{row} at step {step}")


def _trouble(metrics: Mapping[str, float], config: Divergence) -> str:
    for name in _FINITE:
        if not math.isfinite(metrics.get(name, 0.0)):
            return f"{name} is {metrics[name]}"
    if metrics.get("steps_skipped", 0.0) > 0:
        return "the gradient is not finite"
    trained = metrics.get("rows_trained", 0.0)
    if trained and metrics.get("rows_nonfinite", 0.0) >= trained:
        return "no episode has a finite loss"
    kl, entropy = metrics.get("kl"), metrics.get("entropy")
    if config.max_kl is not None and kl is not None and kl > config.max_kl:
        return f"KL {kl:g} exceeds {config.max_kl:g}"
    low = config.min_entropy is not None and entropy is not None and entropy < config.min_entropy
    if low and metrics.get("reward", 0.0) < config.entropy_reward:
        return f"entropy {entropy:g} fell below {config.min_entropy:g}"
    return ""
