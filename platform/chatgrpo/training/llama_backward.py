"""Backward of a Llama-shaped decoder by hand, from what its forward left on a tape.

Autograd would keep more (normed inputs, masks, copies) and ask for a forward under its eye; here any forward will do,
also the one that sampled the tokens. Gradients are added to `.grad` of whatever is trainable; nothing is computed for
frozen weights, and adapters cost thin products only:

    y = x (W + s B A)^T:   dx = dy W + s (dy B) A,   dA = s (dy B)^T x,   dB = s dy^T (x A^T)

Letters as in `llama_weights`; T packed tokens, dX is the gradient of the loss by X.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chatgrpo.inference.activation_tape import Activations, Recording
from chatgrpo.inference.attention import Layout, SegmentLayout
from chatgrpo.inference.llama_forward import Rotary, attend, gated, place_heads_, rms_norm
from chatgrpo.inference.llama_weights import Adapter, Fused, Layer, LlamaWeights, Projection
from chatgrpo.inference.native import kernels
from chatgrpo.inference.products import linear, outer, times


@torch.no_grad()
def backward(
    weights: LlamaWeights,
    input_ids_T: Tensor,
    positions_T: Tensor,
    layout: Layout,
    recording: Recording,
    d_hidden_TE: Tensor,
) -> None:
    """`d_hidden_TE`: by the hidden states after the last norm."""
    rotary = Rotary.at(weights, positions_T)
    dx = _norm_backward(recording.last(), weights.final_norm, weights.eps, d_hidden_TE)
    for index in reversed(range(len(weights.layers))):
        dx = _layer_backward(weights, index, layout, rotary, recording.layer(index), dx)
    if weights.embedding.requires_grad:
        if weights.padding_id is not None:  # torch leaves its embedding as it is
            dx = dx.masked_fill((input_ids_T == weights.padding_id)[:, None], 0.0)
        _grad(weights.embedding).index_add_(0, input_ids_T, dx)


def _layer_backward(
    weights: LlamaWeights, index: int, layout: Layout, rotary: Rotary, kept: Activations, dx: Tensor
) -> Tensor:
    layer = weights.layers[index]
    d_middle = _mlp_backward(layer, weights.eps, kept, dx)
    d_qkv = _attention_backward(weights, index, layout, rotary, kept.qkv, d_middle)
    d_normed = _project_back(layer.qkv, rms_norm(kept.x, layer.input_norm, weights.eps), d_qkv)
    return _norm_backward(kept.x, layer.input_norm, weights.eps, d_normed, add=d_middle)


def _mlp_backward(layer: Layer, eps: float, kept: Activations, dy: Tensor) -> Tensor:
    """By the stream between attention and MLP, along both ways."""
    d_act = _project_back(layer.down, gated(kept.gate_up), dy)
    d_gate_up = gated_backward(kept.gate_up, d_act)
    d_normed = _project_back(layer.gate_up, rms_norm(kept.middle, layer.post_norm, eps), d_gate_up)
    return _norm_backward(kept.middle, layer.post_norm, eps, d_normed, add=dy)


def _attention_backward(
    weights: LlamaWeights, index: int, layout: Layout, rotary: Rotary, qkv_T: Tensor, d_middle: Tensor
) -> Tensor:
    """Through the output projection, attention, rotation and norms of the heads, by queries, keys and values as
    projected. Attention is run once more, under autograd where there are no kernels: it has no weights and is a small
    part of the work."""
    layer, queries, keys = weights.layers[index], weights.num_heads, weights.num_heads + weights.num_kv_heads
    projected = qkv_T.view(qkv_T.shape[0], -1, weights.head_dim)
    placed = projected.clone()
    place_heads_(weights, layer, placed, rotary)
    d_attended, d_low = _inputs_back(layer.out, d_middle)
    if isinstance(layout, SegmentLayout) and kernels.suit(placed):
        shape = (weights.num_heads, weights.num_kv_heads, weights.scale)
        attended, grad = kernels.attention_backward(placed, layout.for_kernels, *shape, d_attended)
    else:
        with torch.enable_grad():
            leaf = placed.requires_grad_()
            attended = attend(layout, index, leaf, weights.num_heads, weights.num_kv_heads, weights.scale)
        (grad,) = torch.autograd.grad(attended, leaf, d_attended)
    _weights_back(layer.out, attended.detach(), d_middle, d_low)
    rotary.turn_(grad[:, :keys], back=True)
    if layer.head_norms is not None:
        for part, norm in zip((slice(queries), slice(queries, keys)), layer.head_norms, strict=True):
            grad[:, part] = _norm_backward(projected[:, part], norm, weights.eps, grad[:, part])
    return grad.flatten(1)


def gated_backward(gate_up: Tensor, d_act: Tensor) -> Tensor:
    """The gradient by the input of `gated`: with s = sigmoid(g), silu'(g) = s + g s (1 - s) = s + silu (1 - s)."""
    if kernels.suit(gate_up):
        return kernels.gated_backward(gate_up, d_act)
    gate, up = gate_up.chunk(2, -1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    return torch.cat([d_act * up * (sigmoid + silu * (1 - sigmoid)), d_act * silu], -1)


def _norm_backward(x: Tensor, weight: nn.Parameter, eps: float, dy: Tensor, *, add: Tensor | None = None) -> Tensor:
    """y = w n, n = x r, r = 1 / sqrt(mean(x^2) + eps):  dx = r (dy w - n mean(dy w n)) + add,  dw = sum of dy n."""
    if weight.requires_grad:
        n = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        _grad(weight).add_((dy * n).flatten(0, -2).sum(0))
    return norm_backward(x, weight, eps, dy, add)


def norm_backward(x: Tensor, weight: Tensor, eps: float, dy: Tensor, add: Tensor | None) -> Tensor:
    """The gradient by the input of an RMS norm, and `add` to it."""
    if x.dim() == 2 and kernels.suit(x):
        return kernels.norm_backward(x, weight, eps, dy, add)
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    n = x * r
    dn = dy * weight
    dx = dn.sub_(n.mul_((dn * n).mean(-1, keepdim=True))).mul_(r)
    return dx if add is None else dx.add_(add)


def _project_back(site: Fused, x: Tensor, dy: Tensor) -> Tensor:
    """Gradient by the input `x` of a site; those by its weights are added to theirs."""
    dx, d_low = _inputs_back(site, dy)
    _weights_back(site, x, dy, d_low)
    return dx


def _inputs_back(site: Fused, dy: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gradients by the input of a site and, where it has adapters, by all their low-rank outputs side by side (TS)."""
    adapted = _adapted(site)
    dx = times(dy, site.weight)
    if not adapted:
        return dx, None
    d_low_TS = dy.new_empty(dy.shape[0], sum(adapter.a_RI.shape[0] for _, adapter in adapted))
    for (p, adapter), part_TR in zip(adapted, _by_adapter(d_low_TS, adapted), strict=True):
        # By torch's default: oneDNN is slow where a matrix is a part of wider rows.
        torch.mm(dy[:, p.start : p.stop], adapter.b_OR, out=part_TR)
        part_TR.mul_(adapter.scale)
    return dx.addmm_(d_low_TS, torch.cat([adapter.a_RI for _, adapter in adapted])), d_low_TS


def _weights_back(site: Fused, x: Tensor, dy: Tensor, d_low_TS: Tensor | None) -> None:
    """Adds the gradients by the weights of a site to theirs. Adapters are taken together, so that x is read once."""
    for p in site.projections:
        if p.base.weight.requires_grad:
            _grad(p.base.weight).add_(outer(dy[:, p.start : p.stop], x))
        if p.base.bias is not None and p.base.bias.requires_grad:
            _grad(p.base.bias).add_(dy[:, p.start : p.stop].sum(0))
    if d_low_TS is None:
        return
    adapted = _adapted(site)
    low_TS = linear(x, torch.cat([adapter.a_RI for _, adapter in adapted]))
    d_a_SI = outer(d_low_TS, x)
    parts = zip(adapted, _by_adapter(low_TS, adapted), _by_adapter(d_a_SI.T, adapted), strict=True)
    for (p, adapter), low_TR, d_a_IR in parts:
        # MKL is twice as fast with the rows of the result long.
        _grad(adapter.b_OR).add_(torch.mm(low_TR.T, dy[:, p.start : p.stop]).T, alpha=adapter.scale)
        _grad(adapter.a_RI).add_(d_a_IR.T)


def _adapted(site: Fused) -> list[tuple[Projection, Adapter]]:
    return [(p, adapter) for p in site.projections if (adapter := p.adapter) is not None]


def _by_adapter(low_TS: Tensor, adapted: list[tuple[Projection, Adapter]]) -> tuple[Tensor, ...]:
    return torch.split(low_TS, [adapter.a_RI.shape[0] for _, adapter in adapted], 1)


def _grad(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
