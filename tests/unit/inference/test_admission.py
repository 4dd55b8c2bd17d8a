from __future__ import annotations

import pytest

from chatgrpo.inference.admission import AdmissionFacts, decide


@pytest.mark.parametrize(
    ("num_rows", "num_ready", "steps_waited", "patience", "joins"),
    [
        (0, 1, 0, 4, True),  # nobody is held up
        (32, 0, 9, 4, False),
        (32, 1, 0, 0, True),
        (32, 1, 3, 4, False),
        (32, 1, 4, 4, True),
        (32, 8, 0, 4, True),
        (32, 7, 0, 4, False),
        (3, 1, 0, 4, True),
    ],
)
def test_newcomers_wait_for_company_but_not_for_ever(
    num_rows: int, num_ready: int, steps_waited: int, patience: int, joins: bool
) -> None:
    assert decide(AdmissionFacts(num_rows, num_ready, steps_waited), patience) is joins
