"""Adapters side by side on the fast path: `LlamaWeights` whose products add what each row's adapter says.

One view serves every forward of an engine; `speaking` tells it who speaks in the next one. Few rows, as in decoding,
take one masked product for all adapters: their factors are stacked, and a mask keeps each row to its own columns,

    y += ((x A^T) * mask) B^T,    A = [A_1; A_2; ...] SI,  B = [B_1 B_2 ...] OS,  mask_TS = 1 or 0

which wastes arithmetic that a decode step, bound by reading weights, does not miss and saves it hundreds of calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from chatgrpo.inference import products
from chatgrpo.inference.adapters import LoraAdapter, RowAdapters
from chatgrpo.inference.llama_weights import Fused, LlamaWeights
from chatgrpo.inference.native.decode import DecodeKernel
from chatgrpo.inference.native.kernels import Beside, Panels

# Beyond so many rows the waste costs more than the calls.
_STACKED_ROWS = 64
# With more adapters in a batch each is multiplied apart.
_MAX_SLOTS = 8


class AdaptedWeights(LlamaWeights):
    """A view of `base`, which has no adapters of its own: the same tensors, and a packed copy for decoding."""

    def __init__(self, base: LlamaWeights, causal_lm: Any) -> None:
        self.__dict__.update(base.__dict__)
        paths = {id(module): path for path, module in causal_lm.named_modules()}
        self._base = base
        self._speech = _Speech()
        self._head_path = paths[id(self._head)]
        self._sites: list[_AdaptedFused] = []
        self.layers = []
        for layer in base.layers:
            qkv, out, gate_up, down = sites = [_AdaptedFused(site, paths, self._speech) for site in layer.sites()]
            self.layers.append(replace(layer, qkv=qkv, out=out, gate_up=gate_up, down=down))
            self._sites += sites
        self._slots: list[LoraAdapter | None] = []
        self._slot_rank = 0
        self._all_masks: dict[int, Tensor] = {}
        self._kernel = None
        self._has_kernels = DecodeKernel.suits(base)

    @contextlib.contextmanager
    def speaking(self, rows: RowAdapters, head_rows: RowAdapters) -> Iterator[None]:
        """Whose rows the forward within has, and those whose logits are asked for."""
        speech = self._speech
        speech.rows, speech.head_rows = rows, head_rows
        # In decoding every row has its logits. A kernel takes stacked factors only; without one, a single adapter is
        # faster apart.
        fewest = 1 if self._has_kernels else 2
        if rows is head_rows and rows.num_rows <= _STACKED_ROWS and fewest <= len(rows.groups) <= _MAX_SLOTS:
            speech.masks = self._masks(rows)
        try:
            yield
        finally:
            speech.rows, speech.head_rows, speech.masks = None, None, {}

    def decode_kernel(self) -> DecodeKernel | None:
        """Of the stacked adapters; None where they are not stacked."""
        if not self._speech.masks or not self._has_kernels:
            return None
        if self._kernel is None:
            self._kernel = DecodeKernel(self)
        return self._kernel

    def logits(self, hidden_NE: Tensor) -> Tensor:
        logits_NV = self._base.logits(hidden_NE)
        if self._speech.head_rows is not None:
            self._speech.head_rows.add_(self._head_path, hidden_NE, logits_NV)
        return logits_NV

    # The stack

    def _masks(self, rows: RowAdapters) -> dict[int, Tensor]:
        """By the number of a site's projections: TS, 1 in the columns of the row's adapter."""
        slots = self._place([group.adapter for group in rows.groups])
        owner_TG = self.embedding.new_zeros(rows.num_rows, len(self._slots))
        for group, slot in zip(rows.groups, slots, strict=True):
            if group.rows is None:
                owner_TG[:, slot] = 1
            else:
                owner_TG[group.rows, slot] = 1
        for num_parts, mask in self._all_masks.items():
            mask[: rows.num_rows] = owner_TG.repeat_interleave(num_parts * self._slot_rank, 1)
        return {num_parts: mask[: rows.num_rows] for num_parts, mask in self._all_masks.items()}

    def _place(self, adapters: list[LoraAdapter]) -> list[int]:
        """The slot of each adapter; those that are not in one take the places of others that do not speak now."""
        rank = max(adapter.rank for adapter in adapters)
        if rank > self._slot_rank or len(adapters) > len(self._slots):
            self._slot_rank = max(rank, self._slot_rank)
            self._slots = [None] * max(len(adapters), len(self._slots))
            self._make_stacks()
        speaking = {id(adapter) for adapter in adapters}
        held = {id(adapter): slot for slot, adapter in enumerate(self._slots)}
        free = (slot for slot, adapter in enumerate(self._slots) if id(adapter) not in speaking)
        for adapter in adapters:
            if id(adapter) not in held:
                slot = held[id(adapter)] = next(free)
                self._slots[slot] = adapter
                for site in self._sites:
                    site.fill(slot, adapter, self._slot_rank)
        return [held[id(adapter)] for adapter in adapters]

    def _make_stacks(self) -> None:
        self._kernel = None  # it points to the old ones
        width = len(self._slots) * self._slot_rank
        self._all_masks = {n: self.embedding.new_zeros(_STACKED_ROWS, n * width) for n in (1, 2, 3)}
        for site in self._sites:
            site.make_stack(len(self._slots), self._slot_rank, self._all_masks)


@dataclass(slots=True)
class _Speech:
    """Of the forward that is running. `masks` is empty when its adapters are not stacked."""

    rows: RowAdapters | None = None
    head_rows: RowAdapters | None = None
    masks: dict[int, Tensor] = field(default_factory=dict)


class _AdaptedFused(Fused):
    """A site of the base, and the stacked factors: A is SI and B is OS, slot by slot, in it projection by projection;
    what a slot does not use is 0."""

    def __init__(self, base: Fused, paths: dict[int, str], speech: _Speech) -> None:
        assert not base.has_adapters, "the base must have no adapters of its own"
        self.__dict__.update(base.__dict__)
        self._base = base
        self._parts = [(paths[id(p.module)], p.start, p.stop) for p in base.projections]
        self._speech = speech
        self._stack: Beside | _Plain | None = None

    @property
    def beside(self) -> Beside | None:
        return self._stack if isinstance(self._stack, Beside) else None

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self._adapted(x, products.linear(x, self.spoken, self.bias, out))

    def added_to(self, x: Tensor, residual: Tensor, out: Tensor | None = None) -> Tensor:
        return self._adapted(x, products.linear_add(x, self.spoken, self.bias, residual, out))

    def _adapted(self, x: Tensor, y: Tensor) -> Tensor:
        if self._speech.masks:
            assert self._stack is not None
            low_TS = products.linear(x, self._stack.low).mul_(self._speech.masks[len(self._parts)])
            return products.linear_add(low_TS, self._stack.high, None, y, y)
        if self._speech.rows is not None:
            for path, start, stop in self._parts:
                self._speech.rows.add_(path, x, y[:, start:stop])
        return y

    def make_stack(self, num_slots: int, rank: int, masks: dict[int, Tensor]) -> None:
        (num_out, num_in), width = self.weight.shape, num_slots * len(self._parts) * rank
        if isinstance(self.spoken, Panels):
            mask = masks[len(self._parts)]
            self._stack = Beside(Panels.zeros(width, num_in), Panels.zeros(num_out, width), mask)
        else:
            self._stack = _Plain(self.weight.new_zeros(width, num_in), self.weight.new_zeros(num_out, width))

    @torch.no_grad()
    def fill(self, slot: int, adapter: LoraAdapter, rank: int) -> None:
        width = len(self._parts) * rank
        low = self.weight.new_zeros(width, self.weight.shape[1])
        high = self.weight.new_zeros(self.weight.shape[0], width)
        for index, (path, start, stop) in enumerate(self._parts):
            if (layer := adapter.layers.get(path)) is not None:
                columns = slice(index * rank, index * rank + layer.a_RI.shape[0])
                low[columns] = layer.a_RI
                torch.mul(layer.b_OR, layer.scale, out=high[start:stop, columns])
        first, stack = slot * width, self._stack
        if isinstance(stack, Beside):
            stack.low.set_outputs(first, low)
            stack.high.set_inputs(slice(first, first + width), high)
        elif stack is not None:
            stack.low[first : first + width] = low
            stack.high[:, first : first + width] = high


@dataclass(frozen=True, slots=True)
class _Plain:
    """A stack where there are no kernels."""

    low: Tensor
    high: Tensor
