"""From logits to one token a row, and the log-probability that training will use.

Sampling is by inverse CDF from one uniform number a row, drawn from the request's own stream: the same request samples
the same tokens whatever else is in the batch, and no [N, V] noise tensor is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampled:
    tokens_N: Tensor
    logprobs_N: Tensor


def sample(logits_NV: Tensor, *, temperature_N: Tensor, top_p_N: Tensor, top_k_N: Tensor, uniform_N: Tensor) -> Sampled:
    """Temperature 0 is greedy (ties to the lowest id); top_p 1 and top_k 0 are off.

    The log-probability is that of softmax(logits / temperature) over the whole vocabulary, at temperature 0 that of
    temperature 1. `uniform_N` in [0, 1)."""
    greedy_N = temperature_N == 0
    divisor_N = torch.where(greedy_N, torch.ones_like(temperature_N), temperature_N)
    logprobs_NV = torch.log_softmax(logits_NV.float() / divisor_N[:, None], -1)
    if bool(greedy_N.all()):
        tokens_N = logprobs_NV.argmax(-1)
    else:
        probs_NV = _restrict(logprobs_NV.exp(), top_p_N, top_k_N)
        cdf_NV = probs_NV.cumsum(-1)
        tokens_N = torch.searchsorted(cdf_NV, (uniform_N * cdf_NV[:, -1])[:, None], right=True)[:, 0]
        # A uniform next to 1 can round up to the total; the last token that has any probability is meant then.
        last_N = (probs_NV > 0).int().cumsum(-1).argmax(-1)
        tokens_N = torch.minimum(tokens_N, last_N)
        if bool(greedy_N.any()):
            tokens_N = torch.where(greedy_N, logprobs_NV.argmax(-1), tokens_N)
    return Sampled(tokens_N, logprobs_NV.gather(-1, tokens_N[:, None])[:, 0])


def _restrict(probs_NV: Tensor, top_p_N: Tensor, top_k_N: Tensor) -> Tensor:
    """Zeroes what lies outside the top-k tokens and outside the nucleus (the smallest set with mass >= top_p)."""
    if bool((top_p_N >= 1).all()) and bool((top_k_N <= 0).all()):
        return probs_NV
    ranked_NV, order_NV = probs_NV.sort(dim=-1, descending=True, stable=True)
    before_NV = ranked_NV.cumsum(-1) - ranked_NV
    rank_V = torch.arange(probs_NV.shape[-1], device=probs_NV.device)
    limit_N = torch.where(top_k_N > 0, top_k_N, probs_NV.shape[-1])
    keep_NV = (rank_V[None] < limit_N[:, None]) & ((before_NV < top_p_N[:, None]) | (top_p_N >= 1)[:, None])
    keep_NV[:, 0] = True
    return torch.zeros_like(probs_NV).scatter(-1, order_NV, ranked_NV * keep_NV)
