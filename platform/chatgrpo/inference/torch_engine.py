"""The platform's own engine: continuous batching over a Hugging Face model with our KV cache, on CPU and GPU.

Every distinct prompt is prefilled once for all requests of its group; a finished row leaves the batch at once and a
waiting one takes its place. The engine uses the model's weights as they are, so a model that is being trained in the
same process speaks with its newest ones: call `weights_changed` after each update. A model that has `LlamaWeights` is
run by fused products and can leave its activations on a tape; any other by its own modules.

LoRA adapters of the model may speak beside it (`set_adapter`), in the same batch: products with the base's weights are
made once for all rows. Every version of an adapter has caches of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from chatgrpo.errors import InvalidRequest
from chatgrpo.inference import admission
from chatgrpo.inference.activation_tape import ActivationTape, Recorder, SplitRecorder
from chatgrpo.inference.adapted_weights import AdaptedWeights
from chatgrpo.inference.adapter_hooks import AdapterHooks
from chatgrpo.inference.adapters import LoraAdapter, RowAdapters
from chatgrpo.inference.admission import AdmissionFacts
from chatgrpo.inference.batch_rows import Kept, Prefill, Row, Waiting, uniforms
from chatgrpo.inference.chat_template import ChatTemplate
from chatgrpo.inference.drafts import MAX_ROWS, Drafter, DraftFacts, StepCosts, decide
from chatgrpo.inference.engine import FinishReason, GenerationRequest, TokenEvent
from chatgrpo.inference.finishing import check_prompt, finish_reason
from chatgrpo.inference.kv_cache import DecodeLayout, KVCache, PrefillLayout, Prefix, Prompt, SavedRow
from chatgrpo.inference.llama_forward import forward
from chatgrpo.inference.llama_weights import LlamaWeights
from chatgrpo.inference.native import kernels
from chatgrpo.inference.prefix_store import Computed, PrefixStore
from chatgrpo.inference.sampling import Sampled, sample

# Prompt tokens of one prefill forward: bounds its activations and how long running rows wait for newcomers.
_PREFILL_TOKENS = 2048
# From this many tokens on, a prompt of several rows is held once. Torch attends faster to shorter ones as part of dense
# rows; kernels read less memory.
_SHARED_PREFIX_TOKENS, _SHARED_BY_KERNELS = 192, 32


class TorchEngine:
    """Implements `Engine`. Not thread-safe: one thread adds, steps and cancels.

    `prefix_bytes`: memory for what prompts begin with, so that it is computed once. `drafts`: with few rows, steps
    verify guesses of what comes next where that pays by `clock` (seconds), and then say several tokens. Both rest while
    a tape is recorded. `patience`: steps that a request waits for others, so that their prompts are computed together.
    None of them changes what is said."""

    def __init__(
        self,
        model: Any,
        template: ChatTemplate,
        *,
        max_batch_size: int = 64,
        weight_version: int = 0,
        weights: LlamaWeights | None = None,
        prefix_bytes: int = 0,
        drafts: bool = False,
        patience: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._weights = weights
        self._template = template
        self._max_batch_size = max_batch_size
        self.context_window = int(model.config.max_position_embeddings)
        self._device = next(model.parameters()).device
        self._cache = KVCache(model.config.num_hidden_layers, next(model.parameters()).dtype, self._device)
        self._waiting: deque[Waiting] = deque()
        self._rows: list[Row] = []
        self._kept: dict[str, Kept] = {}
        self._weight_version = weight_version
        self._adapters: dict[str, LoraAdapter] = {}
        self._beside: AdaptedWeights | AdapterHooks | None = None  # made for the first adapter
        self._tapes: dict[str | None, ActivationTape] = {}
        self._known_prefixes = PrefixStore(prefix_bytes)
        by_kernels = weights is not None and kernels.suit(weights.embedding)
        self._shared_from = _SHARED_BY_KERNELS if by_kernels else _SHARED_PREFIX_TOKENS
        self._drafts, self._clock = drafts, clock
        self._costs = StepCosts()
        self._patience, self._steps_waited = patience, 0

    @property
    def weight_version(self) -> int:
        return self._weight_version

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._rows)

    def weights_changed(self, version: int, *, go_on: bool = False, same: bool = False) -> None:
        """The model's parameters were updated in place. With `go_on`, running and kept conversations go on over what
        the old ones computed of them (partial rollouts; every new token is sampled by the new weights, and its
        log-prob is the one it was sampled with). Without it the engine must be idle, and forgets all of that. `same`:
        the version is new and the parameters are what they were."""
        assert go_on or not self.has_work, "weights may change only between generations"
        self._weight_version = version
        if go_on:
            return
        self._kept.clear()
        self._known_prefixes.clear()
        self._cache.release()
        if self._weights is not None and not same:
            self._weights.release()

    def set_adapter(self, name: str, adapter: LoraAdapter) -> None:
        """From now on requests for `name` are answered by this version; those that are here already end with theirs."""
        if self._beside is None:
            beside = AdapterHooks(self._model) if self._weights is None else AdaptedWeights(self._weights, self._model)
            self._beside = beside
        self.drop_adapter(name)
        self._adapters[name] = adapter

    def drop_adapter(self, name: str) -> None:
        """Forgets an adapter and its kept conversations; requests that are here already end as they began."""
        if (old := self._adapters.pop(name, None)) is not None:
            self._kept = {request_id: kept for request_id, kept in self._kept.items() if kept.adapter is not old}
            self._known_prefixes.forget(old)

    def close(self) -> None:
        """Nothing is held but memory."""

    @contextlib.contextmanager
    def recording(self, tape: ActivationTape | None, adapter: str | None = None) -> Iterator[None]:
        """What is asked of `adapter` within leaves its activations on `tape`. Needs `weights`."""
        assert tape is None or self._weights is not None
        if tape is not None:
            self._tapes[adapter] = tape
        try:
            yield
        finally:
            self._tapes.pop(adapter, None)

    def add(self, request: GenerationRequest) -> None:
        check_prompt(len(request.prompt_ids), self.context_window)
        if request.adapter is not None and request.adapter not in self._adapters:
            known = ", ".join(sorted(self._adapters)) or "none"
            raise InvalidRequest(f"no adapter is called {request.adapter!r}; there are: {known}", "adapter")
        adapter = None if request.adapter is None else self._adapters[request.adapter]
        self._waiting.append(Waiting(request, adapter, self._tapes.get(request.adapter)))

    def cancel(self, request_id: str) -> None:
        self._kept.pop(request_id, None)
        self._waiting = deque(w for w in self._waiting if w.request.request_id != request_id)
        for index, row in enumerate(self._rows):
            if row.request.request_id == request_id:
                self._remove([index])
                return

    @torch.no_grad()
    def step(self) -> list[TokenEvent]:
        events = self._decode() if self._rows else []
        num_ready = min(len(self._waiting), self._max_batch_size - len(self._rows))
        if admission.decide(AdmissionFacts(len(self._rows), num_ready, self._steps_waited), self._patience):
            events += self._admit()
            self._steps_waited = 0
        else:
            self._steps_waited = self._steps_waited + 1 if num_ready else 0
        if not self.has_work:
            self._cache.release()
        return events

    # Prefill

    def _admit(self) -> list[TokenEvent]:
        """Prefills as many waiting requests as there is room for, each distinct prompt once."""
        prefills: list[Prefill] = []
        num_tokens, room = 0, self._max_batch_size - len(self._rows)
        while self._waiting and room:
            waiting = self._waiting[0]
            request = waiting.request
            kept = self._kept_for(waiting) or self._known(waiting)
            new_ids = request.prompt_ids[len(kept.token_ids) if kept else 0 :]
            shares = bool(prefills) and kept is None and prefills[-1].serves(new_ids, waiting)
            if not shares and prefills and num_tokens + len(new_ids) > _PREFILL_TOKENS:
                break
            self._waiting.popleft()
            if request.continues is not None:
                self._kept.pop(request.continues, None)
            if not shares:
                prefills.append(Prefill(new_ids, [], kept))
                num_tokens += len(new_ids)
            drafter = Drafter(request.prompt_ids) if self._drafts else None
            row = Row(request, waiting.adapter, waiting.tape, uniforms(request), drafter)
            prefills[-1].rows.append(row)
            room -= 1
        return self._prefill(prefills)

    def _kept_for(self, waiting: Waiting) -> Kept | None:
        request = waiting.request
        kept = None if request.continues is None else self._kept.get(request.continues)
        if kept is None or kept.adapter is not waiting.adapter:
            return None
        if request.prompt_ids[: len(kept.token_ids)] != kept.token_ids:
            return None
        return kept if len(request.prompt_ids) > len(kept.token_ids) else None

    def _known(self, waiting: Waiting) -> Kept | None:
        """What other requests computed of this one."""
        if waiting.tape is not None:
            return None
        found = self._known_prefixes.find(waiting.adapter, waiting.request.prompt_ids)
        if found is None:
            return None
        return Kept(found.token_ids, waiting.adapter, None, SavedRow(found.keys, found.values), None)

    def _remember(self, index: int, row: Row) -> None:
        """For requests that begin like this one."""
        is_current = row.adapter is None or self._adapters.get(row.request.adapter or "") is row.adapter
        if self._known_prefixes.max_bytes and is_current and row.tape is None:
            saved = self._cache.save(index, row.own_length)
            if row.prefix is not None:
                saved = row.prefix.before(saved)
            self._known_prefixes.put(row.adapter, Computed(row.computed_ids, saved.keys, saved.values))

    def _prefill(self, prefills: list[Prefill]) -> list[TokenEvent]:
        first = len(self._rows)
        recorder, slots = self._record([(p.rows[0].tape, len(p.new_ids)) for p in prefills])
        prompts: list[Prompt] = []
        offset = 0
        for part, placed in zip(prefills, slots, strict=True):
            prompts.append(self._place(part, offset, placed))
            offset += len(part.new_ids)
        self._reserve()
        for part, prompt in zip(prefills, prompts, strict=True):
            if part.kept is not None:
                self._cache.restore(prompt.rows.start, part.kept.saved)
        starts = [len(p.kept.token_ids) if p.kept else 0 for p in prefills]
        positions = [torch.arange(s, s + len(p.new_ids)) for s, p in zip(starts, prefills, strict=True)]
        logits = self._forward(
            torch.tensor([i for p in prefills for i in p.new_ids], device=self._device),
            torch.cat(positions).to(self._device),
            PrefillLayout(self._cache, prompts),
            [(p.rows[0].adapter, len(p.new_ids)) for p in prefills],
            recorder=recorder,
            keep=torch.tensor([p.tokens.stop - 1 for p in prompts], device=self._device),
        )
        for prompt in prompts:
            self._remember(prompt.rows.start, self._rows[prompt.rows.start])
        repeats = torch.tensor([len(p.rows) for p in prefills], device=self._device)
        return self._sample(first, logits.repeat_interleave(repeats, 0))

    def _place(self, part: Prefill, offset: int, slots: Sequence[int] | None) -> Prompt:
        """Makes the rows of a prefill the last of the batch."""
        length, kept = len(part.new_ids), part.kept
        tokens = range(offset, offset + length)
        rows = range(len(self._rows), len(self._rows) + len(part.rows))
        fills = kept is None and len(part.rows) > 1 and length >= self._shared_from
        prefix = Prefix(self._cache.num_layers, length) if fills else kept.prefix if kept else None
        for row in part.rows:
            row.prefix = prefix
            row.length = len(row.request.prompt_ids)
            before = [] if kept is None else kept.slots
            if slots is not None and before is not None:
                row.slots = [*before, *slots]
            self._rows.append(row)
        past = part.rows[0].own_length - length if kept is not None else 0
        return Prompt(tokens, rows, past=past, prefix=prefix, fills=fills)

    # Decode

    def _decode(self) -> list[TokenEvent]:
        self._reserve()
        num_rows = len(self._rows)
        if not self._drafts or num_rows > MAX_ROWS or any(row.tape is not None for row in self._rows):
            return self._decode_next()
        began = self._clock()
        drafts = [row.drafter.propose(self._room(row) - 1) if row.drafter else () for row in self._rows]
        expected = [
            row.drafter.expected for row, draft in zip(self._rows, drafts, strict=True) if row.drafter and draft
        ]
        if decide(DraftFacts(num_rows=num_rows, expected=tuple(expected), cost=self._costs.cost(num_rows))):
            events = self._decode_drafts(drafts)
            self._costs.drafted(num_rows, self._clock() - began)
        else:
            events = self._decode_next()
            self._costs.plain(num_rows, self._clock() - began)
        return events

    def _decode_drafts(self, drafts: Sequence[tuple[int, ...]]) -> list[TokenEvent]:
        """One forward over each row's last token and its draft. A position after one where something else was sampled
        than the draft says was computed in vain; the cache forgets it as it is written over."""
        ids: list[int] = []
        positions: list[int] = []
        prompts: list[Prompt] = []
        ahead: list[tuple[Row, int]] = []
        for index, (row, draft) in enumerate(zip(self._rows, drafts, strict=True)):
            tokens = range(len(ids), len(ids) + 1 + len(draft))
            ids += [row.last, *draft]
            positions += range(row.length, row.length + len(tokens))
            prompts.append(Prompt(tokens, range(index, index + 1), past=row.own_length, prefix=row.prefix))
            ahead += [(row, i) for i in range(len(tokens))]
        logits = self._forward(
            torch.tensor(ids, device=self._device),
            torch.tensor(positions, device=self._device),
            PrefillLayout(self._cache, prompts),
            [(row.adapter, len(prompt.tokens)) for row, prompt in zip(self._rows, prompts, strict=True)],
            recorder=None,
        )
        sampled = self._draw(ahead, logits)
        said, logprobs = sampled.tokens_N.tolist(), sampled.logprobs_N.tolist()
        events, finished = [], []
        for index, (row, draft, prompt) in enumerate(zip(list(self._rows), drafts, prompts, strict=True)):
            for i, place in enumerate(prompt.tokens):
                row.length += 1
                events.append(self._tell(index, row, said[place], logprobs[place]))
                if events[-1].finish_reason is not None:
                    finished.append(index)
                if events[-1].finish_reason is not None or draft[i : i + 1] != (said[place],):
                    break
        self._remove(finished)
        return events

    def _decode_next(self) -> list[TokenEvent]:
        # A row that missed the tape once is computed again as a whole: nothing more is kept for its sake.
        recorder, slots = self._record([(None if row.slots is None else row.tape, 1) for row in self._rows])
        layout = DecodeLayout(
            self._cache,
            torch.tensor([row.own_length for row in self._rows], device=self._device),
            self._prefixes(),
        )
        logits = self._forward(
            torch.tensor([row.last for row in self._rows], device=self._device),
            torch.tensor([row.length for row in self._rows], device=self._device),
            layout,
            [(row.adapter, 1) for row in self._rows],
            recorder=recorder,
        )
        for row, placed in zip(self._rows, slots, strict=True):
            row.length += 1
            if placed is None:
                row.slots = None
            elif row.slots is not None:
                row.slots += placed
        return self._sample(0, logits)

    def _record(
        self, owners: Sequence[tuple[ActivationTape | None, int]]
    ) -> tuple[Recorder | SplitRecorder | None, list[Sequence[int] | None]]:
        """For a forward over the tokens of these owners, (tape or None, how many): what takes their activations, and
        the slots of each owner on its tape, None where there are none."""
        slots: list[Sequence[int] | None] = [None] * len(owners)
        total = sum(count for _, count in owners)
        parts: list[tuple[Recorder, Tensor]] = []
        for tape in {id(tape): tape for tape, _ in owners if tape is not None}.values():
            mine = [count if owner is tape else 0 for owner, count in owners]
            if (recorded := tape.record(sum(mine))) is None:
                continue
            recorder, on_tape = recorded
            ends = list(accumulate(mine))
            for index, (count, end) in enumerate(zip(mine, ends, strict=True)):
                if count:
                    slots[index] = on_tape[end - count : end]
            if len(on_tape) == total:
                return recorder, slots
            owned = torch.repeat_interleave(
                torch.tensor([owner is tape for owner, _ in owners]), torch.tensor([count for _, count in owners])
            )
            parts.append((recorder, owned.nonzero()[:, 0].to(self._device)))
        return (SplitRecorder(tuple(parts)) if parts else None), slots

    def _prefixes(self) -> list[tuple[Prefix, Tensor]]:
        rows: dict[int, tuple[Prefix, list[int]]] = {}
        for index, row in enumerate(self._rows):
            if row.prefix is not None:
                rows.setdefault(id(row.prefix), (row.prefix, []))[1].append(index)
        return [(prefix, torch.tensor(indices, device=self._device)) for prefix, indices in rows.values()]

    def _forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        layout: Any,
        owners: Sequence[tuple[LoraAdapter | None, int]],
        *,
        recorder: Recorder | SplitRecorder | None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Logits of the positions in `keep` (the last one of each owner; all when None): NV. `owners`: which adapter
        speaks in how many of the tokens, in their order."""
        if self._beside is not None and any(adapter is not None for adapter, _ in owners):
            rows = RowAdapters(owners, self._device)
            last = rows if keep is None else RowAdapters([(adapter, 1) for adapter, _ in owners], self._device)
            with self._beside.speaking(rows, last):
                adapted = self._beside if isinstance(self._beside, AdaptedWeights) else None
                return self._logits(adapted, input_ids, positions, layout, recorder, keep)
        return self._logits(self._weights, input_ids, positions, layout, recorder, keep)

    def _logits(
        self,
        weights: LlamaWeights | None,
        input_ids: Tensor,
        positions: Tensor,
        layout: Any,
        recorder: Recorder | SplitRecorder | None,
        keep: Tensor | None,
    ) -> Tensor:
        if weights is not None:
            hidden = forward(weights, input_ids, positions, layout, recorder)
            return weights.logits(hidden if keep is None else hidden[keep])
        out = self._model(
            input_ids=input_ids[None],
            position_ids=positions[None],
            use_cache=False,
            layout=layout,
            logits_to_keep=0 if keep is None else keep,
        )
        logits: Tensor = out.logits[0]
        return logits

    def _room(self, row: Row) -> int:
        """Tokens that the row may still say."""
        said = len(row.generated)
        return min(row.request.params.max_tokens - said, self.context_window - len(row.request.prompt_ids) - said)

    def _reserve(self) -> None:
        # The final length, not the present one: growing in the middle of a generation would copy the whole cache.
        length = max(row.final_length(self.context_window) for row in self._rows)
        self._cache.reserve(len(self._rows), length + 1)

    # Sampling

    def _sample(self, first: int, logits: Tensor) -> list[TokenEvent]:
        """Samples for the rows from `first` on, tells their tokens and drops the finished."""
        rows = self._rows[first:]
        sampled = self._draw([(row, 0) for row in rows], logits)
        if sampled.entropies_N is not None:
            for row, entropy in zip(rows, sampled.entropies_N.tolist(), strict=True):
                if row.tape is not None and row.slots:
                    row.tape.tell_entropies([(row.slots[-1], entropy)])
        events, finished = [], []
        tokens, logprobs = sampled.tokens_N.tolist(), sampled.logprobs_N.tolist()
        for index, (row, token, logprob) in enumerate(zip(rows, tokens, logprobs, strict=True), start=first):
            events.append(self._tell(index, row, token, logprob))
            if events[-1].finish_reason is not None:
                finished.append(index)
        self._remove(finished)
        return events

    def _tell(self, index: int, row: Row, token: int, logprob: float) -> TokenEvent:
        row.last = token
        row.generated.append(token)
        if row.drafter is not None:
            row.drafter.said(token)
        reason = self._finish_reason(row)
        if reason is not None:
            self._leave(index, row)
        return TokenEvent(row.request.request_id, token, logprob, reason)

    def _draw(self, ahead: Sequence[tuple[Row, int]], logits: Tensor) -> Sampled:
        """`ahead`: whose next token each of the logits leads to, and how many come before it."""
        params = [row.request.params for row, _ in ahead]

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self._device)

        return sample(
            logits,
            temperature_N=column([p.temperature for p in params]),
            top_p_N=column([p.top_p for p in params]),
            top_k_N=torch.tensor([p.top_k for p in params], device=self._device),
            uniform_N=column([row.uniforms[len(row.generated) + before] for row, before in ahead]),
            with_entropy=any(row.tape is not None for row, _ in ahead),
        )

    def _finish_reason(self, row: Row) -> FinishReason | None:
        return finish_reason(
            row.generated,
            row.request.params,
            self._template,
            num_prompt_tokens=len(row.request.prompt_ids),
            window=self.context_window,
        )

    def _leave(self, index: int, row: Row) -> None:
        """Keeps what a finished row computed, for the update and for the rest of its conversation."""
        ids = row.computed_ids
        if row.tape is not None and row.slots is not None:
            row.tape.remember(ids, row.slots)
        if row.request.keep:
            saved = self._cache.save(index, row.own_length)
            self._kept[row.request.request_id] = Kept(ids, row.adapter, row.prefix, saved, row.slots)
        self._remember(index, row)

    def _remove(self, indices: list[int]) -> None:
        """Takes rows out of the batch; the last rows move into the holes, so that rows stay dense."""
        for index in sorted(indices, reverse=True):
            last = self._rows.pop()
            if index < len(self._rows):
                self._rows[index] = last
                self._cache.move(len(self._rows), index, last.own_length)
