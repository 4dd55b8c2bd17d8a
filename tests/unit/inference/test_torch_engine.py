"""The engine against transformers' own generate and forward, on the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from chatgrpo.errors import InvalidRequest
from chatgrpo.inference.engine import Completion, FinishReason, GenerationRequest, SamplingParams, generate
from chatgrpo.inference.llama_weights import LlamaWeights
from chatgrpo.inference.loading import LoadedModel
from chatgrpo.inference.torch_engine import TorchEngine

Make = Callable[..., TorchEngine]

PROMPTS = [(4, 20, 30, 1, 5), (4, 9, 1, 5), (4, 40, 41, 42, 43, 44, 45, 46, 1, 5), (4, 77, 1, 5)]


@pytest.fixture(params=["modules", "fused"])
def make(request: pytest.FixtureRequest) -> Make:
    """An engine that runs the model's own modules, or the fused products."""

    def engine(loaded: LoadedModel, **options: Any) -> TorchEngine:
        weights = LlamaWeights.of(loaded.model) if request.param == "fused" else None
        assert request.param == "modules" or weights is not None
        return TorchEngine(loaded.model, loaded.template, weights=weights, **options)

    return engine


def request(index: int, prompt: tuple[int, ...], **params: Any) -> GenerationRequest:
    return GenerationRequest(request_id=str(index), prompt_ids=prompt, params=SamplingParams(**params))


def play(engine: TorchEngine, *requests: GenerationRequest) -> list[Completion]:
    return generate(engine, requests)


def test_greedy_equals_generate(tiny: LoadedModel, make: Make, dense: Any) -> None:
    engine = make(tiny)
    ours = play(engine, *(request(i, p, max_tokens=20, temperature=0.0) for i, p in enumerate(PROMPTS)))
    for prompt, completion in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = dense.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        assert list(completion.token_ids) == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_the_tempered_softmax(
    tiny: LoadedModel, make: Make, dense: Any, temperature: float
) -> None:
    engine = make(tiny)
    requests = [request(i, p, max_tokens=12, temperature=temperature, seed=i) for i, p in enumerate(PROMPTS)]
    for prompt, completion in zip(PROMPTS, play(engine, *requests), strict=True):
        ids = torch.tensor([[*prompt, *completion.token_ids]])
        with torch.no_grad():
            logprobs = torch.log_softmax(dense(ids).logits[0, len(prompt) - 1 : -1] / temperature, -1)
        expected = logprobs.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)


def test_a_seeded_request_samples_the_same_in_any_company(tiny: LoadedModel, make: Make) -> None:
    engine = make(tiny)
    alone = play(engine, request(0, PROMPTS[0], max_tokens=16, seed=7))[0]
    company = [request(i, p, max_tokens=3 + i, seed=i) for i, p in enumerate(PROMPTS * 2, start=1)]
    together = play(engine, *company[:3], request(0, PROMPTS[0], max_tokens=16, seed=7), *company[3:])[3]
    assert together.token_ids == alone.token_ids


def test_waiting_requests_take_the_places_of_finished_ones(tiny: LoadedModel, make: Make) -> None:
    many = [request(i, PROMPTS[i % 4], max_tokens=1 + i % 7, temperature=0.0, ignore_eos=True) for i in range(20)]
    small = play(make(tiny, max_batch_size=3), *many)
    large = play(make(tiny, max_batch_size=64), *many)
    assert [c.token_ids for c in small] == [c.token_ids for c in large]
    assert [len(c.token_ids) for c in small] == [1 + i % 7 for i in range(20)]


def test_finish_reasons(tiny: LoadedModel, make: Make) -> None:
    engine = make(tiny)
    free = play(engine, request(0, PROMPTS[0], max_tokens=5, temperature=0.0, ignore_eos=True))[0]
    assert (len(free.token_ids), free.finish_reason) == (5, FinishReason.LENGTH)
    text = tiny.template.decode(free.token_ids[:2])
    stopped = play(engine, request(0, PROMPTS[0], max_tokens=5, temperature=0.0, stop=(text,)))[0]
    assert stopped.token_ids == free.token_ids[:2]
    assert stopped.finish_reason is FinishReason.STOP


def test_eos_ends_a_completion_and_is_part_of_it(tiny: LoadedModel, make: Make) -> None:
    with torch.no_grad():
        tiny.model.lm_head.weight.zero_()
        tiny.model.lm_head.weight[1] += tiny.model.model(
            input_ids=torch.tensor([PROMPTS[0]]), position_ids=torch.arange(5)[None], layout=_Causal(), use_cache=False
        ).last_hidden_state[0, -1]
    completion = play(make(tiny), request(0, PROMPTS[0], max_tokens=9, temperature=0.0))[0]
    assert (completion.token_ids, completion.finish_reason) == ((1,), FinishReason.STOP)


