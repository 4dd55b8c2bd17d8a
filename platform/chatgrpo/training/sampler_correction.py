"""Correction for tokens that another policy sampled: another kernel, another precision, or older weights.

rho = pi_old / pi_mu, where mu is the sampler and old the learner's policy before the first update on the batch. rho is
a constant weight on the surrogate: no gradient flows through it. With stale data (mu older than old) this is decoupled
PPO (arXiv:2110.00641): L = -w min(ratio A, clip(ratio) A), w = pi_prox / pi_mu, ratio = pi_theta / pi_prox, prox = old.
See `rows` for the shapes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from chatgrpo.training.rows import num_rows_in, row_means, row_sums


def sampler_log_ratio(old_logprobs_N: Tensor, sampler_logprobs_N: Tensor) -> Tensor:
    """l_old - l_mu, detached; 0 where the sampler's log-prob is unknown (NaN)."""
    unknown_N = sampler_logprobs_N.isnan()
    return torch.where(unknown_N, 0.0, (old_logprobs_N - sampler_logprobs_N).detach())


def sampler_ratio(log_ratio_N: Tensor, row_N: Tensor, *, level: Literal["token", "sequence"]) -> Tensor:
    """rho_N: exp of the token's log-ratio, or of the sum over its row."""
    if level == "token":
        return log_ratio_N.exp()
    return row_sums(log_ratio_N, row_N, num_rows_in(row_N)).exp()[row_N]


def correction_weight(
    rho_N: Tensor, *, correction: Literal["truncate", "mask", "decoupled"], cap: float, floor: float = 0.0
) -> Tensor:
    """weight_N from rho_N. truncate (TIS): rho clamped to [floor, cap]. mask (MIS): rho inside [floor, cap], else 0.
    decoupled: rho as it is."""
    match correction:
        case "truncate":
            return rho_N.clamp(floor, cap)
        case "mask":
            return torch.where((rho_N >= floor) & (rho_N <= cap), rho_N, 0.0)
        case "decoupled":
            return rho_N


def off_policy_keep_N(
    logprobs_N: Tensor, sampler_logprobs_N: Tensor, advantages_N: Tensor, row_N: Tensor, *, threshold: float
) -> Tensor:
    """keep_N: False for rows of negative advantage whose mean l_mu - l exceeds `threshold` nats a token: the policy
    has already moved away from them (DeepSeek-V3.2, arXiv:2512.02556). Unknown l_mu counts as no distance."""
    distance_N = -sampler_log_ratio(logprobs_N, sampler_logprobs_N)
    distance_B = row_means(distance_N, row_N, num_rows_in(row_N))
    return (advantages_N >= 0) | (distance_B[row_N] <= threshold)
