"""From logits to one token a row, and the log-probability that training will use.

Sampling is by inverse CDF from one uniform number a row, drawn from the request's own stream: the same request samples
the same tokens whatever else is in the batch, and no [N, V] noise tensor is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from chatgrpo.inference.native import kernels

# Tokens whose weights are summed before any of them is looked at.
_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Sampled:
    """`entropies_N` in nats, of softmax(logits / temperature)."""

    tokens_N: Tensor
    logprobs_N: Tensor
    entropies_N: Tensor | None = None


def sample(
    logits_NV: Tensor,
    *,
    temperature_N: Tensor,
    top_p_N: Tensor,
    top_k_N: Tensor,
    uniform_N: Tensor,
    with_entropy: bool = False,
) -> Sampled:
    """Temperature 0 is greedy (ties to the lowest id); top_p 1 and top_k 0 are off.

    The log-probability is that of softmax(logits / temperature) over the whole vocabulary, at temperature 0 that of
    temperature 1. `uniform_N` in [0, 1). Passes over [N, V] are few: this is a fifth of a decode step on a CPU."""
    unrestricted = bool((top_p_N >= 1).all()) and bool((top_k_N <= 0).all())
    if unrestricted and kernels.suit(logits_NV):
        return Sampled(*kernels.sample(logits_NV, temperature_N, uniform_N))
    greedy_N = temperature_N == 0
    divisor_N = torch.where(greedy_N, torch.ones_like(temperature_N), temperature_N)
    scaled_NV = logits_NV.float()
    if not bool((divisor_N == 1).all()):
        scaled_NV = scaled_NV / divisor_N[:, None]
    shifted_NV = scaled_NV - scaled_NV.amax(-1, keepdim=True)
    weights_NV = shifted_NV.exp()
    total_N = weights_NV.sum(-1)
    if bool(greedy_N.all()):
        tokens_N = scaled_NV.argmax(-1)
    else:
        tokens_N = _draw(_restrict(weights_NV, total_N, top_p_N, top_k_N), uniform_N)
        if bool(greedy_N.any()):
            tokens_N = torch.where(greedy_N, scaled_NV.argmax(-1), tokens_N)
    log_total_N = total_N.log()
    logprobs_N = shifted_NV.gather(-1, tokens_N[:, None])[:, 0] - log_total_N
    entropies_N = None
    if with_entropy:
        # H = log Z - sum_v w_v log w_v / Z; a weight of 0 may have a logarithm of -inf.
        lowest = torch.finfo(shifted_NV.dtype).min
        entropies_N = log_total_N - (weights_NV * shifted_NV.clamp_(min=lowest)).sum(-1) / total_N
    return Sampled(tokens_N, logprobs_N, entropies_N)


def _draw(weights_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """The first token whose cumulated weight exceeds uniform * total: first its chunk, then its place in there.

    A sum can round to what was wanted or below it, also at the end of a chunk; the last token there that has any weight
    is meant then."""
    num_rows, vocabulary = weights_NV.shape
    chunks_NKC = pad(weights_NV, (0, -vocabulary % _CHUNK)).view(num_rows, -1, _CHUNK)
    ends_NK = chunks_NKC.sum(-1).cumsum(-1)
    total_N1 = ends_NK[:, -1:].contiguous()
    wanted_N1 = uniform_N[:, None] * total_N1
    last_chunk_N1 = torch.searchsorted(ends_NK, total_N1)
    chunk_N1 = torch.minimum(torch.searchsorted(ends_NK, wanted_N1, right=True), last_chunk_N1)
    cdf_NC = chunks_NKC[torch.arange(num_rows, device=weights_NV.device), chunk_N1[:, 0]].cumsum(-1)
    inside_N1 = wanted_N1 - pad(ends_NK, (1, 0)).gather(-1, chunk_N1)
    last_place_N1 = torch.searchsorted(cdf_NC, cdf_NC[:, -1:].contiguous())
    place_N1 = torch.minimum(torch.searchsorted(cdf_NC, inside_N1, right=True), last_place_N1)
    return (chunk_N1 * _CHUNK + place_N1)[:, 0]


def _restrict(weights_NV: Tensor, total_N: Tensor, top_p_N: Tensor, top_k_N: Tensor) -> Tensor:
    """Zeroes what lies outside the top-k tokens and outside the nucleus (the smallest set with share >= top_p)."""
    if bool((top_p_N >= 1).all()) and bool((top_k_N <= 0).all()):
        return weights_NV
    ranked_NV, order_NV = weights_NV.sort(dim=-1, descending=True, stable=True)
    before_NV = (ranked_NV.cumsum(-1) - ranked_NV) / total_N[:, None]
    rank_V = torch.arange(weights_NV.shape[-1], device=weights_NV.device)
    limit_N = torch.where(top_k_N > 0, top_k_N, weights_NV.shape[-1])
    keep_NV = (rank_V[None] < limit_N[:, None]) & ((before_NV < top_p_N[:, None]) | (top_p_N >= 1)[:, None])
    keep_NV[:, 0] = True
    return torch.zeros_like(weights_NV).scatter(-1, order_NV, ranked_NV * keep_NV)
