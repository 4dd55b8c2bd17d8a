"""The platform's own engine: continuous batching over a Hugging Face model with our KV cache, on CPU and GPU.

Every distinct prompt is prefilled once for all requests of its group; a finished row leaves the batch at once and a
waiting one takes its place. The engine uses the model's modules as they are, so a model that is being trained in the
same process speaks with its newest weights: call `weights_changed` after each update.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from chatgrpo.errors import InvalidRequest
from chatgrpo.inference.chat_template import ChatTemplate
from chatgrpo.inference.engine import FinishReason, GenerationRequest, TokenEvent
from chatgrpo.inference.kv_cache import DecodeLayout, KVCache, PrefillLayout
from chatgrpo.inference.sampling import sample

# Prompt tokens of one prefill forward: bounds its activations and how long running rows wait for newcomers.
_PREFILL_TOKENS = 2048
# Stop strings are looked for in the text of this many last tokens.
_STOP_WINDOW = 32


@dataclass(slots=True)
class _Row:
    """A running request. `length` tokens of it are in the cache; `last` is sampled but not yet in it."""

    request: GenerationRequest
    uniforms: list[float]
    length: int = 0
    last: int = -1
    generated: list[int] = field(default_factory=list)


class TorchEngine:
    """Implements `Engine`. Not thread-safe: one thread adds, steps and cancels."""

    def __init__(
        self, model: Any, template: ChatTemplate, *, max_batch_size: int = 64, weight_version: int = 0
    ) -> None:
        self._model = model
        self._template = template
        self._max_batch_size = max_batch_size
        self._max_length = int(model.config.max_position_embeddings)
        self._device = next(model.parameters()).device
        self._cache = KVCache(model.config.num_hidden_layers, next(model.parameters()).dtype, self._device)
        self._waiting: deque[GenerationRequest] = deque()
        self._rows: list[_Row] = []
        self._weight_version = weight_version

    @property
    def weight_version(self) -> int:
        return self._weight_version

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._rows)

    def weights_changed(self, version: int) -> None:
        """The model's parameters were updated in place; the engine must be idle: its cache is that of the old ones."""
        assert not self.has_work, "weights may change only between generations"
        self._weight_version = version
        self._cache.release()

    def add(self, request: GenerationRequest) -> None:
        length = len(request.prompt_ids)
        if not length:
            raise InvalidRequest("prompt is empty; give at least one token", "prompt")
        if length >= self._max_length:
            raise InvalidRequest(
                f"prompt of {length} tokens leaves no room in the context window of {self._max_length}", "prompt"
            )
        self._waiting.append(request)

    def cancel(self, request_id: str) -> None:
        self._waiting = deque(r for r in self._waiting if r.request_id != request_id)
        for index, row in enumerate(self._rows):
            if row.request.request_id == request_id:
                self._remove([index])
                return

    @torch.no_grad()
    def step(self) -> list[TokenEvent]:
        events = self._decode() if self._rows else []
        if self._waiting and len(self._rows) < self._max_batch_size:
            events += self._admit()
        if not self.has_work:
            self._cache.release()
        return events

    def _admit(self) -> list[TokenEvent]:
        """Prefills as many waiting requests as there is room for, each distinct prompt once."""
        prompts: list[tuple[tuple[int, ...], list[_Row]]] = []
        num_tokens, room = 0, self._max_batch_size - len(self._rows)
        while self._waiting and room:
            request = self._waiting[0]
            shares = bool(prompts) and prompts[-1][0] == request.prompt_ids
            if not shares and prompts and num_tokens + len(request.prompt_ids) > _PREFILL_TOKENS:
                break
            self._waiting.popleft()
            row = _Row(request, _uniforms(request))
            if shares:
                prompts[-1][1].append(row)
            else:
                prompts.append((request.prompt_ids, [row]))
                num_tokens += len(request.prompt_ids)
            room -= 1
        return self._prefill(prompts)

    def _prefill(self, prompts: list[tuple[tuple[int, ...], list[_Row]]]) -> list[TokenEvent]:
        first = len(self._rows)
        ranges: list[tuple[range, range]] = []
        offset = 0
        for ids, rows in prompts:
            ranges.append((range(offset, offset + len(ids)), range(len(self._rows), len(self._rows) + len(rows))))
            offset += len(ids)
            for row in rows:
                row.length = len(ids)
                self._rows.append(row)
        self._reserve()
        input_ids = torch.tensor([[i for ids, _ in prompts for i in ids]], device=self._device)
        positions = torch.cat([torch.arange(len(ids), device=self._device) for ids, _ in prompts])[None]
        last = torch.tensor([tokens.stop - 1 for tokens, _ in ranges], device=self._device)
        logits = self._forward(input_ids, positions, PrefillLayout(self._cache, ranges), last)
        repeats = torch.tensor([len(rows) for _, rows in prompts], device=self._device)
        return self._sample(first, logits.repeat_interleave(repeats, 0))

    def _decode(self) -> list[TokenEvent]:
        self._reserve()
        lengths = torch.tensor([row.length for row in self._rows], device=self._device)
        input_ids = torch.tensor([[row.last for row in self._rows]], device=self._device)
        logits = self._forward(input_ids, lengths[None], DecodeLayout(self._cache, lengths), None)
        for row in self._rows:
            row.length += 1
        return self._sample(0, logits)

    def _forward(self, input_ids: Tensor, positions: Tensor, layout: Any, keep: Tensor | None) -> Tensor:
        """Logits of the positions in `keep` (all when None): NV."""
        out = self._model(
            input_ids=input_ids,
            position_ids=positions,
            use_cache=False,
            layout=layout,
            logits_to_keep=0 if keep is None else keep,
        )
        logits: Tensor = out.logits[0]
        return logits

    def _reserve(self) -> None:
        # The final length, not the present one: growing in the middle of a generation would copy the whole cache.
        length = max(
            min(r.length + r.request.params.max_tokens - len(r.generated), self._max_length) for r in self._rows
        )
        self._cache.reserve(len(self._rows), length + 1)

    def _sample(self, first: int, logits: Tensor) -> list[TokenEvent]:
        """Samples for the rows from `first` on, tells their tokens and drops the finished."""
        rows = self._rows[first:]
        params = [row.request.params for row in rows]

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self._device)

        sampled = sample(
            logits,
            temperature_N=column([p.temperature for p in params]),
            top_p_N=column([p.top_p for p in params]),
            top_k_N=torch.tensor([p.top_k for p in params], device=self._device),
            uniform_N=column([row.uniforms[len(row.generated)] for row in rows]),
        )
        events, finished = [], []
        tokens, logprobs = sampled.tokens_N.tolist(), sampled.logprobs_N.tolist()
        for index, (row, token, logprob) in enumerate(zip(rows, tokens, logprobs, strict=True), start=first):
            row.last = token
            row.generated.append(token)
            reason = self._finish_reason(row)
            if reason is not None:
                finished.append(index)
            events.append(TokenEvent(row.request.request_id, token, logprob, reason))
        self._remove(finished)
        return events

    def _finish_reason(self, row: _Row) -> FinishReason | None:
        params = row.request.params
        if row.last in self._template.eos_ids and not params.ignore_eos:
            return FinishReason.STOP
        if params.stop:
            text = self._template.decode(row.generated[-_STOP_WINDOW:])
            if any(s in text for s in params.stop):
                return FinishReason.STOP
        if len(row.generated) >= params.max_tokens or row.length + 1 >= self._max_length:
            return FinishReason.LENGTH
        return None

    def _remove(self, indices: list[int]) -> None:
        """Takes rows out of the batch; the last rows move into the holes, so that rows stay dense."""
        for index in sorted(indices, reverse=True):
            last = self._rows.pop()
            if index < len(self._rows):
                self._rows[index] = last
                self._cache.move(len(self._rows), index, last.length)


def _uniforms(request: GenerationRequest) -> list[float]:
    """One number a token from the request's own stream; from torch's global one when it has no seed."""
    generator = None if request.params.seed is None else torch.Generator().manual_seed(request.params.seed)
    drawn: list[float] = torch.rand(request.params.max_tokens, generator=generator).tolist()
    return drawn
