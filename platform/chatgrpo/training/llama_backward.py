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
from chatgrpo.inference.attention import Layout
from chatgrpo.inference.llama_forward import Rotary, attend, place_heads_, rms_norm
from chatgrpo.inference.llama_weights import Fused, Layer, LlamaWeights
from chatgrpo.inference.products import outer, times


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
    d_middle = dx + _mlp_backward(layer, weights.eps, kept, dx)
    d_qkv = _attention_backward(weights, index, layout, rotary, kept.qkv, d_middle)
    d_normed = _project_back(layer.qkv, rms_norm(kept.x, layer.input_norm, weights.eps), d_qkv)
    return d_middle.add_(_norm_backward(kept.x, layer.input_norm, weights.eps, d_normed))


def _mlp_backward(layer: Layer, eps: float, kept: Activations, dy: Tensor) -> Tensor:
    gate, up = kept.gate_up.chunk(2, -1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    d_act = _project_back(layer.down, silu * up, dy)
    d_gate_up = torch.empty_like(kept.gate_up)
    d_gate, d_up = d_gate_up.chunk(2, -1)
    torch.mul(d_act, silu, out=d_up)
    # silu'(g) = s + g s (1 - s) = s + silu (1 - s)
    silu.mul_(1 - sigmoid).add_(sigmoid)
    torch.mul(d_act.mul_(up), silu, out=d_gate)
    d_normed = _project_back(layer.gate_up, rms_norm(kept.middle, layer.post_norm, eps), d_gate_up)
    return _norm_backward(kept.middle, layer.post_norm, eps, d_normed)


def _attention_backward(
    weights: LlamaWeights, index: int, layout: Layout, rotary: Rotary, qkv_T: Tensor, d_middle: Tensor
) -> Tensor:
    """Through the output projection, attention, rotation and norms of the heads, by queries, keys and values as
    projected. The layout's own attention is run once more under autograd: it has no weights and is a small part of the
    work."""
    layer, queries, keys = weights.layers[index], weights.num_heads, weights.num_heads + weights.num_kv_heads
    projected = qkv_T.view(qkv_T.shape[0], -1, weights.head_dim)
    placed = projected.clone()
    place_heads_(weights, layer, placed, rotary)
    with torch.enable_grad():
        leaf = placed.requires_grad_()
        attended = attend(layout, index, leaf, weights.num_heads, weights.num_kv_heads, weights.scale)
    d_attended = _project_back(layer.out, attended.detach(), d_middle)
    (grad,) = torch.autograd.grad(attended, leaf, d_attended)
    rotary.turn_(grad[:, :keys], back=True)
    if layer.head_norms is not None:
        for part, norm in zip((slice(queries), slice(queries, keys)), layer.head_norms, strict=True):
            grad[:, part] = _norm_backward(projected[:, part], norm, weights.eps, grad[:, part])
    return grad.flatten(1)


def _norm_backward(x: Tensor, weight: nn.Parameter, eps: float, dy: Tensor) -> Tensor:
    """y = w n, n = x r, r = 1 / sqrt(mean(x^2) + eps):  dx = r (dy w - n mean(dy w n)),  dw = sum of dy n."""
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    n = x * r
    if weight.requires_grad:
        _grad(weight).add_((dy * n).flatten(0, -2).sum(0))
    dn = dy * weight
    return dn.sub_(n.mul_((dn * n).mean(-1, keepdim=True))).mul_(r)


def _project_back(site: Fused, x: Tensor, dy: Tensor) -> Tensor:
    """Gradient by the input `x` of a site; those by its weights are added to theirs."""
    dx = times(dy, site.weight)
    for p in site.projections:
        dy_part = dy[:, p.start : p.stop]
        if (adapter := p.adapter) is not None:
            d_low_TR = (dy_part @ adapter.b_OR).mul_(adapter.scale)
            _grad(adapter.a_RI).add_(outer(d_low_TR, x))
            _grad(adapter.b_OR).add_(outer(dy_part, x @ adapter.a_RI.T), alpha=adapter.scale)
            dx.addmm_(d_low_TR, adapter.a_RI)
        if p.base.weight.requires_grad:
            _grad(p.base.weight).add_(outer(dy_part, x))
        if p.base.bias is not None and p.base.bias.requires_grad:
            _grad(p.base.bias).add_(dy_part.sum(0))
    return dx


def _grad(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
