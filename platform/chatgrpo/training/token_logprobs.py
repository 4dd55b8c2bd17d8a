"""Log-probability and entropy of given tokens, without ever holding logits of more than a chunk of them.

Forward keeps the hidden states; backward computes the logits of each chunk again. So memory is O(chunk x V) instead of
O(N x V) for one more product with the output embedding, and positions that predict nothing cost nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chatgrpo.inference.native import kernels
from chatgrpo.inference.products import linear, outer, times

# Rows of logits that exist at once: 128 x 49,152 x 4 bytes is 25 MB.
CHUNK = 128


class _TokenLogprobs(torch.autograd.Function):
    """With z = scale * h W^T, l = z_y - logsumexp(z), H = logsumexp(z) - sum p z:
    dl/dz = onehot(y) - p, dH/dz = -p (log p + H)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        scale: float,
        known: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden_ND, weight_VD, target_N, *([] if bias_V is None else [bias_V]))
        ctx.scale = scale
        if known is not None:
            return known[0].clone(), known[1].clone()
        logprobs, entropies = [], []
        for part in _chunks(hidden_ND.shape[0]):
            chosen, entropy = _chosen(_logits(hidden_ND[part], weight_VD, bias_V), target_N[part], scale)
            logprobs.append(chosen)
            entropies.append(entropy)
        if not logprobs:
            empty = hidden_ND.new_zeros(0, dtype=torch.float32)
            return empty, empty.clone()
        return torch.cat(logprobs), torch.cat(entropies)

    @staticmethod
    def backward(ctx: Any, grad_logprobs_N: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, target_N, *rest = ctx.saved_tensors
        bias_V = rest[0] if rest else None
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden_ND) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VD) if needs_weight else None
        grad_bias = torch.zeros_like(bias_V) if needs_bias and bias_V is not None else None
        with_entropy = bool(grad_entropy_N.any())
        for part in _chunks(hidden_ND.shape[0]):
            if with_entropy:
                log_p = _log_softmax(hidden_ND[part], weight_VD, bias_V, ctx.scale)
                grad_z = log_p.exp()
                log_p = log_p.clamp_(min=torch.finfo(log_p.dtype).min)
                entropy = -(grad_z * log_p).sum(-1, keepdim=True)
                grad_z.mul_(-grad_logprobs_N[part, None] - grad_entropy_N[part, None] * (log_p + entropy))
            else:
                grad_z = _scaled_logits(hidden_ND[part], weight_VD, bias_V, ctx.scale)
                torch.softmax(grad_z, -1, out=grad_z)
                grad_z.mul_(-grad_logprobs_N[part, None])
            grad_z.scatter_add_(-1, target_N[part, None], grad_logprobs_N[part, None])
            grad_z = grad_z.mul_(ctx.scale).to(hidden_ND.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = times(grad_z, weight_VD)
            if grad_weight is not None:
                grad_weight += outer(grad_z, hidden_ND[part])
            if grad_bias is not None:
                grad_bias += grad_z.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def token_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    *,
    scale: float,
    known: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(log softmax(scale * (h W^T + b))[target], entropy in nats), both float32 of shape N and differentiable.

    `known`: these two, when they were computed before with the same weights; the forward then costs nothing."""
    logprobs_N, entropy_N = _TokenLogprobs.apply(hidden_ND, weight_VD, bias_V, target_N, scale, known)  # type: ignore[no-untyped-call]
    return logprobs_N, entropy_N


def _chosen(logits_CV: Tensor, target_C: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    if kernels.suit(logits_CV):
        return kernels.logprobs(logits_CV, target_C, scale)
    log_p = torch.log_softmax(logits_CV.mul_(scale), -1)
    entropy = -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)
    return log_p.gather(-1, target_C[:, None])[:, 0], entropy


def _log_softmax(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, scale: float) -> Tensor:
    return torch.log_softmax(_scaled_logits(hidden_CD, weight_VD, bias_V, scale), -1)


def _scaled_logits(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, scale: float) -> Tensor:
    return _logits(hidden_CD, weight_VD, bias_V).mul_(scale)


def _logits(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """CV, float32."""
    return linear(hidden_CD, weight_VD.to(hidden_CD.dtype), bias_V).float()


def _chunks(count: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
