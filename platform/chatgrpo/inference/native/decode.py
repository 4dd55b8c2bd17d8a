"""A decode step of a whole Llama-shaped model as one call: one new token for each row.

The kernels write a step's activations straight to where a tape wants them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chatgrpo.inference.activation_tape import Recorder, SplitRecorder
from chatgrpo.inference.native import kernels
from chatgrpo.inference.native.kernels import CLinear, Panels, pointer
from chatgrpo.inference.native.prefixes import DescribedPrefix

if TYPE_CHECKING:
    from chatgrpo.inference.kv_cache import DecodeLayout, Prefix
    from chatgrpo.inference.llama_weights import Fused, LlamaWeights


class _CLayer(ctypes.Structure):
    _fields_ = (
        ("input_norm", ctypes.c_void_p),
        ("qkv", CLinear),
        ("out", CLinear),
        ("post_norm", ctypes.c_void_p),
        ("gate_up", CLinear),
        ("down", CLinear),
        ("query_norm", ctypes.c_void_p),
        ("key_norm", ctypes.c_void_p),
    )


class _CStep(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_layers", "num_rows", "hidden", "intermediate")),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "head_dim")),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("layers", "final_norm", "cos", "sin", "keys", "values")),
        *((name, ctypes.c_int64) for name in ("layer_stride", "row_stride", "head_stride")),
        *((name, ctypes.c_void_p) for name in ("lengths", "prefixes", "x", "qkv", "middle", "gate_up")),
        *((name, ctypes.c_int64) for name in ("x_stride", "qkv_stride", "middle_stride", "gate_up_stride")),
        ("hidden_out", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
    )


class DecodeKernel:
    """Of weights as they are now: what changes them makes a new one."""

    def __init__(self, weights: LlamaWeights) -> None:
        self._weights = weights
        self._held: list[object] = []  # what the pointers point to
        layers = [
            _CLayer(
                input_norm=pointer(layer.input_norm),
                qkv=self._linear(layer.qkv),
                out=self._linear(layer.out),
                post_norm=pointer(layer.post_norm),
                gate_up=self._linear(layer.gate_up),
                down=self._linear(layer.down),
                query_norm=pointer(layer.head_norms[0] if layer.head_norms else None),
                key_norm=pointer(layer.head_norms[1] if layer.head_norms else None),
            )
            for layer in weights.layers
        ]
        self._layers = (_CLayer * len(layers))(*layers)

    @staticmethod
    def suits(weights: LlamaWeights) -> bool:
        return kernels.suit(weights.embedding) and all(
            isinstance(site.spoken, Panels) for layer in weights.layers for site in layer.sites()
        )

    def __call__(
        self,
        x_NE: Tensor,
        cos_ND: Tensor,
        sin_ND: Tensor,
        layout: DecodeLayout,
        record: Recorder | SplitRecorder | None,
    ) -> Tensor:
        """`cos_ND`, `sin_ND`: of half the head dimension. -> hidden states after the last norm, NE."""
        weights, num_rows = self._weights, x_NE.shape[0]
        keys, values = layout.cache.whole(weights.num_kv_heads, weights.head_dim)
        prefixes, held = _prefixes(num_rows, layout.prefixes)
        lengths_N, cos_ND, sin_ND = layout.lengths_N.contiguous(), cos_ND.contiguous(), sin_ND.contiguous()
        views = None if record is None else record.views()
        activations = self._widths(num_rows, whole=record is not None) if views is None else views
        activations[0][0].copy_(x_NE)
        x, qkv, middle, gate_up = activations
        hidden_NE = torch.empty_like(x_NE)
        kernels.decode(
            _CStep(
                num_layers=len(self._layers),
                num_rows=num_rows,
                hidden=weights.hidden_size,
                intermediate=weights.intermediate_size,
                heads=weights.num_heads,
                kv_heads=weights.num_kv_heads,
                head_dim=weights.head_dim,
                eps=weights.eps,
                scale=weights.scale,
                layers=ctypes.addressof(self._layers),
                final_norm=pointer(weights.final_norm),
                cos=pointer(cos_ND),
                sin=pointer(sin_ND),
                keys=pointer(keys),
                values=pointer(values),
                layer_stride=keys.stride(0),
                row_stride=keys.stride(1),
                head_stride=keys.stride(2),
                lengths=pointer(lengths_N),
                prefixes=ctypes.addressof(prefixes),
                x=pointer(x),
                qkv=pointer(qkv),
                middle=pointer(middle),
                gate_up=pointer(gate_up),
                x_stride=x.stride(0),
                qkv_stride=qkv.stride(0),
                middle_stride=middle.stride(0),
                gate_up_stride=gate_up.stride(0),
                hidden_out=pointer(hidden_NE),
                threads=torch.get_num_threads(),
            )
        )
        del held
        if isinstance(record, SplitRecorder):
            record.take(activations)
        return hidden_NE

    def _linear(self, site: Fused) -> CLinear:
        spoken = site.spoken
        assert isinstance(spoken, Panels)
        self._held += [spoken.data, *([] if site.bias is None else [site.bias])]
        linear = spoken.described(site.bias)
        if (beside := site.beside) is not None:
            described = beside.described()
            self._held += [beside, described]
            linear.beside = ctypes.addressof(described)
        return linear

    def _widths(self, num_rows: int, *, whole: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Memory for x, qkv, middle and gate_up; unless `whole`, of one layer, seen as that of every layer."""
        weights = self._weights
        qkv = (weights.num_heads + 2 * weights.num_kv_heads) * weights.head_dim
        widths = (weights.hidden_size, qkv, weights.hidden_size, 2 * weights.intermediate_size)
        count = len(self._layers) + 1
        x, qkv_out, middle, gate_up = (
            torch.empty(count, num_rows, width) if whole else torch.empty(1, num_rows, width).expand(count, -1, -1)
            for width in widths
        )
        return x, qkv_out, middle, gate_up


def _prefixes(
    num_rows: int, prefixes: Sequence[tuple[Prefix, Tensor]]
) -> tuple[ctypes.Array[ctypes.c_void_p], list[DescribedPrefix]]:
    """A pointer a row, and what must live as long as they are used."""
    of_rows = (ctypes.c_void_p * num_rows)()
    held: list[DescribedPrefix] = []
    for prefix, rows in prefixes:
        held.append(DescribedPrefix(prefix))
        for row in rows.tolist():
            of_rows[row] = held[-1].address
    return of_rows, held
