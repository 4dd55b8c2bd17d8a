"""The fast path of `Policy`: hidden states of a packed micro-batch without autograd inside the decoder."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chatgrpo.inference.activation_tape import ActivationTape, Recording
from chatgrpo.inference.llama_forward import forward, rms_norm
from chatgrpo.inference.llama_weights import LlamaWeights
from chatgrpo.training.batch import MicroBatch
from chatgrpo.training.llama_backward import backward


class _Hidden(torch.autograd.Function):
    """Hidden states at `source_N`. Its backward adds to `.grad` itself; `anchor` only ties it into the graph."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, weights: LlamaWeights, batch: MicroBatch, recording: Recording) -> Tensor:
        ctx.held = (weights, batch, recording)
        source_N = batch.source_N.to(anchor.device)
        return rms_norm(recording.last().index_select(0, source_N), weights.final_norm, weights.eps)

    @staticmethod
    def backward(ctx: Any, d_hidden_NE: Tensor) -> tuple[None, ...]:
        weights, batch, recording = ctx.held
        ctx.held = None
        device = d_hidden_NE.device
        d_hidden_TE = d_hidden_NE.new_zeros(batch.input_ids_T.numel(), d_hidden_NE.shape[-1])
        d_hidden_TE.index_add_(0, batch.source_N.to(device), d_hidden_NE)
        ids, positions = batch.input_ids_T.to(device), batch.positions_T.to(device)
        backward(weights, ids, positions, batch.layout(device), recording, d_hidden_TE)
        return None, None, None, None


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the rollout computed for a micro-batch, with the weights that the policy still has."""

    recording: Recording
    logprobs_N: Tensor
    entropy_N: Tensor


def remember(tape: ActivationTape, batch: MicroBatch) -> Remembered | None:
    """None when not all of the micro-batch is on the tape."""
    slots: list[int] = []
    for row, start, stop in batch.origins:
        found = tape.find(batch.rows[row].episode.token_ids[:-1])
        if found is None:
            return None
        slots += found[start:stop]
    device = tape.device
    entropies = tape.entropies([slots[i] for i in batch.source_N.tolist()])
    return Remembered(
        tape.recording(torch.tensor(slots, device=device)),
        batch.sampler_logprobs_N.to(device),
        torch.tensor(entropies, dtype=torch.float32, device=device),
    )


class Scratch:
    """Memory for what a forward of the update leaves; one micro-batch after the other uses it, and it stays: new pages
    would cost a fifth of the forward."""

    def __init__(self) -> None:
        self._tape: ActivationTape | None = None
        self._last: Callable[[], Recording | None] = lambda: None

    def record(self, weights: LlamaWeights, batch: MicroBatch) -> Recording:
        """A forward. While what it leaves is held by someone, the next one takes other memory."""
        device = weights.embedding.device
        num_tokens = batch.input_ids_T.numel()
        if self._tape is None or self._tape.max_tokens < num_tokens or self._last() is not None:
            self._tape = ActivationTape(weights, max_tokens=num_tokens)
        self._tape.clear()
        recorded = self._tape.record(num_tokens)
        assert recorded is not None
        recorder, slots = recorded
        forward(weights, batch.input_ids_T.to(device), batch.positions_T.to(device), batch.layout(device), recorder)
        recording = self._tape.recording(torch.arange(slots.start, slots.stop, device=device))
        self._last = weakref.ref(recording)
        return recording


def hidden_states(weights: LlamaWeights, batch: MicroBatch, recording: Recording) -> Tensor:
    """NE, after the last norm."""
    device = weights.embedding.device
    anchor = torch.zeros((), device=device, requires_grad=torch.is_grad_enabled())
    hidden_NE: Tensor = _Hidden.apply(anchor, weights, batch, recording)  # type: ignore[no-untyped-call]
    return hidden_NE
