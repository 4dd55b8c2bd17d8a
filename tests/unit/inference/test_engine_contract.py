"""What every engine promises (`chatgrpo.inference.engine`), asked of each that can be imported here.

The reference is transformers' own forward in float32. On another model than the tiny one:

    CHATGRPO_CONTRACT_MODEL=smollm2-135m-instruct pytest tests/unit/inference/test_engine_contract.py
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from chatgrpo.errors import InvalidRequest
from chatgrpo.inference.chat_template import ChatTemplate
from chatgrpo.inference.engine import Completion, FinishReason, GenerationRequest, SamplingParams, generate
from chatgrpo.inference.llama_weights import LlamaWeights
from chatgrpo.inference.loading import load
from chatgrpo.inference.torch_engine import TorchEngine
from chatgrpo.inference.vllm_config import VllmConfig
from chatgrpo.inference.vllm_engine import VllmEngine

MODEL = os.environ.get("CHATGRPO_CONTRACT_MODEL", "tiny")
PROMPTS = [(4, 20, 30, 1, 5), (4, 9, 1, 5), (4, 40, 41, 42, 43, 44, 45, 46, 1, 5), (4, 77, 1, 5)]
# Sums in another order.
CLOSE = 2e-4


@dataclass
class Kit:
    """An engine, the same model as plain transformers runs it, and how that model's weights reach the engine."""

    engine: Any
    template: ChatTemplate
    dense: Any
    update: Callable[[int], None]
    folder: Path


def torch_kit(folder: Path, models_dir: Path, dense: Any) -> Kit:
    loaded = load(MODEL, models_dir=models_dir)
    weights = LlamaWeights.of(loaded.model)
    engine = TorchEngine(loaded.model, loaded.template, weights=weights)

    def update(version: int) -> None:
        loaded.model.load_state_dict(dense.state_dict())
        engine.weights_changed(version)

    return Kit(engine, loaded.template, dense, update, folder)


def vllm_kit(folder: Path, models_dir: Path, dense: Any) -> Kit:
    template = load(MODEL, models_dir=models_dir).template
    config = VllmConfig(dtype="float32", kv_cache_gb=0.5, context_window=512, enforce_eager=True)
    engine = VllmEngine(models_dir / MODEL, template, config, lora_rank=8)

    def update(version: int) -> None:
        dense.save_pretrained(folder / "weights")
        engine.load_weights(folder / "weights", version)

    return Kit(engine, template, dense, update, folder)


@pytest.fixture(scope="module", params=["torch", "vllm"])
def kit(request: pytest.FixtureRequest, models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    if request.param == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed here: its engine was NOT held to the contract by this run")
    load(MODEL, models_dir=models_dir)
    dense = AutoModelForCausalLM.from_pretrained(models_dir / MODEL, dtype=torch.float32, attn_implementation="eager")
    make = {"torch": torch_kit, "vllm": vllm_kit}[request.param]
    kit = make(tmp_path_factory.mktemp("sync"), models_dir, dense.eval())
    yield kit
    if isinstance(kit.engine, VllmEngine):
        kit.engine.close()


def ask(name: object, prompt: tuple[int, ...], **params: Any) -> GenerationRequest:
    return GenerationRequest(request_id=str(name), prompt_ids=prompt, params=SamplingParams(**params))


def logprobs_of(dense: Any, prompt: tuple[int, ...], completion: Completion, temperature: float = 1.0) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    with torch.no_grad():
        logprobs = torch.log_softmax(dense(ids).logits[0, len(prompt) - 1 : -1] / temperature, -1)
    return logprobs.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]


def assert_spoken_by(dense: Any, prompt: tuple[int, ...], completion: Completion, temperature: float = 1.0) -> None:
    expected = logprobs_of(dense, prompt, completion, temperature)
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=CLOSE, rtol=0)


def test_greedy_is_that_of_transformers(kit: Kit) -> None:
    requests = [ask(i, p, max_tokens=20, temperature=0.0, ignore_eos=True) for i, p in enumerate(PROMPTS)]
    for prompt, completion in zip(PROMPTS, generate(kit.engine, requests), strict=True):
        ids = torch.tensor([prompt])
        theirs = kit.dense.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=None
        )
        assert list(completion.token_ids) == theirs[0, len(prompt) :].tolist()
        assert_spoken_by(kit.dense, prompt, completion)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_the_whole_tempered_softmax(kit: Kit, temperature: float) -> None:
    requests = [ask(i, p, max_tokens=12, temperature=temperature, seed=2**62 + i) for i, p in enumerate(PROMPTS)]
    for prompt, completion in zip(PROMPTS, generate(kit.engine, requests), strict=True):
        assert_spoken_by(kit.dense, prompt, completion, temperature)


def test_a_seed_says_the_same_in_any_company_and_others_something_else(kit: Kit) -> None:
    alone = generate(kit.engine, [ask(0, PROMPTS[0], max_tokens=16, seed=7, ignore_eos=True)])[0]
    company = [ask(i, p, max_tokens=3 + i, seed=i) for i, p in enumerate(PROMPTS * 2, start=1)]
    wanted = ask(0, PROMPTS[0], max_tokens=16, seed=7, ignore_eos=True)
    together = generate(kit.engine, [*company[:3], wanted, *company[3:]])[3]
    assert together.token_ids == alone.token_ids
    other = generate(kit.engine, [ask(0, PROMPTS[0], max_tokens=16, seed=8, ignore_eos=True)])[0]
    assert other.token_ids != alone.token_ids