class _Causal:
    def attend(self, layer: int, query: Any, key: Any, value: Any, scale: float) -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2)


def test_a_cancelled_request_says_nothing_more_and_the_others_go_on(tiny: LoadedModel, make: Make) -> None:
    alone = play(make(tiny), request(2, PROMPTS[2], max_tokens=8, temperature=0.0, ignore_eos=True))[0]
    engine = make(tiny)
    for index in range(3):
        engine.add(request(index, PROMPTS[index], max_tokens=8, temperature=0.0, ignore_eos=True))
    said: dict[str, list[int]] = {"0": [], "1": [], "2": []}
    engine.step()
    engine.cancel("0")
    engine.cancel("unknown")
    while engine.has_work:
        for event in engine.step():
            said[event.request_id].append(event.token_id)
    assert said["0"] == []
    assert tuple(said["2"]) == alone.token_ids[1:]


def test_prompts_that_cannot_fit_are_refused(tiny: LoadedModel, make: Make) -> None:
    engine = make(tiny)
    with pytest.raises(InvalidRequest, match="context window of 2048"):
        engine.add(request(0, (4,) * 2048))
    with pytest.raises(InvalidRequest, match="empty"):
        engine.add(request(0, ()))


def test_the_context_window_ends_a_completion(tiny: LoadedModel, make: Make) -> None:
    engine = make(tiny)
    completion = play(engine, request(0, (4,) * 2040, max_tokens=50, temperature=0.0, ignore_eos=True))[0]
    assert completion.finish_reason is FinishReason.LENGTH
    assert len(completion.token_ids) == 8


def test_the_engine_speaks_with_changed_weights(tiny: LoadedModel, make: Make) -> None:
    engine = make(tiny)
    before = play(engine, request(0, PROMPTS[0], max_tokens=4, temperature=0.0, ignore_eos=True))[0]
    with torch.no_grad():
        tiny.model.lm_head.weight.copy_(tiny.model.lm_head.weight.flip(0))
    engine.weights_changed(3)
    after = play(engine, request(0, PROMPTS[0], max_tokens=4, temperature=0.0, ignore_eos=True))[0]
    assert after.weight_version == 3
    assert after.token_ids[0] == len(tiny.template.tokenizer) - 1 - before.token_ids[0]


def test_a_long_prompt_of_many_rows_is_held_once_and_changes_nothing(tiny: LoadedModel, make: Make) -> None:
    prompt = tuple(7 + i % 80 for i in range(300))
    others = [request(10 + i, p, max_tokens=5 + i, seed=i) for i, p in enumerate(PROMPTS)]
    group = [request(i, prompt, max_tokens=3 + 2 * i, seed=i) for i in range(5)]
    together = play(make(tiny), *others[:2], *group, *others[2:])[2:7]
    alone = [play(make(tiny), r)[0] for r in group]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    for a, b in zip(together, alone, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


@pytest.mark.parametrize("prompt_length", [5, 250])
def test_a_kept_conversation_goes_on_as_if_it_were_computed_anew(
    tiny: LoadedModel, make: Make, prompt_length: int
) -> None:
    prompt = tuple(7 + i % 80 for i in range(prompt_length))
    engine = make(tiny)
    first = [replace(request(i, prompt, max_tokens=4 + i, seed=i), keep=True) for i in range(3)]
    replies = play(engine, *first)
    contexts = [(*prompt, *c.token_ids, 4, 60 + i, 1, 5) for i, c in enumerate(replies)]
    second = [request(10 + i, ids, max_tokens=6, seed=50 + i) for i, ids in enumerate(contexts)]
    went_on = play(engine, *(replace(r, continues=str(i)) for i, r in enumerate(second)))
    anew = play(make(tiny), *second)
    assert [c.token_ids for c in went_on] == [c.token_ids for c in anew]
    for a, b in zip(went_on, anew, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_only_what_is_new_in_a_conversation_is_computed(
    tiny: LoadedModel, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(tiny)
    reply = play(engine, replace(request(0, PROMPTS[0], max_tokens=4, ignore_eos=True), keep=True))[0]
    seen: list[int] = []
    run = engine._forward

    def counted(ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(ids.numel())
        return run(ids, *args, **kwargs)

    monkeypatch.setattr(engine, "_forward", counted)
    context = (*PROMPTS[0], *reply.token_ids, 4, 9)
    play(engine, replace(request(1, context, max_tokens=2, ignore_eos=True), continues="0"))
    assert seen == [3, 1]  # the last sampled token and two new ones, then one decoded
    play(engine, replace(request(2, (*context, 5), max_tokens=1), continues="0"))
    assert seen[-1] == len(context) + 1  # taken over before: nothing is left of it
