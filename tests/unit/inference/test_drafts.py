"""Drafts by prompt lookup: what is guessed, when it is verified, and that it changes nothing that is said."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch

from chatgrpo.inference.drafts import MAX_DRAFT, MAX_ROWS, Drafter, DraftFacts, StepCosts, decide
from chatgrpo.inference.engine import GenerationRequest, SamplingParams, generate
from chatgrpo.inference.llama_weights import LlamaWeights
from chatgrpo.inference.loading import LoadedModel
from chatgrpo.inference.torch_engine import TorchEngine

PHRASE = (20, 31, 42, 53, 64, 75)


def test_a_draft_is_what_followed_the_longest_end_that_stood_before() -> None:
    drafter = Drafter((1, 2, 3, 7, 7, 9, 2, 3, 8, 8, 1, 2, 3))
    assert drafter.propose(100) == (7, 7, 9, 2, 3, 8, 8, 1)
    assert len(drafter.propose(100)) == MAX_DRAFT
    assert drafter.propose(2) == (7, 7)
    assert Drafter((1, 2, 3, 4)).propose(9) == ()
    assert Drafter((5, 2, 3, 6, 4, 2, 3)).propose(2) == (6, 4)  # two tokens are enough, the newest place counts
    assert Drafter((2, 3, 6, 0, 2, 3, 5, 0, 2, 3)).propose(1) == (5,)


def test_a_drafter_learns_from_what_is_said_whether_verified_or_not() -> None:
    drafter = Drafter((*PHRASE, 1, *PHRASE[:2]))
    hopeful = drafter.expected
    drafter.propose(9)
    for token in (*PHRASE[2:], 1, *PHRASE[:2]):
        drafter.said(token)
    assert drafter.expected > hopeful
    doubtful = Drafter((*PHRASE, 1, *PHRASE[:2]))
    doubtful.propose(9)
    doubtful.said(99)
    assert doubtful.expected < hopeful
    assert doubtful.propose(9) == ()


@pytest.mark.parametrize(
    ("num_rows", "expected", "cost", "verifies"),
    [
        (1, (), 1.0, False),
        (1, (3.0,), 1.5, True),
        (1, (0.4,), 1.5, False),
        (1, (0.4,), 1.2, True),
        (4, (3.0,), 1.5, True),
        (4, (3.0,), 1.7, False),
        (MAX_ROWS + 1, (8.0,) * (MAX_ROWS + 1), 1.0, False),
    ],
)
def test_drafts_are_verified_when_that_says_more_tokens_a_second(
    num_rows: int, expected: tuple[float, ...], cost: float, verifies: bool
) -> None:
    assert decide(DraftFacts(num_rows=num_rows, expected=expected, cost=cost)) is verifies


def test_the_cost_of_drafts_is_measured_and_a_disturbed_measurement_fades() -> None:
    costs = StepCosts()
    first = costs.cost(1)
    costs.plain(1, 0.01)
    for _ in range(30):
        costs.drafted(1, 0.012)
    assert costs.cost(1) == pytest.approx(1.2, abs=0.01)
    assert costs.cost(2) == first
    costs.drafted(1, 1.0)
    assert costs.cost(1) > 10
    for _ in range(400):
        costs.plain(1, 0.01)
    assert costs.cost(1) == pytest.approx(first, abs=0.5)


def ask(index: int, prompt: tuple[int, ...], **params: Any) -> GenerationRequest:
    return GenerationRequest(request_id=str(index), prompt_ids=prompt, params=SamplingParams(**params))


@pytest.mark.parametrize("fused", [False, True])
def test_drafts_change_nothing_that_is_said(tiny: LoadedModel, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # A model of few choices repeats itself, and now and then does not.
    with torch.no_grad():
        tiny.model.lm_head.weight[12:].zero_()
        tiny.model.lm_head.weight.mul_(25)
    weights = LlamaWeights.of(tiny.model) if fused else None
    long = tuple(7 + i % 5 for i in range(250))
    requests = [
        ask(0, (*PHRASE, 1, *PHRASE[:3]), max_tokens=60, temperature=0.0, ignore_eos=True),
        ask(1, (4, 9, 1, 5), max_tokens=45, temperature=1.0, seed=3, ignore_eos=True),
        ask(2, long, max_tokens=30, temperature=0.8, top_p=0.9, seed=4),
        ask(3, long, max_tokens=40, temperature=1.0, seed=5, ignore_eos=True),
        ask(4, (4,) * 2040, max_tokens=50, temperature=0.0, ignore_eos=True),
    ]
    plain = generate(TorchEngine(tiny.model, tiny.template, weights=weights), requests)
    ticks = count()
    # By this clock a step with drafts costs what any step costs.
    engine = TorchEngine(tiny.model, tiny.template, weights=weights, drafts=True, clock=lambda: float(next(ticks)))
    steps = count()
    decode = engine._decode
    monkeypatch.setattr(engine, "_decode", lambda: (next(steps), decode())[1])
    drafted = generate(engine, requests)
    assert [c.token_ids for c in drafted] == [c.token_ids for c in plain]
    assert [c.finish_reason for c in drafted] == [c.finish_reason for c in plain]
    for a, b in zip(drafted, plain, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    assert next(steps) < 0.8 * max(len(c.token_ids) for c in plain)
