from __future__ import annotations

import pytest

from chatgrpo.jobs.early_stopping import decide
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
