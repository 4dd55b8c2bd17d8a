"""Estimators of KL(pi_theta || pi_ref) from one sampled token (Schulman, http://joschu.net/blog/kl-approx.html)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor


def kl_per_token(logprobs_N: Tensor, ref_logprobs_N: Tensor, *, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """kl_N by the named estimator; differentiable in `logprobs_N`."""
    match estimator:
        case "k1":
            return k1(logprobs_N, ref_logprobs_N)
        case "k2":
            return k2(logprobs_N, ref_logprobs_N)
        case "k3":
            return k3(logprobs_N, ref_logprobs_N)


def k1(logprobs_N: Tensor, ref_logprobs_N: Tensor) -> Tensor:
    """l - l_ref: unbiased, can be negative; its own gradient has mean 0, so it needs `bias_corrected` to act."""
    return logprobs_N - ref_logprobs_N


def k2(logprobs_N: Tensor, ref_logprobs_N: Tensor) -> Tensor:
    """(l - l_ref)^2 / 2: biased in value, but its gradient is the true one on-policy."""
    return (logprobs_N - ref_logprobs_N).square() / 2


def k3(logprobs_N: Tensor, ref_logprobs_N: Tensor) -> Tensor:
    """exp(l_ref - l) - (l_ref - l) - 1 >= 0: unbiased, of low variance."""
    log_ratio_N = ref_logprobs_N - logprobs_N
    # expm1 keeps the small values that exp(x) - 1 would round away.
    return log_ratio_N.expm1() - log_ratio_N


def bias_corrected(kl_N: Tensor, ratio_N: Tensor) -> Tensor:
    """kl * ratio with a differentiable ratio (DeepSeek-V3.2, arXiv:2512.02556; TRL's `use_bias_correction_kl`): value
    and gradient are then those of the KL under pi_theta although the tokens come from pi_old."""
    return kl_N * ratio_N
