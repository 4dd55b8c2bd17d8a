"""The policy-gradient surrogates, one function per family. Every one returns a loss per token, not aggregated.

With ratio = 1 the gradient of each is -A * grad l: they differ only off-policy. See `rows` for the shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """`clipped_low_N` / `clipped_high_N`: a bound below or above 1 decided the token's loss."""

    loss_N: Tensor
    clipped_low_N: Tensor
    clipped_high_N: Tensor


def clip_surrogate(
    ratio_N: Tensor, advantages_N: Tensor, *, epsilon: float, epsilon_high: float, delta: float | None = None
) -> Surrogate:
    """L = -min(min(ratio, delta) A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A): PPO's clip, DAPO's clip-higher
    (arXiv:2503.14476) and the two-sided clip (INTELLECT-2, arXiv:2505.07291).

    For delta >= 1 + epsilon_high the two-sided clip is PPO's dual clip with c = delta."""
    bounded_N = ratio_N if delta is None else ratio_N.clamp(max=delta)
    clipped_N = ratio_N.clamp(1 - epsilon, 1 + epsilon_high)
    low_N = (ratio_N < 1 - epsilon) & (advantages_N < 0)
    high_N = (ratio_N > 1 + epsilon_high) & (advantages_N > 0)
    if delta is not None:
        high_N = high_N | ((ratio_N > max(delta, 1 + epsilon_high)) & (advantages_N < 0))
    return Surrogate(
        loss_N=-torch.min(bounded_N * advantages_N, clipped_N * advantages_N),
        clipped_low_N=low_N,
        clipped_high_N=high_N,
    )


def cispo_surrogate(ratio_N: Tensor, logprobs_N: Tensor, advantages_N: Tensor, *, cap: float) -> Surrogate:
    """L = -sg[min(ratio, cap)] A l (CISPO, arXiv:2506.13585). `cap` bounds the ratio itself, not its distance from 1.
    A capped token keeps a gradient, unlike in the clip family."""
    weight_N = ratio_N.detach().clamp(max=cap)
    return Surrogate(
        loss_N=-weight_N * advantages_N * logprobs_N,
        clipped_low_N=torch.zeros_like(ratio_N, dtype=torch.bool),
        clipped_high_N=ratio_N > cap,
    )


def sapo_surrogate(
    ratio_N: Tensor, advantages_N: Tensor, *, temperature_pos: float, temperature_neg: float
) -> Surrogate:
    """L = -(4 / tau) sigmoid(tau (ratio - 1)) A, tau by the sign of A (SAPO, arXiv:2511.20347): a soft gate in place
    of the clip, so no token counts as clipped."""
    tau_N = torch.full_like(ratio_N, temperature_neg, requires_grad=False).masked_fill(
        advantages_N > 0, temperature_pos
    )
    gate_N = torch.sigmoid(tau_N * (ratio_N - 1)) * (4 / tau_N)
    never_N = torch.zeros_like(ratio_N, dtype=torch.bool)
    return Surrogate(loss_N=-gate_N * advantages_N, clipped_low_N=never_N, clipped_high_N=never_N)
