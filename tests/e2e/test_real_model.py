"""SmolLM2-135M: what samples and what learns agree with transformers, on real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chatgrpo.inference.engine import Completion, GenerationRequest, SamplingParams, generate
from chatgrpo.inference.loading import LoadedModel, load
from chatgrpo.inference.torch_engine import TorchEngine
from chatgrpo.messages import user
from chatgrpo.rollouts.episode import Episode
from chatgrpo.training.batch import MicroBatch, Row, pack
from chatgrpo.training.policy import Policy

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

QUESTIONS = ("What is 2 + 3?", "Name the capital of France.", "Write a line about rain.")
GROUP = 4


@pytest.fixture(scope="module")
def smollm2(models_dir: Path) -> LoadedModel:
    return load("smollm2-135m-instruct", models_dir=models_dir)


@pytest.fixture(scope="module")
def plain(smollm2: LoadedModel, models_dir: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(models_dir / "smollm2-135m-instruct", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def sampled(smollm2: LoadedModel) -> list[list[Episode]]:
    engine = TorchEngine(smollm2.model, smollm2.template)
    requests = [
        GenerationRequest(
            request_id=f"{q}/{g}",
            prompt_ids=tuple(smollm2.template.prompt_ids([user(question)])),
            params=SamplingParams(max_tokens=16, seed=100 * q + g),
        )
        for q, question in enumerate(QUESTIONS)
        for g in range(GROUP)
    ]
    completions = generate(engine, requests)
    episodes = [episode(r.prompt_ids, c) for r, c in zip(requests, completions, strict=True)]
    return [episodes[i : i + GROUP] for i in range(0, len(episodes), GROUP)]


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


def test_greedy_decoding_equals_generate(smollm2: LoadedModel, plain: Any) -> None:
    prompts = [tuple(smollm2.template.prompt_ids([user(q)])) for q in QUESTIONS]
    ours = generate(
        TorchEngine(smollm2.model, smollm2.template),
        [
            GenerationRequest(request_id=str(i), prompt_ids=p, params=SamplingParams(max_tokens=24, temperature=0.0))
            for i, p in enumerate(prompts)
        ],
    )
    for prompt, completion in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        assert list(completion.token_ids) == theirs[0, len(prompt) :].tolist()


def test_sampler_learner_and_transformers_give_one_logprob(
    smollm2: LoadedModel, plain: Any, sampled: list[list[Episode]]
) -> None:
    batch = packed(sampled)
    with torch.no_grad():
        learner, _ = Policy(smollm2.model)(batch, 1.0)
    assert float((learner - batch.sampler_logprobs_N).abs().max()) <= 1e-4
    one = sampled[0][0]
    with torch.no_grad():
        logits = plain(torch.tensor([one.token_ids])).logits[0, one.prompt_length - 1 : -1]
    expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor(one.token_ids[one.prompt_length :])[:, None])[:, 0]
    assert float((learner[batch.row_N == 0] - expected).abs().max()) <= 1e-4


def test_gradients_of_the_packed_path_are_the_dense_ones(
    smollm2: LoadedModel, plain: Any, sampled: list[list[Episode]]
) -> None:
    group = sampled[0]
    batch = packed([group])
    smollm2.model.zero_grad()
    logprobs, _ = Policy(smollm2.model)(batch, 1.0)
    (logprobs * batch.advantages_N).sum().backward()
    plain.zero_grad()
    for row, one in enumerate(group):
        logits = plain(torch.tensor([one.token_ids])).logits[0, one.prompt_length - 1 : -1]
        target = torch.tensor(one.token_ids[one.prompt_length :])
        dense = torch.log_softmax(logits, -1).gather(-1, target[:, None]).sum()
        (dense * (-1.0) ** row).backward()
    wrong = right = 0.0
    for ours, theirs in zip(smollm2.model.parameters(), plain.parameters(), strict=True):
        wrong += float((ours.grad - theirs.grad).pow(2).sum())
        right += float(theirs.grad.pow(2).sum())
    assert (wrong / right) ** 0.5 <= 1e-5
