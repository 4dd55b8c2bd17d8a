"""When a call is made again, and how long it waits."""

from __future__ import annotations

import random

import pytest

from chatgrpo.resilience.config import LadderConfig, RetryConfig
from chatgrpo.resilience.ladder import Rung, rung_of
from chatgrpo.resilience.retry import Failure, RetryBudget, delay_before_retry

CONFIG = RetryConfig(max_attempts=4, base_s=0.1, max_s=0.3, budget=0.25, reserve=2)


def failed(attempt: int = 1, *, is_retryable: bool = True, has_begun: bool = False, asked_s: float = 0.0) -> Failure:
    return Failure(attempt=attempt, is_retryable=is_retryable, has_begun=has_begun, retry_after_s=asked_s)


def waits(attempt: int) -> list[float]:
    rng = random.Random(0)
    found = [delay_before_retry(failed(attempt), CONFIG, budget_left=5, rng=rng) for _ in range(2000)]
    return [wait for wait in found if wait is not None]


@pytest.mark.parametrize(("attempt", "longest"), [(1, 0.1), (2, 0.2), (3, 0.3)])
def test_waits_are_drawn_from_zero_to_a_doubling_limit(attempt: int, longest: float) -> None:
    found = waits(attempt)
    assert len(found) == 2000
    assert 0 <= min(found) < 0.01 * longest
    assert 0.99 * longest < max(found) <= longest
    assert sum(found) / len(found) == pytest.approx(longest / 2, rel=0.05)


@pytest.mark.parametrize(
    ("failure", "budget_left"),
    [
        (failed(4), 5),
        (failed(has_begun=True), 5),
        (failed(is_retryable=False), 5),
        (failed(asked_s=0.4), 5),
        (failed(), 0.9),
    ],
    ids=["attempts", "begun", "useless", "asked for more time", "budget"],
)
def test_not_made_again(failure: Failure, budget_left: float) -> None:
    assert delay_before_retry(failure, CONFIG, budget_left=budget_left, rng=random.Random(0)) is None


def test_the_budget_bounds_the_extra_load() -> None:
    """An upstream that fails for everybody gets a quarter more calls, whatever `max_attempts`."""
    budget, num_retries = RetryBudget(CONFIG), 0
    for _ in range(1000):
        budget.called()
        for attempt in (1, 2, 3):
            if delay_before_retry(failed(attempt), CONFIG, budget_left=budget.left, rng=random.Random(0)) is None:
                break
            budget.spend()
            num_retries += 1
    assert num_retries == 251  # what was saved up at the start, and a quarter of the calls


def test_the_ladder() -> None:
    config = LadderConfig(max_replies=10, shed_training_at=0.7, degrade_at=0.9)
    rungs = [rung_of(n, config) for n in range(12)]
    assert rungs == [Rung.NORMAL] * 7 + [Rung.SHED_TRAINING] * 2 + [Rung.DEGRADE] + [Rung.REFUSE] * 2
