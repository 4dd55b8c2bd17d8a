"""The kernels as functions of tensors. All tensors are float32 on the CPU unless said otherwise."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from chatgrpo.inference.huge_pages import HugePages
from chatgrpo.inference.native.build import library


class CLinear(ctypes.Structure):
    _fields_ = (
        ("panels", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("num_in", ctypes.c_int64),
        ("num_out", ctypes.c_int64),
        ("beside", ctypes.c_void_p),
    )


class CBeside(ctypes.Structure):
    _fields_ = (("low", CLinear), ("high", CLinear), ("mask", ctypes.c_void_p))


@dataclass(frozen=True, slots=True)
class Panels:
    """A weight OI as the kernels read it: panels x I x panel width, the last panel filled up with zeros."""

    data: Tensor
    num_out: int

    @property
    def num_in(self) -> int:
        return self.data.shape[1]

    def described(self, bias_O: Tensor | None) -> CLinear:
        """Holds pointers only: whoever keeps it keeps the tensors."""
        return CLinear(self.data.data_ptr(), pointer(bias_O), self.num_in, self.num_out, None)

    @classmethod
    def zeros(cls, num_out: int, num_in: int) -> Panels:
        width = panel_width()
        return cls(torch.zeros(-(-num_out // width), num_in, width), num_out)

    def set_inputs(self, inputs: slice, weight_OJ: Tensor) -> None:
        """Replaces the columns of some inputs."""
        num_panels, _, width = self.data.shape
        padded = pad(weight_OJ, (0, 0, 0, num_panels * width - self.num_out))
        self.data[:, inputs] = padded.view(num_panels, width, -1).transpose(1, 2)

    def set_outputs(self, first: int, weight_JI: Tensor) -> None:
        """Replaces the rows of some outputs, from `first` on."""
        width = self.data.shape[2]
        outputs = torch.arange(first, first + weight_JI.shape[0])
        self.data.transpose(1, 2)[outputs // width, outputs % width] = weight_JI


@dataclass(frozen=True, slots=True)
class Beside:
    """What adapters add to a product, see products.h. `mask`: rows x outputs of `low`, read at each step."""

    low: Panels
    high: Panels
    mask: Tensor

    def described(self) -> CBeside:
        return CBeside(self.low.described(None), self.high.described(None), pointer(self.mask))


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def is_available() -> bool:
    return library() is not None


def suit(*tensors: Tensor | None) -> bool:
    return all(t is None or (t.dtype == torch.float32 and t.device.type == "cpu") for t in tensors) and is_available()


def panel_width() -> int:
    return int(_library().chatgrpo_panel_width())


def pack(weight_OI: Tensor, pages: HugePages | None = None) -> Panels:
    """Any strides, so also a transposed weight. `pages`: where to."""
    lib, (num_out, num_in), width = _library(), weight_OI.shape, panel_width()
    data = (torch.empty if pages is None else pages.empty)(-(-num_out // width), num_in, width)
    lib.chatgrpo_pack(
        ctypes.c_void_p(weight_OI.data_ptr()),
        ctypes.c_int64(num_out),
        ctypes.c_int64(num_in),
        ctypes.c_int64(weight_OI.stride(0)),
        ctypes.c_int64(weight_OI.stride(1)),
        ctypes.c_void_p(data.data_ptr()),
        torch.get_num_threads(),
    )
    return Panels(data, num_out)


def linear(
    x_TI: Tensor,
    weight: Panels,
    bias_O: Tensor | None = None,
    other_TO: Tensor | None = None,
    out_TO: Tensor | None = None,
) -> Tensor:
    """x W^T + b + other, TO; dense `out_TO` holds it where given."""
    assert x_TI.shape[1] == weight.num_in
    if x_TI.stride(1) != 1:
        x_TI = x_TI.contiguous()
    other_TO = None if other_TO is None else other_TO.contiguous()
    y_TO = torch.empty(x_TI.shape[0], weight.num_out) if out_TO is None else out_TO
    assert y_TO.is_contiguous()
    _library().chatgrpo_linear(
        ctypes.byref(weight.described(bias_O)),
        ctypes.c_void_p(x_TI.data_ptr()),
        ctypes.c_int64(x_TI.stride(0)),
        ctypes.c_int64(x_TI.shape[0]),
        ctypes.c_void_p(y_TO.data_ptr()),
        ctypes.c_void_p(pointer(other_TO)),
        torch.get_num_threads(),
    )
    return y_TO


@dataclass(frozen=True, slots=True)
class Segments:
    """`table_S4`: (prefix start, prefix length, start, length) of each, int64; those from `clusters[c]` to
    `clusters[c + 1]` have one prefix or are it."""

    table_S4: Tensor
    clusters: Tensor

    @staticmethod
    def of(segments: Sequence[tuple[range, range]]) -> Segments:
        clusters: dict[int, list[tuple[int, int, int, int]]] = {}
        for prefix, tokens in segments:
            row = (prefix.start if len(prefix) else 0, len(prefix), tokens.start, len(tokens))
            clusters.setdefault(prefix.start if len(prefix) else tokens.start, []).append(row)
        ends = list(accumulate((len(c) for c in clusters.values()), initial=0))
        table = [row for cluster in clusters.values() for row in cluster]
        return Segments(torch.tensor(table, dtype=torch.int64), torch.tensor(ends, dtype=torch.int64))


def attention(qkv_THD: Tensor, segments: Segments, num_heads: int, num_kv_heads: int, scale: float) -> Tensor:
    """Queries, keys and values of all tokens, rotated -> T(HD), see `SegmentLayout`."""
    out_THD = torch.empty(qkv_THD.shape[0], num_heads * qkv_THD.shape[2])
    _attention(qkv_THD, segments, num_heads, num_kv_heads, scale, out_THD, None, None)
    return out_THD


def attention_backward(
    qkv_THD: Tensor, segments: Segments, num_heads: int, num_kv_heads: int, scale: float, d_out_THD: Tensor
) -> tuple[Tensor, Tensor]:
    """What `attention` says, and its gradient by `qkv_THD`."""
    d_out_THD = d_out_THD.contiguous()
    out_THD, d_qkv_THD = torch.empty_like(d_out_THD), torch.zeros_like(qkv_THD)
    _attention(qkv_THD, segments, num_heads, num_kv_heads, scale, out_THD, d_out_THD, d_qkv_THD)
    return out_THD, d_qkv_THD


def _attention(
    qkv_THD: Tensor,
    segments: Segments,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
    out: Tensor,
    d_out: Tensor | None,
    d_qkv: Tensor | None,
) -> None:
    assert qkv_THD.is_contiguous()
    _library().chatgrpo_attention(
        ctypes.c_void_p(qkv_THD.data_ptr()),
        ctypes.c_int64(num_heads),
        ctypes.c_int64(num_kv_heads),
        ctypes.c_int64(qkv_THD.shape[2]),
        ctypes.c_float(scale),
        ctypes.c_void_p(segments.table_S4.data_ptr()),
        ctypes.c_void_p(segments.clusters.data_ptr()),
        ctypes.c_int64(segments.clusters.numel() - 1),
        ctypes.c_void_p(out.data_ptr()),
        ctypes.c_void_p(pointer(d_out)),
        ctypes.c_void_p(pointer(d_qkv)),
        torch.get_num_threads(),
    )


def prefill_attention(
    qkv_THD: Tensor,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
    layer: int,
    prompts: ctypes.Array[Any],
    keys_SKLD: Tensor,
    values_SKLD: Tensor,
) -> Tensor:
    """Queries, keys and values of all tokens, rotated -> T(HD), see `PrefillKernel`."""
    assert qkv_THD.is_contiguous()
    assert keys_SKLD.stride() == values_SKLD.stride()
    out_THD = torch.empty(qkv_THD.shape[0], num_heads * qkv_THD.shape[2])
    _library().chatgrpo_prefill_attention(
        ctypes.c_void_p(qkv_THD.data_ptr()),
        ctypes.c_int64(num_heads),
        ctypes.c_int64(num_kv_heads),
        ctypes.c_int64(qkv_THD.shape[2]),
        ctypes.c_float(scale),
        ctypes.c_int64(layer),
        ctypes.byref(prompts),
        ctypes.c_int64(len(prompts)),
        ctypes.c_void_p(keys_SKLD.data_ptr()),
        ctypes.c_void_p(values_SKLD.data_ptr()),
        ctypes.c_int64(keys_SKLD.stride(0)),
        ctypes.c_int64(keys_SKLD.stride(1)),
        ctypes.c_void_p(out_THD.data_ptr()),
        torch.get_num_threads(),
    )
    return out_THD


def norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """RMS norm of each row."""
    x_TE = x_TE.contiguous()
    y_TE = torch.empty_like(x_TE)
    _library().chatgrpo_norm(
        ctypes.c_void_p(x_TE.data_ptr()),
        ctypes.c_void_p(weight_E.data_ptr()),
        ctypes.c_int64(x_TE.shape[0]),
        ctypes.c_int64(x_TE.shape[1]),
        ctypes.c_float(eps),
        ctypes.c_void_p(y_TE.data_ptr()),
        torch.get_num_threads(),
    )
    return y_TE


def take_rows(from_LTW: Tensor, rows_N: Tensor, to_LNW: Tensor) -> None:
    """Copies some rows of every layer; rows must be dense in both, layers may lie anywhere."""
    (num_layers, num_rows, width), rows_N = from_LTW.shape, rows_N.contiguous()
    assert to_LNW.shape == (num_layers, rows_N.numel(), width)
    assert from_LTW.stride()[1:] == to_LNW.stride()[1:] == (width, 1)
    assert rows_N.dtype == torch.int64
    assert 0 <= int(rows_N.min()) <= int(rows_N.max()) < num_rows
    _library().chatgrpo_take_rows(
        ctypes.c_void_p(from_LTW.data_ptr()),
        ctypes.c_int64(from_LTW.stride(0)),
        ctypes.c_int64(num_layers),
        ctypes.c_void_p(rows_N.data_ptr()),
        ctypes.c_int64(rows_N.numel()),
        ctypes.c_int64(width),
        ctypes.c_void_p(to_LNW.data_ptr()),
        ctypes.c_int64(to_LNW.stride(0)),
        torch.get_num_threads(),
    )


def rotate_(heads_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> None:
    """Turns each head's two halves in place; cos and sin of half the head dimension. Heads must be dense in a row."""
    num_rows, num_heads, dim = heads_THD.shape
    assert heads_THD.stride()[1:] == (dim, 1)
    cos_TD, sin_TD = cos_TD.contiguous(), sin_TD.contiguous()
    _library().chatgrpo_rotate(
        ctypes.c_void_p(heads_THD.data_ptr()),
        ctypes.c_int64(heads_THD.stride(0)),
        ctypes.c_int64(num_rows),
        ctypes.c_int64(num_heads),
        ctypes.c_int64(dim),
        ctypes.c_void_p(cos_TD.data_ptr()),
        ctypes.c_void_p(sin_TD.data_ptr()),
        torch.get_num_threads(),
    )


