"""What prompts begin with is computed once, and says what computing it anew would say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chatgrpo.inference.engine import GenerationRequest, SamplingParams, generate
from chatgrpo.inference.llama_weights import LlamaWeights
from chatgrpo.inference.loading import LoadedModel
from chatgrpo.inference.prefix_store import MIN_TOKENS, Computed, PrefixStore, common_length
from chatgrpo.inference.torch_engine import TorchEngine

SYSTEM = tuple(7 + i % 80 for i in range(40))


def computed(ids: tuple[int, ...]) -> Computed:
    held = torch.arange(len(ids), dtype=torch.float32).expand(2, 1, 1, -1).transpose(2, 3).contiguous()
    return Computed(ids, held, -held)


def test_common_length() -> None:
    assert common_length((), (1,)) == 0
    for length in range(20):
        a, b = tuple(range(30)), (*range(length), 99, *range(50))
        assert common_length(a, b) == length
        assert common_length(a, b, longer_than=5) == (length if length > 5 else 0)
    assert common_length((1, 2), (1, 2, 3)) == 2


def test_the_longest_beginning_is_found_and_the_least_recently_used_goes() -> None:
    one = computed(SYSTEM)
    store = PrefixStore(3 * one.num_bytes)
    store.put("a", computed((*SYSTEM[:30], *range(200, 210))))
    store.put("a", computed((*SYSTEM[:20], *range(300, 320))))
    found = store.find("a", (*SYSTEM[:35], 500, 501))
    assert found is not None
    assert found.token_ids == SYSTEM[:30]
    assert found.keys.flatten().tolist() == list(range(30)) * 2
    assert store.find("b", SYSTEM) is None  # computed by other weights
    assert store.find("a", SYSTEM[: MIN_TOKENS - 1]) is None
    store.put("a", computed(tuple(range(400, 440))))
    store.put("a", computed(tuple(range(500, 540))))  # the fourth: the one that was not found goes
    found = store.find("a", (*SYSTEM[:20], 300, 301, 302))
    assert found is not None
    assert found.token_ids == SYSTEM[:20]
    assert store.num_bytes == 3 * one.num_bytes
    store.put("b", computed(SYSTEM))
    store.forget("b")
    assert (store.num_bytes, store.find("b", SYSTEM)) == (2 * one.num_bytes, None)
    store.put("a", computed(tuple(range(400, 440))))
    store.put("a", computed(tuple(range(500, 700))))  # larger than all of it
    assert store.num_bytes == 3 * one.num_bytes
    store.clear()
    assert (store.num_bytes, store.find("a", SYSTEM)) == (0, None)


def test_a_longer_conversation_takes_the_place_of_its_beginning() -> None:
    store = PrefixStore(10**6)
    store.put(None, computed(SYSTEM))
    store.put(None, computed((*SYSTEM, 1, 2)))
    assert store.num_bytes == computed((*SYSTEM, 1, 2)).num_bytes


def ask(index: int, prompt: tuple[int, ...], **params: Any) -> GenerationRequest:
    return GenerationRequest(request_id=str(index), prompt_ids=prompt, params=SamplingParams(**params))


@pytest.mark.parametrize("fused", [False, True])
def test_a_known_beginning_is_not_computed_again_and_changes_nothing(
    tiny: LoadedModel, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = LlamaWeights.of(tiny.model) if fused else None
    engine = TorchEngine(tiny.model, tiny.template, weights=weights, prefix_bytes=10**7)
    cold = TorchEngine(tiny.model, tiny.template, weights=weights)
    first = generate(engine, [ask(0, (*SYSTEM, 4, 9, 5), max_tokens=6, seed=1, ignore_eos=True)])[0]
    conversation = (*SYSTEM, 4, 9, 5, *first.token_ids)
    prompts = [(*SYSTEM, 4, 60, 5), (*conversation, 4, 61, 5), (*SYSTEM, 4, 60, 5), (*SYSTEM[:20], 1, 5)]
    requests = [ask(1 + i, p, max_tokens=9, seed=i) for i, p in enumerate(prompts)]
    seen: list[int] = []
    run = engine._forward

    def counted(ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(ids.numel())
        return run(ids, *args, **kwargs)

    monkeypatch.setattr(engine, "_forward", counted)
    warm = generate(engine, requests)
    # Two tokens after what the first had in common (4 as well), the last sampled one and three more, and so on.
    assert seen[0] == 2 + 4 + 2 + 2
    anew = generate(cold, requests)
    assert [c.token_ids for c in warm] == [c.token_ids for c in anew]
    for a, b in zip(warm, anew, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    engine.weights_changed(1)
    seen.clear()
    generate(engine, requests[:1])
    assert seen[0] == len(prompts[0])


@pytest.mark.parametrize("fused", [False, True])
def test_a_beginning_that_a_group_held_once_is_known_as_well(
    tiny: LoadedModel, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = LlamaWeights.of(tiny.model) if fused else None
    engine = TorchEngine(tiny.model, tiny.template, weights=weights, prefix_bytes=10**7)
    prompt = tuple(7 + i % 80 for i in range(200))
    replies = generate(engine, [ask(i, prompt, max_tokens=4 + i, seed=i, ignore_eos=True) for i in range(2)])
    goes_on = ask(2, (*prompt, *replies[1].token_ids[:-1], 9, 5), max_tokens=5, seed=2)
    seen: list[int] = []
    run = engine._forward

    def counted(ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(ids.numel())
        return run(ids, *args, **kwargs)

    monkeypatch.setattr(engine, "_forward", counted)
    (warm,) = generate(engine, [goes_on])
    assert seen[0] == 2
    (anew,) = generate(TorchEngine(tiny.model, tiny.template, weights=weights), [goes_on])
    assert warm.token_ids == anew.token_ids
    assert warm.logprobs == pytest.approx(anew.logprobs, abs=1e-5)
