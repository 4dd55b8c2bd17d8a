"""The contract between whoever wants text and whatever produces it: token ids in, sampled token ids out.

One engine serves one set of weights. Work is added as requests and advanced by `step`, so that rollouts, streaming
chat and continuous batching are the same loop:

    engine.add(GenerationRequest(request_id="a", prompt_ids=(1, 2), params=SamplingParams(max_tokens=8)))
    while engine.has_work:
        for event in engine.step():
            ...                       # one event a new token; event.finish_reason is set on the last
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class FinishReason(StrEnum):
    STOP = "stop"  # EOS or a stop string was produced
    LENGTH = "length"  # max_tokens or the context window was reached
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """`temperature` 0 is greedy. `top_k` 0 and `top_p` 1 are off. `seed` makes one request's sampling repeatable
    whatever else is in the batch. `stop` strings end a completion once its text contains one. `logprobs` and `tools`
    (functions as JSON, for the chat template) are for whoever turns text into tokens and back: an engine leaves them
    alone, its events have log-probabilities always."""

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    logprobs: bool = False
    tools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """`prompt_ids` is the whole context. Requests with equal prompts that are added one after the other share one
    prefill.

    A conversation that may go on says `keep`: what the engine computed for it stays until a request that `continues`
    it (by its request id) takes it over, `cancel` forgets it or the weights change. Such a request gives its whole
    context as well; only what is new in it has to be computed. An engine may ignore both.

    `adapter` names who speaks, of those that the engine was given; None is the base. An engine refuses names that it
    does not know."""

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    adapter: str | None = None
    keep: bool = False
    continues: str | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One sampled token. `logprob` is log pi(token) under softmax(logits / temperature), before top-k/top-p;
    at temperature 0 it is that of temperature 1."""

    request_id: str
    token_id: int
    logprob: float
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished request. `token_ids` includes the EOS token when one was sampled."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    weight_version: int


class Engine(Protocol):
    @property
    def weight_version(self) -> int:
        """Counts weight updates; stored with every turn."""
        ...

    @property
    def has_work(self) -> bool: ...

    def add(self, request: GenerationRequest) -> None:
        """Queues a request. Raises InvalidRequest when the prompt does not fit the context window or nobody is called
        `adapter`."""
        ...

    def cancel(self, request_id: str) -> None:
        """Forgets a request and what was kept for it; unknown ids are ignored."""
        ...

    def step(self) -> list[TokenEvent]:
        """Admits what fits, advances every running request by one token or more."""
        ...


def generate(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Completion]:
    """Runs the requests to their end on an otherwise idle engine; completions in the order of the requests."""
    tokens: dict[str, list[int]] = {r.request_id: [] for r in requests}
    logprobs: dict[str, list[float]] = {r.request_id: [] for r in requests}
    reasons: dict[str, FinishReason] = {}
    version = engine.weight_version
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for event in engine.step():
            tokens[event.request_id].append(event.token_id)
            logprobs[event.request_id].append(event.logprob)
            if event.finish_reason is not None:
                reasons[event.request_id] = event.finish_reason
    return [
        Completion(
            token_ids=tuple(tokens[r.request_id]),
            logprobs=tuple(logprobs[r.request_id]),
            finish_reason=reasons[r.request_id],
            weight_version=version,
        )
        for r in requests
    ]
