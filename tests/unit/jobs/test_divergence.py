from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from chatgrpo.jobs.divergence import Verdict, judge
from chatgrpo.training.config import Divergence, TrainConfig

BOUNDS = Divergence(max_kl=0.5, min_entropy=0.1, patience=1)


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"loss": math.inf}, "loss is inf"),
        ({"eval_reward": math.nan}, "eval_reward is nan"),
        ({"steps_skipped": 1.0}, "the gradient is not finite"),
        ({"rows_trained": 8.0, "rows_nonfinite": 8.0}, "no episode has a finite loss"),
        ({"kl": 0.9}, "KL 0.9 exceeds 0.5"),
        ({"entropy": 0.01, "reward": 0.5}, "entropy 0.01 fell below 0.1"),
    ],
)
def test_what_counts_as_broken(metrics: dict[str, float], says: str) -> None:
    assert judge(metrics, BOUNDS, step=4, strikes=0) == Verdict(1, f"diverged: {says} at step 4")


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"loss": -3.0, "kl": 0.5, "entropy": 0.1, "reward": 0.0},
        {"rows_trained": 8.0, "rows_nonfinite": 1.0},
        {"rows_trained": 0.0, "rows_nonfinite": 0.0},
        {"entropy": 0.01, "reward": 0.95},
        {"reward": math.nan},
    ],
)
def test_what_does_not(metrics: dict[str, float]) -> None:
    assert judge(metrics, BOUNDS, step=4, strikes=2) == Verdict()


def test_bad_steps_count_only_in_a_row() -> None:
    config, strikes, verdicts = Divergence(max_kl=0.5, patience=3), 0, []
    for step, kl in enumerate([0.9, 0.9, 0.1, 0.9, 0.9, 0.9]):
        verdict = judge({"kl": kl}, config, step=step, strikes=strikes)
        strikes = verdict.strikes
        verdicts.append((strikes, bool(verdict.reason)))
    assert verdicts == [(1, False), (2, False), (0, False), (1, False), (2, False), (3, True)]


def test_a_bound_that_nothing_would_read_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"divergence\.max_kl: the KL is measured only with beta above 0"):
        TrainConfig(divergence=Divergence(max_kl=0.5))
    with pytest.raises(ValidationError, match=r"save_best_limit: 0 would delete"):
        TrainConfig(save_best_limit=0)
