"""Attention of a prefill's new tokens, to themselves and to what their rows hold, one call a layer."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chatgrpo.inference.native import kernels
from chatgrpo.inference.native.prefixes import DescribedPrefix

if TYPE_CHECKING:
    from chatgrpo.inference.kv_cache import KVCache, Prefix, Prompt


class _CPrompt(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("start", "length", "row", "rows", "past")),
        ("prefix", ctypes.c_void_p),
        ("fills", ctypes.c_int64),
    )


class PrefillKernel:
    """Of one forward, for all of its layers. New keys and values are left where their prompts say."""

    def __init__(self, cache: KVCache, prompts: Sequence[Prompt], num_kv_heads: int, head_dim: int) -> None:
        self._keys, self._values = cache.whole(num_kv_heads, head_dim)
        self._num_kv_heads = num_kv_heads
        self._num_tokens = max(prompt.tokens.stop for prompt in prompts)
        # The kernel writes where it is told.
        _, num_rows, _, max_length, _ = self._keys.shape
        assert all(p.fills or (p.rows.stop <= num_rows and p.past + len(p.tokens) <= max_length) for p in prompts)
        described: dict[int, DescribedPrefix] = {}
        for prompt in prompts:
            if prompt.prefix is None or id(prompt.prefix) in described:
                continue
            if prompt.fills:
                _make_room(prompt.prefix, self._keys)
            assert all(t.shape == (num_kv_heads, prompt.prefix.length, head_dim) for t in prompt.prefix.keys)
            described[id(prompt.prefix)] = DescribedPrefix(prompt.prefix)
        self._described = described
        self._prompts = (_CPrompt * len(prompts))(
            *(
                _CPrompt(
                    start=prompt.tokens.start,
                    length=len(prompt.tokens),
                    row=prompt.rows.start,
                    rows=len(prompt.rows),
                    past=prompt.past,
                    prefix=None if prompt.prefix is None else described[id(prompt.prefix)].address,
                    fills=prompt.fills,
                )
                for prompt in prompts
            )
        )

    def __call__(self, layer: int, qkv_THD: Tensor, num_heads: int, scale: float) -> Tensor:
        """Queries, keys and values of all tokens, rotated -> T(HD)."""
        assert self._num_tokens <= qkv_THD.shape[0]
        return kernels.prefill_attention(
            qkv_THD,
            num_heads,
            self._num_kv_heads,
            scale,
            layer,
            self._prompts,
            self._keys[layer],
            self._values[layer],
        )


def _make_room(prefix: Prefix, like: Tensor) -> None:
    """`like`: layers x SKLD."""
    num_layers, _, num_heads, _, head_dim = like.shape
    for held in (prefix.keys, prefix.values):
        held[:] = torch.empty(num_layers, num_heads, prefix.length, head_dim, dtype=like.dtype).unbind()
