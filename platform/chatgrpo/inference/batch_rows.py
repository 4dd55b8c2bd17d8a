"""What `TorchEngine` knows of a request: while it waits, in a prefill, as a row of the batch, and after its end."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from chatgrpo.inference.activation_tape import ActivationTape
from chatgrpo.inference.adapters import LoraAdapter
from chatgrpo.inference.drafts import Drafter
from chatgrpo.inference.engine import GenerationRequest
from chatgrpo.inference.kv_cache import Prefix, SavedRow


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request with the version of the adapter that will answer it, and the tape for its activations."""

    request: GenerationRequest
    adapter: LoraAdapter | None
    tape: ActivationTape | None


@dataclass(slots=True)
class Row:
    """A running request. `length` tokens of it are computed, of which the first lie in `prefix`; `last` is sampled but
    not yet computed. `slots`: where the computed ones lie on the tape, None when not all of them do."""

    request: GenerationRequest
    adapter: LoraAdapter | None
    tape: ActivationTape | None
    uniforms: list[float]
    drafter: Drafter | None = None
    prefix: Prefix | None = None
    length: int = 0
    last: int = -1
    generated: list[int] = field(default_factory=list)
    slots: list[int] | None = None

    @property
    def own_length(self) -> int:
        """Tokens that the row itself holds in the cache."""
        return self.length - (self.prefix.length if self.prefix else 0)

    def final_length(self, limit: int) -> int:
        """Tokens that the row itself may hold in the end."""
        total = min(self.length + self.request.params.max_tokens - len(self.generated), limit)
        return total - (self.length - self.own_length)

    @property
    def computed_ids(self) -> tuple[int, ...]:
        return (*self.request.prompt_ids, *self.generated)[: self.length]


@dataclass(frozen=True, slots=True)
class Kept:
    """A finished request whose conversation may go on."""

    token_ids: tuple[int, ...]
    adapter: LoraAdapter | None
    prefix: Prefix | None
    saved: SavedRow
    slots: list[int] | None


@dataclass(slots=True)
class Prefill:
    """New tokens for rows that begin alike, and what was kept of the conversation that they continue."""

    new_ids: tuple[int, ...]
    rows: list[Row]
    kept: Kept | None = None

    def serves(self, new_ids: tuple[int, ...], waiting: Waiting) -> bool:
        """Whether a request that continues nothing can join the rows."""
        first = self.rows[0]
        same = first.adapter is waiting.adapter and first.tape is waiting.tape
        return same and self.kept is None and self.new_ids == new_ids


def uniforms(request: GenerationRequest) -> list[float]:
    """One number a token from the request's own stream; from torch's global one when it has no seed."""
    generator = None if request.params.seed is None else torch.Generator().manual_seed(request.params.seed)
    drawn: list[float] = torch.rand(request.params.max_tokens, generator=generator).tolist()
    return drawn
