from __future__ import annotations

import math

import pytest

from chatgrpo.jobs.early_stopping import Evaluation, Guards, decide
from chatgrpo.training.config import EarlyStopping


@pytest.mark.parametrize(
    ("history", "stops"),
    [
        ([], False),
        ([0.1], False),
        ([0.1, 0.2, 0.3], False),
        ([0.5, 0.4], False),
        ([0.5, 0.4, 0.3], True),
        ([0.5, 0.5, 0.5], True),
        ([0.5, 0.4, 0.6], False),
    ],
)
def test_patience_two(history: list[float], stops: bool) -> None:
    assert decide(history, EarlyStopping(patience=2)).stop is stops


def test_creeping_by_less_than_min_delta_is_no_progress() -> None:
    creeping = [0.50, 0.54, 0.58, 0.62]

    assert decide(creeping, EarlyStopping(patience=3, min_delta=0.2)).stop
    assert not decide(creeping, EarlyStopping(patience=3, min_delta=0.1)).stop


def test_the_reason_names_the_best() -> None:
    assert decide([0.2, 0.7, 0.6], EarlyStopping(patience=1, min_delta=0.01)).reason == (
        "held-out reward has not risen by more than 0.01 for 1 evaluation (best 0.7)"
    )


@pytest.mark.parametrize(
    ("point", "says"),
    [
        (Evaluation(step=4, reward=math.nan), "held-out reward is nan at step 4"),
        (Evaluation(step=4, reward=0.5, loss=math.inf), "loss is inf"),
        (Evaluation(step=4, reward=0.5, kl=0.9), "KL 0.9 exceeds 0.5"),
        (Evaluation(step=4, reward=0.5, entropy=0.01), "entropy 0.01 fell below 0.1"),
    ],
)
def test_divergence_ends_a_run_at_once(point: Evaluation, says: str) -> None:
    decision = decide([0.4, point], EarlyStopping(), guards=Guards(max_kl=0.5, min_entropy=0.1))

    assert decision.diverged
    assert decision.stop
    assert says in decision.reason


def test_a_policy_that_has_mastered_its_task_may_be_certain() -> None:
    sure = Evaluation(step=4, reward=0.95, entropy=0.01)

    assert not decide([0.4, sure], EarlyStopping(), guards=Guards(min_entropy=0.1)).stop
