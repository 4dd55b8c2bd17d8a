"""Keys and values of the running requests, as dense rows without holes.

Row i of every tensor belongs to the i-th running request. A finished row's place is taken by the last one, so that a
decode step reads the slice [:n] and never gathers. Shapes: S rows, K key/value heads, L tokens, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Lengths and row counts grow in these steps: a growth copies everything, an unused token costs memory only.
_LENGTH_STEP = 64
_ROW_STEP = 8


class KVCache:
    def __init__(self, num_layers: int, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self.keys: list[Tensor] = [torch.empty(0)] * num_layers  # each SKLD
        self.values: list[Tensor] = [torch.empty(0)] * num_layers
        self.num_rows = 0
        self.max_length = 0

    def reserve(self, num_rows: int, max_length: int) -> None:
        """Makes room for so many rows and tokens; what is held stays."""
        if num_rows <= self.num_rows and max_length <= self.max_length:
            return
        self.num_rows = max(self.num_rows, -(-num_rows // _ROW_STEP) * _ROW_STEP)
        self.max_length = max(self.max_length, -(-max_length // _LENGTH_STEP) * _LENGTH_STEP)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                if old.numel():
                    tensors[layer] = self._grown(old)

    def layer(self, layer: int, num_heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
        """The layer's (keys, values), allocated at its first use because only the model knows their shape."""
        if not self.keys[layer].numel():
            # Zeros, not garbage: a masked key still meets a weight of 0, and 0 * NaN is NaN.
            shape = (self.num_rows, num_heads, self.max_length, head_dim)
            self.keys[layer] = torch.zeros(shape, dtype=self._dtype, device=self._device)
            self.values[layer] = torch.zeros(shape, dtype=self._dtype, device=self._device)
        return self.keys[layer], self.values[layer]

    def move(self, source: int, target: int, length: int) -> None:
        """Row `source` replaces row `target`."""
        for tensors in (self.keys, self.values):
            for held in tensors:
                if held.numel():
                    held[target, :, :length] = held[source, :, :length]

    def release(self) -> None:
        """Gives the memory back; only for an idle engine."""
        self.keys = [torch.empty(0)] * len(self.keys)
        self.values = [torch.empty(0)] * len(self.values)
        self.num_rows = self.max_length = 0

    def _grown(self, old: Tensor) -> Tensor:
        new = old.new_zeros(self.num_rows, old.shape[1], self.max_length, old.shape[3])
        new[: old.shape[0], :, : old.shape[2]] = old
        return new


class PrefillLayout:
    """Packed prompts that attend to themselves; their keys and values go to the rows of all requests that share them.

    `prompts` are (token range, cache rows)."""

    def __init__(self, cache: KVCache, prompts: list[tuple[range, range]]) -> None:
        self._cache = cache
        self._prompts = prompts

    def attend(self, layer: int, query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, scale: float) -> Tensor:
        keys, values = self._cache.layer(layer, key_1KTD.shape[1], key_1KTD.shape[3])
        outputs = []
        for tokens, rows in self._prompts:
            part = slice(tokens.start, tokens.stop)
            keys[rows.start : rows.stop, :, : len(tokens)] = key_1KTD[:, :, part]
            values[rows.start : rows.stop, :, : len(tokens)] = value_1KTD[:, :, part]
            outputs.append(
                torch.nn.functional.scaled_dot_product_attention(
                    query_1HTD[:, :, part],
                    key_1KTD[:, :, part],
                    value_1KTD[:, :, part],
                    is_causal=True,
                    scale=scale,
                    enable_gqa=True,
                )
            )
        return torch.cat(outputs, 2).transpose(1, 2)


class DecodeLayout:
    """One new token for each of the first n rows, written at `lengths_N` and attending to all tokens up to it."""

    def __init__(self, cache: KVCache, lengths_N: Tensor) -> None:
        self._cache = cache
        self._lengths_N = lengths_N
        self._num_rows = lengths_N.numel()
        self._rows_N = torch.arange(self._num_rows, device=lengths_N.device)
        self._num_keys = int(lengths_N.max()) + 1
        visible = torch.arange(self._num_keys, device=lengths_N.device)[None] <= lengths_N[:, None]
        self._visible = visible[:, None, None]

    def attend(self, layer: int, query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, scale: float) -> Tensor:
        keys, values = self._cache.layer(layer, key_1KTD.shape[1], key_1KTD.shape[3])
        keys[self._rows_N, :, self._lengths_N] = key_1KTD[0].transpose(0, 1)
        values[self._rows_N, :, self._lengths_N] = value_1KTD[0].transpose(0, 1)
        out = torch.nn.functional.scaled_dot_product_attention(
            query_1HTD[0].transpose(0, 1).unsqueeze(2),
            keys[: self._num_rows, :, : self._num_keys],
            values[: self._num_rows, :, : self._num_keys],
            attn_mask=self._visible,
            scale=scale,
            enable_gqa=True,
        )
        return out[:, :, 0][None]