def gated(gate_up_TF: Tensor) -> Tensor:
    """silu(gate) * up of rows that hold both one after the other."""
    num_rows, width = gate_up_TF.shape[0], gate_up_TF.shape[1] // 2
    gate_up_TF = gate_up_TF.contiguous()
    act_TF = torch.empty(num_rows, width)
    _library().chatgrpo_gated(
        ctypes.c_void_p(gate_up_TF.data_ptr()),
        ctypes.c_int64(num_rows),
        ctypes.c_int64(width),
        ctypes.c_void_p(act_TF.data_ptr()),
        torch.get_num_threads(),
    )
    return act_TF


def gated_backward(gate_up_TF: Tensor, d_act_TF: Tensor) -> Tensor:
    """The gradient by the input of `gated`."""
    gate_up_TF, d_act_TF = gate_up_TF.contiguous(), d_act_TF.contiguous()
    d_gate_up_TF = torch.empty_like(gate_up_TF)
    _library().chatgrpo_gated_backward(
        ctypes.c_void_p(gate_up_TF.data_ptr()),
        ctypes.c_void_p(d_act_TF.data_ptr()),
        ctypes.c_int64(d_act_TF.shape[0]),
        ctypes.c_int64(d_act_TF.shape[1]),
        ctypes.c_void_p(d_gate_up_TF.data_ptr()),
        torch.get_num_threads(),
    )
    return d_gate_up_TF


