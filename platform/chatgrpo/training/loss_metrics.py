"""What a loss says about itself, as sums that merge over micro-batches and ranks.

Merge rule by the end of the name: `_max` takes the maximum, everything else adds. `summary` turns merged sums into
the figures people read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from chatgrpo.training.surrogates import Surrogate

# figure -> (sum, count it is divided by)
_MEANS = {
    "kl": ("kl_sum", "num_tokens"),
    "entropy": ("entropy_sum", "num_tokens"),
    "ratio_mean": ("ratio_sum", "num_tokens"),
    "clip_fraction_low": ("clip_low_sum", "num_tokens"),
    "clip_fraction_high": ("clip_high_sum", "num_tokens"),
    "sampler_weight_mean": ("sampler_weight_sum", "num_tokens"),
    "sampler_delta_mean": ("sampler_delta_sum", "num_sampler_tokens"),
}


def token_metrics(
    *,
    ratio_N: Tensor,
    surrogate: Surrogate,
    sampler_logprobs_N: Tensor | None,
    sampler_log_ratio_N: Tensor | None,
    sampler_weight_N: Tensor | None,
    kl_N: Tensor | None,
    entropy_N: Tensor | None,
) -> dict[str, Tensor]:
    """Detached scalar sums of one micro-batch. `sampler_delta` is |l_old - l_mu| where the sampler's is known."""
    sums = {
        "num_tokens": torch.tensor(float(ratio_N.numel()), device=ratio_N.device),
        "ratio_sum": ratio_N.sum(),
        "ratio_max": _max(ratio_N),
        "clip_low_sum": surrogate.clipped_low_N.sum(),
        "clip_high_sum": surrogate.clipped_high_N.sum(),
    }
    if sampler_logprobs_N is not None and sampler_log_ratio_N is not None:
        sums["num_sampler_tokens"] = (~sampler_logprobs_N.isnan()).sum()
        sums["sampler_delta_sum"] = sampler_log_ratio_N.abs().sum()
        sums["sampler_delta_max"] = _max(sampler_log_ratio_N.abs())
    if sampler_weight_N is not None:
        sums["sampler_weight_sum"] = sampler_weight_N.sum()
    if kl_N is not None:
        sums["kl_sum"] = kl_N.sum()
    if entropy_N is not None:
        sums["entropy_sum"] = entropy_N.sum()
    return {name: value.detach() for name, value in sums.items()}


def merge_metrics(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The metrics of all parts together, as if their tokens had been one micro-batch."""
    merged: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            if name not in merged:
                merged[name] = value
            elif name.endswith("_max"):
                merged[name] = torch.maximum(merged[name], value)
            else:
                merged[name] = merged[name] + value
    return merged


def summary(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Means per token, maxima and the loss, as floats. A figure is absent when nothing was measured for it."""
    figures = {name: float(value) for name, value in metrics.items() if name.endswith("_max")}
    if "loss_sum" in metrics:
        figures["loss"] = float(metrics["loss_sum"])
    for name, (total, count) in _MEANS.items():
        if total in metrics and float(metrics[count]) > 0:
            figures[name] = float(metrics[total]) / float(metrics[count])
    return figures


def _max(values_N: Tensor) -> Tensor:
    return values_N.max() if values_N.numel() else values_N.new_zeros(())
