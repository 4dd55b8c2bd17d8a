"""Activations of a rollout, kept so that the update needs no forward of its own.

While the policy has not moved, the forward that sampled a token is the forward that its gradient needs. A tape has a
slot for every token that went through the model: of a prompt once for its whole group, of a reply token by token. What
a layer leaves is its input x, queries, keys and values as projected, the stream between attention and MLP, and the two
projections of the MLP; everything else follows from these without a product with a weight.

A tape has a budget. When it is used up, later tokens are not kept, and whoever looks for them gets None: they are
computed again. Its memory is asked for once, as address space: on the CPU a page is taken when a token first needs it,
and stays for the next rollout, since a new page costs more than what is written there. On a GPU the budget is taken
whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chatgrpo.inference.huge_pages import huge
from chatgrpo.inference.native import kernels

if TYPE_CHECKING:
    from chatgrpo.inference.llama_weights import LlamaWeights


@dataclass(frozen=True, slots=True)
class _Widths:
    x: int
    qkv: int
    gate_up: int
    num_layers: int

    @staticmethod
    def of(weights: LlamaWeights) -> _Widths:
        return _Widths(
            x=weights.hidden_size,
            qkv=(weights.num_heads + 2 * weights.num_kv_heads) * weights.head_dim,
            gate_up=2 * weights.intermediate_size,
            num_layers=len(weights.layers),
        )

    @property
    def values_per_token(self) -> int:
        return self.num_layers * (2 * self.x + self.qkv + self.gate_up) + self.x


class _Memory:
    """Slots of tokens; each field is one tensor of layers x tokens x width."""

    def __init__(self, num_tokens: int, widths: _Widths, like: Tensor) -> None:
        def field(num_layers: int, width: int) -> Tensor:
            return huge(torch.empty(num_layers, num_tokens, width, dtype=like.dtype, device=like.device))

        count = widths.num_layers
        self.x = field(count + 1, widths.x)
        self.qkv = field(count, widths.qkv)
        self.middle = field(count, widths.x)
        self.gate_up = field(count, widths.gate_up)


@dataclass(frozen=True, slots=True)
class Recorder:
    """Takes the activations of one forward."""

    memory: _Memory
    tokens: slice

    def views(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, qkv, middle and gate_up of its tokens, layers x tokens x width, for who writes there directly."""
        held, tokens = self.memory, self.tokens
        return held.x[:, tokens], held.qkv[:, tokens], held.middle[:, tokens], held.gate_up[:, tokens]

    def projected(self, index: int, *, x: Tensor, qkv: Tensor) -> None:
        """Before norms and rotation of the heads, which work in place."""
        _put(x, self.memory.x[index, self.tokens])
        _put(qkv, self.memory.qkv[index, self.tokens])

    def layer(self, index: int, *, middle: Tensor, gate_up: Tensor) -> None:
        _put(middle, self.memory.middle[index, self.tokens])
        _put(gate_up, self.memory.gate_up[index, self.tokens])

    def last(self, x: Tensor) -> None:
        """Output of the last layer, before the last norm."""
        _put(x, self.memory.x[-1, self.tokens])


def _put(value: Tensor, held: Tensor) -> None:
    """Unless it was computed there."""
    if value.data_ptr() != held.data_ptr():
        held.copy_(value)


@dataclass(frozen=True, slots=True)
class SplitRecorder:
    """Takes the activations of one forward apart: (recorder, its rows of the forward), for tapes of several owners."""

    parts: tuple[tuple[Recorder, Tensor], ...]

    def projected(self, index: int, *, x: Tensor, qkv: Tensor) -> None:
        for recorder, rows in self.parts:
            recorder.projected(index, x=x[rows], qkv=qkv[rows])

    def layer(self, index: int, *, middle: Tensor, gate_up: Tensor) -> None:
        for recorder, rows in self.parts:
            recorder.layer(index, middle=middle[rows], gate_up=gate_up[rows])

    def last(self, x: Tensor) -> None:
        for recorder, rows in self.parts:
            recorder.last(x[rows])

    def take(self, activations: tuple[Tensor, ...]) -> None:
        """From a decode kernel, all layers at once: x, qkv, middle and gate_up, layers x tokens x width. There may be
        more layers than a tape has."""
        for recorder, rows in self.parts:
            for held, given in zip(recorder.views(), activations, strict=True):
                kernels.take_rows(given[: held.shape[0]], rows, held)

    def views(self) -> None:
        """None: its rows are in several places; `take` brings them there."""


