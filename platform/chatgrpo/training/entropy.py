"""Entropy of the next-token distribution."""

from __future__ import annotations

import torch
from torch import Tensor


def token_entropy(logits_NV: Tensor) -> Tensor:
    """H = logsumexp(z) - sum_v p_v z_v in nats; differentiable. logits_NV are already divided by the temperature.

    A logit of -inf (a token that cannot be sampled) contributes 0."""
    logits_NV = logits_NV.float() if logits_NV.dtype in (torch.bfloat16, torch.float16) else logits_NV
    probs_NV = logits_NV.softmax(-1)
    # 0 * -inf would be NaN, in the value and in the gradient.
    finite_NV = logits_NV.masked_fill(logits_NV == -torch.inf, 0.0)
    return logits_NV.logsumexp(-1) - (probs_NV * finite_NV).sum(-1)
