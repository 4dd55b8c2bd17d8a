"""Forward of a Llama-shaped decoder over packed tokens, with fused products; it can leave its activations on a tape.

Computes what the Hugging Face modules compute, in the same order up to the grouping of products. T packed tokens;
other letters as in `llama_weights`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from chatgrpo.inference.activation_tape import Recorder, SplitRecorder
from chatgrpo.inference.attention import Layout, SegmentLayout
from chatgrpo.inference.kv_cache import DecodeLayout, PrefillLayout
from chatgrpo.inference.llama_weights import Layer, LlamaWeights
from chatgrpo.inference.native import kernels


@dataclass(frozen=True, slots=True)
class Rotary:
    """cos and sin of the rotation angles: T1(D/2)."""

    cos: Tensor
    sin: Tensor

    @staticmethod
    def at(weights: LlamaWeights, positions_T: Tensor) -> Rotary:
        cos_1TD, sin_1TD = weights.rotary(weights.embedding, positions_T[None])
        half = weights.head_dim // 2
        return Rotary(cos_1TD[0, :, None, :half], sin_1TD[0, :, None, :half])

    def turn_(self, heads_THD: Tensor, *, back: bool = False) -> None:
        """Rotates in place; `back` by the negative angle, which is the gradient of the rotation."""
        half = heads_THD.shape[-1] // 2
        sin = -self.sin if back else self.sin
        if not heads_THD.requires_grad and kernels.suit(heads_THD):
            kernels.rotate_(heads_THD, self.cos[:, 0], sin[:, 0])
            return
        first, second = heads_THD[..., :half], heads_THD[..., half:]
        turned = first * self.cos - second * sin
        second.mul_(self.cos).addcmul_(first, sin)
        first.copy_(turned)


@torch.no_grad()
def forward(
    weights: LlamaWeights,
    input_ids_T: Tensor,
    positions_T: Tensor,
    layout: Layout,
    record: Recorder | SplitRecorder | None = None,
) -> Tensor:
    """-> hidden states after the last norm, TE."""
    heads, kv_heads, dim = weights.num_heads, weights.num_kv_heads, weights.head_dim
    rotary = Rotary.at(weights, positions_T)
    x_TE = functional.embedding(input_ids_T, weights.embedding)
    if isinstance(layout, DecodeLayout):
        kernel = weights.decode_kernel()
        if kernel is not None:
            return kernel(x_TE, rotary.cos[:, 0], rotary.sin[:, 0], layout, record)
    for index, layer in enumerate(weights.layers):
        # Where a tape has room in one piece, products write there at once.
        x_on_tape, qkv_on_tape, middle_on_tape, gate_up_on_tape = _places(record, index)
        qkv_T = layer.qkv(rms_norm(x_TE, layer.input_norm, weights.eps), qkv_on_tape)
        if record is not None:
            record.projected(index, x=x_TE, qkv=qkv_T)
        if qkv_on_tape is not None and qkv_T.data_ptr() == qkv_on_tape.data_ptr():
            qkv_T = qkv_T.clone()  # what follows works in place
        split_THD = qkv_T.view(-1, heads + 2 * kv_heads, dim)
        place_heads_(weights, layer, split_THD, rotary)
        attended_T = attend(layout, index, split_THD, heads, kv_heads, weights.scale)
        middle_TE = layer.out.added_to(attended_T, x_TE, middle_on_tape)
        gate_up_T = layer.gate_up(rms_norm(middle_TE, layer.post_norm, weights.eps), gate_up_on_tape)
        if record is not None:
            record.layer(index, middle=middle_TE, gate_up=gate_up_T)
        x_TE = layer.down.added_to(gated(gate_up_T), middle_TE, x_on_tape)
    if record is not None:
        record.last(x_TE)
    return rms_norm(x_TE, weights.final_norm, weights.eps)


def _places(record: Recorder | SplitRecorder | None, index: int) -> tuple[Tensor | None, ...]:
    """For the layer's output, qkv, middle and gate_up."""
    views = None if record is None else record.views()
    if views is None:
        return None, None, None, None
    x, qkv, middle, gate_up = views
    return x[index + 1], qkv[index], middle[index], gate_up[index]


def place_heads_(weights: LlamaWeights, layer: Layer, split_THD: Tensor, rotary: Rotary) -> None:
    """Norms, where the model has them, and turns queries and keys in place."""
    queries, keys = weights.num_heads, weights.num_heads + weights.num_kv_heads
    if layer.head_norms is not None:
        for part, norm in zip((split_THD[:, :queries], split_THD[:, queries:keys]), layer.head_norms, strict=True):
            part.copy_(rms_norm(part, norm, weights.eps))
    rotary.turn_(split_THD[:, :keys])


def attend(layout: Layout, layer: int, split_THD: Tensor, num_heads: int, num_kv_heads: int, scale: float) -> Tensor:
    """Queries, keys and values of all tokens, one after the other -> T(HD); by kernels where autograd is not asked."""
    if not split_THD.requires_grad and kernels.suit(split_THD):
        if isinstance(layout, SegmentLayout):
            return kernels.attention(split_THD, layout.for_kernels, num_heads, num_kv_heads, scale)
        if isinstance(layout, PrefillLayout):
            return layout.attend_by_kernel(layer, split_THD, num_heads, num_kv_heads, scale)
    query, key, value = torch.split(split_THD, [num_heads, num_kv_heads, num_kv_heads], 1)
    out_1THD = layout.attend(
        layer, query.transpose(0, 1)[None], key.transpose(0, 1)[None], value.transpose(0, 1)[None], scale
    )
    return out_1THD[0].flatten(1)


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of rows that hold both one after the other."""
    if kernels.suit(gate_up):
        return kernels.gated(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate) * up


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """Without gradients."""
    if x_TE.dim() == 2 and kernels.suit(x_TE):
        return kernels.norm(x_TE, weight_E, eps)
    return functional.rms_norm(x_TE, (x_TE.shape[-1],), weight_E, eps)