def test_the_ends_of_a_reply(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = {"max_tokens": 6, "temperature": 0.0}
    free = generate(kit.engine, [ask(0, PROMPTS[0], **greedy, ignore_eos=True)])[0]
    assert (len(free.token_ids), free.finish_reason) == (6, FinishReason.LENGTH)
    text = kit.template.decode(free.token_ids[:2])
    assert text
    stopped = generate(kit.engine, [ask(0, PROMPTS[0], **greedy, stop=(text,))])[0]
    assert (stopped.token_ids, stopped.finish_reason) == (free.token_ids[:2], FinishReason.STOP)
    cut = free.token_ids.index(free.token_ids[3]) + 1
    monkeypatch.setattr(kit.template, "eos_ids", frozenset([free.token_ids[3]]))
    ended = generate(kit.engine, [ask(0, PROMPTS[0], **greedy)])[0]
    assert (ended.token_ids, ended.finish_reason) == (free.token_ids[:cut], FinishReason.STOP)
    assert len(ended.logprobs) == cut


def test_the_context_window(kit: Kit) -> None:
    window = kit.engine.context_window
    prompt = (4,) * (window - 8)
    last = generate(kit.engine, [ask(0, prompt, max_tokens=50, temperature=0.0, ignore_eos=True)])[0]
    assert (len(last.token_ids), last.finish_reason) == (8, FinishReason.LENGTH)
    with pytest.raises(InvalidRequest, match=f"context window of {window}"):
        kit.engine.add(ask(0, (4,) * window))
    with pytest.raises(InvalidRequest, match="empty"):
        kit.engine.add(ask(0, ()))


def test_a_cancelled_request_says_nothing_more_and_the_others_go_on(kit: Kit) -> None:
    request = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    alone = generate(kit.engine, [ask(2, PROMPTS[2], **request)])[0]
    for index in range(3):
        kit.engine.add(ask(index, PROMPTS[index], **request))
    said: dict[str, list[int]] = {"0": [], "1": [], "2": []}
    for event in kit.engine.step():
        said[event.request_id].append(event.token_id)
    before = list(said["0"])
    kit.engine.cancel("0")
    kit.engine.cancel("unknown")
    while kit.engine.has_work:
        for event in kit.engine.step():
            said[event.request_id].append(event.token_id)
    assert said["0"] == before
    assert tuple(said["2"]) == alone.token_ids


def test_new_weights_speak_at_once_and_carry_their_version(kit: Kit) -> None:
    request = ask(0, PROMPTS[2], max_tokens=6, temperature=0.0, ignore_eos=True)
    before = generate(kit.engine, [request])[0]
    held = {name: value.clone() for name, value in kit.dense.state_dict().items()}
    with torch.no_grad():
        for parameter in kit.dense.model.layers.parameters():
            parameter.mul_(0.9)
    kit.update(5)
    after = generate(kit.engine, [request])[0]
    assert after.weight_version == 5
    assert_spoken_by(kit.dense, PROMPTS[2], after)
    assert (logprobs_of(kit.dense, PROMPTS[2], before) - torch.tensor(before.logprobs)).abs().max() > 10 * CLOSE
    kit.dense.load_state_dict(held)
    kit.update(6)
    again = generate(kit.engine, [request])[0]
    assert (again.token_ids, again.weight_version) == (before.token_ids, 6)


def test_requests_finish_on_the_adapter_that_they_began_with(kit: Kit, models_dir: Path) -> None:
    if not isinstance(kit.engine, VllmEngine):
        pytest.skip("the torch engine speaks with the adapters of the model in its process")
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(models_dir / MODEL, dtype=torch.float32, attn_implementation="eager")
    wrapped: Any = get_peft_model(base.eval(), LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    said: list[Completion] = []
    for version in (1, 2):
        torch.manual_seed(version)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        wrapped.save_pretrained(kit.folder / f"adapter-{version}")
    kit.engine.load_adapter(kit.folder / "adapter-1", 1)
    kit.engine.add(ask("old", PROMPTS[0], max_tokens=12, seed=1, ignore_eos=True))
    events = {"old": kit.engine.step(), "new": []}
    kit.engine.load_adapter(kit.folder / "adapter-2", 2)
    assert kit.engine.weight_version == 2
    kit.engine.add(ask("new", PROMPTS[0], max_tokens=12, seed=1, ignore_eos=True))
    while kit.engine.has_work:
        for event in kit.engine.step():
            events[event.request_id].append(event)
    for name in ("old", "new"):
        ids, logprobs = zip(*((e.token_id, e.logprob) for e in events[name]), strict=True)
        said.append(Completion(token_ids=ids, logprobs=logprobs, finish_reason=FinishReason.LENGTH, weight_version=0))
    # `wrapped` holds the second set now.
    assert_spoken_by(wrapped, PROMPTS[0], said[1])
    off = (logprobs_of(wrapped, PROMPTS[0], said[0]) - torch.tensor(said[0].logprobs)).abs().max()
    assert off > 10 * CLOSE
    wrapped.load_adapter(kit.folder / "adapter-1", "first")
    wrapped.set_adapter("first")
    assert_spoken_by(wrapped, PROMPTS[0], said[0])


def test_what_cannot_be_told_is_refused_by_name(kit: Kit) -> None:
    if not isinstance(kit.engine, VllmEngine):
        pytest.skip("the torch engine tells every log-probability")
    with pytest.raises(InvalidRequest, match=r"top_p is 0\.9"):
        kit.engine.add(ask(0, PROMPTS[0], top_p=0.9))
    with pytest.raises(InvalidRequest, match="top_k is 5"):
        kit.engine.add(ask(0, PROMPTS[0], top_k=5))
    with pytest.raises(InvalidRequest, match="no adapter is called 'x'"):
        kit.engine.add(replace(ask(0, PROMPTS[0]), adapter="x"))
    assert not kit.engine.has_work
