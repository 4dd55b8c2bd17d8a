"""Packing: what is computed for a row is the same wherever and beside whatever it is packed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.inference.loading import LoadedModel
from chatgrpo.rollouts.episode import Episode
from chatgrpo.training.batch import Row, pack, split
from chatgrpo.training.policy import Policy

VOCABULARY = 100


def episode(rng: random.Random, prompt: Sequence[int], length: int) -> Episode:
    """Random ids; about a third of the tokens after the prompt are holes (tool turns)."""
    ids = [*prompt, *(rng.randrange(VOCABULARY) for _ in range(length))]
    mask = [False] * len(prompt) + [rng.random() < 0.7 for _ in range(length)]
    mask[len(prompt)] = True
    return Episode(
        token_ids=tuple(ids),
        completion_mask=tuple(mask),
        logprobs=tuple(-float(i) if m else 0.0 for i, m in zip(ids, mask, strict=True)),
        prompt_length=len(prompt),
        turns=(),
        messages=(),
        truncated=False,
    )


def random_groups(seed: int, num_groups: int = 3, size: int = 4) -> list[list[Row]]:
    rng = random.Random(seed)
    groups = []
    for g in range(num_groups):
        prompt = [rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 9))]
        rows = [episode(rng, prompt, rng.randrange(1, 12)) for _ in range(size)]
        groups.append([Row(index=g * size + i, episode=e, advantage=rng.uniform(-1, 1)) for i, e in enumerate(rows)])
    return groups


def dense_logprobs(model: Any, row: Row, temperature: float) -> torch.Tensor:
    ids = torch.tensor([row.episode.token_ids])
    logprobs = torch.log_softmax(model(ids).logits[0, :-1].double() / temperature, -1)
    return logprobs.gather(-1, ids[0, 1:, None])[:, 0][torch.tensor(row.episode.completion_mask[1:])]


def test_packed_logprobs_and_gradients_equal_the_dense_ones(tiny: LoadedModel, dense: Any) -> None:
    policy = Policy(tiny.model)
    groups = random_groups(1)
    for part in split(groups, 40):
        batch = pack(part)
        logprobs, _ = policy(batch, 0.8)
        (logprobs * batch.advantages_N).sum().backward()
        for local, row in enumerate(batch.rows):
            theirs = dense_logprobs(dense, row, 0.8)
            torch.testing.assert_close(logprobs[batch.row_N == local].double(), theirs, atol=2e-6, rtol=0)
            (theirs * row.advantage).sum().backward()
    for ours, theirs in zip(tiny.model.parameters(), dense.parameters(), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_entropy_is_that_of_the_dense_distribution(tiny: LoadedModel, dense: Any) -> None:
    groups = random_groups(2, num_groups=1, size=1)
    _, entropy = Policy(tiny.model)(pack(groups), 1.3)
    row = groups[0][0]
    logits = dense(torch.tensor([row.episode.token_ids])).logits[0, :-1] / 1.3
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy, expected[torch.tensor(row.episode.completion_mask[1:])], atol=1e-5, rtol=0)


@pytest.mark.parametrize("max_tokens", [1, 17, 40, 10_000])
def test_any_split_gives_the_same_logprobs(tiny: LoadedModel, max_tokens: int) -> None:
    policy = Policy(tiny.model)

    def by_row(limit: int) -> dict[int, torch.Tensor]:
        found = {}
        with torch.no_grad():
            for part in split(random_groups(3), limit):
                batch = pack(part)
                logprobs, _ = policy(batch, 1.0)
                found |= {row.index: logprobs[batch.row_N == i] for i, row in enumerate(batch.rows)}
        return found

    whole, parts = by_row(1_000_000), by_row(max_tokens)
    assert whole.keys() == parts.keys()
    for index, logprobs in whole.items():
        torch.testing.assert_close(parts[index], logprobs, atol=1e-5, rtol=0)


def test_tokens_behind_a_hole_and_values_of_masked_tokens_leave_no_gradient(tiny: LoadedModel) -> None:
    """The last token of a row, masked out, is no input either: changing it changes nothing."""
    policy = Policy(tiny.model)

    def gradient(last: int) -> list[torch.Tensor]:
        one = Episode(
            token_ids=(4, 9, 30, 31, last),
            completion_mask=(False, False, True, True, False),
            logprobs=(0.0,) * 5,
            prompt_length=2,
            turns=(),
            messages=(),
            truncated=False,
        )
        tiny.model.zero_grad()
        policy(pack([[Row(index=0, episode=one, advantage=1.0)]]), 1.0)[0].sum().backward()
        return [p.grad.clone() for p in tiny.model.parameters() if p.grad is not None]

    for a, b in zip(gradient(50), gradient(tiny.template.tokenizer.eos_token_id), strict=True):
        assert torch.equal(a, b)


@given(st.integers(0, 10_000), st.integers(1, 60))
def test_split_keeps_every_row_once_and_the_limit(seed: int, max_tokens: int) -> None:
    groups = random_groups(seed)
    parts = split(groups, max_tokens)
    assert sorted(r.index for part in parts for group in part for r in group) == list(range(12))
    for part in parts:
        batch = pack(part)
        assert batch.input_ids_T.numel() <= max_tokens or len(batch.rows) == 1
        assert batch.target_N.numel() == sum(r.episode.num_sampled for r in batch.rows)
        assert batch.lengths_R.tolist() == [r.episode.num_sampled for r in batch.rows]
