"""The engine against transformers' own generate and forward, on the tiny model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chatgrpo.errors import InvalidRequest
from chatgrpo.inference.engine import Completion, FinishReason, GenerationRequest, SamplingParams, generate
from chatgrpo.inference.loading import LoadedModel
from chatgrpo.inference.torch_engine import TorchEngine

PROMPTS = [(4, 20, 30, 1, 5), (4, 9, 1, 5), (4, 40, 41, 42, 43, 44, 45, 46, 1, 5), (4, 77, 1, 5)]


def request(index: int, prompt: tuple[int, ...], **params: Any) -> GenerationRequest:
    return GenerationRequest(request_id=str(index), prompt_ids=prompt, params=SamplingParams(**params))


def play(engine: TorchEngine, *requests: GenerationRequest) -> list[Completion]:
    return generate(engine, requests)


def test_greedy_equals_generate(tiny: LoadedModel, dense: Any) -> None:
    engine = TorchEngine(tiny.model, tiny.template)
    ours = play(engine, *(request(i, p, max_tokens=20, temperature=0.0) for i, p in enumerate(PROMPTS)))
    for prompt, completion in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = dense.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        assert list(completion.token_ids) == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_the_tempered_softmax(tiny: LoadedModel, dense: Any, temperature: float) -> None:
    engine = TorchEngine(tiny.model, tiny.template)
    requests = [request(i, p, max_tokens=12, temperature=temperature, seed=i) for i, p in enumerate(PROMPTS)]
    for prompt, completion in zip(PROMPTS, play(engine, *requests), strict=True):
        ids = torch.tensor([[*prompt, *completion.token_ids]])
        with torch.no_grad():
            logprobs = torch.log_softmax(dense(ids).logits[0, len(prompt) - 1 : -1] / temperature, -1)
        expected = logprobs.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)


def test_a_seeded_request_samples_the_same_in_any_company(tiny: LoadedModel) -> None:
    engine = TorchEngine(tiny.model, tiny.template)
    alone = play(engine, request(0, PROMPTS[0], max_tokens=16, seed=7))[0]
    company = [request(i, p, max_tokens=3 + i, seed=i) for i, p in enumerate(PROMPTS * 2, start=1)]
    together = play(engine, *company[:3], request(0, PROMPTS[0], max_tokens=16, seed=7), *company[3:])[3]
    assert together.token_ids == alone.token_ids


def test_waiting_requests_take_the_places_of_finished_ones(tiny: LoadedModel) -> None:
    many = [request(i, PROMPTS[i % 4], max_tokens=1 + i % 7, temperature=0.0, ignore_eos=True) for i in range(20)]
    small = play(TorchEngine(tiny.model, tiny.template, max_batch_size=3), *many)
    large = play(TorchEngine(tiny.model, tiny.template, max_batch_size=64), *many)
    assert [c.token_ids for c in small] == [c.token_ids for c in large]
    assert [len(c.token_ids) for c in small] == [1 + i % 7 for i in range(20)]


def test_finish_reasons(tiny: LoadedModel) -> None:
    engine = TorchEngine(tiny.model, tiny.template)
    free = play(engine, request(0, PROMPTS[0], max_tokens=5, temperature=0.0, ignore_eos=True))[0]
    assert (len(free.token_ids), free.finish_reason) == (5, FinishReason.LENGTH)
    text = tiny.template.decode(free.token_ids[:2])
    stopped = play(engine, request(0, PROMPTS[0], max_tokens=5, temperature=0.0, stop=(text,)))[0]
    assert stopped.token_ids == free.token_ids[:2]
    assert stopped.finish_reason is FinishReason.STOP


def test_eos_ends_a_completion_and_is_part_of_it(tiny: LoadedModel) -> None:
    with torch.no_grad():
        tiny.model.lm_head.weight.zero_()
        tiny.model.lm_head.weight[1] += tiny.model.model(
            input_ids=torch.tensor([PROMPTS[0]]), position_ids=torch.arange(5)[None], layout=_Causal(), use_cache=False
        ).last_hidden_state[0, -1]
    completion = play(TorchEngine(tiny.model, tiny.template), request(0, PROMPTS[0], max_tokens=9, temperature=0.0))[0]
    assert (completion.token_ids, completion.finish_reason) == ((1,), FinishReason.STOP)


class _Causal:
    def attend(self, layer: int, query: Any, key: Any, value: Any, scale: float) -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2)


def test_a_cancelled_request_says_nothing_more_and_the_others_go_on(tiny: LoadedModel) -> None:
    alone = play(
        TorchEngine(tiny.model, tiny.template), request(2, PROMPTS[2], max_tokens=8, temperature=0.0, ignore_eos=True)
    )[0]
    engine = TorchEngine(tiny.model, tiny.template)
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


def test_prompts_that_cannot_fit_are_refused(tiny: LoadedModel) -> None:
    engine = TorchEngine(tiny.model, tiny.template)
    with pytest.raises(InvalidRequest, match="context window of 2048"):
        engine.add(request(0, (4,) * 2048))
    with pytest.raises(InvalidRequest, match="empty"):
        engine.add(request(0, ()))


def test_the_context_window_ends_a_completion(tiny: LoadedModel) -> None:
    engine = TorchEngine(tiny.model, tiny.template)
    completion = play(engine, request(0, (4,) * 2040, max_tokens=50, temperature=0.0, ignore_eos=True))[0]
    assert completion.finish_reason is FinishReason.LENGTH
    assert len(completion.token_ids) == 8


def test_the_engine_speaks_with_changed_weights(tiny: LoadedModel) -> None:
    engine = TorchEngine(tiny.model, tiny.template)
    before = play(engine, request(0, PROMPTS[0], max_tokens=4, temperature=0.0, ignore_eos=True))[0]
    with torch.no_grad():
        tiny.model.lm_head.weight.copy_(tiny.model.lm_head.weight.flip(0))
    engine.weights_changed(3)
    after = play(engine, request(0, PROMPTS[0], max_tokens=4, temperature=0.0, ignore_eos=True))[0]
    assert after.weight_version == 3
    assert after.token_ids[0] == len(tiny.template.tokenizer) - 1 - before.token_ids[0]