@dataclass(frozen=True, slots=True)
class Activations:
    """What one layer left for the chosen tokens, in their order."""

    x: Tensor
    qkv: Tensor
    middle: Tensor
    gate_up: Tensor


class Recording:
    """The chosen tokens of a tape."""

    def __init__(self, memory: _Memory, slots_T: Tensor) -> None:
        self._memory = memory
        self._slots_T = slots_T
        first, count = int(slots_T[0]), slots_T.numel()
        whole = torch.arange(first, first + count, device=slots_T.device)
        # Slots in one piece, as after a forward for an update alone, need no copy.
        self._piece = slice(first, first + count) if torch.equal(slots_T, whole) else None

    def layer(self, index: int) -> Activations:
        held = self._memory
        return Activations(*(self._take(field, index) for field in (held.x, held.qkv, held.middle, held.gate_up)))

    def last(self) -> Tensor:
        return self._take(self._memory.x, -1)

    def _take(self, field: Tensor, layer: int) -> Tensor:
        return field[layer].index_select(0, self._slots_T) if self._piece is None else field[layer, self._piece]


class ActivationTape:
    """`max_tokens`: its budget."""

    def __init__(self, weights: LlamaWeights, *, max_tokens: int) -> None:
        self._widths = _Widths.of(weights)
        self._like = weights.embedding
        self.max_tokens = max_tokens
        self._memory: _Memory | None = None
        self._used = 0
        self._slots: dict[tuple[int, ...], list[int]] = {}
        self._entropies: dict[int, float] = {}

    @staticmethod
    def bytes_per_token(weights: LlamaWeights) -> int:
        return weights.embedding.element_size() * _Widths.of(weights).values_per_token

    @property
    def device(self) -> torch.device:
        return self._like.device

    def record(self, num_tokens: int) -> tuple[Recorder, range] | None:
        """Slots for the tokens of one forward, or None when the budget is used up."""
        if self._used + num_tokens > self.max_tokens:
            return None
        slots = range(self._used, self._used + num_tokens)
        self._used += num_tokens
        return Recorder(self._held(), slice(slots.start, slots.stop)), slots

    def remember(self, token_ids: Sequence[int], slots: Sequence[int]) -> None:
        """Where the tokens of one sequence lie. Equal sequences have equal activations: any of them will do."""
        self._slots[tuple(token_ids)] = list(slots)

    def find(self, token_ids: Sequence[int]) -> list[int] | None:
        return self._slots.get(tuple(token_ids))

    def tell_entropies(self, entropies: Iterable[tuple[int, float]]) -> None:
        """(slot, nats) of the distributions that the tokens at the slots led to."""
        self._entropies.update(entropies)

    def entropies(self, slots: Sequence[int]) -> list[float]:
        return [self._entropies[s] for s in slots]

    def recording(self, slots_T: Tensor) -> Recording:
        return Recording(self._held(), slots_T)

    def clear(self) -> None:
        """Forgets every token and keeps the memory for the next ones."""
        self._slots.clear()
        self._entropies.clear()
        self._used = 0

    def release(self) -> None:
        """Forgets every token and gives the memory back."""
        self.clear()
        self._memory = None

    def _held(self) -> _Memory:
        if self._memory is None:
            self._memory = _Memory(self.max_tokens, self._widths, self._like)
        return self._memory
