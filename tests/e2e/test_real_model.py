"""SmolLM2-135M: what samples and what learns agree with transformers, on real weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from chatgrpo.inference.activation_tape import ActivationTape
from chatgrpo.inference.engine import Completion, GenerationRequest, SamplingParams, generate
from chatgrpo.inference.loading import load
from chatgrpo.inference.torch_engine import TorchEngine
from chatgrpo.messages import user
from chatgrpo.rollouts.episode import Episode
from chatgrpo.training.batch import MicroBatch, Row, pack
from chatgrpo.training.fused_policy import remember
from chatgrpo.training.policy import Policy

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

QUESTIONS = ("What is 2 + 3?", "Name the capital of France.", "Write a line about rain.")
GROUP = 4


@dataclass(frozen=True)
class Real:
    """The model, how it is run, and four sampled replies to each question."""

    policy: Policy
    template: Any
    groups: list[list[Episode]]

    def engine(self) -> TorchEngine:
        return TorchEngine(self.policy.causal_lm, self.template, weights=self.policy.weights)


@pytest.fixture(scope="module", params=["modules", "fused", "reused activations"])
def real(request: pytest.FixtureRequest, models_dir: Path) -> Real:
    loaded = load("smollm2-135m-instruct", models_dir=models_dir)
    policy = Policy(loaded.model, fused=request.param != "modules")
    assert (policy.weights is None) == (request.param == "modules")
    if request.param == "reused activations":
        assert policy.weights is not None
        policy.tape = ActivationTape(policy.weights, max_tokens=4096)
    found = Real(policy, loaded.template, [])
    engine = found.engine()
    requests = [
        GenerationRequest(
            request_id=f"{q}/{g}",
            prompt_ids=tuple(loaded.template.prompt_ids([user(question)])),
            params=SamplingParams(max_tokens=16, seed=100 * q + g),
        )
        for q, question in enumerate(QUESTIONS)
        for g in range(GROUP)
    ]
    with engine.recording(policy.tape):
        completions = generate(engine, requests)
    episodes = [episode(r.prompt_ids, c) for r, c in zip(requests, completions, strict=True)]
    found.groups.extend(episodes[i : i + GROUP] for i in range(0, len(episodes), GROUP))
    if policy.tape is not None:
        assert remember(policy.tape, packed(found.groups)) is not None
    return found


@pytest.fixture(scope="module")
def plain(real: Real, models_dir: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(models_dir / "smollm2-135m-instruct", dtype=torch.float32).eval()


def episode(prompt: tuple[int, ...], completion: Completion) -> Episode:
    return Episode(
        token_ids=(*prompt, *completion.token_ids),
        completion_mask=(*([False] * len(prompt)), *([True] * len(completion.token_ids))),
        logprobs=(*([0.0] * len(prompt)), *completion.logprobs),
        prompt_length=len(prompt),
        turns=(),
        messages=(),
        truncated=False,
    )


def packed(groups: list[list[Episode]]) -> MicroBatch:
    rows = [[Row(index=0, episode=e, advantage=(-1.0) ** i) for i, e in enumerate(group)] for group in groups]
    return pack(rows)


def test_greedy_decoding_equals_generate(real: Real, plain: Any) -> None:
    prompts = [tuple(real.template.prompt_ids([user(q)])) for q in QUESTIONS]
    ours = generate(
        real.engine(),
        [
            GenerationRequest(request_id=str(i), prompt_ids=p, params=SamplingParams(max_tokens=24, temperature=0.0))
            for i, p in enumerate(prompts)
        ],
    )
    for prompt, completion in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        assert list(completion.token_ids) == theirs[0, len(prompt) :].tolist()


def test_sampler_learner_and_transformers_give_one_logprob(real: Real, plain: Any) -> None:
    batch = packed(real.groups)
    with torch.no_grad():
        learner, _ = real.policy(batch, 1.0)
    assert float((learner - batch.sampler_logprobs_N).abs().max()) <= 1e-4
    one = real.groups[0][0]
    with torch.no_grad():
        logits = plain(torch.tensor([one.token_ids])).logits[0, one.prompt_length - 1 : -1]
    expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor(one.token_ids[one.prompt_length :])[:, None])[:, 0]
    assert float((learner[batch.row_N == 0] - expected).abs().max()) <= 1e-4


def test_gradients_of_the_packed_path_are_the_dense_ones(real: Real, plain: Any) -> None:
    group = real.groups[0]
    batch = packed([group])
    real.policy.zero_grad()
    logprobs, _ = real.policy(batch, 1.0)
    (logprobs * batch.advantages_N).sum().backward()
    plain.zero_grad()
    for row, one in enumerate(group):
        logits = plain(torch.tensor([one.token_ids])).logits[0, one.prompt_length - 1 : -1]
        target = torch.tensor(one.token_ids[one.prompt_length :])
        dense = torch.log_softmax(logits, -1).gather(-1, target[:, None]).sum()
        (dense * (-1.0) ** row).backward()
    wrong = right = 0.0
    for ours, theirs in zip(real.policy.model.parameters(), plain.parameters(), strict=True):
        wrong += float((ours.grad - theirs.grad).pow(2).sum())
        right += float(theirs.grad.pow(2).sum())
    assert (wrong / right) ** 0.5 <= 1e-5
