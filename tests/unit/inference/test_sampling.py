from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.inference.sampling import sample

LOGITS = torch.tensor([[math.log(0.5), math.log(0.3), math.log(0.15), math.log(0.05)]])


def draw(uniform: float, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> tuple[int, float]:
    out = sample(
        LOGITS,
        temperature_N=torch.tensor([temperature]),
        top_p_N=torch.tensor([top_p]),
        top_k_N=torch.tensor([top_k]),
        uniform_N=torch.tensor([uniform]),
    )
    return int(out.tokens_N), float(out.logprobs_N)


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 0), (0.49, 0), (0.51, 1), (0.79, 1), (0.81, 2), (0.96, 3)])
def test_inverse_cdf(uniform: float, token: int) -> None:
    assert draw(uniform)[0] == token


@pytest.mark.parametrize("uniform", [0.0, 0.5, 0.999999])
def test_temperature_zero_is_greedy_with_the_logprob_of_temperature_one(uniform: float) -> None:
    assert draw(uniform, temperature=0.0) == (0, pytest.approx(math.log(0.5), abs=1e-6))


def test_temperature_divides_the_logits() -> None:
    # softmax(log p / 0.5) = p^2 / sum p^2 = 0.25 / 0.365
    assert draw(0.0, temperature=0.5)[1] == pytest.approx(math.log(0.25 / 0.365), abs=1e-5)


@pytest.mark.parametrize(
    ("restriction", "allowed"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.49}, {0}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.01}, {0}),
    ],
)
def test_restrictions_bound_what_is_drawn(restriction: dict[str, float], allowed: set[int]) -> None:
    drawn = {draw(u / 100, **restriction)[0] for u in range(100)}  # type: ignore[arg-type]
    assert drawn == allowed


def test_the_logprob_is_over_the_whole_vocabulary_even_when_restricted() -> None:
    assert draw(0.9, top_k=2) == (1, pytest.approx(math.log(0.3), abs=1e-6))


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=50), st.floats(0, 1, exclude_max=True))
def test_a_token_without_probability_is_never_drawn(values: list[float], uniform: float) -> None:
    logits = torch.tensor([[*values, -math.inf, -math.inf]])
    out = sample(
        logits,
        temperature_N=torch.ones(1),
        top_p_N=torch.ones(1),
        top_k_N=torch.zeros(1, dtype=torch.long),
        uniform_N=torch.tensor([uniform]),
    )
    assert int(out.tokens_N) < len(values)
    assert math.isfinite(float(out.logprobs_N))
