"""Keys and values of the running requests, as dense rows without holes.

Row i of every tensor belongs to the i-th running request. A finished row's place is taken by the last one, so that a
decode step reads the slice [:n] and never gathers. What many rows begin with is held once, as a `Prefix` beside the
rows; a row then holds only what came after it.

Shapes: S rows, K key/value heads, L tokens of a row, P tokens of a prefix, D head dimension, H query heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from chatgrpo.inference.cache_size import rounded
from chatgrpo.inference.huge_pages import zeros
from chatgrpo.inference.native.prefill import PrefillKernel


class Prefix:
    """Keys and values of the tokens that several rows have in common; one KPD tensor a layer."""

    def __init__(self, num_layers: int, length: int) -> None:
        self.keys: list[Tensor] = [torch.empty(0)] * num_layers
        self.values: list[Tensor] = [torch.empty(0)] * num_layers
        self.length = length

    def before(self, row: SavedRow) -> SavedRow:
        """The row as one that has no prefix."""
        keys, values = torch.stack(self.keys), torch.stack(self.values)
        return SavedRow(torch.cat([keys, row.keys], 2), torch.cat([values, row.values], 2))


@dataclass(frozen=True, slots=True)
class SavedRow:
    """A row that left the batch: layers x KLD, after its prefix."""

    keys: Tensor
    values: Tensor


class KVCache:
    """All layers are one tensor each of keys and values: memory that is given back as a whole leaves no holes."""

    def __init__(self, num_layers: int, dtype: torch.dtype, device: torch.device) -> None:
        self.num_layers = num_layers
        self._dtype, self._device = dtype, device
        self._keys: Tensor | None = None  # layers x SKLD, made at the first use: only the model knows K and D
        self._values: Tensor | None = None
        self.num_rows = 0
        self.max_length = 0

    def reserve(self, num_rows: int, max_length: int) -> None:
        """Makes room for so many rows and tokens; what is held stays."""
        if num_rows <= self.num_rows and max_length <= self.max_length:
            return
        num_rows, max_length = rounded(num_rows, max_length)
        self.num_rows, self.max_length = max(self.num_rows, num_rows), max(self.max_length, max_length)
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._grown(self._keys), self._grown(self._values)

    def layer(self, layer: int, num_heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
        """The layer's (keys, values), SKLD."""
        keys, values = self.whole(num_heads, head_dim)
        return keys[layer], values[layer]

    def whole(self, num_heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
        """(keys, values) of all layers, layers x SKLD."""
        if self._keys is None or self._values is None:
            self._keys, self._values = self._empty(num_heads, head_dim), self._empty(num_heads, head_dim)
        return self._keys, self._values

    def move(self, source: int, target: int, length: int) -> None:
        """Row `source` replaces row `target`."""
        for held in self._both():
            held[:, target, :, :length] = held[:, source, :, :length]

    def save(self, row: int, length: int) -> SavedRow:
        keys, values = (held[:, row, :, :length].clone() for held in self._both())
        return SavedRow(keys, values)

    def restore(self, row: int, saved: SavedRow) -> None:
        _, num_heads, length, head_dim = saved.keys.shape
        self.layer(0, num_heads, head_dim)
        for held, kept in zip(self._both(), (saved.keys, saved.values), strict=True):
            held[:, row, :, :length] = kept

    def release(self) -> None:
        """Gives the memory back; only for an idle engine."""
        self._keys = self._values = None
        self.num_rows = self.max_length = 0

    def _both(self) -> tuple[Tensor, ...]:
        return () if self._keys is None or self._values is None else (self._keys, self._values)

    def _empty(self, num_heads: int, head_dim: int) -> Tensor:
        # Zeros, not garbage: a masked key still meets a weight of 0, and 0 * NaN is NaN.
        shape = (self.num_layers, self.num_rows, num_heads, self.max_length, head_dim)
        return zeros(shape, self._dtype, self._device)

    def _grown(self, old: Tensor) -> Tensor:
        new = self._empty(old.shape[2], old.shape[4])
        new[:, : old.shape[1], :, : old.shape[3]] = old
        return new


@dataclass(frozen=True, slots=True)
class Prompt:
    """New tokens of one or several rows: range `tokens` of the forward, seen by cache rows `rows`.

    They follow `past` tokens that the row holds already, and those of `prefix`. When the new tokens themselves are to
    be the prefix (`fills`), they go there and not into the rows."""

    tokens: range
    rows: range
    past: int = 0
    prefix: Prefix | None = None
    fills: bool = False


class PrefillLayout:
    """Packed prompts that attend to themselves and to what their rows hold."""

    def __init__(self, cache: KVCache, prompts: Sequence[Prompt]) -> None:
        self._cache = cache
        self._prompts = prompts
        self._kernel: PrefillKernel | None = None

    def attend_by_kernel(self, layer: int, qkv_THD: Tensor, num_heads: int, num_kv_heads: int, scale: float) -> Tensor:
        """What `attend` does, for queries, keys and values of all tokens one after the other. -> T(HD)."""
        if self._kernel is None:
            self._kernel = PrefillKernel(self._cache, self._prompts, num_kv_heads, qkv_THD.shape[2])
        return self._kernel(layer, qkv_THD, num_heads, scale)

    def attend(self, layer: int, query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, scale: float) -> Tensor:
        outputs = []
        for prompt in self._prompts:
            part = slice(prompt.tokens.start, prompt.tokens.stop)
            query, key, value = (x[:, :, part] for x in (query_1HTD, key_1KTD, value_1KTD))
            outputs.append(self._attend(prompt, layer, query, key, value, scale))
        return torch.cat(outputs, 2).transpose(1, 2)

    def _attend(
        self, prompt: Prompt, layer: int, query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, scale: float
    ) -> Tensor:
        cache, length = self._cache, len(prompt.tokens)
        keys, values = cache.layer(layer, key_1KTD.shape[1], key_1KTD.shape[3])
        if prompt.fills:
            assert prompt.prefix is not None
            prompt.prefix.keys[layer] = key_1KTD[0].contiguous()
            prompt.prefix.values[layer] = value_1KTD[0].contiguous()
        else:
            rows, new = slice(prompt.rows.start, prompt.rows.stop), slice(prompt.past, prompt.past + length)
            keys[rows, :, new] = key_1KTD
            values[rows, :, new] = value_1KTD
        mask = None
        if not prompt.fills and (prompt.past or prompt.prefix is not None):
            row, end = prompt.rows.start, prompt.past + length
            before = [] if prompt.prefix is None else [prompt.prefix.keys[layer]]
            key_1KTD = torch.cat([*before, keys[row, :, :end]], 1)[None]
            before = [] if prompt.prefix is None else [prompt.prefix.values[layer]]
            value_1KTD = torch.cat([*before, values[row, :, :end]], 1)[None]
            total = key_1KTD.shape[2]
            mask = torch.ones(length, total, dtype=torch.bool, device=key_1KTD.device).tril(total - length)
        return scaled_dot_product_attention(
            query_1HTD, key_1KTD, value_1KTD, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )


class DecodeLayout:
    """One new token for each of the first n rows, written at `lengths_N` of its row and attending to the row up to it
    and to the row's prefix. `prefixes` are (prefix, the rows that begin with it)."""

    def __init__(self, cache: KVCache, lengths_N: Tensor, prefixes: Sequence[tuple[Prefix, Tensor]] = ()) -> None:
        self.cache = cache
        self.lengths_N = lengths_N
        self._num_rows = lengths_N.numel()
        self._rows_N = torch.arange(self._num_rows, device=lengths_N.device)
        self._num_keys = int(lengths_N.max()) + 1
        self._visible_NL = torch.arange(self._num_keys, device=lengths_N.device)[None] <= lengths_N[:, None]
        self.prefixes = prefixes

    def attend(self, layer: int, query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, scale: float) -> Tensor:
        keys, values = self.cache.layer(layer, key_1KTD.shape[1], key_1KTD.shape[3])
        keys[self._rows_N, :, self.lengths_N] = key_1KTD[0].transpose(0, 1)
        values[self._rows_N, :, self.lengths_N] = value_1KTD[0].transpose(0, 1)
        keys, values = (x[: self._num_rows, :, : self._num_keys] for x in (keys, values))
        query_NHD = query_1HTD[0].transpose(0, 1)
        if self.prefixes:
            return self._attend_with_prefixes(layer, query_NHD, keys, values, scale)[None]
        out = scaled_dot_product_attention(
            query_NHD.unsqueeze(2),
            keys,
            values,
            attn_mask=self._visible_NL[:, None, None],
            scale=scale,
            enable_gqa=True,
        )
        return out[:, :, 0][None]

    def _attend_with_prefixes(
        self, layer: int, query_NHD: Tensor, keys_NKLD: Tensor, values_NKLD: Tensor, scale: float
    ) -> Tensor:
        """One softmax over the row's own keys and its prefix's; a prefix is read once for all of its rows."""
        num_rows, num_kv, own, dim = keys_NKLD.shape
        query_NKGD = query_NHD.reshape(num_rows, num_kv, -1, dim) * scale
        longest = max(prefix.length for prefix, _ in self.prefixes)
        scores = query_NHD.new_full((*query_NKGD.shape[:3], own + longest), float("-inf"))
        own_scores = query_NKGD @ keys_NKLD.transpose(-1, -2)
        scores[..., :own] = own_scores.masked_fill_(~self._visible_NL[:, None, None], float("-inf"))
        for prefix, rows in self.prefixes:
            query_KQD = query_NKGD[rows].transpose(0, 1).flatten(1, 2)
            part = (query_KQD @ prefix.keys[layer].transpose(-1, -2)).view(num_kv, rows.numel(), -1, prefix.length)
            scores[rows, :, :, own : own + prefix.length] = part.transpose(0, 1)
        weights = torch.softmax(scores, -1)
        out_NKGD = weights[..., :own] @ values_NKLD
        for prefix, rows in self.prefixes:
            part = weights[rows, :, :, own : own + prefix.length].transpose(0, 1).flatten(1, 2)
            shared = (part @ prefix.values[layer]).view(num_kv, rows.numel(), -1, dim).transpose(0, 1)
            out_NKGD.index_add_(0, rows, shared)
        return out_NKGD.flatten(1, 2)