def norm_backward(x_TE: Tensor, weight_E: Tensor, eps: float, dy_TE: Tensor, add_TE: Tensor | None) -> Tensor:
    """The gradient by the input of an RMS norm, and `add_TE` to it."""
    x_TE, dy_TE = x_TE.contiguous(), dy_TE.contiguous()
    add_TE = None if add_TE is None else add_TE.contiguous()
    dx_TE = torch.empty_like(x_TE)
    _library().chatgrpo_norm_backward(
        ctypes.c_void_p(x_TE.data_ptr()),
        ctypes.c_void_p(weight_E.data_ptr()),
        ctypes.c_void_p(dy_TE.data_ptr()),
        ctypes.c_void_p(pointer(add_TE)),
        ctypes.c_int64(x_TE.shape[0]),
        ctypes.c_int64(x_TE.shape[1]),
        ctypes.c_float(eps),
        ctypes.c_void_p(dx_TE.data_ptr()),
        torch.get_num_threads(),
    )
    return dx_TE


def sample(logits_NV: Tensor, temperature_N: Tensor, uniform_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, log-probabilities, entropies), see `inference.sampling.sample`; without top-k and top-p."""
    num_rows, vocabulary = logits_NV.shape
    logits_NV = logits_NV.contiguous()
    tokens_N = torch.empty(num_rows, dtype=torch.int64)
    logprobs_N, entropies_N = torch.empty(num_rows), torch.empty(num_rows)
    _library().chatgrpo_sample(
        ctypes.c_void_p(logits_NV.data_ptr()),
        ctypes.c_int64(num_rows),
        ctypes.c_int64(vocabulary),
        ctypes.c_void_p(temperature_N.contiguous().data_ptr()),
        ctypes.c_void_p(uniform_N.contiguous().data_ptr()),
        ctypes.c_void_p(tokens_N.data_ptr()),
        ctypes.c_void_p(logprobs_N.data_ptr()),
        ctypes.c_void_p(entropies_N.data_ptr()),
        torch.get_num_threads(),
    )
    return tokens_N, logprobs_N, entropies_N


def logprobs(logits_NV: Tensor, tokens_N: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(log-probabilities of the tokens, entropies) of softmax(scale * logits)."""
    num_rows, vocabulary = logits_NV.shape
    logits_NV, tokens_N = logits_NV.contiguous(), tokens_N.contiguous()
    assert tokens_N.dtype == torch.int64
    assert not num_rows or 0 <= int(tokens_N.min()) <= int(tokens_N.max()) < vocabulary
    logprobs_N, entropies_N = torch.empty(num_rows), torch.empty(num_rows)
    _library().chatgrpo_logprobs(
        ctypes.c_void_p(logits_NV.data_ptr()),
        ctypes.c_int64(num_rows),
        ctypes.c_int64(vocabulary),
        ctypes.c_float(scale),
        ctypes.c_void_p(tokens_N.data_ptr()),
        ctypes.c_void_p(logprobs_N.data_ptr()),
        ctypes.c_void_p(entropies_N.data_ptr()),
        torch.get_num_threads(),
    )
    return logprobs_N, entropies_N


def decode(step: ctypes.Structure) -> None:
    _library().chatgrpo_decode(ctypes.byref(step))


def _library() -> Any:
    lib = library()
    assert lib is not None, "ask `suit` first"
    return lib
