"""Activations of a rollout, kept so that the update needs no forward of its own.

While the policy has not moved, the forward that sampled a token is the forward that its gradient needs. A tape has a
slot for every token that went through the model: of a prompt once for its whole group, of a reply token by token. What
a layer leaves is its input x, queries, keys and values as projected, the stream between attention and MLP, and the two
projections of the MLP; everything else follows from these without a product with a weight.

A tape has a budget. When it is used up, later tokens are not kept, and whoever looks for them gets None: they are
computed again. Memory is taken block by block, so a large budget that is not needed costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatgrpo.inference.huge_pages import huge
from chatgrpo.inference.llama_weights import LlamaWeights

# About 160 MB for SmolLM2-135M: a block that is begun is soon held as a whole.
_BLOCK_TOKENS = 256


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


class _Block:
    """Slots of consecutive tokens; each field is one tensor of layers x tokens x width."""

    def __init__(self, num_tokens: int, widths: _Widths, like: Tensor) -> None:
        def field(num_layers: int, width: int) -> Tensor:
            return huge(torch.empty(num_layers, num_tokens, width, dtype=like.dtype, device=like.device))

        count = widths.num_layers
        self.x = field(count + 1, widths.x)
        self.qkv = field(count, widths.qkv)
        self.middle = field(count, widths.x)
        self.gate_up = field(count, widths.gate_up)
        self.num_tokens = num_tokens


@dataclass(frozen=True, slots=True)
class Recorder:
    """Takes the activations of one forward."""

    block: _Block
    tokens: slice

    def views(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, qkv, middle and gate_up of its tokens, layers x tokens x width, for who writes there directly."""
        block, tokens = self.block, self.tokens
        return block.x[:, tokens], block.qkv[:, tokens], block.middle[:, tokens], block.gate_up[:, tokens]

    def projected(self, index: int, *, x: Tensor, qkv: Tensor) -> None:
        """Before norms and rotation of the heads, which work in place."""
        _put(x, self.block.x[index, self.tokens])
        _put(qkv, self.block.qkv[index, self.tokens])

    def layer(self, index: int, *, middle: Tensor, gate_up: Tensor) -> None:
        _put(middle, self.block.middle[index, self.tokens])
        _put(gate_up, self.block.gate_up[index, self.tokens])

    def last(self, x: Tensor) -> None:
        """Output of the last layer, before the last norm."""
        _put(x, self.block.x[-1, self.tokens])

    def take(self, activations: tuple[Tensor, ...]) -> None:
        """Of all layers at once, as `views`; there may be more layers than it has."""
        for held, given in zip(self.views(), activations, strict=True):
            held.copy_(given[: held.shape[0]])


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
        """All layers at once: x, qkv, middle and gate_up, layers x tokens x width."""
        for recorder, rows in self.parts:
            recorder.take(tuple(given[:, rows] for given in activations))

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

    def __init__(self, blocks: Sequence[_Block], slots_T: Tensor) -> None:
        self._num_tokens = slots_T.numel()
        self._parts: list[tuple[_Block, Tensor, Tensor]] = []
        first = 0
        for block in blocks:
            inside = ((slots_T >= first) & (slots_T < first + block.num_tokens)).nonzero()[:, 0]
            if inside.numel():
                self._parts.append((block, inside, slots_T[inside] - first))
            first += block.num_tokens

    def layer(self, index: int) -> Activations:
        return Activations(*(self._take(name, index) for name in ("x", "qkv", "middle", "gate_up")))

    def last(self) -> Tensor:
        return self._take("x", -1)

    def _take(self, field: str, layer: int) -> Tensor:
        if len(self._parts) == 1:
            block, _, local = self._parts[0]
            held: Tensor = getattr(block, field)[layer]
            return held.index_select(0, local)
        taken: Tensor | None = None
        for block, target, local in self._parts:
            held = getattr(block, field)[layer]
            if taken is None:
                taken = held.new_empty(self._num_tokens, held.shape[-1])
            taken[target] = held.index_select(0, local)
        assert taken is not None
        return taken


class ActivationTape:
    """`max_tokens`: its budget. Slots are numbered through all blocks: `_next` is next, `_end` behind the last."""

    def __init__(self, weights: LlamaWeights, *, max_tokens: int) -> None:
        self._widths = _Widths.of(weights)
        self._like = weights.embedding
        self._max_tokens = max_tokens
        self._blocks: list[_Block] = []
        self._used = self._next = self._end = 0
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
        # What is left of the last block when the next forward does not fit: in large pages it is held all the same.
        spoilt = self._end - self._next if self._next + num_tokens > self._end else 0
        if self._used + spoilt + num_tokens > self._max_tokens:
            return None
        if self._next + num_tokens > self._end:
            self._next = self._end
            self._used += spoilt
            # Of whole forwards like this one, so that nothing is left while they stay alike.
            size = min(num_tokens * max(1, _BLOCK_TOKENS // num_tokens), self._max_tokens - self._used)
            self._blocks.append(_Block(size, self._widths, self._like))
            self._end += size
        block = self._blocks[-1]
        slots = range(self._next, self._next + num_tokens)
        start = self._next - (self._end - block.num_tokens)
        self._next += num_tokens
        self._used += num_tokens
        return Recorder(block, slice(start, start + num_tokens)), slots

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
        return Recording(self._blocks, slots_T)

    def clear(self) -> None:
        self._blocks.clear()
        self._slots.clear()
        self._entropies.clear()
        self._used = self._next = self._end = 0
