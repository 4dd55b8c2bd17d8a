"""GRPO by the book: padded [B, T] rows and plain loops, straight from the formulas. Slow, and obviously right.

Rows are Python lists of 0-d float64 tensors (so that gradients flow); a row's length is its number of sampled tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from chatgrpo.training.config import TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """One tensor [B, T] per quantity, `mask` [B, T] True at sampled tokens, `advantages` [B]."""

    mask: Tensor
    logprobs: Tensor
    old: Tensor
    sampler: Tensor
    ref: Tensor
    entropy: Tensor
    advantages: Tensor


def dense_loss(config: TrainConfig, d: Dense) -> Tensor:
    """Loss of the whole generation batch."""
    num_rows = d.mask.shape[0]
    num_tokens = int(d.mask.sum())
    total = torch.zeros((), dtype=torch.float64)
    for i in range(num_rows):
        n_i = int(d.mask[i].sum())
        if n_i == 0:
            continue
        row = torch.zeros((), dtype=torch.float64)
        for t in range(d.mask.shape[1]):
            if d.mask[i, t]:
                row = row + token_loss(config, d, i, t)
        if config.loss_type in ("grpo", "sapo", "gspo"):
            total = total + row / n_i / num_rows
        elif config.loss_type in ("bnpo", "dapo", "cispo"):
            total = total + row / num_tokens
        else:
            total = total + row / (num_rows * config.max_completion_length)
    return total


def token_loss(config: TrainConfig, d: Dense, i: int, t: int) -> Tensor:
    times = [u for u in range(d.mask.shape[1]) if d.mask[i, u]]
    n_i = len(times)
    lp, a = d.logprobs[i, t], float(d.advantages[i])
    ratio = torch.exp(lp - d.old[i, t])
    if config.importance_sampling_level == "sequence" or config.loss_type == "gspo":
        log_s = sum((d.logprobs[i, u] - d.old[i, u]).item() for u in times) / n_i
        ratio = math.exp(log_s) * torch.exp(lp - lp.detach())

    loss = surrogate(config, ratio, lp, a)

    def known(u: int) -> float:
        return 0.0 if math.isnan(d.sampler[i, u]) else 1.0

    if config.off_policy_mask_threshold is not None:
        gap = sum((torch.nan_to_num(d.sampler[i, u]) - d.logprobs[i, u]).item() * known(u) for u in times) / n_i
        if a < 0 and gap > config.off_policy_mask_threshold:
            loss = loss * 0.0
    if config.correction != "none":
        near = times if config.sampler_correction_level == "sequence" else [t]
        rho = math.exp(sum(float(d.old[i, u] - torch.nan_to_num(d.sampler[i, u])) * known(u) for u in near))
        low, high = config.sampler_correction_floor, config.sampler_correction_cap
        if config.correction == "truncate":
            rho = min(max(rho, low), high)
        elif config.correction == "mask" and not low <= rho <= high:
            rho = 0.0
        loss = loss * rho
    if config.beta:
        x = d.ref[i, t] - lp
        kl = {"k1": -x, "k2": x * x / 2, "k3": torch.exp(x) - x - 1}[config.kl_estimator]
        loss = loss + config.beta * (kl * ratio if config.use_bias_correction_kl else kl)
    return loss - config.entropy_coef * d.entropy[i, t]


def surrogate(config: TrainConfig, ratio: Tensor, lp: Tensor, a: float) -> Tensor:
    if config.loss_type == "cispo":
        return -min(ratio.item(), config.epsilon_high or 5.0) * a * lp
    if config.loss_type == "sapo":
        tau = config.sapo_temperature_pos if a > 0 else config.sapo_temperature_neg
        return -4 / tau * torch.sigmoid(tau * (ratio - 1)) * a
    low, high = 1 - config.epsilon, 1 + (config.epsilon_high or config.epsilon)
    r = ratio.item()
    bounded = ratio if config.delta is None or r <= config.delta else constant(config.delta)
    clipped = constant(low) if r < low else constant(high) if r > high else ratio
    one, two = bounded * a, clipped * a
    return -(one if one.item() <= two.item() else two)


def constant(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
