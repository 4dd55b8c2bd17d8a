"""How much better than its group each completion was: one function per estimator, and `advantages` that picks one.

Shapes: P prompts (groups), G completions per group, K rewards of the rubric. A reward of NaN means "no reward
applied": it is left out of every mean and std and gets advantage 0. Statistics "over the batch" run over all groups
that are passed, so pass the groups of all data-parallel ranks. Everything is computed in float64 and returned in the
type of the rewards.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

# TRL's constant: keeps a nearly equal group from getting a huge advantage.
STD_EPS = 1e-4
# REINFORCE++ adds its constant to the variance, not to the std.
WHITEN_VAR_EPS = 1e-8


def advantages(
    rewards_PG: Tensor,
    *,
    estimator: Literal["grpo", "rloo", "gdpo", "reinforce_pp"],
    scale_rewards: Literal["group", "batch", "none"] = "group",
    rewards_PGK: Tensor | None = None,
    weights_K: Tensor | None = None,
    num_tokens_PG: Tensor | None = None,
) -> Tensor:
    """rewards_PG -> advantages_PG by the named estimator.

    `scale_rewards` is read by grpo alone. gdpo needs `rewards_PGK` and `weights_K`, reinforce_pp needs
    `num_tokens_PG`. Raises ValueError when one of them is missing or a reward is infinite."""
    match estimator:
        case "grpo":
            return grpo_advantages(rewards_PG, scale_rewards=scale_rewards)
        case "rloo":
            return rloo_advantages(rewards_PG)
        case "gdpo":
            if rewards_PGK is None or weights_K is None:
                raise ValueError("gdpo: needs rewards_PGK (each reward apart) and weights_K")
            return gdpo_advantages(rewards_PGK, weights_K)
        case "reinforce_pp":
            if num_tokens_PG is None:
                raise ValueError("reinforce_pp: needs num_tokens_PG, it whitens over tokens")
            return reinforce_pp_advantages(rewards_PG, num_tokens_PG)


def grpo_advantages(rewards_PG: Tensor, *, scale_rewards: Literal["group", "batch", "none"] = "group") -> Tensor:
    """A_i = (r_i - mean_g) / (std + 1e-4) (GRPO, arXiv:2402.03300), std with Bessel's correction of the group or
    of the batch; "none": A_i = r_i - mean_g (Dr. GRPO, arXiv:2503.20783). Equal rewards yield exactly 0."""
    centred_PG = _centred(rewards_PG)
    match scale_rewards:
        case "group":
            scale = _std(rewards_PG.double(), dim=-1) + STD_EPS
        case "batch":
            scale = _std(rewards_PG.double().flatten(), dim=-1) + STD_EPS
        case "none":
            scale = torch.ones((), dtype=torch.float64, device=rewards_PG.device)
    return _zero_where_nan(centred_PG / scale).to(rewards_PG.dtype)


def rloo_advantages(rewards_PG: Tensor) -> Tensor:
    """A_i = r_i - mean of the other rewards of its group = G / (G - 1) * (r_i - mean_g) (RLOO, arXiv:2402.14740).
    A reward that stands alone in its group has no baseline and gets 0."""
    count_P1 = rewards_PG.isfinite().sum(-1, keepdim=True).double()
    leave_one_out_P1 = count_P1 / (count_P1 - 1).clamp(min=1)
    return _zero_where_nan(_centred(rewards_PG) * leave_one_out_P1).to(rewards_PG.dtype)


def gdpo_advantages(rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
    """Each reward is normalised in its own group, A_i = sum_k w_k z_ik, then whitened over the batch with std + 1e-4
    (GDPO, arXiv:2601.05242): a reward of small range is not drowned by one of large range."""
    each_PKG = rewards_PGK.movedim(-1, -2)
    num_prompts, num_rewards, num_generations = each_PKG.shape
    z_PKG = grpo_advantages(each_PKG.double().reshape(-1, num_generations)).view(
        num_prompts, num_rewards, num_generations
    )
    z_PKG = torch.where(each_PKG.isnan(), torch.nan, z_PKG)
    combined_PG = weighted_rewards(z_PKG.movedim(-1, -2), weights_K)
    centred_PG = combined_PG - combined_PG.nanmean()
    return _zero_where_nan(centred_PG / (_std(combined_PG.flatten(), dim=-1) + STD_EPS)).to(rewards_PGK.dtype)


def reinforce_pp_advantages(rewards_PG: Tensor, num_tokens_PG: Tensor) -> Tensor:
    """r_i - mean_g, whitened over all tokens of the batch: (x - mean) / sqrt(var + 1e-8), var with Bessel's
    correction, each completion weighted by its number of tokens (REINFORCE++-baseline, arXiv:2501.03262).

    The mean over tokens is not 0 when lengths differ, so a group of equal rewards can have a small advantage."""
    centred_PG = _centred(rewards_PG)
    count_PG = torch.where(centred_PG.isnan(), 0, num_tokens_PG).double()
    value_PG = centred_PG.nan_to_num(nan=0.0)
    total = count_PG.sum().clamp(min=1)
    mean = (count_PG * value_PG).sum() / total
    variance = (count_PG * (value_PG - mean).square()).sum() / (total - 1).clamp(min=1)
    return _zero_where_nan((centred_PG - mean) * (variance + WHITEN_VAR_EPS).rsqrt()).to(rewards_PG.dtype)


def weighted_rewards(rewards_PGK: Tensor, weights_K: Tensor) -> Tensor:
    """r_i = sum_k w_k r_ik over the rewards that applied; NaN where none did."""
    total_PG = (rewards_PGK * weights_K.to(rewards_PGK)).nansum(-1)
    return torch.where(rewards_PGK.isnan().all(-1), torch.nan, total_PG)


def zero_variance_P(rewards_PG: Tensor) -> Tensor:
    """True for a group whose rewards are all exactly equal, or that has none: under a centred advantage it teaches
    nothing. Exact, because a tolerance would drop rewards of small range."""
    high_P = rewards_PG.nan_to_num(nan=-torch.inf).amax(-1)
    low_P = rewards_PG.nan_to_num(nan=torch.inf).amin(-1)
    return high_P <= low_P


def _centred(rewards_PG: Tensor) -> Tensor:
    """r_i - mean_g in float64; exactly 0 in a group of equal rewards, whose mean may be rounded. NaN stays NaN."""
    if rewards_PG.isinf().any():
        raise ValueError(f"rewards: {rewards_PG[rewards_PG.isinf()][0].item()} is not finite; use NaN for no reward")
    r_PG = rewards_PG.double()
    centred_PG = r_PG - r_PG.nanmean(-1, keepdim=True)
    return torch.where(zero_variance_P(r_PG).unsqueeze(-1) & ~r_PG.isnan(), 0.0, centred_PG)


def _std(values: Tensor, *, dim: int) -> Tensor:
    """Bessel-corrected std of the values that are not NaN, kept as a broadcastable dimension; 0 for one value."""
    centred = values - values.nanmean(dim, keepdim=True)
    count = (~values.isnan()).sum(dim, keepdim=True)
    return (centred.square().nansum(dim, keepdim=True) / (count - 1).clamp(min=1)).sqrt()


def _zero_where_nan(values: Tensor) -> Tensor:
    return values.nan_to_num(nan=0.0)
