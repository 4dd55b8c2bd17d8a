"""The policy loss of one micro-batch, from log-probs to a scalar. See `rows` for the shapes.

Order: surrogate, off-policy mask, sampler correction, + beta * KL, - entropy_coef * entropy, weighted sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from chatgrpo.training.config import TrainConfig
from chatgrpo.training.kl import bias_corrected, kl_per_token
from chatgrpo.training.loss_metrics import token_metrics
from chatgrpo.training.ratios import importance_ratio
from chatgrpo.training.rows import finite_rows
from chatgrpo.training.sampler_correction import (
    correction_weight,
    off_policy_keep_N,
    sampler_log_ratio,
    sampler_ratio,
)
from chatgrpo.training.surrogates import Surrogate, cispo_surrogate, clip_surrogate, sapo_surrogate


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Sampled tokens of whole rows, float32 or float64. Log-probs are of logits / temperature.

    `logprobs_N` and `entropy_N` carry the gradient. `weights_N` come from `token_weights_N`."""

    logprobs_N: Tensor
    old_logprobs_N: Tensor
    advantages_N: Tensor
    weights_N: Tensor
    row_N: Tensor
    sampler_logprobs_N: Tensor | None = None
    ref_logprobs_N: Tensor | None = None
    entropy_N: Tensor | None = None

    def select(self, keep_N: Tensor) -> Self:
        """The tokens where keep_N is True. The others get a gradient of exactly 0, even next to inf or NaN."""
        kept = {f.name: value[keep_N] for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(self, **kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """`loss`: this micro-batch's share of the step's loss. `metrics`: detached sums, see `loss_metrics`.

    `nonfinite_rows`: rows left out of loss and metrics because a value was not finite. Their tokens pass no gradient
    to the log-probs, yet if the forward pass itself made NaN, its backward still can (0 * NaN): drop those rows,
    run the micro-batch again, and count them."""

    loss: Tensor
    metrics: Mapping[str, Tensor]
    nonfinite_rows: tuple[int, ...]


def policy_loss(
    config: TrainConfig,
    *,
    logprobs_N: Tensor,
    row_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    old_logprobs_N: Tensor | None = None,
    sampler_logprobs_N: Tensor | None = None,
    ref_logprobs_N: Tensor | None = None,
    entropy_N: Tensor | None = None,
    mask_N: Tensor | None = None,
) -> LossOutput:
    """Sum of weights_N * loss_N under `config`; an empty batch has loss 0.

    `old_logprobs_N`: None means on-policy, the ratio is exactly 1. `sampler_logprobs_N`: NaN where unknown.
    `mask_N`: tokens where it is False do not exist for the loss; give them no share in the weights either.
    Raises ValueError when the config needs an input that is missing."""
    _check_inputs(config, sampler_logprobs_N, ref_logprobs_N, entropy_N)
    batch = TokenBatch(
        logprobs_N=logprobs_N,
        old_logprobs_N=logprobs_N.detach() if old_logprobs_N is None else old_logprobs_N,
        advantages_N=advantages_N,
        weights_N=weights_N,
        row_N=row_N,
        sampler_logprobs_N=sampler_logprobs_N,
        ref_logprobs_N=ref_logprobs_N,
        entropy_N=entropy_N,
    )
    if mask_N is not None:
        batch = batch.select(mask_N.bool())
    loss_N, metrics = token_losses(config, batch)
    finite_B = finite_rows(batch.row_N, batch.logprobs_N, loss_N)
    if not finite_B.all():
        batch = batch.select(finite_B[batch.row_N])
        loss_N, metrics = token_losses(config, batch)
    loss = (batch.weights_N * loss_N).sum()
    return LossOutput(
        loss=loss,
        metrics={"loss_sum": loss.detach(), **metrics},
        nonfinite_rows=tuple(torch.nonzero(~finite_B).flatten().tolist()),
    )


def token_losses(config: TrainConfig, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """loss_N before aggregation, and the metric sums of the batch."""
    ratio_N = importance_ratio(batch.logprobs_N, batch.old_logprobs_N, batch.row_N, level=config.ratio_level)
    part = surrogate(config, ratio_N=ratio_N, logprobs_N=batch.logprobs_N, advantages_N=batch.advantages_N)
    weight_N, log_rho_N = _sampler_weight(config, batch)
    loss_N = part.loss_N if weight_N is None else part.loss_N * weight_N
    kl_N = None
    if batch.ref_logprobs_N is not None:
        kl_N = kl_per_token(batch.logprobs_N, batch.ref_logprobs_N, estimator=config.kl_estimator)
        if config.beta:
            penalty_N = bias_corrected(kl_N, ratio_N) if config.use_bias_correction_kl else kl_N
            loss_N = loss_N + config.beta * penalty_N
    if config.entropy_coef and batch.entropy_N is not None:
        loss_N = loss_N - config.entropy_coef * batch.entropy_N
    metrics = token_metrics(
        ratio_N=ratio_N,
        surrogate=part,
        sampler_logprobs_N=batch.sampler_logprobs_N,
        sampler_log_ratio_N=log_rho_N,
        sampler_weight_N=weight_N,
        kl_N=kl_N,
        entropy_N=batch.entropy_N,
    )
    return loss_N, metrics


def surrogate(config: TrainConfig, *, ratio_N: Tensor, logprobs_N: Tensor, advantages_N: Tensor) -> Surrogate:
    """The surrogate that `config.loss_type` names."""
    match config.loss_type:
        case "cispo":
            return cispo_surrogate(ratio_N, logprobs_N, advantages_N, cap=config.cispo_cap)
        case "sapo":
            return sapo_surrogate(
                ratio_N,
                advantages_N,
                temperature_pos=config.sapo_temperature_pos,
                temperature_neg=config.sapo_temperature_neg,
            )
        case "grpo" | "bnpo" | "dr_grpo" | "dapo" | "gspo":
            return clip_surrogate(
                ratio_N,
                advantages_N,
                epsilon=config.epsilon,
                epsilon_high=config.clip_range_high,
                delta=config.delta,
            )


def _sampler_weight(config: TrainConfig, batch: TokenBatch) -> tuple[Tensor | None, Tensor | None]:
    """Constant weight of each token's surrogate (None: 1), and l_old - l_mu (None: the sampler is unknown)."""
    behaviour_N = batch.old_logprobs_N if batch.sampler_logprobs_N is None else batch.sampler_logprobs_N
    weight_N = log_rho_N = None
    if batch.sampler_logprobs_N is not None:
        log_rho_N = sampler_log_ratio(batch.old_logprobs_N, batch.sampler_logprobs_N)
    if log_rho_N is not None and config.correction != "none":
        rho_N = sampler_ratio(log_rho_N, batch.row_N, level=config.sampler_correction_level)
        weight_N = correction_weight(
            rho_N,
            correction=config.correction,
            cap=config.sampler_correction_cap,
            floor=config.sampler_correction_floor,
        )
    if config.off_policy_mask_threshold is not None:
        keep_N = off_policy_keep_N(
            batch.logprobs_N,
            behaviour_N,
            batch.advantages_N,
            batch.row_N,
            threshold=config.off_policy_mask_threshold,
        ).to(batch.logprobs_N.dtype)
        weight_N = keep_N if weight_N is None else weight_N * keep_N
    return weight_N, log_rho_N


def _check_inputs(
    config: TrainConfig, sampler_logprobs_N: Tensor | None, ref_logprobs_N: Tensor | None, entropy_N: Tensor | None
) -> None:
    if config.beta and ref_logprobs_N is None:
        raise ValueError(f"beta is {config.beta}: pass ref_logprobs_N")
    if config.entropy_coef and entropy_N is None:
        raise ValueError(f"entropy_coef is {config.entropy_coef}: pass entropy_N")
    if config.correction != "none" and sampler_logprobs_N is None:
        raise ValueError(f"sampler_correction is {config.correction!r}: pass sampler_logprobs_N")
